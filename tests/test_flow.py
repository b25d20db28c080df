"""The normalising flow: an invertible map with the volume it says, which learns what a linear map cannot."""

from __future__ import annotations

import math

import pytest
import torch

from began.flow import Flow, disturbed
from began.networks import uniform_z


def trained_looking(N: int) -> Flow:
    """A flow in float64, rotations too, whose couplings do something."""
    torch.manual_seed(0)
    flow = Flow(N).double()
    for coupling in flow.couplings:
        torch.nn.init.orthogonal_(coupling.rotation)
        torch.nn.init.normal_(coupling.network[-1].weight, std=0.3)
        torch.nn.init.normal_(coupling.network[-1].bias, std=0.3)
    return flow.requires_grad_(False)


@pytest.mark.parametrize("N", [2, 5, 8])
def test_inverse_is_the_inverse(N):
    flow = trained_looking(N)
    z = uniform_z(100, N, torch.Generator().manual_seed(1)).double()
    u, _ = flow.inverse(flow(z))
    torch.testing.assert_close(torch.erf(u / math.sqrt(2)), z, rtol=1e-3, atol=1e-9)  # z shrinks by 2^-12
    assert (flow(z) - math.sqrt(2) * torch.erfinv(z)).abs().max() > 0.5


@pytest.mark.parametrize("N", [2, 5])
def test_the_volume_is_that_of_the_jacobian(N):
    """Against autograd's Jacobian, point by point."""
    flow = trained_looking(N)
    w = torch.randn(6, N, dtype=torch.float64)
    _, log_volume = flow.inverse(w)
    for point, ours in zip(w, log_volume, strict=True):
        jacobian = torch.func.jacrev(lambda v: flow.inverse(v[None])[0][0])(point)
        assert ours.item() == pytest.approx(torch.linalg.slogdet(jacobian).logabsdet.item(), rel=1e-10)


def test_the_loss_is_a_likelihood():
    """exp(−N·loss) with its constant, the density, is 1 in all over a grid of two dimensions."""
    flow = trained_looking(2)
    axis = torch.linspace(-30, 30, 801, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    u, log_volume = flow.inverse(points)
    density = (log_volume - u.square().sum(dim=1) / 2).exp() / (2 * math.pi)
    assert (density.sum() * (axis[1] - axis[0]) ** 2).item() == pytest.approx(1, abs=0.01)
    centre = len(points) // 2
    expected = (-density[centre].log() - math.log(2 * math.pi)).item() / 2
    assert flow.loss(points[centre : centre + 1]).item() == pytest.approx(expected)


def test_as_it_is_made_what_comes_out_is_normal():
    torch.manual_seed(0)
    w = Flow(6).requires_grad_(False)(uniform_z(200_000, 6, torch.Generator().manual_seed(2)))
    assert w.mean(dim=0).abs().max() < 0.02
    assert (torch.cov(w.T) - torch.eye(6)).abs().max() < 0.02
    assert ((w**4).mean(dim=0) - 3).abs().max() < 0.1


def test_the_ends_of_z_are_finite():
    flow = Flow(4)
    z = torch.tensor([[-1.0, 1.0, 0.0, 1.0]], requires_grad=True)
    w = flow(z)
    w.sum().backward()
    assert w.isfinite().all()
    assert z.grad.isfinite().all()


def test_embeddings_are_disturbed_by_a_tenth_of_their_spread_and_the_same_each_time():
    h = torch.randn(50, 3, generator=torch.Generator().manual_seed(4)) * torch.tensor([1.0, 10.0, 0.0]) + 5
    ours = disturbed(h, 5020, seed=1)
    assert ours.shape == (5000, 3)  # each a hundred times
    noise = ours - h.repeat(100, 1)
    assert (noise[:, :2].std(dim=0) / h[:, :2].std(dim=0, correction=0) - 0.1).abs().max() < 0.005
    assert noise[:, 2].abs().max() == 0
    assert torch.equal(ours, disturbed(h, 5020, seed=1)) and not torch.equal(ours, disturbed(h, 5020, seed=2))
    assert disturbed(h, 10, seed=1).shape == h.shape


def test_it_learns_two_clusters_with_nothing_between():
    """A linear map to the same mean and covariance leaves two fifths of its samples in the gap."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(3)
    w = torch.randn(4000, 4, generator=draw) * 0.1
    w[:, 0] += torch.where(torch.rand(4000, generator=draw) < 0.5, -1.0, 1.0)
    flow = Flow(4)
    adam = torch.optim.Adam(flow.parameters(), 2e-3)
    for _ in range(600):
        adam.zero_grad()
        flow.loss(w[torch.randint(4000, (256,), generator=draw)]).backward()
        adam.step()
    made = flow(uniform_z(4000, 4, draw)).detach()
    assert (made[:, 0].abs() < 0.5).double().mean() < 0.05
    assert abs((made[:, 0] > 0).double().mean() - 0.5) < 0.1
    assert made[:, 1:].std(dim=0).tolist() == pytest.approx(w[:, 1:].std(dim=0).tolist(), rel=0.3)
