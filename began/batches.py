"""Rows of the HDF5 file → batches on the device, in an order that depends on the seed and the step alone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Batches:
    """Batch `step` of an endless sequence of epochs, each a new permutation of all rows.

    rows: (N, S, S, 3) uint8, typically a memory map; only the rows of a batch are touched. Batches run on over the
    end of an epoch, so every row is seen equally often. The order is a function of (seed, step): nothing to save.
    """

    def __init__(self, rows: NDArray[np.uint8], batch_size: int, seed: int, device: torch.device) -> None:
        if batch_size > len(rows):
            raise ValueError(f"train.batch_size: {batch_size}, expected at most the {len(rows)} training rows")
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, step: int) -> Tensor:
        """x (B, 3, S, S), float32 in [−1, 1], channels last."""
        return pixels_to_input(torch.from_numpy(self.rows(step)).to(self._device, non_blocking=True))

    def rows(self, step: int) -> NDArray[np.uint8]:
        """The rows (B, S, S, 3) of batch `step`, gathered in one call."""
        return self._rows[self.indices(step)]

    def indices(self, step: int) -> NDArray[np.int64]:
        """The row numbers (B,) of batch `step`, counted from 0."""
        first = step * self._batch_size
        positions = np.arange(first, first + self._batch_size)
        epochs, offsets = np.divmod(positions, len(self._rows))
        indices = np.empty(self._batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            indices[inside] = self._permutation(int(epoch))[offsets[inside]]
        return indices

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, epoch))))
            self._order = generator.permutation(len(self._rows))
            self._epoch = epoch
        return self._order


def pixels_to_input(rows: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 → (B, 3, S, S) float32 in [−1, 1], centred on zero; memory stays channels last."""
    return rows.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def output_to_pixels(images: Tensor) -> Tensor:
    """(B, 3, S, S) in [−1, 1], clipped → (B, S, S, 3) uint8, rounded to the nearest."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
