"""The paper's equations against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from began.gan.equations import convergence, discriminator_loss, next_k_t, reconstruction_loss
from began.gan.step import scale_gradient


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(("eta", "expected"), [(1, 0.75), (2, 0.875)])
def test_reconstruction_loss_is_the_mean_of_the_error_to_the_power_eta(eta, expected):
    v = torch.tensor([[1.0, -1.0], [0.5, 0.0]]).view(1, 1, 2, 2)
    D_v = torch.tensor([[0.0, 0.5], [0.0, 0.0]]).view(1, 1, 2, 2)  # errors 1, 1.5, 0.5, 0
    assert reconstruction_loss(v, D_v, eta).item() == pytest.approx(expected)


def test_reconstruction_loss_is_of_each_image():
    v, D_v = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    D_v[1] = 0.5
    assert reconstruction_loss(v, D_v, eta=1).tolist() == [0, 0.5]


def test_reconstruction_loss_sends_a_gradient_through_both_sides():
    v = torch.full((1, 3, 2, 2), 0.5, requires_grad=True)
    D_v = torch.zeros(1, 3, 2, 2, requires_grad=True)
    reconstruction_loss(v, D_v, eta=1).mean().backward()
    torch.testing.assert_close(v.grad, torch.full_like(v, 1 / 12))
    torch.testing.assert_close(D_v.grad, torch.full_like(v, -1 / 12))


def test_discriminator_loss_by_hand():
    assert discriminator_loss(scalar(0.3), scalar(0.2), scalar(0.5)).item() == pytest.approx(0.2)


def test_k_t_follows_the_balance_by_hand():
    # k + λ(γ·L(x) − L(G(z))) = 0.1 + 0.01·(0.5·0.4 − 0.1) = 0.101
    assert next_k_t(scalar(0.1), scalar(0.4), scalar(0.1), gamma=0.5, lambda_k=0.01).item() == pytest.approx(0.101)


def test_k_t_stays_in_unit_interval():
    assert next_k_t(scalar(0.0), scalar(0.1), scalar(9.0), gamma=0.5, lambda_k=1.0).item() == 0
    assert next_k_t(scalar(0.9), scalar(9.0), scalar(0.1), gamma=0.5, lambda_k=1.0).item() == 1


def test_k_t_rests_at_equilibrium():
    # γ = L(G(z)) / L(x)
    assert next_k_t(scalar(0.3), scalar(0.2), scalar(0.1), gamma=0.5, lambda_k=0.7).item() == pytest.approx(0.3)


@pytest.mark.parametrize(("L_fake", "expected"), [(0.1, 0.3), (0.3, 0.3), (0.2, 0.2)])
def test_convergence_by_hand(L_fake, expected):
    # L(x) + |γ·L(x) − L(G(z))| with L(x) = 0.2 and γ = 1
    assert convergence(scalar(0.2), scalar(L_fake), gamma=1.0).item() == pytest.approx(expected)


def test_gamma_reaches_k_t_and_convergence():
    """artcg/BEGAN parsed --gamma, but it never reached the loss."""
    low, high = (next_k_t(scalar(0.1), scalar(0.4), scalar(0.1), gamma, 0.01) for gamma in (0.3, 0.7))
    assert low < high
    assert convergence(scalar(0.4), scalar(0.1), 0.3) != convergence(scalar(0.4), scalar(0.1), 0.7)


def test_convergence_stays_a_tensor_on_the_device():
    """artcg/BEGAN computed M with numpy on a tensor; PyTorch-GAN read `.data[0]` on every step."""
    assert isinstance(convergence(scalar(0.2), scalar(0.1), 0.5), torch.Tensor)


def test_scale_gradient_is_the_identity_forward_and_scales_backward():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = scale_gradient(x, torch.tensor(-0.25))
    assert torch.equal(y, x)
    y.sum().backward()
    assert x.grad.tolist() == [-0.25, -0.25]
