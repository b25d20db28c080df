"""Where images come from: one module per source, each with the same `fetch`."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from began.base.progress import Progress
from began.data.card import Card
from began.data.sources import celeba, folder, orl, portraits, url
from began.params import DownloadParams


def fetch(download: DownloadParams, archive: Path, downloads: Path, workers: int) -> Generator[Progress, None, Card]:
    """Writes the images of `download.source` as a zip to `archive`, and returns its card.

    `downloads` is a folder that outlives the run, for partial and verified files; `workers` is a number of processes
    and does not change a byte. Raises ValueError naming the key of params.yaml, the file or the address, and OSError.
    """
    sources = {"portraits": portraits, "orl": orl, "folder": folder, "url": url, "celeba": celeba}
    card: Card = yield from sources[download.source].fetch(download, archive, downloads, workers)
    return card
