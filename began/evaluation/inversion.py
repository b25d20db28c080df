"""Real images → the z whose G(z) is nearest, found by optimising z: the paper's way to interpolate between them."""

from __future__ import annotations

import math
from collections.abc import Generator as Yields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from began.base.progress import Progress
from began.data.batches import pixels_to_input
from began.gan.networks import Generator
from began.gan.sampling import draw_z

NUM_STARTS = 256  # random z, of which each image takes the nearest
NUM_STEPS = 100
LEARNING_RATE = 0.1  # falls to zero as a cosine
BATCH_SIZE = 8
_STARTS_AT_ONCE = 64
_STEPS_AT_ONCE = 10  # between two reports of progress


def embed(
    G: Generator, images: NDArray[np.uint8], seed: int, num_steps: int = NUM_STEPS
) -> Yields[Progress, None, Tensor]:
    """Yields progress and returns z (N, N_h) in [−1, 1] that minimise mean |x − G(z)| for images x (N, S, S, 3).

    Adam, each image on its own, from the nearest of NUM_STARTS random z: a row does not depend on the other images.
    Batches all have one size, so that not even their rounding differs. Only z gets a gradient; G stays as it is.
    """
    device = next(G.parameters()).device
    weights = {name: weight.detach() for name, weight in G.named_parameters()}
    x = pixels_to_input(torch.from_numpy(np.array(images)).to(device))
    found = _nearest(G, x, draw_z(NUM_STARTS, G.project.in_features, seed).to(device))
    num_batches = -(-len(x) // BATCH_SIZE)
    for i in range(num_batches):
        chosen = torch.arange(i * BATCH_SIZE, (i + 1) * BATCH_SIZE, device=device).clamp_max(len(x) - 1)
        z = found[chosen].requires_grad_()
        optimizer = torch.optim.Adam([z])
        for step in range(num_steps):
            if step % _STEPS_AT_ONCE == 0:
                yield Progress(i * num_steps + step, num_batches * num_steps, "steps")
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * step / num_steps)) / 2
            with torch.enable_grad():
                output = functional_call(G, weights, (z,))
                distance = (output - x[chosen]).abs().mean(dim=(1, 2, 3)).sum()  # the sum: a row's gradient is its own
            optimizer.zero_grad()
            distance.backward()
            optimizer.step()
            z.detach().clamp_(-1, 1)
        found[chosen] = z.detach()
    yield Progress(num_batches * num_steps, num_batches * num_steps, "steps")
    return found.cpu()


@torch.no_grad()
def _nearest(G: Generator, x: Tensor, starts: Tensor) -> Tensor:
    """Of `starts` (M, N_h) the one for each image x (N, 3, S, S) whose G(z) is nearest: (N, N_h)."""
    best = torch.full((len(x),), math.inf, device=x.device)
    found = torch.empty(len(x), starts.shape[1], device=x.device)
    for first in range(0, len(starts), _STARTS_AT_ONCE):
        part = starts[first : first + _STARTS_AT_ONCE]
        distances, nearest = torch.cdist(x.flatten(1), G(part).float().flatten(1), p=1).min(dim=1)
        found = torch.where((distances < best)[:, None], part[nearest], found)
        best = torch.minimum(best, distances)
    return found
