"""Pictures of the curve, for any run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from began.evaluation.attributes import ATTRIBUTES, Colours
from began.runs import curve
from began.runs.curve import History
from pipeline.report import plots
from pipeline.report.plots import DARK, LIGHT, Theme


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


def distances_of(num: int) -> History:
    steps = np.arange(1, num + 1) * 128.0
    return {"step": steps, "face_distance": 60 + 400 * np.exp(-steps / 300)}


def runs(num: int, name: str = "γ 0.{}") -> dict[str, History]:
    """Runs of different lengths whose curves end close together."""
    return {
        name.format(i): history_of(40 + 3 * i) | {"M_global": np.full(40 + 3 * i, 0.1 + i / 1000)} for i in range(num)
    }


def colours_of(num: int, seed: int) -> Colours:
    random = np.random.default_rng(seed)
    return {name: random.uniform(0, 255, (num, 3)) for name in ATTRIBUTES}


def has(picture: np.ndarray, theme_colour: str) -> bool:
    return bool((picture == colour(theme_colour)).all(axis=2).any())


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
    assert plots.overlay(runs(3), "k_t", DARK) == plots.overlay(runs(3), "k_t", DARK)


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("narrow", [False, True])
def test_every_drawing_has_its_page_s_paper_and_width_and_is_small(theme: Theme, narrow: bool) -> None:
    drawings = [
        plots.overlay(runs(8), "M_global", theme, narrow, log=True),
        plots.overlay(runs(3, "a run with a name that no margin has room for, the {}th"), "k_t", theme, narrow),
        plots.distances(history_of(60), distances_of(19), 0.9, theme, narrow),
        plots.attributes(colours_of(2000, 0), colours_of(8000, 1), theme, narrow),
    ]
    for png in drawings:
        picture = pixels(png)
        assert picture.shape[1] == round((plots.NARROW_INCHES if narrow else plots.WIDE_INCHES) * plots.DPI)
        assert picture[0, 0].tolist() == colour(theme.paper)
        assert (picture != picture[0, 0]).any(axis=2).mean() > 0.005
        edge = np.concatenate((picture[0], picture[-1], picture[:, 0], picture[:, -1]))
        assert (edge == colour(theme.paper)).all(), "something is cut off"
        assert len(png) < 100_000


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("num", [1, 3, 8])
def test_every_run_of_an_overlay_has_its_own_colour(theme: Theme, num: int) -> None:
    picture = pixels(plots.overlay(runs(num), "k_t", theme))
    assert [has(picture, run) for run in theme.runs] == [True] * num + [False] * (8 - num)


def test_more_runs_than_colours_differ_by_their_dashes() -> None:
    assert len({plots._style(run, LIGHT) for run in range(24)}) == 24
    assert plots.overlay(runs(12), "M_global", LIGHT)


def contrast(a: str, b: str) -> float:
    """WCAG 2.1's contrast ratio."""

    def luminance(hexadecimal: str) -> float:
        return float(linear(hexadecimal) @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def linear(hexadecimal: str) -> np.ndarray:
    values = np.array(colour(hexadecimal)) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, D65."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(matrix @ rgb.clip(0, 1) / matrix.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_of_runs_are_told_apart_by_everybody(theme: Theme) -> None:
    assert all(contrast(run, theme.paper) >= 3 for run in theme.runs)  # WCAG's least for graphics
    for matrix in SIGHT.values():
        seen = [lab(matrix @ linear(run)) for run in theme.runs]
        apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
        assert min(apart) > 20  # about ten times what can just be told apart


def test_a_run_without_the_column_has_no_line() -> None:
    with_one = runs(2) | {"other": {"step": np.arange(3.0)}, "broken": {"step": np.ones(1), "k_t": np.array([np.nan])}}
    assert plots.overlay(with_one, "k_t", LIGHT) == plots.overlay(runs(2), "k_t", LIGHT)
    assert plots.overlay({}, "k_t", LIGHT) and plots.overlay(runs(2), "face_distance", LIGHT, log=True)


def test_names_of_runs_are_no_formulas() -> None:
    assert plots.overlay(runs(2, r"$\nonsense{{$ {}"), "k_t", LIGHT)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([1.0, 5.0], [1, 5]),
        ([3.0, 3.0, 3.0], [2, 3, 4]),
        ([0.0, 0.1], [0, 1]),
        ([9.9, 10.0], [9, 10]),
        ([2.0, 2.0, 8.0], [1.5, 2.5, 8]),
    ],
)
def test_labels_move_apart_no_further_than_they_must(places: list[float], expected: list[float]) -> None:
    assert plots._apart(places, 1.0, 0.0, 10.0) == pytest.approx(expected)


def records(steps: list[int], per_step: np.ndarray) -> History:
    """What a run whose M_global was `per_step` leaves, with records after `steps`: each a mean since the one before."""
    parts = np.split(per_step, steps)[:-1]
    return {"step": np.array(steps, float), "M_global": np.array([part.mean() for part in parts])}


def test_M_global_of_a_distance_is_the_mean_over_the_steps_since_the_last_one() -> None:
    """Whatever the records' own steps are, so long as they end where the distances do."""
    per_step = np.random.default_rng(0).random(40)
    wanted = per_step.reshape(5, 8).mean(axis=1)
    at = np.arange(8.0, 41, 8)
    for steps in ([*range(1, 41)], [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40]):
        assert curve.mean_M_global(records(steps, per_step), at) == pytest.approx(wanted)


def test_M_global_between_distances_that_share_a_record_is_that_record() -> None:
    history: History = {"step": np.array([1.0, 2, 10]), "M_global": np.array([3.0, 2, 1])}
    assert curve.mean_M_global(history, np.array([4.0, 6, 8, 10])) == pytest.approx([7 / 4, 1, 1, 1])
    assert curve.mean_M_global(history, np.array([10.0, 12])) == pytest.approx([1.3, 1])  # beyond the end: its last


@pytest.mark.parametrize("num", [1, 2, 10, 39, 400])
def test_the_line_of_means_goes_forward_in_runs_of_any_length(num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    monkeypatch.setattr(plots.Axes, "plot", lambda self, x, *_, **__: drawn.append(np.asarray(x, float)))
    history: History = {"step": np.arange(1.0, num + 1), "M_global": np.linspace(1, 0.1, num)}
    plots.convergence(history, {}, LIGHT)
    faint, line = drawn
    assert len(faint) == num and (np.diff(line) > 0).all() and line[0] == 0 and line[-1] == num


def test_distances_that_hardly_differ_are_not_drawn_as_a_line_far_above_zero() -> None:
    low, high = plots._limits(np.array([95.1, 93.4]))
    assert 90 < low < 93.4 and 95.1 < high < 98
    assert plots._limits(np.array([300.0, 160.0])) == pytest.approx((0, 330))
    assert plots._limits(np.array([0.0])) == (0, 1e-3)
    low, high = plots._limits(np.array([7.0, 7.0]))
    assert low < 7 < high


@pytest.mark.parametrize("num", [0, 1, 2, 19])
@pytest.mark.parametrize("narrow", [False, True])
def test_distances_are_drawn_for_any_number_of_points(num: int, narrow: bool) -> None:
    correlation = 0.9 if num > 2 else None
    assert plots.distances(history_of(60), distances_of(num), correlation, LIGHT, narrow)


@pytest.mark.parametrize(
    ("correlation", "title", "meaning"),
    [
        (0.931, "Rank correlation 0.93 (Spearman, 19 points)", "well"),
        (0.6, "Rank correlation 0.60", "roughly"),
        (0.3, "Rank correlation 0.30", "little"),
        (0.0, "Rank correlation 0.00", "nothing"),
        (-1.0, "Rank correlation −1.00", "misleads"),
        (None, "No rank correlation", "19 points"),
    ],
)
def test_the_rank_correlation_is_put_in_words(correlation: float | None, title: str, meaning: str) -> None:
    words = plots._in_words(correlation, 19)
    assert words[0].startswith(title) and meaning in words[1]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_bars_of_attributes_have_the_colours_of_the_samples(theme: Theme) -> None:
    alike = dict.fromkeys(ATTRIBUTES, np.array([[92.0, 56, 41]]))
    samples = alike | {"background_hue": np.array([[40.0, 160, 110], [200, 60, 60]])}
    picture = pixels(plots.attributes(samples, colours_of(200, 0), theme))
    for shown in ("#5c3829", "#28a06e", "#c83c3c"):
        assert has(picture, shown), shown


def test_attributes_show_the_data_where_there_are_no_samples() -> None:
    samples, data = dict.fromkeys(ATTRIBUTES, np.full((1, 3), 30.0)), dict.fromkeys(ATTRIBUTES, np.full((1, 3), 200.0))
    apart, alike = (pixels(plots.attributes(samples, shown, LIGHT)) for shown in (data, samples))
    plain = np.array(colour(LIGHT.faint)) * 0.3 + np.array(colour(LIGHT.paper)) * 0.7
    filled = [(np.abs(picture - plain).max(axis=2) < 1.5).sum(axis=0) for picture in (apart, alike)]
    assert (filled[0] > 150).sum() > (filled[1] > 150).sum()  # columns of pixels


@pytest.mark.parametrize("text", ["step,face_distance\n", "step,face_distance\n128,400.5\n256,90\n"])
def test_distances_are_read_by_column_also_when_nothing_was_measured(tmp_path: Path, text: str) -> None:
    path = tmp_path / "distances.csv"
    path.write_text(text)
    measured = curve.read_distances(path)
    assert measured["step"].tolist() == [128, 256][: text.count("\n") - 1]
    assert measured["face_distance"].tolist() == [400.5, 90][: text.count("\n") - 1]


def test_a_file_of_other_columns_has_no_distances(tmp_path: Path) -> None:
    path = tmp_path / "distances.csv"
    path.write_text("step,distance\n1,2\n")
    with pytest.raises(ValueError, match=r"distances.csv: has no column 'face_distance'"):
        curve.read_distances(path)


def test_losses_of_zero_are_drawn_too() -> None:
    history = history_of(30) | {"M_global": np.zeros(30), "L_fake": np.zeros(30)}
    assert plots.convergence(history, {}, LIGHT) and plots.curves(history, 0.5, LIGHT)


def test_history_is_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("step,M_global,L_real,L_fake,k_t,learning_rate\n40,0.5,0.4,0.3,0,1e-4\n80,0.4,0.3,0.2,0.1,5e-5\n")
    history = curve.read_history(path)
    assert history["step"].tolist() == [40, 80] and history["learning_rate"].tolist() == [1e-4, 5e-5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no column 'step'"),
        ("step,M_global\n", "has no column 'L_real'"),
        ("step,M_global,L_real,L_fake,k_t,learning_rate\n", "has no row"),
        ("step,M_global\n1,2\n", "has no column 'L_real'"),
        ("step,M_global\n1,many\n", "is not a table of numbers"),
        ("step,M_global\n1\n", "is not a table of numbers"),
    ],
)
def test_a_history_that_is_none_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"history.csv: {expected}"):
        curve.read_history(path)
