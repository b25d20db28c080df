"""What the game does with 400 photographs: the runs and table of docs/small-data.md.

    python -m experiments.small_data [--seeds 0 1 2] [--jobs 2]

Writes experiments/small-data.json and the table. No picture: the photographs are of people.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.page import COLUMNS, Column, numbers_table, write_table
from experiments.runs import FOLDER, Row, Value, add_jobs, call, run_named, with_seeds

PAGE = Path("docs/small-data.md")
TRAIN = "profiles.quick.train"
RECIPE: dict[str, Value] = {
    "download.source": "orl",
    "gamma": 0.7,
    f"{TRAIN}.mirror": True,
    f"{TRAIN}.learning_rate": 6e-4,
    f"{TRAIN}.num_steps": 2500,
    f"{TRAIN}.decay_steps": 2500,
}
ROWS = (
    Row("recipe", RECIPE),
    Row("recipe without mirror", RECIPE | {f"{TRAIN}.mirror": False}),
    Row("quick profile as it is", {"download.source": "orl"}),
)
OF_MEMORY = (
    Column("reconstruction_gap", "L(x) held out / trained on"),
    Column("nearest_training_face", "distance to the nearest training image", "nearest_training_face_baseline"),
)


def main() -> bool:
    """Whether every run finished."""
    parser = argparse.ArgumentParser(description="What the game does with 400 photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_jobs(parser)
    arguments = parser.parse_args()
    named = {
        row.name: with_seeds([Row(f"orl-{row.name.replace(' ', '-')}", row.settings)], arguments.seeds) for row in ROWS
    }
    runs, is_complete = run_named(named, FOLDER / "small-data.json", arguments.jobs)
    lines = {name: [one.numbers for one in found] for name, found in runs.items()}
    write_table(PAGE, "small-data", numbers_table("settings", lines, (*COLUMNS, *OF_MEMORY)))
    return is_complete


if __name__ == "__main__":
    call(main)
