"""The curve of a run → pictures, for a light and a dark page, wide and narrow."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

History = dict[str, np.ndarray]
"""Column of history.csv → its values (float64), one a record."""


@dataclass(frozen=True)
class Theme:
    """Colours of one page."""

    paper: str
    ink: str
    faint: str
    real: str  # of data, and of a picture's main line
    fake: str


LIGHT = Theme(paper="#fdfcfa", ink="#26241f", faint="#8c877d", real="#2f5d8a", fake="#c05a2b")
DARK = Theme(paper="#171614", ink="#e6e2da", faint="#8f897e", real="#7fb0de", fake="#e58e5f")

WIDE_INCHES, NARROW_INCHES = 7.8, 3.9  # the page shows an inch as about 100 pixels
DPI = 200
GAP = 2  # white pixels between thumbnails' tiles


def read_history(path: Path) -> History:
    """Reads history.csv. Raises ValueError naming the file when it is missing, empty, or not numbers in columns."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else {})}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `began train` writes it") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: is not a table of numbers: {error}") from None
    needed = ("step", "M_global", "L_real", "L_fake", "k_t", "learning_rate")
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"{path}: has no column {missing[0]!r} or no row, expected {', '.join(needed)}")
    return columns


def convergence(history: History, thumbnails: Mapping[int, np.ndarray], theme: Theme, narrow: bool = False) -> bytes:
    """PNG: M_global over steps, with samples of the same z above the curve, as in the paper's figure 4.

    thumbnails: step → at least 6 tiles (N, S, S, 3) uint8. As many steps as fit are shown, evenly spaced, the first
    and the last always; without any the curve stands alone.
    """
    width = NARROW_INCHES if narrow else WIDE_INCHES
    shown = _evenly(sorted(thumbnails), 4 if narrow else 8)
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
    axes.plot(steps, values, color=theme.real, linewidth=1.4)
    _log_scale(axes, values)
    _label(axes, "M_global", theme, x=block_width / 2 / inner + 0.012 if shown else 0.0)  # beside the first line
    axes.set_xlabel("step", color=theme.faint, fontsize=8, loc="right", labelpad=2)
    last = max(float(steps[-1]), float(shown[-1]) if shown else 0.0, 1.0)
    # Room left and right, so that the first and the last block stand exactly above their steps.
    pad = last * (block_width / 2) / (inner - block_width) if shown else last * 0.02
    axes.set_xlim(-pad, last + pad)
    places = np.linspace(0, 1, len(shown)) if len(shown) > 1 else [0.5] * len(shown)
    for step, place in zip(shown, places, strict=True):
        left = margin_left + (inner - block_width) * place
        block = figure.add_axes(
            (left / width, (margin_bottom + curve_height + 0.3) / height, block_width / width, block_height / height)
        )
        block.imshow(_block(thumbnails[step], theme), interpolation="nearest")
        block.set_axis_off()
        value = float(np.interp(step, steps, values))
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
    columns, rows = (1, 3) if narrow else (3, 1)
    width, height = (NARROW_INCHES, 6.3) if narrow else (WIDE_INCHES, 2.6)
    figure = _figure(width, height, theme)
    margin_left, margin_bottom, gap_x, gap_y, top = 0.55, 0.42, 0.62, 0.62, 0.3
    panel_width = (width - margin_left - 0.15 - gap_x * (columns - 1)) / columns
    panel_height = (height - margin_bottom - top - gap_y * (rows - 1)) / rows
    panels: list[Axes] = []
    for i in range(3):
        x = margin_left + (i % columns) * (panel_width + gap_x)
        y = margin_bottom + (rows - 1 - i // columns) * (panel_height + gap_y)
        box = (x / width, y / height, panel_width / width, panel_height / height)
        panels.append(_axes(figure, box, theme, True))
    steps = history["step"]
    losses, balance, rate = panels
    losses.plot(steps, history["L_real"], color=theme.real, linewidth=1.3)
    losses.plot(steps, history["L_fake"], color=theme.fake, linewidth=1.3)
    losses.plot(steps, gamma * history["L_real"], color=theme.real, linewidth=0.9, linestyle=(0, (3, 2)))
    _log_scale(losses, np.concatenate((gamma * history["L_real"], history["L_real"], history["L_fake"])))
    _label(losses, "losses", theme)
    # At γ = 1 the target is L_real itself, and its line lies on the other.
    names = [("L_real", theme.real), ("L_fake", theme.fake)] + ([("– – γ·L_real", theme.real)] if gamma < 1 else [])
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
    return _png(figure)


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


def _evenly(steps: list[int], most: int) -> list[int]:
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
