"""Curves and counts of runs → pictures, for a light and a dark page, wide and narrow."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.console.workspace import main_root

# Matplotlib keeps a list of fonts, by default in the home folder. It reads this as it is loaded.
if os.access(main_root() / ".dvc", os.W_OK):
    os.environ.setdefault("MPLCONFIGDIR", str(main_root() / ".began" / "matplotlib"))

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from began.evaluation.attributes import ATTRIBUTES, Colours, bins, histogram, overlap
from began.runs.curve import History, mean_M_global, middles


@dataclass(frozen=True)
class Theme:
    """Colours of one page."""

    paper: str
    ink: str
    faint: str
    real: str  # of data, and of a picture's main line
    fake: str
    runs: tuple[str, ...]  # of one run each; any two differ for the colour blind too


LIGHT = Theme(
    paper="#fdfcfa",
    ink="#26241f",
    faint="#8c877d",
    real="#2f5d8a",
    fake="#c05a2b",
    runs=("#2f5d8a", "#c05a2b", "#332200", "#8844dd", "#aa7777", "#331177", "#660044", "#8888dd"),
)
DARK = Theme(
    paper="#171614",
    ink="#e6e2da",
    faint="#8f897e",
    real="#7fb0de",
    fake="#e58e5f",
    runs=("#7fb0de", "#e58e5f", "#eeee66", "#9977ee", "#77ffee", "#dd4488", "#ccffaa", "#bb9900"),
)

WIDE_INCHES, NARROW_INCHES = 7.8, 3.9  # the page shows an inch as about 100 pixels
DPI = 200
NUM_MEANS = 40  # points at most of the line over M_global's records, each a mean of a 40th of the run
MARGIN_LEFT = 0.55  # inches, of pictures of three panels
GAP = 2  # white pixels between thumbnails' tiles

Dashes = tuple[float, tuple[float, ...]]
DASHES: tuple[Dashes, ...] = (
    (0, ()),
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
)  # of the first four runs, the next four, and so on
WIDEST_LABEL = 0.3  # of a picture's width: longer ones stand below the curves, not at their ends
LABEL_INCHES = 0.17  # from one label to the next
COLUMN_TITLES = {"face_distance": "face distance", "learning_rate": "learning rate"}


def convergence(history: History, thumbnails: Mapping[int, np.ndarray], theme: Theme, narrow: bool = False) -> bytes:
    """PNG: M_global over steps, with samples of the same z above the curve, as in the paper's figure 4.

    The line has means, the faint one behind it the records.

    thumbnails: step → at least 6 tiles (N, S, S, 3) uint8. As many steps as fit are shown, evenly spaced, the first
    and the last always; without any the curve stands alone.
    """
    width = NARROW_INCHES if narrow else WIDE_INCHES
    shown = evenly(sorted(thumbnails), 4 if narrow else 8)
    margin_left, margin_right, margin_bottom, margin_top = (0.55 if narrow else 0.6), 0.12, 0.45, 0.12
    inner = width - margin_left - margin_right
    block_width = inner / max(len(shown), 4 if narrow else 6) * (0.9 if narrow else 0.88)
    block_height = block_width * 3 / 2
    strip = block_height + 0.35 if shown else 0.0
    curve_height = 2.0 if narrow else 2.6
    height = margin_bottom + curve_height + strip + margin_top
    figure = _figure(width, height, theme)
    axes = _axes(
        figure, (margin_left / width, margin_bottom / height, inner / width, curve_height / height), theme, narrow
    )
    steps, values = history["step"], history["M_global"]
    end = float(steps[-1])
    ends = np.linspace(0, end, min(NUM_MEANS, max(1, int(end))) + 1)
    means = mean_M_global(history, ends[1:])
    at = np.concatenate([[0.0], middles(ends[1:]), [end]])  # a mean stands in the middle of its steps
    means = np.concatenate([means[:1], means, means[-1:]])
    axes.plot(steps, values, color=theme.real, linewidth=0.6, alpha=0.45)
    axes.plot(at, means, color=theme.real, linewidth=1.6)
    _log_scale(axes, values)
    _label(axes, "M_global", theme, x=block_width / 2 / inner + 0.012 if shown else 0.0)  # beside the first line
    axes.set_xlabel("step", color=theme.faint, fontsize=8, loc="right", labelpad=2)
    last = max(float(steps[-1]), float(shown[-1]) if shown else 0.0, 1.0)
    # Room left and right, so that the first and the last block stand exactly above their steps.
    pad = last * ((block_width / 2) / (inner - block_width) if shown else 0.02)
    axes.set_xlim(-pad, last + pad)
    places = np.linspace(0, 1, len(shown)) if len(shown) > 1 else [0.5] * len(shown)
    for step, place in zip(shown, places, strict=True):
        left = margin_left + (inner - block_width) * place
        block = figure.add_axes(
            (left / width, (margin_bottom + curve_height + 0.3) / height, block_width / width, block_height / height)
        )
        block.imshow(_block(thumbnails[step], theme), interpolation="nearest")
        block.set_axis_off()
        value = float(np.interp(step, at, means))
        line = ConnectionPatch(
            xyA=(0.5, 0), coordsA=block.transAxes, xyB=(step, value), coordsB=axes.transData,
            color=theme.faint, linewidth=0.6, alpha=0.7,
        )  # fmt: skip
        figure.add_artist(line)
        if step >= steps[0]:  # before the first record there is a picture, but no number
            axes.plot([step], [value], "o", color=theme.real, markersize=3.5, zorder=3)
    return _png(figure)


def curves(history: History, gamma: float, theme: Theme, narrow: bool = False) -> bytes:
    """PNG: losses, k_t and learning rate over steps, side by side, or one above the other when narrow."""
    figure, (losses, balance, rate) = _three_panels(6.4 if narrow else 2.6, 0.3, theme, narrow)
    steps = history["step"]
    losses.plot(steps, history["L_real"], color=theme.real, linewidth=1.3)
    losses.plot(steps, history["L_fake"], color=theme.fake, linewidth=1.3)
    losses.plot(steps, gamma * history["L_real"], color=theme.real, linewidth=0.9, linestyle=(0, (3, 2)))
    _log_scale(losses, np.concatenate((gamma * history["L_real"], history["L_real"], history["L_fake"])))
    _label(losses, "losses", theme)
    # At γ = 1 the target is L_real itself, and its line lies on the other.
    names = [("L_real", theme.real), ("L_fake", theme.fake)] + ([("– – γ·L_real", theme.real)] if gamma != 1 else [])
    for i, (name, colour) in enumerate(names):
        losses.text(
            0.98, 0.93 - 0.11 * i, name, color=colour, fontsize=8, ha="right", va="center", transform=losses.transAxes
        )
    balance.plot(steps, history["k_t"], color=theme.real, linewidth=1.3)
    balance.set_ylim(bottom=0, top=max(float(history["k_t"].max()) * 1.1, 1e-3))
    _label(balance, "k_t", theme)
    rate.plot(steps, history["learning_rate"], color=theme.real, linewidth=1.3)
    rate.set_ylim(bottom=0, top=float(history["learning_rate"].max()) * 1.1)
    rate.yaxis.set_major_formatter(FuncFormatter(_in_powers))
    _label(rate, "learning rate", theme)
    return _drawing(figure)


def overlay(
    histories: Mapping[str, History], column: str, theme: Theme, narrow: bool = False, log: bool = False
) -> bytes:
    """PNG: `column` over steps, one line a run, named at its end; below the curves where the names are long.

    histories: name → columns, of any number of runs. Those that lack the column or have no finite value in it have no
    line.
    """
    lines: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, history in histories.items():
        steps, values = history["step"], history.get(column, np.full(len(history["step"]), np.nan))
        if (finite := np.isfinite(values)).any():
            lines[name.replace("$", r"\$")] = steps[finite], values[finite]  # else matplotlib would read formulas
    width = NARROW_INCHES if narrow else WIDE_INCHES
    margin_left, margin_bottom, margin_top, curve_height = (
        (0.55 if narrow else 0.6),
        0.45,
        0.3,
        (2.2 if narrow else 2.6),
    )
    longest = max((_text_inches(name) for name in lines), default=0.0)
    at_ends = len(lines) > 0 and longest <= WIDEST_LABEL * width
    margin_right = longest + 0.28 if at_ends else 0.25
    inner = width - margin_left - margin_right
    across = max(int((inner + 0.2) / (min(longest, inner) + 0.55)), 1)  # names below the curves
    if at_ends:
        curve_height = max(curve_height, len(lines) * LABEL_INCHES)
    else:
        margin_bottom += -(-len(lines) // across) * LABEL_INCHES * 1.15 + 0.08
    height = margin_bottom + curve_height + margin_top
    figure = _figure(width, height, theme)
    box = (margin_left / width, margin_bottom / height, inner / width, curve_height / height)
    axes = _axes(figure, box, theme, narrow)
    styles = {name: _style(i, theme) for i, name in enumerate(lines)}
    for name, (steps, values) in lines.items():
        axes.plot(steps, values, color=styles[name][0], linestyle=styles[name][1], linewidth=1.3)
    last = max((float(steps[-1]) for steps, _ in lines.values()), default=1.0)
    axes.set_xlim(0, max(last, 1.0))
    everything = np.concatenate([values for _, values in lines.values()]) if lines else np.zeros(0)
    if log:
        _log_scale(axes, everything)
    elif len(everything) and everything.min() >= 0:
        axes.set_ylim(0, max(float(everything.max()) * 1.1, 1e-3))
    _label(axes, COLUMN_TITLES.get(column, column), theme)
    axes.set_xlabel("step", color=theme.faint, fontsize=8, loc="right", labelpad=2)
    if not lines:
        _remark(axes, "not measured", theme)
    elif at_ends:
        ends = {name: (float(steps[-1]), float(values[-1])) for name, (steps, values) in lines.items()}
        _name_ends(figure, axes, ends, {name: colour for name, (colour, _) in styles.items()})
    else:
        for i, name in enumerate(lines):
            x = margin_left + i % across * (min(longest, inner) + 0.55)
            y = margin_bottom - 0.5 - i // across * LABEL_INCHES * 1.15
            figure.add_artist(
                Line2D(
                    (x / width, (x + 0.26) / width), (y / height, y / height),
                    color=styles[name][0], linestyle=styles[name][1], linewidth=1.8,
                )
            )  # fmt: skip
            text = _shortened(name, inner - 0.35)
            figure.text((x + 0.34) / width, y / height, text, color=theme.ink, fontsize=8, va="center_baseline")
    return _drawing(figure)


def distances(
    history: History, measured: History, rank_correlation: float | None, theme: Theme, narrow: bool = False
) -> bytes:
    """PNG: M_global and the face distance over steps, one against the other, and how far their ranks agree, in words.

    measured: step and face_distance, of any number of points; rank_correlation: Spearman's over those points. A point's
    M_global is the mean since the point before.
    """
    finite = np.isfinite(measured["face_distance"])
    steps, values = measured["step"][finite], measured["face_distance"][finite]
    M_global = mean_M_global(history, measured["step"])[finite]
    figure, (quality, distance, against) = _three_panels(7.3 if narrow else 3.15, 0.82, theme, narrow)
    quality.plot(history["step"], history["M_global"], color=theme.real, linewidth=0.6, alpha=0.45)
    quality.plot(
        middles(measured["step"])[finite], M_global, "-o",
        color=theme.real, linewidth=1.3, markersize=3,
    )  # fmt: skip
    _log_scale(quality, history["M_global"])
    _label(quality, "M_global", theme)
    _label(distance, "face distance to held-out images", theme)
    _label(against, "distance against M_global", theme)
    for axes in (quality, distance):
        last = max(float(history["step"][-1]), 1.0)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        axes.set_xlabel("step", color=theme.faint, fontsize=8, loc="right", labelpad=2)
    against.set_xlabel("M_global", color=theme.faint, fontsize=8, loc="right", labelpad=2)
    if len(steps):
        distance.plot(steps, values, "-o", color=theme.fake, linewidth=1.3, markersize=3)
        distance.set_ylim(*_limits(values))
        against.plot(M_global, values, "-", color=theme.faint, linewidth=0.6, alpha=0.7)
        against.plot(M_global, values, "o", color=theme.fake, markersize=3)
        against.set_ylim(distance.get_ylim())
        against.xaxis.set_major_locator(MaxNLocator(4))
        against.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        against.margins(x=0.2)
        if len(steps) > 1:
            for name, i, shift, side in (("start", 0, (0, 5), "center"), ("end", -1, (0, -10), "center")):
                against.annotate(
                    name, (M_global[i], values[i]), xytext=shift, textcoords="offset points",
                    color=theme.ink, fontsize=8, ha=side,
                    path_effects=[withStroke(linewidth=2, foreground=theme.paper)],
                )  # fmt: skip
    else:
        for axes in (distance, against):
            _remark(axes, "not measured", theme)
            axes.set_xticks([])
            axes.set_yticks([])
    words, meaning = _in_words(rank_correlation, len(steps))
    width, height = figure.get_size_inches()
    x = MARGIN_LEFT / width
    figure.text(x, 1 - 0.1 / height, words, color=theme.ink, fontsize=9, va="top", weight="bold")
    figure.text(x, 1 - 0.29 / height, meaning, color=theme.ink, fontsize=9, va="top")
    return _drawing(figure)


def attributes(samples: Colours, data: Colours, theme: Theme, narrow: bool = False) -> bytes:
    """PNG: for each attribute the samples' histogram as bars in front of the data's, and how much the two share.

    A bar has the mean colour of what it counts.
    """
    figure, panels = _three_panels(6.2 if narrow else 2.5, 0.62, theme, narrow)
    for (name, attribute), axes in zip(ATTRIBUTES.items(), panels, strict=True):
        of_data, of_samples = (histogram(name, colours[name]) for colours in (data, samples))
        axes.stairs(of_data, fill=True, color=theme.faint, alpha=0.3)
        axes.stairs(of_data, color=theme.faint, linewidth=0.8)
        found = bins(name, samples[name])
        for i in np.flatnonzero(of_samples):
            colour = samples[name][found == i].mean(axis=0) / 255
            axes.bar(i + 0.5, of_samples[i], 0.66, color=colour, edgecolor=theme.faint, linewidth=0.4)
        axes.set_xlim(0, len(of_data))
        axes.set_xticks([0, len(of_data)], attribute.ends)
        axes.set_ylim(0, max(of_data.max(), of_samples.max()) * 1.08)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _label(axes, f"{attribute.label}: {overlap(name, samples[name], data[name]):.2f} shared", theme)
    width, height = figure.get_size_inches()
    x, y = MARGIN_LEFT / width, 1 - 0.16 / height
    figure.text(x, y, "■", color=theme.faint, alpha=0.5, fontsize=10, va="center_baseline")
    words = "data; bars: samples, in their own colours"
    figure.text(x + 0.17 / width, y, words, color=theme.ink, fontsize=8, va="center_baseline")
    return _drawing(figure)


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Of the axis of distances: from 0, but where they differ by less than a fifth of the largest."""
    least, most = float(values.min()), float(values.max())
    if least < 0.8 * most or most == 0:
        return 0.0, max(most * 1.1, 1e-3)
    pad = max(0.25 * (most - least), 0.01 * most)
    return least - pad, most + pad


def _in_words(rank_correlation: float | None, num_points: int) -> tuple[str, str]:
    if rank_correlation is None:
        points = "1 point" if num_points == 1 else f"{num_points} points"
        return "No rank correlation", f"{points} of the run: too few, or they do not differ."
    value = f"{rank_correlation:.2f}".replace("-", "−")
    for least, meaning in (
        (0.8, "M_global tells the distance well: they fall together."),
        (0.5, "M_global tells the distance roughly."),
        (0.2, "M_global tells little of the distance."),
        (-0.2, "M_global tells nothing of the distance."),
        (-1.1, "M_global misleads: it falls while the distance rises."),
    ):
        if rank_correlation >= least:
            return f"Rank correlation {value} (Spearman, {num_points} points)", meaning
    raise AssertionError(rank_correlation)


def _style(run: int, theme: Theme) -> tuple[str, Dashes]:
    """Colour and dashes of a run's line, each pair once in 24 runs."""
    return theme.runs[run % len(theme.runs)], DASHES[run // 4 % len(DASHES)]


def _name_ends(figure: Figure, axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Each name right of the axes, beside its line's end (step, value), moved apart where they would overlap."""
    axes.get_ylim()  # settles the limits that the transformation depends on
    width, height = figure.get_size_inches()
    bounds = axes.get_position()
    right, bottom, top = bounds.x1 * width, bounds.y0 * height, bounds.y1 * height
    points = {name: axes.transData.transform(end) / DPI for name, end in ends.items()}  # inches
    names = sorted(points, key=lambda name: float(points[name][1]))
    places = _apart([float(points[name][1]) for name in names], LABEL_INCHES, bottom, top)
    for name, place in zip(names, places, strict=True):
        x, y = points[name]
        leader = Line2D(
            (x / width, (right + 0.14) / width), (y / height, place / height),
            color=colours[name], linewidth=0.7, linestyle=":" if x < right - 0.01 else "-",
        )  # fmt: skip
        figure.add_artist(leader)
        figure.text((right + 0.18) / width, place / height, name, color=colours[name], fontsize=8, va="center_baseline")


def _apart(places: list[float], gap: float, least: float, most: float) -> list[float]:
    """The sorted `places`, moved as little as possible (least squares) to be `gap` apart, within the limits."""
    groups: list[tuple[float, int]] = []  # mean and number of neighbours that touch: isotonic regression
    for i, place in enumerate(places):
        mean, num = place - i * gap, 1
        while groups and groups[-1][0] > mean:
            other, others = groups.pop()
            mean, num = (mean * num + other * others) / (num + others), num + others
        groups.append((mean, num))
    highest = max(most - (len(places) - 1) * gap, least)
    starts = [min(max(mean, least), highest) for mean, num in groups for _ in range(num)]
    return [start + i * gap for i, start in enumerate(starts)]


def _text_inches(text: str) -> float:
    """Width at 8 points."""
    return float(TextPath((0, 0), text, size=8).get_extents().width) / 72 if text.strip() else 0.0


def _shortened(text: str, inches: float) -> str:
    """`text` with "…" in its middle where it is wider than that."""
    kept = len(text)
    shorter = text
    while kept > 1 and _text_inches(shorter) > inches:
        kept -= 1
        shorter = text[: (kept + 1) // 2] + "…" + text[len(text) - kept // 2 :]
    return shorter


def _remark(axes: Axes, text: str, theme: Theme) -> None:
    axes.text(0.5, 0.5, text, color=theme.faint, fontsize=9, ha="center", va="center", transform=axes.transAxes)


def _three_panels(height: float, top: float, theme: Theme, narrow: bool) -> tuple[Figure, list[Axes]]:
    """Side by side, or one above the other when narrow; `top` inches are left free above them."""
    columns, rows = (1, 3) if narrow else (3, 1)
    width = NARROW_INCHES if narrow else WIDE_INCHES
    figure = _figure(width, height, theme)
    margin_bottom, gap_x, gap_y = 0.45, 0.66, 0.75
    panel_width = (width - MARGIN_LEFT - 0.25 - gap_x * (columns - 1)) / columns
    panel_height = (height - margin_bottom - top - gap_y * (rows - 1)) / rows
    panels = []
    for i in range(3):
        x = MARGIN_LEFT + (i % columns) * (panel_width + gap_x)
        y = margin_bottom + (rows - 1 - i // columns) * (panel_height + gap_y)
        box = (x / width, y / height, panel_width / width, panel_height / height)
        panels.append(_axes(figure, box, theme, True))
    return figure, panels


def _figure(width: float, height: float, theme: Theme) -> Figure:
    # Without pyplot: no global state, no display, nothing to close.
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, box: tuple[float, float, float, float], theme: Theme, narrow: bool) -> Axes:
    axes = figure.add_axes(box)
    axes.set_facecolor(theme.paper)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.faint)
        axes.spines[side].set_linewidth(0.6)
    axes.tick_params(which="both", colors=theme.faint, labelsize=8, width=0.6, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(4 if narrow else 8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    return axes


def _in_powers(value: float, _: int) -> str:
    """0.0002 → 2e-4; ticks have one digit that counts."""
    return f"{value:.0e}".replace("e-0", "e-") if value else "0"


def _label(axes: Axes, text: str, theme: Theme, x: float = 0.0) -> None:
    axes.text(x, 1.05, text, color=theme.ink, fontsize=9, ha="left", va="bottom", transform=axes.transAxes)


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    positive = values[values > 0]
    if len(positive) == 0:
        return
    axes.set_yscale("log")
    axes.set_ylim(float(positive.min()) / 1.15, float(positive.max()) * 1.15)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)


def _block(tiles: np.ndarray, theme: Theme) -> np.ndarray:
    """The first 6 tiles, 2 across and 3 down, with a thin line of paper between them."""
    size = tiles.shape[1]
    gap = max(GAP * size // 64, 1)
    paper = np.array([int(theme.paper[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)
    block = np.empty((3 * size + 2 * gap, 2 * size + gap, 3), dtype=np.uint8)
    block[:] = paper
    for i, tile in enumerate(tiles[:6]):
        top, left = (i // 2) * (size + gap), (i % 2) * (size + gap)
        block[top : top + size, left : left + size] = tile
    return block


def evenly(steps: list[int], most: int) -> list[int]:
    """At most `most` of the sorted `steps`, both ends among them; every n-th where that fills more than half."""
    if len(steps) <= most:
        return steps
    for num in range(most, most // 2, -1):
        every, rest = divmod(len(steps) - 1, num - 1)
        if rest == 0:
            return steps[::every]
    return [steps[round(i)] for i in np.linspace(0, len(steps) - 1, most)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _drawing(figure: Figure) -> bytes:
    """PNG of lines and words, without photographs: 256 colours, a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="rgba")
    width, height = figure.canvas.get_width_height()
    pixels = np.frombuffer(buffer.getvalue(), dtype=np.uint8).reshape(height, width, 4)[:, :, :3]
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    found, indices, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack((found >> 16, found >> 8 & 255, found & 255), axis=1).astype(np.float32)
    kept = np.argsort(-counts, kind="stable")[:256]
    # The others, on the edges of crossing lines, become the nearest that is kept.
    nearest = ((colours[:, None] - colours[kept]) ** 2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    rows = np.pad(nearest[indices].reshape(packed.shape), ((0, 0), (1, 0)))  # a 0 before each row: not filtered
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": colours[kept].astype(np.uint8).tobytes(),
        b"IDAT": zlib.compress(rows.tobytes(), 9),
        b"IEND": b"",
    }
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
