"""What a trained model makes: samples, interpolations and reconstructions. Pixels are uint8, (N, S, S, 3)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from began.base.seeds import derive_seed
from began.data.batches import output_to_pixels, pixels_to_input
from began.gan import equations
from began.gan.networks import Discriminator, Generator, uniform_z

Pixels = NDArray[np.uint8]


def draw_z(num: int, N_h: int, seed: int) -> Tensor:
    """Draws z (num, N_h), uniform in [−1, 1]. The same seed gives the same z; the first rows do not depend on `num`."""
    return uniform_z(num, N_h, torch.Generator().manual_seed(derive_seed(seed, "samples")))


@torch.no_grad()
def generate(G: Generator, z: Tensor, batch_size: int = 100) -> Iterator[Pixels]:
    """Yields G(z) for z (N, N_h) in batches (B, S, S, 3) of up to `batch_size`, computed on the generator's device."""
    device = next(G.parameters()).device
    for first in range(0, len(z), batch_size):
        yield output_to_pixels(G(z[first : first + batch_size].to(device))).cpu().numpy()


@torch.no_grad()
def reconstruct(D: Discriminator, images: Pixels) -> Pixels:
    """D(v) for images v (N, S, S, 3)."""
    device = next(D.parameters()).device
    return output_to_pixels(D(pixels_to_input(torch.from_numpy(np.array(images)).to(device)))).cpu().numpy()


@torch.no_grad()
def reconstruction_loss(D: Discriminator, images: Pixels, eta: int, batch_size: int = 100) -> float:
    """The mean of L(v) over images (N, S, S, 3), as in `equations.reconstruction_loss`, with v in [−1, 1]."""
    device = next(D.parameters()).device
    total = 0.0
    for first in range(0, len(images), batch_size):
        v = pixels_to_input(torch.from_numpy(np.array(images[first : first + batch_size])).to(device))
        total += equations.reconstruction_loss(v, D(v), eta).cpu().double().sum().item()
    return total / len(images)


def interpolate(z_a: Tensor, z_b: Tensor, num: int) -> Tensor:
    """`num` points (num, N_h) on the line from z_a (N_h,) to z_b (N_h,), both included. The line stays in [−1, 1]."""
    return torch.lerp(z_a, z_b, torch.linspace(0, 1, num)[:, None])
