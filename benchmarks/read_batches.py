"""Batches of rows from the HDF5 file: ours, h5py's indexing, and plain memory; and memory on a large file.

    python -m benchmarks.read_batches [--limit MIB] [--quick]

Rates are of the same number of random batches, drawn in turn, the median over the rounds; "cold" means that the file's
pages were dropped from the cache before each round, and the disk's own rate is reads of single rows in the same order
by as many bytes. With --limit a data file of four times MIB is read in random order for two epochs, and RssAnon is
sampled on the way: mapped pages are the cache's, which the system takes back when memory is short.
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

from began.batches import Batches
from began.hdf5 import ImageWriter, open_images
from benchmarks.memory import peak_rss_anon
from benchmarks.report import Row, print_table, write

IMAGE_SIZE = 64
BATCH_SIZE = 64
NUM_ROWS = 50_000
NUM_BATCHES = 400
NUM_ROUNDS = 5
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


def train_part(path: Path, num_epochs: int) -> None:
    """What train does with rows: batches through all of the file."""
    rows = open_images(path).train
    batches = Batches(rows, BATCH_SIZE, seed=0, device=CPU)
    for step in range(num_epochs * len(rows) // BATCH_SIZE):
        batches.rows(step)


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
        for round_ in range(NUM_ROUNDS + 1):
            for name, read in ways.items():
                few = num_batches // 10 if name == "h5py indexing" else num_batches
                measured = _seconds(read, range(round_ * few, (round_ + 1) * few)) / few
                if round_ > 0:
                    seconds[name].append(measured)
    plain = seconds["plain memory"]
    table = [
        {
            "what": name,
            "images_per_second": BATCH_SIZE / statistics.median(measured),
            "ratio": statistics.median(p / m for p, m in zip(plain, measured, strict=True)),
            "ratio_to": "plain memory",
        }
        for name, measured in seconds.items()
    ]
    return table + cold_rates(path, num_batches // 10)


def cold_rates(path: Path, num_batches: int) -> list[Row]:
    """The same with nothing of the file in the cache: ours, and one read of a row's bytes after another."""
    row_bytes = IMAGE_SIZE * IMAGE_SIZE * 3
    ours, disk = [], []
    for round_ in range(NUM_ROUNDS):
        steps = range(round_ * num_batches, (round_ + 1) * num_batches)
        drop_from_cache(path)
        disk.append(_seconds(_single_reads(path, row_bytes), steps) / num_batches)
        drop_from_cache(path)  # which keeps pages that are mapped, so each round maps anew
        ours.append(_seconds(Batches(open_images(path).train, BATCH_SIZE, 0, CPU).rows, steps) / num_batches)
    return [
        {
            "what": name,
            "images_per_second": BATCH_SIZE / statistics.median(measured),
            "ratio": statistics.median(d / m for d, m in zip(disk, measured, strict=True)),
            "ratio_to": "the disk",
        }
        for name, measured in (("ours, cold", ours), ("the disk's single reads, cold", disk))
    ]


def _single_reads(path: Path, row_bytes: int) -> Callable[[int], object]:
    rows = open_images(path).rows
    assert isinstance(rows, np.memmap)
    offset = rows.offset
    order = Batches(rows[:-1], BATCH_SIZE, 0, CPU).indices
    file = path.open("rb", buffering=0)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read(step: int) -> None:
        for row in order(step):
            os.pread(file.fileno(), row_bytes, offset + int(row) * row_bytes)

    return read


def _seconds(read: Callable[[int], object], steps: range) -> float:
    start = time.perf_counter()
    for step in steps:
        read(step)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=256, help="MiB; the large file has four times as many")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, and no JSON: shows that it works")
    arguments = parser.parse_args()
    scale = 10 if arguments.quick else 1
    row_bytes = IMAGE_SIZE * IMAGE_SIZE * 3
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        path = Path(temporary) / "images.h5"
        rows = rates(make_file(path, NUM_ROWS // scale), NUM_BATCHES // scale)
        for times in (1, 4):
            num_rows = times * arguments.limit * 2**20 // row_bytes // scale
            make_file(path, num_rows)
            peak = peak_rss_anon(train_part, path, 2)
            rows.append(
                {
                    "what": f"RssAnon of two epochs over {num_rows * row_bytes / 2**20:.0f} MiB",
                    "images_per_second": None,
                    "ratio": None,
                    "ratio_to": None,
                    "rss_anon_mib": peak / 2**20,
                }
            )
    columns = list(dict.fromkeys(key for row in rows for key in row))
    rows = [{column: row.get(column) for column in columns} for row in rows]
    if arguments.quick:
        print_table(rows)
    else:
        write("read_batches", {"image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE, "num_rows": NUM_ROWS}, rows)


if __name__ == "__main__":
    main()
