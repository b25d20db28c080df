"""Pictures of the curve, for any run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import plots
from pipeline.plots import DARK, LIGHT, History, Theme


def history_of(num: int) -> History:
    steps = np.arange(1, num + 1) * 40.0
    loss = 0.05 + 0.4 * np.exp(-steps / 200)
    return {
        "step": steps,
        "M_global": loss * 1.1,
        "L_real": loss,
        "L_fake": loss * 0.7,
        "k_t": np.minimum(steps / 4000, 0.15),
        "learning_rate": np.full(num, 1e-4),
    }


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def colour(theme_colour: str) -> list[int]:
    return [int(theme_colour[i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("num", [1, 60])
def test_pictures_are_drawn_for_every_page_and_length_of_run(theme: Theme, narrow: bool, num: int) -> None:
    history = history_of(num)
    width = round((plots.NARROW_INCHES if narrow else plots.WIDE_INCHES) * plots.DPI)
    for png in (plots.convergence(history, {}, theme, narrow), plots.curves(history, 1.0, theme, narrow)):
        picture = pixels(png)
        assert picture.shape[1] == width
        assert picture[0, 0].tolist() == colour(theme.paper)
        assert (picture != picture[0, 0]).any(axis=2).mean() > 0.005


@pytest.mark.parametrize("num_pictures", [1, 5, 13])
def test_thumbnails_of_the_first_and_the_last_step_stand_above_the_curve(num_pictures: int) -> None:
    steps = [round(2400 * i / num_pictures) for i in range(1, num_pictures + 1)]
    thumbnails = {step: np.full((64, 32, 32, 3), (200, 0, 40), dtype=np.uint8) for step in steps}
    thumbnails[steps[0]] = np.full((64, 32, 32, 3), (0, 200, 40), dtype=np.uint8)
    picture = pixels(plots.convergence(history_of(60), thumbnails, LIGHT)).astype(int)
    green = (picture == (0, 200, 40)).all(axis=2)
    red = (picture == (200, 0, 40)).all(axis=2)
    assert green.any() and (red.any() or num_pictures == 1)
    if num_pictures > 1:
        assert green.nonzero()[1].max() < red.nonzero()[1].min()
        assert red.nonzero()[1].max() > 0.95 * picture.shape[1]


def test_the_same_curve_gives_the_same_bytes() -> None:
    assert plots.curves(history_of(30), 0.5, LIGHT) == plots.curves(history_of(30), 0.5, LIGHT)


def test_losses_of_zero_are_drawn_too() -> None:
    history = history_of(30) | {"M_global": np.zeros(30), "L_fake": np.zeros(30)}
    assert plots.convergence(history, {}, LIGHT) and plots.curves(history, 0.5, LIGHT)


def test_history_is_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("step,M_global,L_real,L_fake,k_t,learning_rate\n40,0.5,0.4,0.3,0,1e-4\n80,0.4,0.3,0.2,0.1,5e-5\n")
    history = plots.read_history(path)
    assert history["step"].tolist() == [40, 80] and history["learning_rate"].tolist() == [1e-4, 5e-5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no column 'step'"),
        ("step,M_global\n", "has no column 'step'"),
        ("step,M_global\n1,2\n", "has no column 'L_real'"),
        ("step,M_global\n1,many\n", "is not a table of numbers"),
        ("step,M_global\n1\n", "is not a table of numbers"),
    ],
)
def test_a_history_that_is_none_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"history.csv: {expected}"):
        plots.read_history(path)
