"""Images embedded by optimising z."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from began.base.progress import Progress
from began.data.batches import output_to_pixels, pixels_to_input
from began.evaluation import inversion as embedding
from began.evaluation.inversion import embed
from began.gan.networks import Generator

HALF_A_LEVEL = 1 / 255  # of 255, where white is 1 and black −1


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    G = Generator(32, 8, 8, True)
    with torch.no_grad():
        G.last.weight /= 2  # within [−1, 1], as the pictures of a trained network
    return G


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return torch.rand(5, 8, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8


@pytest.fixture(scope="module")
def images(G: Generator, z: torch.Tensor) -> np.ndarray:
    return output_to_pixels(G(z).detach()).numpy()


def run(G: Generator, images: np.ndarray, num_steps: int = 60, seed: int = 0) -> torch.Tensor:
    generator = embed(G, images, seed, num_steps)
    while True:
        try:
            progress = next(generator)
            assert isinstance(progress, Progress) and progress.total is not None and progress.done <= progress.total
        except StopIteration as end:
            return end.value


def losses(G: Generator, z: torch.Tensor, images: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return (G(z) - pixels_to_input(torch.from_numpy(images))).abs().mean(dim=(1, 2, 3))


def test_images_of_the_generator_are_found_again(G: Generator, z: torch.Tensor, images: np.ndarray) -> None:
    found = run(G, images, num_steps=200)
    start = losses(G, run(G, images, num_steps=0), images)
    assert (start > 3 * HALF_A_LEVEL).all()
    assert (losses(G, found, images) < HALF_A_LEVEL).all()
    assert (found - z).abs().max() < 0.1


def test_more_steps_come_nearer(G: Generator, images: np.ndarray) -> None:
    few, many = (losses(G, run(G, images, num_steps), images).mean() for num_steps in (5, 80))
    assert many < few


def test_without_steps_it_is_the_nearest_of_the_random_z(G: Generator, images: np.ndarray) -> None:
    starts = embedding.draw_z(embedding.NUM_STARTS, 8, seed=3)
    expected = []
    for x in pixels_to_input(torch.from_numpy(images)):
        with torch.no_grad():
            expected.append(starts[(G(starts) - x).abs().sum(dim=(1, 2, 3)).argmin()])
    assert torch.equal(run(G, images, 0, 3), torch.stack(expected))


def test_z_stays_in_the_unit_cube(G: Generator) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    found = run(G, noise)
    assert found.shape == (3, 8) and found.abs().max() <= 1


def test_a_row_depends_on_its_own_image_only(G: Generator, images: np.ndarray) -> None:
    many = np.concatenate((images[::-1], images))[: embedding.BATCH_SIZE + 2]
    together = run(G, many)
    assert torch.equal(together[:5], run(G, images[::-1]))
    for i in (0, 3, len(many) - 1):
        assert torch.equal(together[i], run(G, many[i : i + 1])[0])


def test_only_z_gets_a_gradient_and_the_generator_stays(G: Generator, images: np.ndarray) -> None:
    before = {name: weight.clone() for name, weight in G.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = run(G, images)
    assert torch.equal(torch.rand(3), expected)
    assert not found.requires_grad
    assert all(weight.grad is None and weight.requires_grad for weight in G.parameters())
    assert all(torch.equal(before[name], weight) for name, weight in G.state_dict().items())


@torch.no_grad()
def test_it_works_where_gradients_are_off_and_gives_the_same_again(G: Generator, images: np.ndarray) -> None:
    assert torch.equal(run(G, images), run(G, images))
    assert not torch.is_grad_enabled()
