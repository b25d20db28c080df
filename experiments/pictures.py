"""Results → the pictures of docs/."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from began.base.files import replace_file
from began.data.images import grid
from began.data.rows import open_images
from began.gan.sampling import Pixels, draw_z, generate
from experiments.page import Numbers
from experiments.runs import RATIO
from pipeline.report.find_runs import Run, fetch
from pipeline.report.plots import DPI, LIGHT, WIDE_INCHES

IMAGES = Path("docs/images")
COLUMNS = 12  # faces in a row
FACE_PIXELS = 64  # small faces are repeated up to it, so that a browser does not blur them
GAP = 6  # pixels between rows
SEED = 0  # of z
LABEL_HEIGHT = 0.065  # of a line's name, on an axis from 0 to 1.1
SHARES = {"spread": "spread", "coverage_face": "coverage", "recall_face": "recall", "precision_face": "precision"}


def faces(run: Run) -> Pixels:
    """The first samples of the averaged generator, (COLUMNS, S, S, 3): the same z for every run of one N_h."""
    assert run.G is not None  # an experiment that finished has weights
    return np.concatenate(list(generate(run.G, draw_z(COLUMNS, int(run.parameters["train.N_h"]), SEED))))


def training_images(name: str) -> Pixels:
    """The first images that the experiment `name` trained on, (COLUMNS, S, S, 3)."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "images.h5"
        fetch(name, "data/images.h5", path)
        return np.array(open_images(path).train[:COLUMNS])


def labelled_rows(path: Path, rows: Mapping[str, Pixels]) -> None:
    """Writes a PNG with a row of images (N, S, S, 3) for each label, which stands left of it."""
    blocks = {}
    for label, pixels in rows.items():
        times = max(FACE_PIXELS // pixels.shape[1], 1)
        blocks[label] = grid(pixels, COLUMNS).repeat(times, axis=0).repeat(times, axis=1)
    left = 20 + 8 * max(len(label) for label in blocks)
    width = left + max(block.shape[1] for block in blocks.values())
    height = sum(block.shape[0] + GAP for block in blocks.values()) - GAP
    dots = 100
    figure = _figure(width / dots, height / dots, dots)
    top = height
    for label, block in blocks.items():
        top -= block.shape[0]
        figure.figimage(block, left, top, origin="upper")
        y = (top + block.shape[0] / 2) / height
        figure.text(8 / width, y, label, color=LIGHT.ink, fontsize=10, va="center")
        top -= GAP
    _write(path, figure)


def against_gamma(path: Path, numbers: Mapping[float, Sequence[Numbers]]) -> None:
    """Writes a PNG: L(G(z)) / L(x) against γ with the diagonal, and what says how good and how different samples are.

    numbers: γ → those of each seed. A dot is a seed, the line goes through the means.
    """
    figure = _figure(WIDE_INCHES, 3.0, DPI)
    balance = _axes(figure, (0.07, 0.14, 0.36, 0.74), "L(G(z)) / L(x); dashed: γ itself")
    shares = _axes(figure, (0.52, 0.14, 0.36, 0.74), "how different and how good samples are")
    ends = (min(numbers), max(numbers))
    balance.plot(ends, ends, color=LIGHT.faint, linewidth=0.9, linestyle=(0, (4, 3)))
    _dots_and_means(balance, numbers, RATIO, LIGHT.real)
    at_end = {}
    for colour, (name, label) in zip(LIGHT.runs, SHARES.items(), strict=False):
        last = _dots_and_means(shares, numbers, name, colour)
        if last is not None:
            at_end[label] = last, colour
    shares.set_ylim(0, 1.1)
    _name_ends(shares, at_end)
    for axes in (balance, shares):
        axes.set_xticks(sorted(numbers))
        axes.set_xlabel("γ", color=LIGHT.faint, fontsize=8, loc="right", labelpad=2)
    _write(path, figure)


def _dots_and_means(axes: Axes, numbers: Mapping[float, Sequence[Numbers]], name: str, colour: str) -> float | None:
    """The height of the line's right end; None where no seed has the number."""
    values = {
        gamma: [value for numbers in seeds if (value := numbers.get(name)) is not None]
        for gamma, seeds in sorted(numbers.items())
    }
    means = {gamma: sum(found) / len(found) for gamma, found in values.items() if found}
    axes.plot(list(means), list(means.values()), color=colour, linewidth=1.3)
    for gamma, found in values.items():
        axes.plot([gamma] * len(found), found, "o", color=colour, markersize=3, alpha=0.7)
    return list(means.values())[-1] if means else None


def _name_ends(axes: Axes, at_end: Mapping[str, tuple[float, str]]) -> None:
    """Names lines right of the axes, at the height where each ends, in its colour; moved up where two would overlap."""
    lowest = 0.0
    for label, (end, colour) in sorted(at_end.items(), key=lambda item: item[1][0]):
        height = max(end, lowest)
        axes.text(
            1.02, height, label, transform=axes.get_yaxis_transform(), color=colour, fontsize=8, va="center_baseline"
        )
        lowest = height + LABEL_HEIGHT


def _figure(width: float, height: float, dots: int) -> Figure:
    """Inches, and dots an inch."""
    figure = Figure(figsize=(width, height), dpi=dots, facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, box: tuple[float, float, float, float], title: str) -> Axes:
    axes = figure.add_axes(box)
    axes.set_facecolor(LIGHT.paper)
    axes.set_title(title, color=LIGHT.ink, fontsize=9, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(LIGHT.faint)
        axes.spines[side].set_linewidth(0.6)
    axes.tick_params(colors=LIGHT.faint, labelsize=8, width=0.6, length=3)
    return axes


def _write(path: Path, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    with replace_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
    print(path)
