"""Colours that are read at known places, on portraits put together from plain areas, and their histograms."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from began.data.sources.portraits import _draw
from began.evaluation.attributes import ATTRIBUTES, NUM_BINS, histogram, hue, lightness, overlap, read


def portraits(
    num: int, seed: int, size: int = 32, background: tuple[int, int, int] | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Heads (N, S, S, 3) before plain backgrounds, a little out of place each, and the colours they are made of."""
    random = np.random.default_rng(seed)
    images = np.empty((num, 32, 32, 3), dtype=np.uint8)
    colours = {name: random.integers(20, 236, (num, 3)) for name in ATTRIBUTES}
    if background is not None:
        colours["background_hue"][:] = background
    for i, image in enumerate(images):
        right, down = random.integers(-1, 2, 2)
        image[:] = colours["background_hue"][i]
        image[8 + down : 30 + down, 6 + right : 26 + right] = colours["skin"][i]
        image[3 + down : 11 + down, 6 + right : 26 + right] = colours["hair"][i]
        image[15 + down : 18 + down, 9 + right : 13 + right] = image[15 + down : 18 + down, 19 + right : 23 + right] = 0
    return images.repeat(size // 32, axis=1).repeat(size // 32, axis=2), colours


@pytest.mark.parametrize("size", [32, 128])
def test_portraits_give_the_colours_they_are_made_of(size: int) -> None:
    images, colours = portraits(30, 0, size)
    found = read([images[:7], images[7:8], images[8:]])
    for name in ATTRIBUTES:
        np.testing.assert_allclose(found[name], colours[name], err_msg=name)


def test_hue_is_that_of_hsv_to_a_degree() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (1000, 3)).astype(float)
    expected = np.array([360 * colorsys.rgb_to_hsv(*colour)[0] for colour in colours])
    assert np.abs((hue(colours) - expected + 180) % 360 - 180).max() < 1.2
    assert hue(np.full((1, 3), 90.0)) == 0


def test_lightness_goes_from_black_to_white() -> None:
    assert lightness(np.array([[0.0, 0, 0], [255, 255, 255]])) == pytest.approx([0, 255])


def test_a_histogram_has_every_image_in_one_bin_also_those_beyond_its_range() -> None:
    greys = np.array([0.0, 24, 35, 36, 215, 255])[:, None].repeat(3, axis=1)
    expected = np.zeros(NUM_BINS)
    expected[[0, 1, -1]] = 3 / 6, 1 / 6, 2 / 6
    assert histogram("skin", greys) == pytest.approx(expected)
    reds = np.array([[255.0, 1, 0], [255, 0, 1]])  # just above 0 and just below 360 degrees
    assert np.flatnonzero(histogram("background_hue", reds)).tolist() == [0, NUM_BINS - 1]


def test_the_same_images_overlap_whole_and_others_as_far_as_they_agree() -> None:
    skin = read([portraits(100, 1)[0]])["skin"]
    assert overlap("skin", skin, skin[::-1]) == pytest.approx(1)
    dark, light = np.full((4, 3), 60.0), np.full((4, 3), 200.0)
    assert overlap("skin", dark, light) == 0
    assert overlap("skin", np.concatenate((dark, light)), light) == 0.5


def test_one_background_overlaps_all_hues_by_one_bin() -> None:
    hues = (np.arange(160) + 0.5) / 160
    data = np.array([colorsys.hsv_to_rgb(h, 0.4, 200) for h in hues])
    samples = read([portraits(50, 2, background=(120, 170, 150))[0]])["background_hue"]
    assert overlap("background_hue", samples, data) == pytest.approx(1 / NUM_BINS)


def test_drawn_portraits_show_what_their_card_says_they_are() -> None:
    drawn = _draw(range(100), clutter=1.0)
    found = read([np.stack([np.asarray(Image.open(io.BytesIO(picture))) for picture, _ in drawn])])
    told = {name: np.array([float(card[name]) for _, card in drawn]) for name in ATTRIBUTES}
    apart = (hue(found["background_hue"]) - told["background_hue"] + 180) % 360 - 180
    assert np.quantile(np.abs(apart), 0.9) < 15  # clutter has colours of its own
    for name in ("skin", "hair"):
        assert spearmanr(lightness(found[name]), told[name]).statistic > 0.95, name
