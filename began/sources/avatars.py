"""Drawn faces: the style ToonHead of the pinned dicebear packages, one seed an image.

Same settings, same bytes: the packages are pinned exactly, no font of the system is read, and the archive has neither
dates nor an order that depends on the workers.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from began.archives import write_member
from began.card import Card
from began.files import sha256
from began.parallel import ordered_map
from began.params import DownloadParams
from began.progress import Progress

if TYPE_CHECKING:
    from dicebear import Style

SIZE = 128
CHUNK = 16  # images handed to a worker at once: a fifth of a second
FRAMING = {"size": SIZE, "scale": [1.25, 1.35], "translateY": [4, 7]}  # the head fills the picture, chin included
BACKGROUND_COLORS = ["8ecae6", "95d5b2", "ffd97d", "f4acb7", "b8a9e8"]  # blue, green, yellow, pink, violet
# What differs between two faces, by dicebear's names. Components that a face lacks (a beard) read "none".
ATTRIBUTES = (
    "backgroundColor",
    "skinColor",
    "hairColor",
    "hairVariant",
    "rearHairVariant",
    "beardVariant",
    "mouthVariant",
    "eyesVariant",
    "eyebrowsVariant",
    "clothesVariant",
    "clothesColor",
)


def fetch(download: DownloadParams, archive: Path, downloads: Path, workers: int) -> Generator[Progress, None, Card]:
    """Draws `download.num_images` faces of SIZE×SIZE; image i is the same whatever their number."""
    num_images = download.num_images
    chunks = [range(i, min(i + CHUNK, num_images)) for i in range(0, num_images, CHUNK)]
    attributes: dict[str, dict[str, str]] = {}
    yield Progress(0, num_images)
    with zipfile.ZipFile(archive, "w") as file:
        for chunk in ordered_map(_draw, chunks, workers):
            for picture, drawn in chunk:
                name = f"{len(attributes):06}.png"
                write_member(file, name, picture)
                attributes[name] = {key: sys.intern(value) for key, value in drawn.items()}
            yield Progress(len(attributes), num_images)
    meta = _definition()["meta"]
    return Card(
        source="avatars",
        count=num_images,
        licence=f"{meta['license']['name']} ({meta['license']['url']})",
        credit=f"{meta['license']['text']}; drawn with DiceBear (https://www.dicebear.com)",
        digest=sha256(archive),
        attributes=attributes,
    )


def _draw(seeds: range) -> list[tuple[bytes, dict[str, str]]]:
    """PNG and attributes of each seed."""
    import resvg_py
    from dicebear import Avatar

    drawn = []
    for seed in seeds:
        avatar = Avatar(_style(), {"seed": str(seed), **FRAMING, "backgroundColor": BACKGROUND_COLORS})
        options = avatar.to_json()["options"]
        # The outermost clip cuts what lies outside the picture anyway, and costs a quarter of the time.
        svg = re.sub(r' clip-path="url\(#clip-\w+\)"', "", str(avatar))
        picture = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
        drawn.append((picture, {key: _as_text(options.get(key)) for key in ATTRIBUTES}))
    return drawn


@cache
def _style() -> Style:
    """Costs 0.2 s: made once in each process."""
    from dicebear import Style

    return Style(_definition())


def _definition() -> dict[str, dict[str, dict[str, str]]]:
    needed = ("dicebear", "dicebear_styles", "resvg_py")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"download.source avatars needs {', '.join(missing)}: install the packages that pyproject.toml names"
        )
    package = importlib.util.find_spec("dicebear_styles")
    assert package is not None and package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "toon-head.json"
    definition: dict[str, dict[str, dict[str, str]]] = json.loads(path.read_text(encoding="utf-8"))
    return definition


def _as_text(value: object) -> str:
    if value is None:
        return "none"
    return str(value[0]) if isinstance(value, list) else str(value)
