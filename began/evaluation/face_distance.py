"""A light distance for while a model trains: the same few images and the same z each time."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from began.evaluation.features import load_face_network
from began.evaluation.metrics import frechet_distance
from began.gan.networks import Generator
from began.gan.sampling import Pixels, draw_z, generate

NUM_IMAGES = 256  # of either kind: about 4 % of the quick profile's training
BATCH_SIZE = 64


class FaceDistance:
    """The Fréchet distance in face features between G(z), for one fixed z, and one fixed set of held-out images.

    Of so few images it is larger than that of many, and may be compared only with itself.
    """

    def __init__(self, held_out: Pixels, N_h: int, seed: int) -> None:
        """held_out: (N, S, S, 3), of which the first NUM_IMAGES are taken; z is as `draw_z` has it for `seed`.

        ValueError with fewer than 2 rows, or where the network's weights are not there or are others.
        """
        rows = held_out[:NUM_IMAGES]
        if len(rows) < 2:
            raise ValueError(f"{len(rows)} held-out images, expected at least 2")
        self._network = load_face_network()
        self._z = draw_z(len(rows), N_h, seed)
        self._real = self._features(rows[i : i + BATCH_SIZE] for i in range(0, len(rows), BATCH_SIZE))

    def measure(self, G: Generator) -> float:
        """Of `G` as it is, with six digits: those behind them depend on where in memory the linear algebra works."""
        fake = self._features(generate(G, self._z, BATCH_SIZE))
        return float(f"{frechet_distance(fake, self._real):.6g}")

    def _features(self, batches: Iterable[Pixels]) -> np.ndarray:
        return np.concatenate([self._network.compute(batch) for batch in batches])
