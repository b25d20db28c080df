"""Batches of rows from the HDF5 file: ours, h5py's indexing, and plain memory; and memory on a large file.

    python -m benchmarks.read_batches [--limit MIB] [--quick]

Rates are of the same number of random batches, drawn in turn, the median over the rounds; an epoch of each comes first,
so that every page is there. "cold" means that the file's pages were dropped from the cache before each round, and the
disk's own rate is reads of single rows in the same order by as many bytes.

Memory is that of training: a process of its own trains a tiny network on a file of MIB and on one four times as large,
and its RssAnon is sampled. Every row is drawn once; one batch in DRAWN is trained on, since all would take minutes.
Mapped pages do not count: they are the cache's, which the system takes back when memory is short. A ratio of 1 means
that memory does not grow with the file.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from began.data.batches import Batches
from began.data.rows import ImageWriter, open_images
from began.gan.loop import train
from began.gan.training import Training
from began.params import load_params
from benchmarks.memory import peak_rss_anon
from benchmarks.report import FOLDER, Row, print_table, write

IMAGE_SIZE = 64
ROW_BYTES = IMAGE_SIZE * IMAGE_SIZE * 3
BATCH_SIZE = 64
NUM_ROWS = 50_000
NUM_BATCHES = 400
NUM_ROUNDS = 30
NUM_COLD_ROUNDS = 5
DRAWN = 16
BLOCK = 1000
CPU = torch.device("cpu")


def make_file(path: Path, num_rows: int) -> Path:
    """A data file of noise."""
    draw = np.random.default_rng(0)
    with ImageWriter(path, IMAGE_SIZE, num_rows) as writer:
        for first in range(0, num_rows, BLOCK):
            shape = (min(BLOCK, num_rows - first), IMAGE_SIZE, IMAGE_SIZE, 3)
            writer.append(draw.integers(0, 256, shape, dtype=np.uint8))
        writer.finish(map(str, range(num_rows)), num_rows - 1, {"source": "benchmark"})
    return path


def drop_from_cache(path: Path) -> None:
    """Asks the system to forget the file's pages (written ones only, hence the fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


class ThinnedBatches(Batches):
    """Draws DRAWN batches for each step, and hands over the last one."""

    def seek(self, step: int, num: int) -> None:
        super().seek(step * DRAWN, num)

    def fetch(self) -> None:
        for _ in range(DRAWN):
            super().fetch()


def train_an_epoch(path: Path) -> None:
    """Trains a tiny network as the stage does, until every training row was drawn once."""
    rows = open_images(path).train
    changes = {
        "n_filters": 4,
        "N_h": 8,
        "skip_connections": False,
        "vanishing_residual_steps": 0,
        "batch_size": BATCH_SIZE,
        "num_steps": max(1, len(rows) // (BATCH_SIZE * DRAWN)),
        "precision": "float32",
    }
    params = load_params(FOLDER.parent / "params.yaml")
    params = params.model_copy(update={"train": params.train.model_copy(update=changes)})
    training = Training(params, IMAGE_SIZE, CPU)
    for _ in train(training, ThinnedBatches(rows, BATCH_SIZE, 0, CPU), record_every=10):
        pass


def rates(path: Path, num_batches: int) -> list[Row]:
    """Images a second of each way to read, and its ratio to plain memory or to the disk."""
    mapped = open_images(path).train
    file = h5py.File(path, "r")
    ways = {
        "ours, mapped rows": Batches(mapped, BATCH_SIZE, 0, CPU).rows,
        "plain memory": Batches(np.array(mapped), BATCH_SIZE, 0, CPU).rows,
    }
    order = Batches(mapped, BATCH_SIZE, 0, CPU).indices
    with file:
        images = file["images"]
        ways["h5py indexing"] = lambda step: images[np.sort(order(step))]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        epoch = len(mapped) // BATCH_SIZE
        for name in ("ours, mapped rows", "plain memory"):
            _seconds(ways[name], range(epoch))
        for round_ in range(NUM_ROUNDS):
            first = epoch + round_ * num_batches
            # The other way round every second time, so that none always comes after the slow one.
            for name in list(ways)[:: -1 if round_ % 2 else 1]:
                few = num_batches // 20 if name == "h5py indexing" else num_batches
                seconds[name].append(_seconds(ways[name], range(first, first + few)) / few)
    plain = seconds["plain memory"]
    table = [
        row(
            name,
            images_per_second=BATCH_SIZE / statistics.median(measured),
            ratio=statistics.median(p / m for p, m in zip(plain, measured, strict=True)),
            ratio_to="plain memory",
        )
        for name, measured in seconds.items()
    ]
    return table + cold_rates(path, num_batches // 10)


def cold_rates(path: Path, num_batches: int) -> list[Row]:
    """The same with nothing of the file in the cache: ours, and one read of a row's bytes after another."""
    ours, disk = [], []
    for round_ in range(NUM_COLD_ROUNDS):
        steps = range(round_ * num_batches, (round_ + 1) * num_batches)
        drop_from_cache(path)
        disk.append(_seconds(_single_reads(path), steps) / num_batches)
        drop_from_cache(path)  # which keeps pages that are mapped, so each round maps anew
        ours.append(_seconds(Batches(open_images(path).train, BATCH_SIZE, 0, CPU).rows, steps) / num_batches)
    return [
        row(
            name,
            images_per_second=BATCH_SIZE / statistics.median(measured),
            ratio=statistics.median(d / m for d, m in zip(disk, measured, strict=True)),
            ratio_to="the disk",
        )
        for name, measured in (("ours, cold", ours), ("the disk's single reads, cold", disk))
    ]


def memory(path: Path, limit: int, scale: int) -> list[Row]:
    """Peak RssAnon of training on a file of `limit` MiB (over `scale`) and on one of four times as many."""
    rows, peaks = [], []
    for times in (1, 4):
        num_rows = times * limit * 2**20 // ROW_BYTES // scale
        peaks.append(peak_rss_anon(train_an_epoch, make_file(path, num_rows)) / 2**20)
        rows.append(row(f"training on {num_rows * ROW_BYTES / 2**20:.0f} MiB", rss_anon_mib=peaks[-1]))
    return [*rows, row("training's memory, large file", ratio=peaks[1] / peaks[0], ratio_to="the small file")]


def row(
    what: str,
    images_per_second: float | None = None,
    ratio: float | None = None,
    ratio_to: str | None = None,
    rss_anon_mib: float | None = None,
) -> Row:
    return {
        "what": what,
        "images_per_second": images_per_second,
        "ratio": ratio,
        "ratio_to": ratio_to,
        "rss_anon_mib": rss_anon_mib,
    }


def _single_reads(path: Path) -> Callable[[int], object]:
    rows = open_images(path).rows
    assert isinstance(rows, np.memmap)
    offset = rows.offset
    order = Batches(rows[:-1], BATCH_SIZE, 0, CPU).indices
    file = path.open("rb", buffering=0)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read(step: int) -> None:
        for index in order(step):
            os.pread(file.fileno(), ROW_BYTES, offset + int(index) * ROW_BYTES)

    return read


def _seconds(read: Callable[[int], object], steps: range) -> float:
    start = time.perf_counter()
    for step in steps:
        read(step)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--limit", type=int, default=256, help="MiB of the small file; the large one has four times as many"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, and no JSON: shows that it works")
    arguments = parser.parse_args()
    scale = 10 if arguments.quick else 1
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        path = Path(temporary) / "images.h5"
        rows = rates(make_file(path, NUM_ROWS // scale), NUM_BATCHES // scale)
        rows += memory(path, arguments.limit, scale)
    if arguments.quick:
        print_table(rows)
    else:
        settings = {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "num_rows": NUM_ROWS, "num_rounds": NUM_ROUNDS}
        write("read_batches", settings | {"limit_mib": arguments.limit, "drawn": DRAWN}, rows)


if __name__ == "__main__":
    main()
