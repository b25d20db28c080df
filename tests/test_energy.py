"""The energy distance against its definition, and what it is there for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from began.energy import energy_distance


def naive(a: Tensor, b: Tensor) -> float:
    """Of a (N, C) and b (M, C), pair by pair."""
    between = [(x - y).norm().item() for x in a for y in b]
    within_a, within_b = ([(x - y).norm().item() for x, y in itertools.permutations(s, 2)] for s in (a, b))
    mean_a, mean_b = sum(within_a) / len(within_a), sum(within_b) / len(within_b)
    return (2 * sum(between) / len(between) - mean_a - mean_b) / mean_b


@pytest.mark.parametrize("num", [2, 7])
def test_it_is_its_definition(num: int) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(1, num, 3).double(), torch.randn(1, 5, 3).double() + 1
    assert energy_distance(a, b).item() == pytest.approx(naive(a[0], b[0]), rel=1e-12)


def test_places_count_by_their_spread() -> None:
    """The mean over places is taken before the division: a place where nothing differs does not blow up."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3).double(), torch.randn(2, 4, 3).double()
    a[1], b[1] = 0.5, 0.5
    alone = energy_distance(a[:1], b[:1]).item()
    assert energy_distance(a, b).item() == pytest.approx(alone, rel=1e-12)


def test_it_does_not_depend_on_the_scale_and_its_divisor_gets_no_gradient() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(1, 4, 3).double(), torch.randn(1, 4, 3).double().requires_grad_()
    one, other = energy_distance(a, b), energy_distance(1000 * a, 1000 * b)
    assert one.item() == pytest.approx(other.item(), rel=1e-12)
    # With the divisor constant, the distance is homogeneous of degree 1: Euler's theorem gives it back.
    (of_b,) = torch.autograd.grad(one, b)
    (of_a,) = torch.autograd.grad(energy_distance(a.requires_grad_(), b), a)
    assert ((of_a * a).sum() + (of_b * b).sum()).item() == pytest.approx(one.item(), rel=1e-9)


def test_before_its_division_it_is_unbiased_for_two_vectors_of_each() -> None:
    """Over draws of one distribution its mean is 0, however few are drawn."""
    torch.manual_seed(0)
    draws = torch.randn(4000, 2, 1, 2, 8)
    found = torch.stack([energy_distance(a, b) * (b[0, 0] - b[0, 1]).norm() for a, b in draws])
    assert abs(found.mean()) < 4 * found.std() / len(found) ** 0.5
    assert found.std() > 0.05


def test_equal_vectors_leave_a_finite_gradient() -> None:
    """A collapsed generator, on images that do not differ."""
    a = torch.zeros(1, 4, 3, requires_grad=True)
    energy_distance(a, torch.zeros(1, 4, 3)).backward()
    assert a.grad is not None and a.grad.isfinite().all()


def test_images_that_do_not_differ_pull_at_nothing() -> None:
    a = torch.randn(1, 4, 3, requires_grad=True)
    found = energy_distance(a, torch.ones(1, 4, 3))
    found.backward()
    assert found == 0
    assert a.grad is not None and (a.grad == 0).all()


def test_it_leads_points_to_all_modes_of_a_distribution() -> None:
    torch.manual_seed(0)
    modes = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -3.0]])
    points = (0.1 * torch.randn(1, 64, 2)).requires_grad_()
    optimizer = torch.optim.Adam([points], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        energy_distance(points, modes[torch.randint(4, (1, 64))]).backward()
        optimizer.step()
    distances, nearest = torch.cdist(points[0].detach(), modes).min(dim=1)
    assert torch.bincount(nearest, minlength=4).min() >= 8
    assert distances.median() < 0.5
