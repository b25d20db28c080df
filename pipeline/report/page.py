"""What the pages share: one file, everything inside it, nothing from elsewhere."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2

from pipeline.report.plots import DARK, LIGHT


@dataclass(frozen=True)
class Picture:
    """A picture of a page, as the bytes of a PNG or WebP file.

    `dark` and the narrow ones are shown instead where the reader's screen asks for them. is_grid: of an image's own
    pixels, which a browser is not to blur.
    """

    title: str
    caption: str
    alt: str
    image: bytes
    dark: bytes | None = None
    narrow: bytes | None = None
    narrow_dark: bytes | None = None
    is_grid: bool = False


def render_page(template: str, **values: object) -> str:
    """The HTML of `template`, a file beside this module that extends page.html, with `values`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    return environment.get_template(template).render(light=LIGHT, dark=DARK, **values)


def format_number(value: float | None) -> str:
    """Three or four digits that count; a dash where there is no number."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    if abs(value) < 0.0005:
        return f"{value:.1e}".replace("e-0", "e−").replace("-", "−")
    return f"{value:,.{digits if abs(value) >= 0.1 else 4}f}".replace("-", "−")


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
