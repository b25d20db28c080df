"""Samples, interpolations and reconstructions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from began.data.batches import pixels_to_input
from began.gan.networks import Discriminator, Generator
from began.gan.sampling import draw_z, generate, interpolate, reconstruct, reconstruction_loss


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    return Generator(32, 4, 8, True).requires_grad_(False)


@pytest.fixture(scope="module")
def D():
    torch.manual_seed(0)
    return Discriminator(32, 4, 8, True).requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)


def test_z_is_uniform_in_the_unit_cube():
    z = draw_z(20_000, 4, seed=1)
    assert z.shape == (20_000, 4)
    assert z.min() >= -1 and z.max() <= 1
    assert z.mean().abs() < 0.02 and (z.var() - 1 / 3).abs() < 0.01


def test_more_samples_begin_with_the_same_ones():
    assert torch.equal(draw_z(100, 64, seed=1)[:7], draw_z(7, 64, seed=1))
    assert not torch.equal(draw_z(7, 64, seed=1), draw_z(7, 64, seed=2))


def test_generate_gives_pixels_whatever_the_batch_size(G):
    z = draw_z(10, 8, seed=0)
    together, apart = (np.concatenate(list(generate(G, z, batch_size))) for batch_size in (10, 3))
    assert together.shape == (10, 32, 32, 3) and together.dtype == np.uint8
    # Another batch size may sum in another order: one grey level at most, at a rounding edge.
    assert np.abs(together.astype(int) - apart).max() <= 1


def test_interpolation_is_a_straight_line_with_its_ends():
    a, b = draw_z(2, 8, seed=0)
    line = interpolate(a, b, 5)
    assert line.shape == (5, 8)
    torch.testing.assert_close(line[0], a)
    torch.testing.assert_close(line[-1], b)
    torch.testing.assert_close(line[2], (a + b) / 2)


def test_reconstructions_are_the_discriminators_output(D, images):
    pixels = reconstruct(D, images)
    assert pixels.shape == images.shape and pixels.dtype == np.uint8
    expected = D(pixels_to_input(torch.from_numpy(images))).clamp(-1, 1)
    assert (pixels_to_input(torch.from_numpy(pixels)) - expected).abs().max() <= 1 / 255 + 1e-4


@pytest.mark.parametrize("eta", [1, 2])
@pytest.mark.parametrize("batch_size", [7, 3])
def test_reconstruction_loss_is_the_mean_over_images_whatever_the_batch_size(D, images, eta, batch_size):
    v = pixels_to_input(torch.from_numpy(images))
    expected = ((v.double() - D(v).double()).abs() ** eta).mean().item()
    assert reconstruction_loss(D, images, eta, batch_size) == pytest.approx(expected, rel=1e-6)
