"""The learning rate: `cosine` makes it from the step, `plateau` from the course of M_global."""

from __future__ import annotations

import torch
from torch import Tensor

from began.params import TrainParams


def cosine(train: TrainParams, step: Tensor) -> Tensor:
    """The rate at `step`: it falls from `learning_rate` to `learning_rate_floor` over `decay_steps`.

    Paper: halves the rate when M_global stalls, as `plateau` does; here: a cosine too, because it suits short runs.
    """
    start, end = train.learning_rate, train.learning_rate_floor
    phase = (step / train.decay_steps).clamp(max=1) * torch.pi
    return end + (start - end) * (1 + torch.cos(phase)) / 2


def plateau(train: TrainParams, rate: Tensor, mean: Tensor, best: Tensor, scale: float) -> Tensor:
    """Returns `rate` if `mean`, of M_global over a window, is below that of the best window so far, else half of it.

    Paper: halves the rate "when the measure of convergence stalls"; here: never below a floor, which is
    `learning_rate_floor` times `scale`, because late collapses were seen without a floor.
    """
    halved = (rate / 2).clamp(min=train.learning_rate_floor * scale)
    return torch.where(mean < best, rate, halved)
