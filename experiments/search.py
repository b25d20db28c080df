"""The search for the quick profile's settings: rows of docs/quick-profile.md.

    python -m experiments.search [--seeds 0] [ROW ...]

Runs the named rows, or all, and adds them to experiments/search.json, where a run of the same name is replaced. The
table has every row of the list below that is in the record, with all its seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from experiments.page import numbers_table, write_table
from experiments.runs import FOLDER, Entry, Row, Value, add_jobs, call, read_record, run_rows, with_seeds

RECORD = FOLDER / "search.json"
PAGE = Path("docs/quick-profile.md")


# What the rows differ from: the quick profile as it was when the search began.
BASE: dict[str, Value] = {"profiles.quick.train.n_filters": 16, "profiles.quick.train.precision": "float32"}


def _train(**settings: Value) -> dict[str, Value]:
    """Settings of the quick profile's training."""
    return {f"profiles.quick.train.{key}": value for key, value in settings.items()}


ROWS = (
    Row("baseline", {}, "n 16, in float32; all else as in params.yaml"),
    Row("n-24", _train(n_filters=24), "wider networks: as many steps, which take longer"),
    Row("n-32", _train(n_filters=32)),
    Row("no-skips", _train(skip_connections=False), "the paper’s plain networks"),
    Row("vanishing", _train(vanishing_residual_steps=1500), "the paper’s vanishing residuals, over a third of the run"),
    Row("N-h-32", _train(N_h=32)),
    Row("N-h-128", _train(N_h=128)),
    Row("batch-8", _train(batch_size=8, num_steps=9000, decay_steps=9000), "as many images in twice as many steps"),
    Row("rate-5e-4", _train(learning_rate=5e-4), "a lower rate, nearer to the paper’s 1e-4"),
    Row("rate-2e-3", _train(learning_rate=2e-3)),
    Row(
        "plateau",
        _train(learning_rate_decay="plateau", decay_steps=300),
        "the paper’s decay: halved when M_global stalls",
    ),
    Row("beta-2-0.999", _train(beta_2=0.999), "of Adam, as in public implementations"),
    Row("no-average", _train(ema_decay=0.0), "the generator as it was trained"),
    Row("lambda-k-0.01", {"lambda_k": 0.01}, "k_t moves slowly, though ten times as fast as the paper’s"),
    Row("lambda-k-0.1", {"lambda_k": 0.1}, "k_t answers within some ten steps"),
)


def main() -> bool:
    """Whether every run finished."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description="The search for the quick profile's settings")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(names)}; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    add_jobs(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(names):
        raise ValueError(f"{min(unknown)}: no such row, expected one of {', '.join(names)}")
    chosen = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
    rows = [
        Row(f"search-{row.name}", BASE | dict(row.settings), row.comment) for row in with_seeds(chosen, arguments.seeds)
    ]
    again = {row.name for row in rows}
    earlier = [entry for entry in read_record(RECORD) if entry["name"] not in again]
    finished = run_rows(rows, RECORD, earlier, arguments.jobs)
    write_table(PAGE, "search", table(read_record(RECORD)))
    return len(finished) == len(rows)


def table(entries: Iterable[Entry]) -> str:
    """The list's rows that `entries` of the record have numbers of, with their versions, what differs and why."""
    lines = {}
    for row in ROWS:
        found = [
            entry for entry in entries if entry["name"].startswith(f"search-{row.name}-seed-") and "numbers" in entry
        ]
        if found:
            settings = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in row.settings.items())
            described = ": ".join(part for part in (settings, row.comment) if part)
            commits = ", ".join(sorted({entry["commit"] for entry in found}))
            lines[f"{row.name}, {commits} ({described})"] = [entry["numbers"] for entry in found]
    return numbers_table("row", lines)


if __name__ == "__main__":
    call(main)
