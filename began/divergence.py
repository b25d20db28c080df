"""When a run goes wrong: at once, or while its losses still look well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

K_T_WARM_UP = 1000  # steps: k_0 = 0 is a bound, and k_t may stay there until G catches up
STEPS_AT_BOUND = 1000
COLLAPSE_WARM_UP = 1000  # steps; at first G(z) is nearly the same grey for every z
COLLAPSED_SHARE = 0.1  # a run that ended as one face 64 times had 0.06, one with 64 different ones 0.20
LOST_WINDOW = 64  # steps of D alone over which L(x) is averaged
LOST_FACTOR = 4  # runs that lost D alone went from 0.03 to 0.33 and more; noise and batches move it by a tenth


class DivergedError(ValueError):
    """A number that is not finite, or a D alone that reconstructs far worse than it did.

    good_until: a state of a later step may already hold what went wrong; None where a state that was saved is good.
    """

    def __init__(self, words: str, good_until: int | None = None) -> None:
        super().__init__(words)
        self.good_until = good_until


def warn_of_k_t(step: int, steps_at_bound: int) -> str | None:
    """Words about a k_t that no longer balances the players, or None.

    steps_at_bound: the most steps on end, up to `step`, for which k_t was 0 or 1; those before K_T_WARM_UP not counted.
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
    if step < COLLAPSE_WARM_UP or spread >= COLLAPSED_SHARE * wanted:
        return None
    share = spread / wanted
    return (
        f"at step {step:,} samples varied {share:.2f} times as much as images do (expected {COLLAPSED_SHARE}): the "
        "generator has collapsed or all but; a larger train.lambda_e may help"
    )
