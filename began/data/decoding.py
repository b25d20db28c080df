"""Images of an archive → rows, in a worker process. It imports no more than that needs."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from began.data.archives import ImageArchive
from began.data.images import Crop, Pixels, decode_image


@dataclass(frozen=True)
class Task:
    """Some images for a worker."""

    archive: Path
    entries: array[int]
    image_size: int
    crop: Crop


def decode(task: Task) -> tuple[int, Pixels, dict[int, str]]:
    """Number of images; the rows (n, S, S, 3) of those that could be decoded; index → reason of the others."""
    S = task.image_size
    rows = np.empty((len(task.entries), S, S, 3), dtype=np.uint8)
    reasons: dict[int, str] = {}
    with ImageArchive(task.archive) as images:
        for i, entry in enumerate(task.entries):
            try:
                rows[i - len(reasons)] = decode_image(images.read(entry), S, task.crop)
            except ValueError as error:
                reasons[i] = str(error).removeprefix(f"{task.archive}: member {images.name(entry)!r} ")
    return len(task.entries), rows[: len(rows) - len(reasons)], reasons
