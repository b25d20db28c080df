"""Real images → the z whose G(z) is nearest, found by optimising z: the paper's way to interpolate between them."""

from __future__ import annotations

import math
from collections.abc import Generator as Yields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from began.batches import pixels_to_input
from began.flow import to_normal, to_uniform
from began.networks import Discriminator, Generator
from began.progress import Progress
from began.sampling import draw_z

NUM_STARTS = 256  # random z, of which each image takes the nearest, where D's embedding is no nearer
NUM_STEPS = 100
NEAR_RATE = 0.03  # of u = √2·erf⁻¹(z), whose deviation is 1, from D's embedding; falls to zero as a cosine
FAR_RATE = 0.1  # from a random z, which has further to go
BATCH_SIZE = 8
_STARTS_AT_ONCE = 64
_STEPS_AT_ONCE = 10  # between two reports of progress


def embed(
    G: Generator, D: Discriminator, images: NDArray[np.uint8], seed: int, num_steps: int = NUM_STEPS
) -> Yields[Progress, None, Tensor]:
    """Yields progress and returns z (N, N_h) in [−1, 1] that minimise mean |x − G(z)| for images x (N, S, S, 3).

    Adam, each image on its own, from what D's embedding of x comes to in z, or the nearest of NUM_STARTS random z where
    one is nearer: a row does not depend on the other images. Batches all have one size, so that not even their rounding
    differs. Only z gets a gradient, by way of a normal u, since behind a flow the ends of z are far apart; G stays as
    it is.
    """
    device = next(G.parameters()).device
    weights = {name: weight.detach() for name, weight in G.named_parameters()}
    x = pixels_to_input(torch.from_numpy(np.array(images)).to(device))
    found = _nearest(G, x, draw_z(NUM_STARTS, G.project.in_features, seed).to(device))
    num_batches = -(-len(x) // BATCH_SIZE)
    for i in range(num_batches):
        chosen = torch.arange(i * BATCH_SIZE, (i + 1) * BATCH_SIZE, device=device).clamp_max(len(x) - 1)
        start, rate = _start(G, x[chosen], found[chosen], _z_of_embedding(G, D, x[chosen]))
        moved = torch.zeros_like(start).requires_grad_()  # u = start + rate · moved: Adam has one rate for all rows
        optimizer = torch.optim.Adam([moved])
        for step in range(num_steps):
            if step % _STEPS_AT_ONCE == 0:
                yield Progress(i * num_steps + step, num_batches * num_steps, "steps")
            optimizer.param_groups[0]["lr"] = (1 + math.cos(math.pi * step / num_steps)) / 2
            with torch.enable_grad():
                output = functional_call(G, weights, (to_uniform(start + rate * moved),))
                distance = (output - x[chosen]).abs().mean(dim=(1, 2, 3)).sum()  # the sum: a row's gradient is its own
            optimizer.zero_grad()
            distance.backward()
            optimizer.step()
        found[chosen] = to_uniform((start + rate * moved).detach())
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


@torch.no_grad()
def _z_of_embedding(G: Generator, D: Discriminator, x: Tensor) -> Tensor:
    """The z (B, N_h) by which G's first layer gives what that of D's decoder gives for D's embeddings of x, nearly.

    So G(z) is near to D(x) where G began as D's decoder; elsewhere it is any z.
    """
    projected = (D.decoder.project(D.encoder(x)) - G.project.bias).double()
    w = torch.linalg.lstsq(G.project.weight.double(), projected.T).solution.T
    w = ((w * 2**12).round() / 2**12).to(x)  # the last digits depend on where in memory the linear algebra works
    return w.clamp(-1, 1) if G.flow is None else to_uniform(G.flow.inverse(w)[0])


@torch.no_grad()
def _start(G: Generator, x: Tensor, z: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row of `z` and `embedded` (B, N_h) the one whose G(z) is nearer to x, as u, and the rate from there."""
    distances, others = ((G(v).float() - x).abs().mean(dim=(1, 2, 3)) for v in (z, embedded))
    near = (others < distances)[:, None]  # not where `embedded` is not finite
    return to_normal(torch.where(near, embedded, z)), torch.where(near, NEAR_RATE, FAR_RATE)
