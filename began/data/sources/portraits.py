"""Drawn portraits: heads of the style ToonHead, composed the way photographs are.

The heads come from the pinned dicebear packages. Skin, hair and clothes have continuous colours, and scale, place and
rotation vary a little. Behind a head is a background of random hue with clutter; light falls from one direction, and a
fine grain lies over everything. BEGAN profits from what these add: γ < 1 asks G for images that are easier to
reconstruct than the data, and flat drawings leave little room for that (docs/clutter.md).

Same settings, same bytes: the packages are pinned, no font of the system is read, image i depends on i and
`download.clutter` alone, and the archive has neither dates nor an order that depends on the workers.
"""

from __future__ import annotations

import colorsys
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Generator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from began.base.files import sha256
from began.base.parallel import ordered_map
from began.base.progress import Progress
from began.data.archives import write_member
from began.data.card import Card
from began.data.images import decode_rgba, jpeg_bytes
from began.params import DownloadParams

if TYPE_CHECKING:
    from dicebear import Style

SIZE = 128
CHUNK = 16  # images handed to a worker at once: a fifth of a second
JPEG_QUALITY = 92
SKIN = ("5c3829", "a36b4f", "b98e6a", "c68e7a", "f1c3a5")  # the style's own colours, from dark to light
HAIR = ("2c1b18", "724133", "a55728", "b58143", "d6b370")
OFF_PALETTE = 6.0  # standard deviation of what a colour is beside its palette, in levels of 0 to 255
SCALE, SCALE_VARIES = 1.3, 0.07  # the head fills the picture, chin included; standard deviation
SHIFT_Y, SHIFT_VARIES = 5.5, 1.5  # per cent of the picture
ROTATION_VARIES = 4.0  # degrees
OCTAVES = ((3, 22.0), (6, 14.0), (12, 10.0), (24, 8.0))  # of clutter: cells across the picture, and levels of 0 to 255
GREY_SHARE = 0.7  # of an octave, which all channels share; the rest each has for itself
MAX_LIGHT = 0.12  # how much brighter the lit edge is, and darker the other
GRAIN = 3.0  # standard deviation, in levels of 0 to 255
VARIANTS = (
    "hairVariant",
    "rearHairVariant",
    "beardVariant",
    "mouthVariant",
    "eyesVariant",
    "eyebrowsVariant",
    "clothesVariant",
)
ATTRIBUTES = (
    "background_hue",  # degrees, 0 to 360
    "background_saturation",  # 0 to 1
    "background_value",  # 0 to 1
    "skin",  # place on the palette: 0 is its darkest colour, 1 its lightest
    "hair",
    "clothes_hue",  # degrees
    "scale",
    "shift_x",  # per cent of the picture
    "shift_y",
    "rotation",  # degrees
    "light_direction",  # degrees: 0 is from the right, 90 from below
    "light",  # how much brighter the lit edge is; 0.1 is a tenth
    *VARIANTS,  # by dicebear's names; "none" is a component that a face lacks
)

Drawn = dict[str, float | str]
Pixels = NDArray[np.float32]


def fetch(download: DownloadParams, archive: Path, downloads: Path, workers: int) -> Generator[Progress, None, Card]:
    """Draws `download.num_images` portraits of SIZE×SIZE; image i is the same whatever their number."""
    num_images = download.num_images
    chunks = [range(i, min(i + CHUNK, num_images)) for i in range(0, num_images, CHUNK)]
    attributes: dict[str, Drawn] = {}
    yield Progress(0, num_images)
    with zipfile.ZipFile(archive, "w") as file:
        for chunk in ordered_map(partial(_draw, clutter=download.clutter), chunks, workers):
            for picture, drawn in chunk:
                name = f"{len(attributes):06}.jpg"
                write_member(file, name, picture)
                attributes[name] = {key: sys.intern(v) if isinstance(v, str) else v for key, v in drawn.items()}
            yield Progress(len(attributes), num_images)
    meta = _definition()["meta"]
    return Card(
        source="portraits",
        count=num_images,
        licence=f"{meta['license']['name']} ({meta['license']['url']})",
        credit=f"{meta['license']['text']}; drawn with DiceBear (https://www.dicebear.com) and composed anew",
        digest=sha256(archive),
        attributes=attributes,
    )


def _draw(numbers: range, clutter: float) -> list[tuple[bytes, Drawn]]:
    """JPEG and attributes of each image."""
    return [_portrait(number, clutter) for number in numbers]


def _portrait(number: int, clutter: float) -> tuple[bytes, Drawn]:
    random = np.random.default_rng(number)
    skin, hair, hue, clothes_hue, direction = random.random(5)
    saturation, value = random.uniform(0.15, 0.5), random.uniform(0.45, 0.95)
    scale, shift_x, shift_y, rotation = random.normal(
        (SCALE, 0, SHIFT_Y, 0), (SCALE_VARIES, SHIFT_VARIES, SHIFT_VARIES, ROTATION_VARIES)
    )
    light = clutter * random.uniform(0, MAX_LIGHT)
    clothes = 255 * np.array(colorsys.hsv_to_rgb(clothes_hue, random.uniform(0.2, 0.9), random.uniform(0.2, 0.95)))
    head, variants = _head(
        {
            "seed": str(number),
            "size": SIZE,
            "scale": scale,
            "translateX": shift_x,
            "translateY": shift_y,
            "rotate": rotation,
            "skinColor": _hex(_between(SKIN, skin) + random.normal(0, OFF_PALETTE, 3)),
            "hairColor": _hex(_between(HAIR, hair) + random.normal(0, OFF_PALETTE, 3)),
            "clothesColor": _hex(clothes),
            "backgroundColor": [],
        }
    )
    plain = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32)
    background = plain[:, None, None] + np.float32(clutter) * _clutter(random)
    opacity = head[3] / np.float32(255)
    pixels = head[:3] * opacity + background * (1 - opacity)
    pixels *= _light(direction, light)
    pixels += np.float32(clutter * GRAIN) * random.standard_normal((SIZE, SIZE), dtype=np.float32)
    picture = jpeg_bytes(np.moveaxis(pixels.clip(0, 255).round().astype(np.uint8), 0, -1), JPEG_QUALITY)
    degrees = [round(360 * float(turn), 1) for turn in (hue, clothes_hue, direction)]
    shares = [round(float(share), 3) for share in (saturation, value, skin, hair)]
    pose = [round(float(number), 3) for number in (scale, shift_x, shift_y, rotation)]
    numbers = [degrees[0], *shares, degrees[1], *pose, degrees[2], round(float(light), 3)]
    return picture, dict(zip(ATTRIBUTES, [*numbers, *variants], strict=True))


def _head(options: dict[str, Any]) -> tuple[Pixels, list[str]]:
    """The head of dicebear's `options` as planes of RGBA (4, SIZE, SIZE), 0 to 255, and the names of VARIANTS."""
    import resvg_py
    from dicebear import Avatar

    avatar = Avatar(_style(), options)
    drawn = avatar.to_json()["options"]
    # A clip at the picture's edge and outlines of a fifth of a pixel: nobody sees them, and they take half of the time.
    svg = re.sub(r' clip-path="url\(#clip-\w+\)"| stroke="[^"]*"', "", str(avatar))
    picture = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    planes = np.moveaxis(decode_rgba(picture), -1, 0).astype(np.float32, order="C")
    return planes, [_as_text(drawn.get(name)) for name in VARIANTS]


def _clutter(random: np.random.Generator) -> Pixels:
    """Smooth noise over several octaves, (3, SIZE, SIZE), in levels of 0 to 255 around 0.

    In float64: processors differ in how they round a matrix product, and float32 showed it in one image of 400.
    """
    clutter = np.zeros((3, SIZE, SIZE))
    for cells, levels in OCTAVES:
        enlarge = _enlargement(cells)
        noise = random.standard_normal((4, cells, cells))
        noise = GREY_SHARE * noise[:1] + (1 - GREY_SHARE) * noise[1:]
        clutter += levels * (enlarge @ noise @ enlarge.T)
    return clutter.astype(np.float32)


@cache
def _enlargement(cells: int) -> NDArray[np.float64]:
    """Bicubic interpolation (Keys 1981, a = −1/2) from `cells` to SIZE along an axis, as a matrix (SIZE, cells)."""
    places = (np.arange(SIZE) + 0.5) * cells / SIZE
    d = np.abs(places[:, None] - (np.arange(cells) + 0.5))
    near, far = (1.5 * d - 2.5) * d**2 + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
    weights: NDArray[np.float64] = np.where(d < 1, near, np.where(d < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _light(direction: float, strength: float) -> Pixels:
    """What light from `direction` (in turns) multiplies pixels by, (SIZE, SIZE)."""
    places = np.linspace(-1, 1, SIZE, dtype=np.float32)
    angle = 2 * np.pi * direction
    across, down = (np.float32(strength * part) for part in (np.cos(angle), np.sin(angle)))
    return 1 + across * places + down * places[:, None]


def _between(palette: Sequence[str], place: float) -> NDArray[np.float64]:
    """The colour at `place`, 0 to 1, on the lines between neighbours of `palette`: RGB of 0 to 255."""
    colours = np.array([[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in palette], dtype=float)
    known = np.linspace(0, 1, len(palette))
    return np.array([np.interp(place, known, channel) for channel in colours.T])


def _hex(colour: NDArray[np.float64]) -> str:
    return "".join(f"{round(float(level)):02x}" for level in colour.clip(0, 255))


@cache
def _style() -> Style:
    """Costs 0.2 s: made once in each process."""
    from dicebear import Style

    return Style(_definition())


def _definition() -> dict[str, dict[str, dict[str, str]]]:
    needed = ("dicebear", "dicebear_styles", "resvg_py")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"download.source portraits needs {', '.join(missing)}: install the packages that pyproject.toml names"
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
