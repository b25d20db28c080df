"""The energy distance between two sets of vectors (Székely and Rizzo 2013): not in the paper.

It compares distributions: 0 where they are the same, and else it has a gradient that leads one to the other. Between
embeddings of real and generated images it keeps G from drawing one face for every z where a run is short, as Li,
Swersky and Zemel (2015) match the codes of an auto-encoder, and Bellemare et al. (2017) those of a critic.
"""

from __future__ import annotations

import torch
from torch import Tensor


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2·E|a − b| − E|a − a'| − E|b − b'|, over E|b − b'|, a scalar; for a (P, N, C) and b (P, M, C) the mean over P.

    Each of the P places has N vectors of one set and M of the other, at least two. Means are over pairs of different
    vectors, so that what is divided is unbiased however few there are, and may be negative. By its divisor it does not
    depend on the vectors' scale; no gradient goes through that. 0 where all b are alike, which sets no scale.
    """
    a, b = (vectors.to(torch.promote_types(vectors.dtype, torch.float32)) for vectors in (a, b))
    between, within_a, within_b = _distances(a, b).mean(dim=(1, 2)), _mean_of_pairs(a), _mean_of_pairs(b)
    spread = within_b.detach().mean()
    distance = (2 * between - within_a - within_b).mean() / spread.clamp(min=torch.finfo(a.dtype).tiny)
    return torch.where(spread > 0, distance, 0)


def _mean_of_pairs(vectors: Tensor) -> Tensor:
    num = vectors.shape[1]
    return _distances(vectors, vectors).sum(dim=(1, 2)) / (num * (num - 1))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Without the product of matrices: it would lose the digits of small distances.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
