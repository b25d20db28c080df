"""γ trades quality for diversity: the runs, pictures and table of docs/gamma.md.

    python -m experiments.gamma [--seeds 0 1 2] [--gammas 0.4 0.55 0.7 0.85 1.0]

Writes experiments/gamma.json, docs/images/gamma.png (a row of faces for each γ, the same z in each column, of the first
seed), docs/images/gamma-numbers.png, and the table of docs/gamma.md.
"""

from __future__ import annotations

from pathlib import Path

from experiments.pictures import IMAGES, against_gamma, faces, labelled_rows
from experiments.runs import call
from experiments.vary import Varied, vary

GAMMA = Varied("gamma", "gamma", "γ", ("0.4", "0.55", "0.7", "0.85", "1.0"), Path("docs/gamma.md"))


def main() -> bool:
    """Whether every run finished."""
    results = vary(GAMMA, "γ trades quality for diversity")
    rows = {f"γ = {gamma}": faces(finished.run) for gamma, finished in results.shown().items()}
    labelled_rows(IMAGES / "gamma.png", rows)
    numbers = {float(gamma): [run.numbers for run in runs] for gamma, runs in results.runs.items()}
    against_gamma(IMAGES / "gamma-numbers.png", numbers)
    return results.is_complete


if __name__ == "__main__":
    call(main)
