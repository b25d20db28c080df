"""Rows of the HDF5 file → batches on the device, in an order that depends on the seed and the step alone."""

from __future__ import annotations

import warnings
from collections import deque
from concurrent.futures import Future

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from began.device.threads import thread_pool

RESIDENT_SHARE = 0.5  # of the free memory of a CUDA device that the rows may take
PREFETCHED = 8  # batches that wait in pinned memory, gathered by as many threads: a cold disk serves many reads at once
MOST_PLANNED = 256  # steps that one `seek` may plan


class Batches:
    """An endless sequence of epochs, each a new permutation of all rows; here for the CPU.

    rows: (N, S, S, 3) uint8, typically a memory map; only the rows of a batch are touched. Batches run on over the
    end of an epoch, so every row is seen equally often. The order is a function of (seed, step): nothing to save.

    A step's batch takes three calls: `seek` now and then, `fetch` and `gather` for each step. `fetch` is the host's
    part. `gather` is the device's, the same operations on the same memory each time, so that a CUDA graph can hold it.
    """

    def __init__(self, rows: NDArray[np.uint8], batch_size: int, seed: int, device: torch.device) -> None:
        if batch_size > len(rows):
            raise ValueError(f"train.batch_size: {batch_size}, expected at most the {len(rows)} training rows")
        self.batch_size = batch_size
        self.device = device
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
            self._rows = torch.from_numpy(rows)
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._next = 0
        self._batch = torch.empty(0, dtype=torch.uint8)

    def seek(self, step: int, num: int) -> None:
        """The next `num` (at most MOST_PLANNED) batches are those from `step` on. Here the host may wait."""
        self._next = step

    def fetch(self) -> None:
        """The host's part of the next batch."""
        self._batch = self.rows(self._next)
        self._next += 1

    def gather(self) -> Tensor:
        """The device's part: x (B, 3, S, S), float32 in [−1, 1], channels last."""
        return pixels_to_input(self._batch)

    def rows(self, step: int) -> Tensor:
        """The rows (B, S, S, 3) uint8 of batch `step`, on the host, gathered in one call."""
        return self._rows.index_select(0, torch.from_numpy(self.indices(step)))

    def indices(self, step: int) -> NDArray[np.int64]:
        """The row numbers (B,) of batch `step`, counted from 0."""
        first = step * self.batch_size
        positions = np.arange(first, first + self.batch_size)
        epochs, offsets = np.divmod(positions, len(self._rows))
        indices = np.empty(self.batch_size, dtype=np.int64)
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


class ResidentBatches(Batches):
    """All rows on the device. The host sends row numbers when it seeks; from then on it has no part."""

    def __init__(self, rows: NDArray[np.uint8], batch_size: int, seed: int, device: torch.device) -> None:
        super().__init__(rows, batch_size, seed, device)
        self._on_device = self._rows.to(device)
        self._planned = torch.empty(MOST_PLANNED, batch_size, dtype=torch.int64, device=device)
        self._cursor = torch.zeros(1, dtype=torch.int64, device=device)

    def seek(self, step: int, num: int) -> None:
        planned = np.stack([self.indices(i) for i in range(step, step + num)])
        self._planned[:num].copy_(torch.from_numpy(planned))
        self._cursor.zero_()

    def fetch(self) -> None:
        pass

    def gather(self) -> Tensor:
        indices = self._planned.index_select(0, self._cursor).squeeze(0)
        self._cursor += 1
        return pixels_to_input(self._on_device.index_select(0, indices))


class PinnedBatches(Batches):
    """For a device that the rows do not fit on: gathered ahead of time into pinned memory, copied without waiting.

    A batch's pinned memory is free again when its copy is done; the host runs ahead by as many steps as it seeks.
    """

    def __init__(self, rows: NDArray[np.uint8], batch_size: int, seed: int, device: torch.device) -> None:
        super().__init__(rows, batch_size, seed, device)
        self._on_device = torch.empty((batch_size, *rows.shape[1:]), dtype=torch.uint8, device=device)
        self._threads = thread_pool(PREFETCHED)
        self._ahead: deque[Future[Tensor]] = deque()

    def seek(self, step: int, num: int) -> None:
        if step != self._next - len(self._ahead):
            self._ahead.clear()
            self._next = step

    def fetch(self) -> None:
        while len(self._ahead) < PREFETCHED:
            self._ahead.append(self._threads.submit(self._pinned, torch.from_numpy(self.indices(self._next))))
            self._next += 1
        # The allocator of pinned memory knows which copies are under way, and hands nothing out before they are done.
        self._on_device.copy_(self._ahead.popleft().result(), non_blocking=True)

    def gather(self) -> Tensor:
        return pixels_to_input(self._on_device)

    def _pinned(self, indices: Tensor) -> Tensor:
        shape = (self.batch_size, *self._rows.shape[1:])
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return torch.index_select(self._rows, 0, indices, out=batch)


def open_batches(rows: NDArray[np.uint8], batch_size: int, seed: int, device: torch.device) -> Batches:
    """Mapped rows for the CPU; on CUDA the rows live on the device if they fit into RESIDENT_SHARE of what is free."""
    if device.type != "cuda":
        return Batches(rows, batch_size, seed, device)
    free, _ = torch.cuda.mem_get_info(device)
    kind = ResidentBatches if rows.nbytes <= RESIDENT_SHARE * free else PinnedBatches
    return kind(rows, batch_size, seed, device)


def pixels_to_input(rows: Tensor) -> Tensor:
    """(B, S, S, 3) uint8 → (B, 3, S, S) float32 in [−1, 1], centred on zero; memory stays channels last."""
    return rows.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1


def output_to_pixels(images: Tensor) -> Tensor:
    """(B, 3, S, S) in [−1, 1], clipped → (B, S, S, 3) uint8, rounded to the nearest."""
    return (images.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
