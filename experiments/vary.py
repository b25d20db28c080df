"""One key of params.yaml, several values and seeds → a picture, a table on a page of docs/, and a record.

`experiments.gamma` and `experiments.clutter` each vary one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.page import numbers_table, write_table
from experiments.runs import FOLDER, Finished, Row, Value, add_jobs, run_named, with_seeds

SEED_OF_PAGES = 0  # the pages of docs/ say that their pictures are of seed 0


@dataclass(frozen=True)
class Varied:
    """The key to vary. name: of the record, of the page's marks, and the first part of each experiment's name."""

    name: str
    key: str
    label: str  # as the table and the pictures call it
    values: Sequence[str]  # numbers as they are written, which the experiments are named by
    page: Path
    fixed: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """What finished, by value, in the order of the values; within a value, in that of the seeds."""

    runs: Mapping[str, Sequence[Finished]]
    is_complete: bool

    def shown(self) -> Mapping[str, Finished]:
        """The first run of each value, by the value, and by its seed where that is not the page's."""
        seeds = {value: runs[0].row.settings["seed"] for value, runs in self.runs.items()}
        return {
            value if seeds[value] == SEED_OF_PAGES else f"{value}, seed {seeds[value]}": runs[0]
            for value, runs in self.runs.items()
        }


def vary(varied: Varied, description: str) -> Results:
    """Runs what the command line asks for, writes the record, and rewrites the table on the page.

    ValueError when no run finished, or when the page has no place for the table.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(f"--{varied.name}s", dest="values", type=_number, nargs="+", default=list(varied.values))
    add_jobs(parser)
    arguments = parser.parse_args()
    named = {
        value: with_seeds([Row(f"{varied.name}-{value}", {**varied.fixed, varied.key: float(value)})], arguments.seeds)
        for value in arguments.values
    }
    runs, is_complete = run_named(named, FOLDER / f"{varied.name}.json", arguments.jobs)
    table = numbers_table(varied.label, {value: [run.numbers for run in found] for value, found in runs.items()})
    write_table(varied.page, varied.name, table)
    return Results(runs, is_complete)


def _number(text: str) -> str:
    float(text)
    return text
