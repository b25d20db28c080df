"""Does M_global tell how good the samples are? The table and pictures of docs/convergence.md.

    python -m experiments.convergence [RUN ...]

A RUN is an experiment, a git revision or a model folder: their table is printed, and no file is written. By default:
the active profile with three seeds, and γ 0.4, all run where they have not been. docs/images/convergence.png and
docs/images/distances.png are then those of seed 0, and stay as they were when that run failed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from began.evaluation.metrics import rank_correlation
from began.runs.curve import mean_M_global
from experiments.page import markdown, write_table
from experiments.pictures import IMAGES
from experiments.runs import FOLDER, LEAST_K_T, MOST_K_T, Row, add_jobs, call, curve_numbers, run_rows, with_seeds
from pipeline.report.find_runs import Run, fetch, read_runs
from pipeline.report.page import format_number

PAGE = Path("docs/convergence.md")
PICTURES = ("convergence.png", "distances.png")
# The last is the same experiment as that of experiments.gamma: a low γ, at which M_global cannot see the collapse.
DEFAULT = with_seeds([Row("default", {})], (0, 1, 2))
ROWS = (*DEFAULT, *with_seeds([Row("gamma-0.4", {"gamma": 0.4})], (0,)))


def main() -> bool:
    """Whether every run finished."""
    parser = argparse.ArgumentParser(description="Does M_global tell how good the samples are?")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="experiments, git revisions or model folders")
    add_jobs(parser)
    arguments = parser.parse_args()
    if arguments.runs:
        print(table(read_runs(arguments.runs)))
        return True
    finished = run_rows(ROWS, FOLDER / "convergence.json", (), arguments.jobs)
    if not finished:
        raise ValueError(f"none of the {len(ROWS)} runs finished")
    write_table(PAGE, "convergence", table([one.run for one in finished]))
    if ROWS[0] in [one.row for one in finished]:
        for picture in PICTURES:
            fetch(ROWS[0].name, f"data/report/{picture}", IMAGES / picture)
    return len(finished) == len(ROWS)


def table(runs: Sequence[Run]) -> str:
    """A line for each run. ValueError naming the first without distances of its samples."""
    header = (
        "run", "M_global", "distance", "rank correlation with the distance", "that of the bare step",
        "k_t, second half", "spread",
    )  # fmt: skip
    return markdown(header, [_line(run) for run in runs])


def _line(run: Run) -> list[str]:
    if run.history is None or run.distances is None or len(run.distances["step"]) == 0:
        raise ValueError(f"{run.label}: has no distances over its steps, expected train.evaluate_every above 0")
    steps, distance = run.distances["step"], run.distances["face_distance"]
    M_global = mean_M_global(run.history, steps)
    k_t = curve_numbers(run.history)
    return [
        run.label,
        *(f"{format_number(values[0])} → {format_number(values[-1])}" for values in (M_global, distance)),
        *(format_number(rank_correlation(values, distance)) for values in (M_global, steps)),
        f"{format_number(k_t[LEAST_K_T])} to {format_number(k_t[MOST_K_T])}",
        format_number(run.numbers.get("spread")),
    ]


if __name__ == "__main__":
    call(main)
