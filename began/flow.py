"""A normalising flow from z to D's embeddings: not in the paper.

An invertible map of affine couplings (RealNVP: Dinh, Sohl-Dickstein and Bengio 2017), which learns by maximum
likelihood what distribution the embeddings of real images have. Where G starts as D's decoder, it stands before that: a
linear map of z has their mean and covariance only, so that between two faces lie mixtures of both
(docs/quick-profile.md).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

NUM_COUPLINGS = 8
HIDDEN = 4  # width of a coupling's two hidden layers, in N_h
BATCH_SIZE = 256  # embeddings a step
NOISE = 0.1  # on each of them, in their standard deviations: without any, the flow learns the images by heart
LEARNING_RATE = 2e-3  # falls to 0 as a cosine
_MOST_LOG_SCALE = 1.5
_SHRINK = 1 - 2.0**-12  # of z, to 3.7 standard deviations of u at most: erf⁻¹(±1) is infinite


def disturbed(h: Tensor, num: int, seed: int) -> Tensor:
    """Embeddings h (N, N_h) with noise, each as often as `num` holds N, at least once; the same for the same seed."""
    h = h.repeat(max(1, num // len(h)), 1)
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(seed)).to(h)
    return h + NOISE * h.std(dim=0, correction=0) * noise


def to_normal(z: Tensor) -> Tensor:
    """z, uniform in [−1, 1], → u, normal: u = √2·erf⁻¹(z), up to 3.7 either way."""
    return math.sqrt(2) * torch.erfinv(_SHRINK * z)


def to_uniform(u: Tensor) -> Tensor:
    """u, normal, → z, uniform in [−1, 1]: the other way."""
    return torch.erf(u / math.sqrt(2))


class Flow(nn.Module):
    """z (B, N), uniform in [−1, 1], → w (B, N): embeddings whose mean is 0 and whose covariance is 1.

    Through u, which is normal (`to_normal`), and couplings. As it is made, these only rotate, and w is normal.
    """

    def __init__(self, N: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(N) for _ in range(NUM_COUPLINGS))

    def forward(self, z: Tensor) -> Tensor:
        w = to_normal(z)
        for coupling in self._couplings():
            w = coupling(w)
        return w

    def inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """w (B, N) → (u, log |∂u/∂w|), (B, N) and (B,)."""
        u, log_volume = w, w.new_zeros(len(w))
        for coupling in reversed(self._couplings()):
            u, log_scale = coupling.inverse(u)
            log_volume = log_volume - log_scale
        return u, log_volume

    def loss(self, w: Tensor) -> Tensor:
        """−log p(w), the mean over w (B, N), per dimension and without its constant: a scalar."""
        u, log_volume = self.inverse(w)
        return (u.square().sum(dim=1) / 2 - log_volume).mean() / w.shape[1]

    def _couplings(self) -> list[Coupling]:
        return cast(list[Coupling], list(self.couplings))


class Coupling(nn.Module):
    """(a, b) → (a, b·exp(s(a)) + t(a)) for the two halves of a vector (B, N), |s| below 1.5, and then a rotation.

    The rotation, as it is drawn, is what makes other halves of them for the next coupling.
    """

    rotation: Tensor

    def __init__(self, N: int) -> None:
        super().__init__()
        self.num_kept = N // 2
        width = HIDDEN * N
        last = nn.Linear(width, 2 * (N - self.num_kept))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(self.num_kept, width), nn.ELU(), nn.Linear(width, width), nn.ELU(), last)
        self.register_buffer("rotation", nn.init.orthogonal_(torch.empty(N, N)))

    def forward(self, v: Tensor) -> Tensor:
        a, b = v.tensor_split([self.num_kept], dim=1)
        s, t = self._scale_and_shift(a)
        return torch.cat((a, b * s.exp() + t), dim=1) @ self.rotation

    def inverse(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse, and the sum of s(a), (B,)."""
        a, b = (v @ self.rotation.T).tensor_split([self.num_kept], dim=1)
        s, t = self._scale_and_shift(a)
        return torch.cat((a, (b - t) * (-s).exp()), dim=1), s.sum(dim=1)

    def _scale_and_shift(self, a: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.network(a).chunk(2, dim=1)
        return _MOST_LOG_SCALE * torch.tanh(s / _MOST_LOG_SCALE), t
