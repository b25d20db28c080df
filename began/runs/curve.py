"""The curve of a run: its columns in history.csv and distances.csv, and what is read from them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

CURVE = ("step", "M_global", "L_real", "L_fake", "L_D", "L_G", "k_t", "learning_rate", "images_per_second")
DISTANCES = ("step", "face_distance")  # columns of distances.csv, as CURVE are of history.csv

History = dict[str, np.ndarray]
"""Column of history.csv → its values (float64), one a record."""


def read_history(path: Path) -> History:
    """Reads history.csv. Raises ValueError naming the file when it is missing, empty, or not numbers in columns."""
    columns = _read_columns(path, ("step", "M_global", "L_real", "L_fake", "k_t", "learning_rate"))
    if len(columns["step"]) == 0:
        raise ValueError(f"{path}: has no row, expected one a record")
    return columns


def read_distances(path: Path) -> History:
    """Reads distances.csv: step, face_distance; no row where nothing was measured. Raises as `read_history` does."""
    return _read_columns(path, ("step", "face_distance"))


def read_rows(path: Path, columns: tuple[str, ...], last: int) -> list[list[float]]:
    """The rows of a CSV file of `columns` up to step `last`.

    What follows may be damaged, because a process that wrote it may have been killed.

    ValueError naming the file when it is missing, or damaged before that.
    """
    rows: list[list[float]] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            if file.readline().rstrip("\n").split(",") != list(columns):
                raise ValueError(f"other columns than {', '.join(columns)}")
            for line in file:
                cells = line.split(",")
                if not line.endswith("\n") or float(cells[0]) > last:
                    break
                if len(cells) != len(columns):
                    raise ValueError(f"{len(cells)} cells in a row")
                rows.append([float(cell) for cell in cells])
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{path}: cannot be gone on with: {error}") from None
    return rows


def mean_M_global(history: History, steps: np.ndarray) -> np.ndarray:
    """M_global over the steps since the one before in `steps` (N,), ascending; (N,). For the first, since the start.

    A single record is a mean over a 32nd to a 64th of the run, and scatters by a tenth.
    """
    num_steps = np.diff(history["step"], prepend=0.0)
    total = np.concatenate([[0.0], np.cumsum(history["M_global"] * num_steps)])
    ends = np.clip(np.concatenate([[0.0], steps]), 0.0, history["step"][-1])
    totals = np.interp(ends, np.concatenate([[0.0], history["step"]]), total)
    means: np.ndarray = np.interp(ends[1:], history["step"], history["M_global"])  # where no step lies between
    np.divide(np.diff(totals), np.diff(ends), out=means, where=np.diff(ends) > 0)
    return means


def middles(steps: np.ndarray) -> np.ndarray:
    """Of the intervals between step 0 and each of `steps` in turn."""
    middles: np.ndarray = (np.concatenate([[0.0], steps[:-1]]) + steps) / 2
    return middles


def _read_columns(path: Path, needed: tuple[str, ...]) -> History:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or (), list(reader)
        if any(None in row for row in rows):
            raise ValueError("a row has more cells than the header")
        columns = {name: np.array([float(row[name]) for row in rows]) for name in names}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; `began train` writes it") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path}: is not a table of numbers: {error}") from None
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"{path}: has no column {missing[0]!r}, expected {', '.join(needed)}")
    return columns
