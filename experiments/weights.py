"""Longer runs than the quick profile's, for the weights that ship: the paper's game alone.

    python -m experiments.weights [NAME ...] [--jobs 2]

A NAME is one of ROWS; all by default. Each is a DVC experiment of that name, and experiments/weights.json has its
settings and numbers. On one core with bfloat16, portraits64 takes about an hour, portraits64-fast two, portraits32-wide
half of one. The weights of portraits64 became those that ship by

    dvc get . data/model --rev portraits64 --out trained
    began export began/pretrained/portraits64 --model trained

portraits32-wide was no better than the quick profile's own run, which ships as portraits32. portraits64-fast was worse
than portraits64: k_t fell to 0.01, and its samples have two backgrounds and one colour of hair.
"""

from __future__ import annotations

import argparse

from experiments.runs import FOLDER, Row, Value, add_jobs, call, read_record, run_rows

RECORD = FOLDER / "weights.json"


def _quick(image_size: int, n_filters: int, num_steps: int, rate: float) -> dict[str, Value]:
    """The quick profile's settings, of that size, length and rate: more portraits and a slower k_t."""
    profile = "profiles.quick"
    return {
        "download.num_images": 20_000,
        "lambda_k": 0.01,
        f"{profile}.preprocess.image_size": image_size,
        f"{profile}.preprocess.held_out": 0.1,
        f"{profile}.train.n_filters": n_filters,
        f"{profile}.train.num_steps": num_steps,
        f"{profile}.train.decay_steps": num_steps,
        f"{profile}.train.learning_rate": rate,
        f"{profile}.train.precision": "auto",
        f"{profile}.train.evaluate_every": num_steps // 10,
    }


ROWS = (
    Row("portraits32-wide", _quick(32, n_filters=32, num_steps=16_000, rate=4e-4)),
    Row("portraits64", _quick(64, n_filters=24, num_steps=10_000, rate=4e-4)),
    Row("portraits64-fast", _quick(64, n_filters=24, num_steps=16_000, rate=1e-3)),
)


def main() -> bool:
    """Whether every run finished."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description="The runs behind the weights that ship")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{' or '.join(names)}; all by default")
    add_jobs(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        raise ValueError(f"{min(unknown)}: no such weights, expected {' or '.join(names)}")
    chosen = [row for row in ROWS if row.name in (arguments.names or names)]
    others = [entry for entry in read_record(RECORD) if entry["name"] not in [row.name for row in chosen]]
    return len(run_rows(chosen, RECORD, others, arguments.jobs)) == len(chosen)


if __name__ == "__main__":
    call(main)
