"""Signs that a run goes wrong: in its losses, in k_t, or in samples while the losses still look well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

K_T_GRACE_STEPS = 1000  # k_t starts at a bound, k_0 = 0, and may stay there until G catches up
STEPS_AT_BOUND = 1000
COLLAPSE_GRACE_STEPS = 1000  # at first G(z) is nearly the same grey image for every z
# The share was measured at step 1,024 of the quick profile. It was 0.04 for γ 0.4, which ends in nearly one face, and
# 0.29 for plain images (`download.clutter` 0), which end in little more than blurs. It was 0.54 for γ 0.7 and 0.72 for
# γ 0.9, which end in different faces.
COLLAPSED_SHARE = 1 / 3
FAR_ABOVE_BEST = 3.0
EXPLODED = 10.0  # times its best: this is told at once, even if the loss comes back
FEWEST_FAR_STEPS = 32  # single steps of small batches are noisy
MOST_FAR_STEPS = 5000  # no state is saved during them


class DivergedError(ValueError):
    """A loss or a weight is no longer finite, or a loss has been far above its best for a long time.

    last_good: the last step before that, if it is known. States of later steps are of no use.
    """

    def __init__(self, words: str, last_good: int | None = None) -> None:
        super().__init__(words)
        self.last_good = last_good


class LossWatch:
    """Says how far a loss is above its best. The loss is L(x) or M_global: both start high and fall.

    In the runs whose weights ship, neither was ever above 1.6 times the best of the records before.
    """

    def __init__(self) -> None:
        self.best = float("inf")
        self.last_near = 0  # the last step at which the loss was at most FAR_ABOVE_BEST times its best up to then
        self._is_far = False
        self._loss = 0.0

    def add(self, step: int, loss: float) -> None:
        """Takes the next record: its step and the loss there."""
        self.best = min(self.best, loss)
        self._loss = loss
        self._is_far = loss > FAR_ABOVE_BEST * self.best
        if not self._is_far:
            self.last_near = step

    @property
    def is_far(self) -> bool:
        """Whether the last record is far above the best."""
        return self._is_far

    @property
    def has_exploded(self) -> bool:
        """Whether the last record is so far above the best that the user is told at once."""
        return self._loss > EXPLODED * self.best


def is_too_long(num_far: int, num_steps: int) -> bool:
    """Whether a loss that was far above its best for `num_far` steps of a run of `num_steps` has diverged."""
    return num_far >= max(min(num_steps / 8, MOST_FAR_STEPS), FEWEST_FAR_STEPS)


def warn_of_k_t(step: int, steps_at_bound: int) -> str | None:
    """Returns a warning if k_t no longer balances the players, else None.

    steps_at_bound: the largest number of steps on end, up to `step`, for which k_t was 0 or 1. The first
    K_T_GRACE_STEPS do not count.
    """
    if steps_at_bound < STEPS_AT_BOUND:
        return None
    return (
        f"at step {step:,} k_t had been 0 or 1 for {steps_at_bound:,} steps on end: it does not balance the players; "
        "another gamma or lambda_k may help"
    )


def warn_of_collapse(step: int, samples: NDArray[np.uint8], images: NDArray[np.uint8]) -> str | None:
    """Returns a warning if samples (N, S, S, 3) are far more alike than images (M, S, S, 3), else None.

    It compares the standard deviation of a pixel over the N samples with that over the M images, each as a mean over
    all pixels.
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
