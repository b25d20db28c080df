"""Why the images look like photographs: the runs, picture and table of docs/clutter.md.

    python -m experiments.clutter [--seeds 0 1 2] [--clutters 0.0 0.5 1.0]

Writes experiments/clutter.json, docs/images/clutter.png (for each value a row of images and a row of samples, of the
first seed), and the table of docs/clutter.md.
"""

from __future__ import annotations

from pathlib import Path

from experiments.pictures import IMAGES, faces, labelled_rows, training_images
from experiments.runs import call
from experiments.vary import Varied, vary

CLUTTER = Varied(
    "clutter", "download.clutter", "clutter", ("0.0", "0.5", "1.0"), Path("docs/clutter.md"), {"gamma": 0.7}
)


def main() -> bool:
    """Whether every run finished."""
    results = vary(CLUTTER, "What the clutter of the images does to the game, at γ 0.7")
    rows = {}
    for clutter, finished in results.shown().items():
        rows[f"clutter {clutter}: images"] = training_images(finished.row.name)
        rows[f"clutter {clutter}: samples"] = faces(finished.run)
    labelled_rows(IMAGES / "clutter.png", rows)
    return results.is_complete


if __name__ == "__main__":
    call(main)
