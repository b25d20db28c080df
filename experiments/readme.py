"""The README's figures and pictures: the default with seeds 0, 1 and 2.

    python -m experiments.readme [--jobs 2]

Runs what `experiments.convergence` runs of the default, writes experiments/default.json, the table between the README's
marks, and docs/images/quick-samples.png and real-interpolation.png, three times as large, of seed 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from began.data.images import read_png, write_png
from experiments.convergence import DEFAULT
from experiments.page import Numbers, markdown, write_table
from experiments.pictures import IMAGES
from experiments.runs import FOLDER, FRECHET, LEAST_K_T, MOST_K_T, RATIO, add_jobs, call, run_rows
from pipeline.report.find_runs import fetch
from pipeline.report.page import format_number

PAGE = Path("README.md")
ENLARGED = 3  # times, so that a browser does not blur small faces
PICTURES = {"quick-samples.png": "samples.png", "real-interpolation.png": "real_interpolation.png"}


class Figure(NamedTuple):
    """A line of the table. real: the name of the real images' number."""

    label: str
    wanted: str
    name: str
    real: str = ""


FIGURES = (
    Figure("spread", "≥ 0.80", "spread", "spread_baseline"),
    Figure("coverage, k = 5", "≥ 0.65", "coverage_face", "coverage_face_baseline"),
    Figure("precision, k = 3", "≥ 0.60", "precision_face", "precision_face_baseline"),
    Figure("recall, k = 3", "≥ 0.15", "recall_face", "recall_face_baseline"),
    Figure("Fréchet distance / that between real images", "≤ 6.5", FRECHET),
    Figure("L(G(z)) / L(x) over the last third", "γ ± 0.05", RATIO),
    Figure("least k_t over the second half", "above 0", LEAST_K_T),
    Figure("largest k_t over the second half", "below 1", MOST_K_T),
    Figure("rank correlation of M_global with the face distance", "≥ 0.9", "rank_correlation"),
)


def main() -> bool:
    """Whether every run finished."""
    parser = argparse.ArgumentParser(description="The README's figures and pictures")
    add_jobs(parser)
    finished = run_rows(DEFAULT, FOLDER / "default.json", (), parser.parse_args().jobs)
    if len(finished) < len(DEFAULT):
        raise ValueError(
            f"{len(finished)} of the {len(DEFAULT)} runs finished, expected all: the README stays as it was"
        )
    write_table(PAGE, "default", table([one.numbers for one in finished]))
    for picture, of_report in PICTURES.items():
        _enlarge(DEFAULT[0].name, f"data/report/{of_report}", IMAGES / picture)
    return True


def table(runs: Sequence[Numbers]) -> str:
    """A line for each figure, with the numbers of all `runs` in one cell and those of real images in the last."""
    header = ("what", "wanted", f"seeds {', '.join(str(row.settings['seed']) for row in DEFAULT)}", "real images")
    return markdown(header, [_line(figure, runs) for figure in FIGURES])


def _line(figure: Figure, runs: Sequence[Numbers]) -> list[str]:
    values = ", ".join(format_number(run.get(figure.name)) for run in runs)
    return [figure.label, figure.wanted, values, format_number(runs[0].get(figure.real)) if figure.real else ""]


def _enlarge(name: str, path: str, to: Path) -> None:
    with TemporaryDirectory() as folder:
        fetch(name, path, Path(folder) / to.name)
        pixels = read_png(Path(folder) / to.name)
    write_png(to, pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))


if __name__ == "__main__":
    call(main)
