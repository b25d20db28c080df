"""The distance that is measured while a model trains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from began.data.batches import pixels_to_input
from began.evaluation import face_distance as distance
from began.evaluation.face_distance import FaceDistance
from began.evaluation.features import load_face_network
from began.evaluation.metrics import frechet_distance
from began.gan.networks import Generator
from began.gan.sampling import draw_z, generate

N_H = 8
ROWS = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    return Generator(32, n_filters=4, N_h=N_H, skip_connections=True)


@pytest.fixture(scope="module")
def of_all_rows() -> FaceDistance:
    return FaceDistance(ROWS, N_H, seed=3)


class Copier(nn.Module):
    """Returns images, one after the other, whatever z is."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.images = nn.Parameter(pixels_to_input(torch.from_numpy(images)))
        self.first = 0

    def forward(self, z: Tensor) -> Tensor:
        first = self.first
        self.first = (first + len(z)) % len(self.images)
        return self.images[first : first + len(z)]


def test_it_is_the_frechet_distance_of_samples_from_the_seeds_z_to_the_rows(G, of_all_rows):
    network = load_face_network()
    samples = np.concatenate(list(generate(G, draw_z(len(ROWS), N_H, seed=3))))
    expected = frechet_distance(network.compute(samples), network.compute(ROWS))
    assert of_all_rows.measure(G) == pytest.approx(expected, rel=1e-5)


def test_it_is_the_same_each_time_and_for_each_instance(G, of_all_rows):
    first = of_all_rows.measure(G)
    assert of_all_rows.measure(G) == first == FaceDistance(ROWS, N_H, seed=3).measure(G)
    assert float(f"{first:.6g}") == first


def test_the_rows_themselves_have_none_and_others_do(of_all_rows):
    assert of_all_rows.measure(Copier(ROWS)) < 1e-3
    assert of_all_rows.measure(Copier(255 - ROWS)) > 1


def test_measuring_leaves_generator_and_random_numbers_as_they_are(G, of_all_rows):
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}, torch.get_rng_state()
    of_all_rows.measure(G)
    assert torch.equal(torch.get_rng_state(), before[1])
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in G.state_dict().items())
    assert all(parameter.grad is None for parameter in G.parameters())


def test_of_more_rows_only_the_first_count(G, monkeypatch):
    monkeypatch.setattr(distance, "NUM_IMAGES", 12)
    assert FaceDistance(ROWS, N_H, seed=3).measure(G) == FaceDistance(ROWS[:12], N_H, seed=3).measure(G)


@pytest.mark.parametrize("num", [0, 1])
def test_fewer_than_two_rows_are_too_few(num):
    with pytest.raises(ValueError, match=rf"^{num} held-out images, expected at least 2$"):
        FaceDistance(ROWS[:num], N_H, seed=3)
