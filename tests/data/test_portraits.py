"""The drawn portraits: the same bytes everywhere, and on the card what was drawn."""

from __future__ import annotations

import colorsys
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from began.base.files import sha256
from began.data import sources
from began.data.archives import ImageArchive
from began.data.card import Card, write_card
from began.data.sources import portraits
from tests.data.test_sources import fetch, finish, settings


@dataclass(frozen=True)
class Drawn:
    card: Card
    files: dict[str, bytes]
    pixels: np.ndarray  # (N, 128, 128, 3), 0 to 255
    told: dict[str, list[float | str]]  # by the card: attribute → one value for each image


def test_portraits_are_the_same_bytes_everywhere_whatever_the_number_of_workers(tmp_path: Path) -> None:
    one, card_of_one = fetch(tmp_path, workers=1, num_images=portraits.CHUNK * 2 + 3)
    bytes_of_one = one.read_bytes()
    two, card_of_two = fetch(tmp_path, workers=2, num_images=portraits.CHUNK * 2 + 3)
    assert bytes_of_one == two.read_bytes()
    assert card_of_one == card_of_two
    assert card_of_one.digest == sha256(two)
    # Nor do they depend on the processor: whoever sees another digest has found another image.
    assert card_of_one.digest == "ff3cd9b3f0d467e898770dac1fd06cdd0cfeeb08845c507ba3329c924f6c5ecd"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn(tmp_path_factory.mktemp("plain"), num_images=60, clutter=0.0)


@pytest.fixture(scope="module")
def cluttered(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn(tmp_path_factory.mktemp("cluttered"), num_images=120, clutter=1.0)


def drawn(folder: Path, num_images: int, clutter: float) -> Drawn:
    archive, card = fetch(folder, num_images=num_images, clutter=clutter)
    with ImageArchive(archive) as images:
        files = {images.name(entry): images.read(entry) for entry in images.entries()}
    pictures = [np.asarray(Image.open(io.BytesIO(data)), float) for data in files.values()]
    assert card.attributes is not None and list(card.attributes) == list(files)
    told = {name: [attributes[name] for attributes in card.attributes.values()] for name in portraits.ATTRIBUTES}
    return Drawn(card, files, np.stack(pictures), told)


def test_portraits_differ_and_what_was_drawn_is_on_the_card(cluttered: Drawn) -> None:
    assert cluttered.pixels.shape == (120, 128, 128, 3)
    assert cluttered.card.count == len(set(cluttered.files.values())) == 120
    assert list(cluttered.files) == [f"{i:06}.jpg" for i in range(120)]
    for name, values in cluttered.told.items():
        assert len(set(values)) > (1 if name in portraits.VARIANTS else 30), f"{name} does not vary"


def test_the_card_names_the_hue_behind_a_head(plain: Drawn) -> None:
    for rgb, told in zip(plain.pixels[:, 2, 2] / 255, plain.told["background_hue"], strict=True):
        hue, _, _ = colorsys.rgb_to_hsv(*rgb)
        assert abs((360 * hue - float(told) + 180) % 360 - 180) < 8, (hue, told)  # JPEG keeps colours to a few levels


def test_without_clutter_a_background_is_one_colour(plain: Drawn, cluttered: Drawn) -> None:
    without, with_it = (drawn.pixels[:, :24, :16].std(axis=(1, 2)).mean() for drawn in (plain, cluttered))
    assert without < 1 and with_it > 6


def test_the_lit_side_is_the_one_that_the_card_names(cluttered: Drawn) -> None:
    grey = cluttered.pixels[:, :96].mean(axis=3)
    right_minus_left = grey[..., -24:].mean(axis=(1, 2)) - grey[..., :24].mean(axis=(1, 2))
    light, direction = (np.array(cluttered.told[name], float) for name in ("light", "light_direction"))
    # The light differs by some 13 levels between the sides, clutter and hair by some 20: a correlation near 0.5.
    # Without light it would be 0, with a standard error of 0.09 over 120 portraits.
    assert np.corrcoef(right_minus_left, light * np.cos(np.radians(direction)))[0, 1] > 0.35


def test_a_head_stands_and_leans_where_the_card_says(plain: Drawn) -> None:
    is_head = np.abs(plain.pixels - plain.pixels[:, 2:3, 2:3]).max(axis=3) > 12  # unlike the plain background
    columns = np.arange(portraits.SIZE)

    def middle(rows: slice) -> np.ndarray:
        counts = is_head[:, rows].sum(axis=1)
        return counts @ columns / counts.sum(axis=1)

    shift, rotation = (np.array(plain.told[name], float) for name in ("shift_x", "rotation"))
    # Hair is not the same on both sides, which is why neither correlation is 1. Positive is rightwards and clockwise.
    assert np.corrcoef(middle(slice(None)), shift)[0, 1] > 0.8
    assert np.corrcoef(middle(slice(40)) - middle(slice(80, None)), rotation)[0, 1] > 0.5


def test_a_portrait_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = finish(sources.fetch(settings(num_images=2), tmp_path / "few.zip", tmp_path, 1))
    more = finish(sources.fetch(settings(num_images=3), tmp_path / "more.zip", tmp_path, 1))
    assert few.attributes is not None and more.attributes is not None
    assert few.attributes.items() <= more.attributes.items()
    with zipfile.ZipFile(tmp_path / "few.zip") as a, zipfile.ZipFile(tmp_path / "more.zip") as b:
        assert all(a.read(name) == b.read(name) for name in a.namelist())


def test_portraits_credit_the_designer_of_the_heads(plain: Drawn) -> None:
    assert "Johan Melin" in plain.card.credit
    assert "CC BY 4.0" in plain.card.licence


def test_the_card_of_ten_thousand_portraits_is_a_few_megabytes(tmp_path: Path, cluttered: Drawn) -> None:
    write_card(cluttered.card, tmp_path / "card.json")
    assert (tmp_path / "card.json").stat().st_size / 120 < 450
