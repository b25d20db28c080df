"""An archive of images → the HDF5 file of rows."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from began.base.parallel import ordered_map
from began.base.progress import Progress
from began.data.archives import ImageArchive
from began.data.decoding import Task, decode
from began.data.images import Crop
from began.data.kinds import left_out_words
from began.data.rows import ImageWriter
from began.params import PreprocessParams

_MAX_TASK_BYTES = 2**20  # of rows that a worker hands over at once
_MAX_TASK_IMAGES = 64
_MAX_NAMED = 3  # rejects in the error's one line


@dataclass(frozen=True)
class Written:
    """What `write_rows` made of an archive."""

    num_rows: int
    num_train: int
    rejected: list[tuple[str, str]]  # name, reason
    digest: str
    left_out: dict[str, int]  # reason, number: of what else the archive holds


def write_rows(
    archive: Path,
    output: Path,
    settings: PreprocessParams,
    crop: Crop,
    attributes: dict[str, str],
    workers: int,
) -> Generator[Progress, None, Written]:
    """Writes the images of `archive` as rows of the HDF5 file `output`, in flat memory.

    Rows stand in the order of their names' SHA-256, so that neither the archive's order nor its folders decide which
    are held out; the first `max_images` of that order are taken. Raises ValueError naming the archive when it holds
    too few images or more that is left out, or when more than `max_rejected` of them cannot be decoded.
    """
    with ImageArchive(archive) as images:
        entries = _in_row_order(images)
        if entries:
            images.left_out.check(str(archive), len(entries))
        entries = entries[: settings.max_images]
        num_images = len(entries)
        if num_images < 2:
            limit = f" (preprocess.max_images is {settings.max_images})" if settings.max_images == 1 else ""
            others = f"; left out: {left_out_words(images.left_out.counts)}" if images.left_out.counts else ""
            raise ValueError(f"{archive}: {num_images} images to take{limit}, expected at least 2{others}")
        num_per_task = max(1, min(_MAX_TASK_IMAGES, _MAX_TASK_BYTES // (settings.image_size**2 * 3)))
        tasks = (
            Task(archive, entries[i : i + num_per_task], settings.image_size, crop)
            for i in range(0, num_images, num_per_task)
        )
        rejected: dict[int, str] = {}  # index of the entry → reason
        done = 0
        yield Progress(0, num_images)
        with _one_blas_thread_in_children(), ImageWriter(output, settings.image_size, num_images) as writer:
            for num, rows, reasons in ordered_map(decode, tasks, workers):
                writer.append(rows)
                rejected |= {done + i: reason for i, reason in reasons.items()}
                done += num
                note = f"{len(rejected):,} rejected" if rejected else ""
                yield Progress(done, num_images, note=note)
                if len(rejected) > settings.max_rejected * num_images:
                    break  # what is left can change nothing
            named = [(images.name(entries[i]), reason) for i, reason in rejected.items()]
            first = "; ".join(f"{name}: {reason}" for name, reason in named[:_MAX_NAMED])
            if len(rejected) > settings.max_rejected * num_images:
                tried = f"{num_images:,}" if done == num_images else f"the first {done:,} of {num_images:,}"
                raise ValueError(
                    f"{archive}: {len(rejected):,} of {tried} images cannot be decoded, more than "
                    f"preprocess.max_rejected {settings.max_rejected:g} allows. First: {first}"
                )
            if writer.num_rows < 2:
                raise ValueError(
                    f"{archive}: {writer.num_rows} images can be decoded, expected at least 2. First: {first}"
                )
            num_train = max(1, writer.num_rows - max(1, round(writer.num_rows * settings.held_out)))
            kept = (images.name(entry) for i, entry in enumerate(entries) if i not in rejected)
            digest = writer.finish(kept, num_train, attributes)
            return Written(writer.num_rows, num_train, named, digest, dict(images.left_out.counts))


def _in_row_order(images: ImageArchive) -> array[int]:
    """The archive's entries, sorted by the SHA-256 of their names."""
    entries = images.entries()
    digests = bytearray()
    for entry in entries:
        digests += hashlib.sha256(images.name(entry).encode()).digest()
    keys = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)
    order = np.lexsort(keys.T[::-1])
    twice = np.flatnonzero((keys[order[1:]] == keys[order[:-1]]).all(axis=1))
    if len(twice):
        raise ValueError(f"{images.path}: member {images.name(entries[order[twice[0]]])!r} stands twice in it")
    return array("Q", np.frombuffer(entries, dtype=np.uint64)[order].tobytes())


@contextmanager
def _one_blas_thread_in_children() -> Iterator[None]:
    """Each worker has a core. NumPy reads this once, when a child imports it."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
