"""Features of real images, computed once for a data set and kept for every model that is measured on it.

A folder belongs to one data set, named by its digest. A file's name says what it holds, and the SHA-256 of its content.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Generator, Iterable
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from began.base.files import make_folder, sha256
from began.base.progress import Progress
from began.evaluation.features import Network, extract


def kept(
    folder: Path, network: Network, rows_name: str, batches: Iterable[np.ndarray], total: int
) -> Generator[Progress, None, np.ndarray]:
    """Yields progress and returns the features (`total`, d) float32 of `batches`, mapped and read-only.

    They are read from `folder` when they are there; `batches` is then left alone. `rows_name` says which rows of the
    data set they are of: letters, digits, `_`, `.` and `-`. A damaged file is made again, and the progress says so.
    """
    stem = f"{network.name}-{network.version}-{rows_name}-{total}"
    assert re.fullmatch(r"[\w.-]+", stem, re.ASCII), stem
    make_folder(folder)
    lock = FileLock(folder / f".{stem}.lock")
    try:
        while not lock.is_locked:
            try:
                lock.acquire(timeout=1)
            except Timeout:
                yield Progress(0, total, note="waiting for another process that computes them")
        note = ""
        for path in folder.glob(f"{stem}-{'?' * 64}.npy"):
            if path.stem == f"{stem}-{sha256(path)}":
                yield Progress(total, total, note="kept from before")
                return _mapped(path)
            note = f"{path} was damaged and is made again"
            path.unlink()
        unnamed = folder / f"{stem}.npy"
        for progress in extract(network, batches, total, unnamed):
            yield dataclasses.replace(progress, note=note)
        path = folder / f"{stem}-{sha256(unnamed)}.npy"
        unnamed.replace(path)
        return _mapped(path)
    finally:
        lock.release()


def _mapped(path: Path) -> np.ndarray:
    rows: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    return rows
