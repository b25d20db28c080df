"""Features of real rows are computed once, kept whole, and made again when they are damaged."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from began.base.progress import Progress
from began.evaluation.feature_cache import kept
from began.evaluation.features import Network

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)


def network(version: str = "1", factor: float = 1.0) -> Network:
    """Mean colours, times `factor`: a real network, as far as the cache can see."""
    return Network(
        "mean", "mean colours", 3, version, lambda images: (images.mean(axis=(1, 2)) * factor).astype(np.float32)
    )


class Rows:
    """Batches that count how many were read."""

    def __init__(self, images: np.ndarray = IMAGES) -> None:
        self.images = images
        self.read = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.images), 4):
            self.read += 1
            yield self.images[start : start + 4]


def run(work: Generator[Progress, None, np.ndarray]) -> tuple[np.ndarray, list[Progress]]:
    steps = []
    while True:
        try:
            steps.append(next(work))
        except StopIteration as stop:
            return stop.value, steps


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


def test_features_are_computed_once_and_read_back_mapped(tmp_path: Path) -> None:
    first, again = Rows(), Rows()
    computed, _ = run(kept(tmp_path / "digest", network(), "held_out", first, 10))
    found, steps = run(kept(tmp_path / "digest", network(), "held_out", again, 10))
    assert (first.read, again.read) == (3, 0)
    assert isinstance(found, np.memmap) and not found.flags.writeable and found.dtype == np.float32
    assert np.array_equal(found, computed) and np.array_equal(found, network().compute(IMAGES))
    assert steps[-1].done == steps[-1].total == 10


def test_other_networks_versions_rows_and_counts_are_kept_apart(tmp_path: Path) -> None:
    other = Network("sum", "sums", 3, "1", network(factor=16).compute)
    wanted = [
        (network(), "train", IMAGES),
        (network("2", 2), "train", IMAGES),
        (other, "train", IMAGES),
        (network(), "train-4", IMAGES[:4]),
        (network(), "train", IMAGES[:4]),
        (network(), "held_out", IMAGES[4:]),
    ]
    for _ in range(2):
        for net, name, images in wanted:
            found, _ = run(kept(tmp_path, net, name, Rows(images), len(images)))
            assert np.array_equal(found, net.compute(images))
    assert len(files(tmp_path)) == len(wanted)


@pytest.mark.parametrize("damage", ["one bit", "cut", "empty"])
def test_a_damaged_file_is_made_again_and_the_progress_says_so(tmp_path: Path, damage: str) -> None:
    run(kept(tmp_path, network(), "train", Rows(), 10))
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"one bit": bytes(content), "cut": bytes(content[:-8]), "empty": b""}[damage])
    found, steps = run(kept(tmp_path, network(), "train", Rows(), 10))
    assert np.array_equal(found, network().compute(IMAGES))
    assert steps[-1].note == f"{path} was damaged and is made again"
    assert files(tmp_path) == [path]
    assert run(kept(tmp_path, network(), "train", Rows(), 10))[1][-1].note == "kept from before"


def test_work_that_is_broken_off_leaves_nothing_and_no_lock(tmp_path: Path) -> None:
    work = kept(tmp_path, network(), "train", Rows(), 10)
    assert next(work).done == 0 and next(work).done == 4
    work.close()
    assert files(tmp_path) == []
    found, _ = run(kept(tmp_path, network(), "train", Rows(), 10))
    assert np.array_equal(found, network().compute(IMAGES))


def test_a_second_process_waits_and_then_reads_what_the_first_made(tmp_path: Path) -> None:
    run(kept(tmp_path, network(), "train", Rows(), 10))
    (lock_path,) = (path for path in tmp_path.iterdir() if path.suffix == ".lock")
    taken = threading.Event()

    def hold() -> None:
        with FileLock(lock_path):
            taken.set()
            time.sleep(1.3)

    holder = threading.Thread(target=hold)
    holder.start()
    taken.wait()
    rows = Rows()
    _, steps = run(kept(tmp_path, network(), "train", rows, 10))
    holder.join()
    assert steps[0].note == "waiting for another process that computes them" and rows.read == 0
