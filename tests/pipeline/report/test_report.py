"""The page: everything inside it, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from began.data.images import png_bytes
from began.evaluation.attributes import ATTRIBUTES
from pipeline.report import page, report
from pipeline.report.page import Picture
from tests.pipeline.browser import check

PIXEL = png_bytes(np.zeros((1, 1, 3), dtype=np.uint8))
NUMBERS: dict[str, float | None] = {
    "frechet_face": 91.234,
    "frechet_face_baseline": 4.5678,
    "kid_face": 0.012345,
    "kid_face_std": 0.00234,
    "kid_face_baseline": -0.0000123,
    "kid_face_baseline_std": 0.0001,
    "precision_face": 0.71,
    "precision_face_baseline": 0.95,
    "recall_face": 0.22,
    "recall_face_baseline": 0.94,
    "density_face": 0.61,
    "density_face_baseline": 1.02,
    "coverage_face": 0.33,
    "coverage_face_baseline": 0.97,
    "nearest_training_face": 7.5,
    "nearest_training_face_baseline": 6.1,
    "diversity": 0.5,
    "diversity_baseline": 1.01,
    "spread": 0.57,
    "spread_baseline": 0.99,
    "reconstruction_loss_held_out": 0.0456,
    "reconstruction_loss_train": 0.0434,
    "reconstruction_gap": 1.0507,
    "M_global": 0.0498,
    "rank_correlation": 0.875,
    "num_samples": 2000,
    "num_held_out": 1999,
    "num_train": 2000,
    "num_neighbours": 8000,
}
DESCRIPTION: dict[str, Any] = {
    "architecture": {"image_size": 32, "n_filters": 32, "N_h": 64, "skip_connections": True},
    "parameters": {"gamma": 0.7, "lambda_k": 0.01, "seed": 0, "profile": "quick", "train.batch_size": 16, "a.b": None},
    "data": {"digest": "ab", "source": "portraits", "num_train": 8000, "image_size": 32},
    "weights": {"generator.safetensors": "0123abcd", "discriminator.safetensors": "ef"},
    "versions": {"torch": "2.13.0"},
    "device": "cpu",
    "precision": "bfloat16",
    "step": 2400,
}
PICTURES = [
    Picture("Samples", "caption of samples", "samples", PIXEL, is_grid=True),
    Picture("Curve", "caption of the curve", "curve", PIXEL, PIXEL, PIXEL, PIXEL),
]


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "numbers": NUMBERS,
        "description": DESCRIPTION,
        "pictures": PICTURES,
        "notes": [],
        "credit": "A painter",
        "licence": "CC0",
    }
    return report.render(**arguments | changes)


def test_the_page_needs_no_network_and_runs_nothing() -> None:
    text = page_of()
    page = Page(text)
    assert not page.all("script") and not page.all("iframe") and "@import" not in text and "url(" not in text
    addresses = [a[key] for _, a in page.tags for key in ("src", "srcset", "href") if key in a]
    assert len(addresses) == 1 + 5
    assert all(address is not None and address.startswith("data:") for address in addresses)
    for attributes in page.all("img"):
        assert attributes["alt"]
        encoded = str(attributes["src"]).removeprefix("data:image/png;base64,")
        assert base64.b64decode(encoded, validate=True) == PIXEL


def test_a_dark_screen_and_a_phone_get_their_own_pictures() -> None:
    page = Page(page_of())
    medias = [attributes["media"] for attributes in page.all("source")]
    assert medias == [
        "(max-width: 40rem) and (prefers-color-scheme: dark)",
        "(max-width: 40rem)",
        "(prefers-color-scheme: dark)",
    ]
    assert {"name": "color-scheme", "content": "light dark"} in page.all("meta")
    assert any(attributes.get("name") == "viewport" for attributes in page.all("meta"))


def test_every_number_stands_in_the_page_with_its_count_and_baseline() -> None:
    text = " ".join(Page(page_of()).text.split())
    names = [name for name in NUMBERS if not name.startswith("num_") and "_baseline" not in name and "_std" not in name]
    assert all(name in text for name in names)
    assert "n = 2,000 against 1,999." in text
    for shown in ("91.23", "4.568", "0.0123", "± 0.0023", "−1.2e−5", "0.500", "1.010", "0.0456", "0.0498"):
        assert shown in text, shown


def test_numbers_that_were_not_measured_have_no_line() -> None:
    without = Page(page_of()).text
    assert "FID" in without and "Inception score" not in without and "Colours at known places" not in without
    more = {"frechet_inception": 12.5, "frechet_inception_baseline": 3.1, "inception_score": 2.25}
    more |= {"inception_score_std": 0.05, "attributes_overlap_skin": 0.8, "attributes_overlap_skin_baseline": 0.95}
    page = " ".join(Page(page_of(numbers=NUMBERS | more)).text.split())
    for shown in ("FID frechet_inception", "12.50", "Inception score", "± 0.0500", "attributes_overlap_skin", "0.800"):
        assert shown in page, shown


def test_a_page_with_every_number_is_right_in_a_browser(tmp_path: Path) -> None:
    inception = {name.replace("_face", "_inception"): value for name, value in NUMBERS.items()}
    colours = {f"attributes_overlap_{name}{end}": 0.2 for name in ATTRIBUTES for end in ("", "_baseline")}
    scores = {"inception_score": 2.2, "inception_score_std": 0.1}
    (tmp_path / "index.html").write_text(page_of(numbers=NUMBERS | inception | colours | scores), encoding="utf-8")
    check(tmp_path / "index.html")


def test_settings_credit_and_licence_stand_in_the_page() -> None:
    text = " ".join(Page(page_of()).text.split())
    for shown in (
        "γ = 0.7",
        "2,400 steps",
        "8,000",
        "quick",
        "portraits",
        "32 × 32",
        "bfloat16",
        "0123abcd",
        "a.b: null",
    ):
        assert shown in text, shown
    assert "Images: A painter. Licence: CC0." in text
    assert "Images: source portraits." in " ".join(Page(page_of(credit="", licence="")).text.split())


def test_what_strangers_wrote_stays_text() -> None:
    page = Page(page_of(credit="<script>alert(1)</script>", notes=["<img src=x>"]))
    assert not page.all("script") and len(page.all("img")) == len(PICTURES)
    assert "<script>alert(1)</script>" in page.text and "<img src=x>" in page.text


def test_a_number_that_is_none_is_a_dash() -> None:
    text = page_of(numbers=NUMBERS | {"kid_face": None, "kid_face_std": None, "frechet_face": None})
    assert "None" not in re.sub(r"font-weight|list-style", "", Page(text).text)
    assert ">–" in text.replace("\n", "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (1234.5, "1,234"),
        (480.25, "480.2"),
        (0.05, "0.0500"),
        (-0.25, "−0.250"),
        (2e-7, "2.0e−7"),
    ],
)
def test_numbers_have_the_digits_that_count(value: float | None, shown: str) -> None:
    assert page.format_number(value) == shown
