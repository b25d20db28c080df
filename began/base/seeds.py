"""One seed in params.yaml, a stream of random numbers for each purpose."""

from __future__ import annotations

import hashlib
from typing import Literal


def derive_seed(seed: int, purpose: Literal["weights", "training z", "samples"]) -> int:
    """A seed in [0, 2^63) for one purpose: streams of different purposes have nothing in common.

    With one seed for all, the z of the first sample grid were the very numbers that the generator's first layer had
    been initialised with, so that each z excited its own unit.
    """
    digest = hashlib.sha256(f"{purpose}, {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
