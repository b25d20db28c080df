"""When a run goes wrong: at once, or while its losses still look well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

K_T_GRACE_STEPS = 1000  # k_0 = 0 is a bound, and k_t may stay there until G catches up
STEPS_AT_BOUND = 1000
COLLAPSE_GRACE_STEPS = 1000  # at first G(z) is nearly the same grey for every z
# At step 1,024 of the quick profile: 0.04 for γ 0.4, which ends in nearly one face, and 0.29 for plain images
# (`download.clutter` 0), which draw little but blurs; 0.54 for γ 0.7 and 0.72 for γ 0.9, which draw different faces.
COLLAPSED_SHARE = 1 / 3
FAR_ABOVE_BEST = 3.0
EXPLODED = 10.0  # times its best: told at once, even where the loss comes back
FEWEST_FAR_STEPS = 32  # single steps of small batches are noisy
MOST_FAR_STEPS = 5000  # no state is saved meanwhile


class DivergedError(ValueError):
    """A loss or a weight is no longer finite, or a loss is far above its best for long.

    last_good: the last step before that, where it is known; states of later steps are of no use.
    """

    def __init__(self, words: str, last_good: int | None = None) -> None:
        super().__init__(words)
        self.last_good = last_good


def last_near(steps: Sequence[float], losses: Sequence[float]) -> int:
    """The last step at which the loss was at most FAR_ABOVE_BEST times its best record up to then; 0 before the first.

    steps, losses: one of each a record, in the order of the steps; the losses are L(x) or M_global, which start high
    and fall. In the runs whose weights ship, neither was ever above 1.6 times its best record before.
    """
    best, near = float("inf"), 0.0
    for step, loss in zip(steps, losses, strict=True):
        best = min(best, loss)
        if loss <= FAR_ABOVE_BEST * best:
            near = step
    return int(near)


def is_too_long(num_far: int, num_steps: int) -> bool:
    """Whether a loss that was far above its best for num_far steps, of a run of num_steps, has diverged."""
    return num_far >= max(min(num_steps / 8, MOST_FAR_STEPS), FEWEST_FAR_STEPS)


def warn_of_k_t(step: int, steps_at_bound: int) -> str | None:
    """Words about a k_t that no longer balances the players, or None.

    steps_at_bound: the longest time, in steps up to `step`, for which k_t was 0 or 1 without a break. The first
    K_T_GRACE_STEPS do not count.
    """
    if steps_at_bound < STEPS_AT_BOUND:
        return None
    return (
        f"at step {step:,} k_t had been 0 or 1 for {steps_at_bound:,} steps on end: it does not balance the players; "
        "another gamma or lambda_k may help"
    )


def warn_of_collapse(step: int, samples: NDArray[np.uint8], images: NDArray[np.uint8]) -> str | None:
    """Words about samples (N, S, S, 3) that are far more alike than images (M, S, S, 3), or None.

    Compared are the mean standard deviations of a pixel over N and over M.
    """
    spread, wanted = samples.std(axis=0).mean(), images.std(axis=0).mean()
    if step < COLLAPSE_GRACE_STEPS or spread >= COLLAPSED_SHARE * wanted:
        return None
    return (
        f"at step {step:,} samples varied {spread / wanted:.2f} times as much as images do, expected at least "
        f"{COLLAPSED_SHARE:.2f}: the generator draws nearly one image, and has collapsed if that lasts. A higher gamma "
        "may help, or more varied images: gamma below 1 asks for samples that are easier to reconstruct than images "
        "are, and flat images leave no room for that"
    )
