"""Runs → the page that has them beside each other: the same z, curves, numbers, and what differs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from began.data.images import grid, png_bytes, webp_bytes
from began.evaluation.attributes import ATTRIBUTES
from began.gan.sampling import draw_z, generate
from pipeline.report import plots
from pipeline.report.find_runs import Run
from pipeline.report.page import Picture, format_number, render_page

NUM_TILES = 12  # of a run's row; half of them in each of two rows on a phone
SEED = 0  # of z
PIXELS_ACROSS = 1024  # of a row of tiles, which a browser scales to the page
MOST_TILE_BYTES = 2_400_000  # of all rows together: with the curves, the page stays under 5 MB
CLEAR = 0.02  # by this share a number leads clearly, where its own noise is not known
RATIO = "L_fake / L_real"
CURVES = {
    "M_global": (
        "M_global",
        "The paper’s measure of convergence. γ is a part of it: read it within a run, not between γ.",
    ),
    "face_distance": (
        "Face distance",
        "Fréchet distance of samples to held-out images in face features, measured while it trained.",
    ),
    RATIO: ("Balance", "L_fake over L_real, which k_t keeps at γ."),
    "k_t": ("k_t", "How much of the generated images’ loss D is asked to raise."),
}


class _Number(NamedTuple):
    """A number of the table. better: "lower", "higher", or empty where neither always is."""

    name: str
    label: str
    better: str = ""
    aim: str = ""  # for the reader, where `better` does not say it
    share_of: str = ""  # the count of what it is a share of: its noise is known


def _distances(features: str, first: str) -> list[_Number]:
    return [
        _Number(f"frechet_{features}", first, "lower"),
        _Number(f"kid_{features}", "Kernel distance (KID)", "lower"),
        _Number(f"precision_{features}", "Precision", "higher", "share of samples that could be real", "num_samples"),
        _Number(f"density_{features}", "Density", "higher", "like precision, outliers weigh less"),
        _Number(f"recall_{features}", "Recall", "higher", "share of real images that are covered", "num_held_out"),
        _Number(f"coverage_{features}", "Coverage", "higher", "like recall, outliers weigh less", "num_held_out"),
    ]


GROUPS = {
    "In face features": _distances("face", "Fréchet distance"),
    "In Inception features": [
        *_distances("inception", "FID"),
        _Number("inception_score", "Inception score", "higher"),
    ],
    "How different samples are": [
        _Number("diversity", "Diversity", aim="1 is that of real images"),
        _Number("spread", "Spread of pixels", aim="1 is that of real images"),
    ],
    "Colours at known places": [
        _Number(
            f"attributes_overlap_{name}", attribute.label.capitalize(), "higher", "overlap with the data’s histogram"
        )
        for name, attribute in ATTRIBUTES.items()
    ],
    "Memorising": [
        _Number("nearest_training_face", "Nearest training image", aim="much nearer than real images: copies"),
        _Number("reconstruction_loss_held_out", "Reconstruction loss, held out", "lower"),
        _Number("reconstruction_loss_train", "Reconstruction loss, training", "lower"),
        _Number("reconstruction_gap", "Gap", aim="much above 1: known by heart"),
    ],
    "The run": [
        _Number("M_global", "M_global", aim="at its end; sees no collapse"),
        _Number("rank_correlation", "Rank correlation", aim="of M_global with the face distance"),
    ],
}
PRINTED = {
    "frechet_face": "Fréchet distance",
    "kid_face": "KID",
    "precision_face": "precision",
    "recall_face": "recall",
    "density_face": "density",
    "coverage_face": "coverage",
    "diversity": "diversity",
    "M_global": "M_global",
    "rank_correlation": "rank correlation",
}


class _Cell(NamedTuple):
    value: str
    deviation: str
    real: str  # where the runs' baselines are not the same
    is_best: bool


class _Row(NamedTuple):
    label: str
    aim: str
    cells: list[_Cell]
    real: str


class _Shown(NamedTuple):
    """A run as the page has it."""

    name: str  # γ, where that is all that differs; its label otherwise
    label: str
    remark: str
    origin: str
    model_digest: str | None
    strip: Picture | None
    is_logged: bool


def render(runs: Sequence[Run]) -> str:
    """The page as HTML, everything inside it."""
    names = names_of(runs)
    groups, has_real = _groups(runs)
    different = parameters_that_differ(runs)
    strips = _strips(runs)
    N_h = {run.parameters.get("train.N_h") for run in runs if run.G is not None}
    if len(N_h) > 1:
        of = "the same seed of z (their N_h differ, so a column is not one z)"
    else:
        of = "the same z, column by column" if len(runs) > 1 else "random z"
    return render_page(
        "compare.html",
        title=_title(runs, names),
        lead="One row of faces each, how they got there, and what the numbers say of each beside the others."
        if len(runs) > 1
        else "Its faces, how it got there, and its numbers.",
        shown=[
            _Shown(
                name,
                run.label,
                _remark(run, name, different),
                run.origin,
                run.model_digest,
                strip,
                run.G is None and run.logged is not None,
            )
            for run, name, strip in zip(runs, names, strips, strict=True)
        ],
        strip_caption=f"Samples of the averaged weights from {of}, not picked.",
        notes=notes_of(runs),
        numbers_caption=_numbers_caption(runs),
        groups=groups,
        has_real=has_real,
        num_columns=1 + len(runs) + has_real,
        curves=_curves(runs, names),
        parameters=different,
    )


def names_of(runs: Sequence[Run]) -> list[str]:
    """What the runs are called in the page: their γ where that is all that differs, or else their labels."""
    gammas = [run.parameters.get("gamma") for run in runs]
    if len(runs) > 1 and len(set(gammas)) == len(runs) and set(parameters_that_differ(runs)) == {"γ"}:
        return [f"γ = {gamma}" for gamma in gammas]
    return [run.label for run in runs]


def parameters_that_differ(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Name → each run's value, γ first, then as in params.yaml; a dash where a run has none."""
    # How they are evaluated may have changed since they were trained.
    names = dict.fromkeys(name for run in runs for name in run.parameters if not name.startswith("evaluate."))
    rows = {"γ" if name == "gamma" else name: [run.parameters.get(name, "–") for run in runs] for name in names}
    rows = {"γ": rows.pop("γ", []), **rows}
    rows["images"] = [_images(run) for run in runs]
    rows["steps"] = ["–" if run.step is None else f"{run.step:,}" for run in runs]
    rows["device, precision"] = [run.versions or "–" for run in runs]
    return {name: values for name, values in rows.items() if len({value for value in values if value != "–"}) > 1}


def notes_of(runs: Sequence[Run]) -> list[str]:
    """What a reader of the page must know."""
    notes = [f"{run.label}: {remark}." for run in runs for remark in run.remarks]
    sizes = {run.image_size for run in runs} - {None}
    if len(sizes) > 1:
        shown = " and ".join(f"{size} × {size}" for size in sorted(filter(None, sizes)))
        notes.append(f"The images are of different size, {shown} pixels; here they are shown alike.")
    if len({run.data.get("digest") for run in runs}) > 1:
        notes.append("The runs were trained on different images: their numbers are not of the same thing.")
    elif not _have_same_counts(runs):
        notes.append("The numbers are over different numbers of images: distances over fewer are larger.")
    return notes


def table_of(runs: Sequence[Run]) -> str:
    """The main numbers for a terminal, one column a run."""
    lines = [["", *names_of(runs), "real images"]]
    for name, label in PRINTED.items():
        if any(run.numbers.get(name) is not None for run in runs):
            values = [format_number(run.numbers.get(name)) for run in runs]
            lines.append([label, *values, _common_baseline(name, runs)])
    if all(line[-1] == "" for line in lines[1:]):
        lines = [line[:-1] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def _title(runs: Sequence[Run], names: Sequence[str]) -> str:
    if len(runs) == 1:
        return f"Run {names[0]}"
    if all(name.startswith("γ = ") for name in names):
        values = [name.removeprefix("γ = ") for name in names]
        return f"γ = {', '.join(values[:-1])} and {values[-1]}"
    return f"{names[0]} and {names[1]}" if len(runs) == 2 else f"{len(runs)} runs beside each other"


def _remark(run: Run, name: str, different: Mapping[str, Sequence[str]]) -> str:
    """What stands small behind a run's name: its label, and γ where the name is not γ already."""
    gamma = run.parameters.get("gamma")
    if name != run.label:
        return run.label
    return f"γ = {gamma}" if gamma is not None and (not different or "γ" in different) else ""


def _images(run: Run) -> str:
    source, digest = run.data.get("source") or "", run.data.get("digest") or ""
    return " ".join(filter(None, (str(source), str(digest)[:8]))) or "–"


def _strips(runs: Sequence[Run]) -> list[Picture | None]:
    """Each run's row of faces; smaller ones where many or large ones would make the page too heavy."""
    faces = [_faces(run) for run in runs]
    for shrink in (1, 2, 4, 8, 16):
        strips = [
            None if images is None else _strip(run, images, shrink) for run, images in zip(runs, faces, strict=True)
        ]
        num_bytes = sum(len(strip.image) + len(strip.narrow or b"") for strip in strips if strip is not None)
        if num_bytes <= MOST_TILE_BYTES:
            break
    return strips


def _faces(run: Run) -> np.ndarray | None:
    """Tiles (N, S, S, 3), from the same z for all runs of the same N_h."""
    if run.G is not None:
        return np.concatenate(list(generate(run.G, draw_z(NUM_TILES, run.G.project.in_features, SEED))))
    return None if run.logged is None else run.logged[:NUM_TILES]


def _strip(run: Run, images: np.ndarray, shrink: int) -> Picture:
    title = f"{NUM_TILES} faces of {run.label}"
    wide, narrow = _encoded(images, NUM_TILES, shrink), _encoded(images, NUM_TILES // 2, shrink)
    return Picture(title, "", title, wide, narrow=narrow, is_grid=True)


def _encoded(images: np.ndarray, columns: int, shrink: int) -> bytes:
    """A grid as PNG or, where that is larger than a WebP worth having, as WebP."""
    N, S = images.shape[:2]
    factor = shrink
    while S // factor * columns > 2 * PIXELS_ACROSS:
        factor *= 2
    parts = images.reshape(N, S // factor, factor, S // factor, factor, 3)
    smaller = parts.mean(axis=(2, 4)).round().astype(np.uint8)
    picture = grid(smaller, columns)
    times = max(PIXELS_ACROSS // picture.shape[1], 1)
    picture = picture.repeat(times, axis=0).repeat(times, axis=1)
    png, webp = png_bytes(picture), webp_bytes(picture)
    return png if len(png) <= 2 * len(webp) else webp


def _curves(runs: Sequence[Run], names: Sequence[str]) -> list[Picture]:
    histories = {}
    distances = {}
    for run, name in zip(runs, names, strict=True):
        if run.history is not None:
            histories[name] = run.history | {RATIO: run.history["L_fake"] / run.history["L_real"]}
        if run.distances is not None and len(run.distances["step"]):
            distances[name] = run.distances
    pictures = []
    for column, (title, caption) in CURVES.items():
        measured = distances if column == "face_distance" else histories
        if not measured:
            continue
        draw = partial(plots.overlay, measured, column, log=column in ("M_global", "face_distance"))
        light, dark = draw(plots.LIGHT), draw(plots.DARK)
        narrow, narrow_dark = draw(plots.LIGHT, narrow=True), draw(plots.DARK, narrow=True)
        pictures.append(Picture(title, caption, f"{title} over steps", light, dark, narrow, narrow_dark))
    return pictures


def _groups(runs: Sequence[Run]) -> tuple[dict[str, list[_Row]], bool]:
    """Heading → lines of the table, and whether any has a baseline that all runs share."""
    known = {name for run in runs for name in run.numbers}
    groups = {}
    for heading, numbers in GROUPS.items():
        lines = [_row(number, runs) for number in numbers if number.name in known]
        if lines:
            groups[heading] = lines
    return groups, any(row.real for lines in groups.values() for row in lines)


def _row(number: _Number, runs: Sequence[Run]) -> _Row:
    best = _best(number, runs)
    common = _common_baseline(number.name, runs)
    cells = []
    for i, run in enumerate(runs):
        deviation, real = run.numbers.get(f"{number.name}_std"), run.numbers.get(f"{number.name}_baseline")
        cells.append(
            _Cell(
                format_number(run.numbers.get(number.name)),
                "" if deviation is None else format_number(deviation),
                "" if real is None or common else format_number(real),
                i == best,
            )
        )
    aim = "; ".join(filter(None, (number.aim, f"{number.better} is better" if number.better else "")))
    return _Row(number.label, aim, cells, common)


def _best(number: _Number, runs: Sequence[Run]) -> int | None:
    """The run whose number is clearly the best: by more than its noise, over the same images, as many for all."""
    values = [(run.numbers.get(number.name), i) for i, run in enumerate(runs)]
    ranked = sorted([(value, i) for value, i in values if value is not None], reverse=number.better == "higher")
    if not number.better or len(ranked) < 2 or not _are_comparable(runs):
        return None
    (first, best), (second, other) = ranked[:2]
    deviations = [runs[i].numbers.get(f"{number.name}_std") for i in (best, other)]
    num_images = runs[best].numbers.get(number.share_of)
    if all(deviation is not None for deviation in deviations):
        margin = sum(filter(None, deviations))
    elif num_images:
        margin = 2 * math.sqrt(sum(max(p * (1 - p), 0) for p in (first, second)) / num_images)
    else:
        margin = CLEAR * max(abs(first), abs(second))
    return best if abs(first - second) > margin else None


def _are_comparable(runs: Sequence[Run]) -> bool:
    digests = {run.data.get("digest") for run in runs}
    return len(digests) == 1 and digests != {""} and _have_same_counts(runs)


def _have_same_counts(runs: Sequence[Run]) -> bool:
    counts = [tuple(run.numbers.get(name) for name in ("num_samples", "num_held_out")) for run in runs]
    return len({count for count in counts if count != (None, None)}) <= 1


def _common_baseline(name: str, runs: Sequence[Run]) -> str:
    """What real images score in the same place, where it is the same for all runs; empty otherwise."""
    values = {run.numbers.get(f"{name}_baseline") for run in runs} - {None}
    shown = {format_number(value) for value in values}
    return shown.pop() if len(shown) == 1 else ""


def _numbers_caption(runs: Sequence[Run]) -> str:
    counts = sorted({count for run in runs if (count := run.numbers.get("num_samples")) is not None})
    held_out = sorted({count for run in runs if (count := run.numbers.get("num_held_out")) is not None})
    over = ""
    if counts and held_out:
        over = f" over {_range(counts)} samples against {_range(held_out)} held-out images"
    return (
        f"As in the runs’ own reports{over}. Marked is the best of a line where it leads by more than its noise: KID "
        "by both ±, shares by two standard errors, others by 2\u00a0%. A dash stands where a run was not measured so."
    )


def _range(counts: Sequence[float]) -> str:
    return f"{counts[0]:,.0f}" if len(counts) == 1 else f"{counts[0]:,.0f} to {counts[-1]:,.0f}"
