"""`began compare`: any number of runs in one page."""

from __future__ import annotations

from pathlib import Path

from began.base.files import replace_folder
from pipeline.report.comparison import notes_of, render, table_of
from pipeline.report.find_runs import read_runs

PAGE = "index.html"


def compare(runs: list[str], out: Path) -> None:
    """Put runs side by side in one page.

    Faces of the same z, curves over each other, numbers in a table, and what differs. A RUN is a model folder, a
    DVC experiment or any git revision, or an MLflow run: its name, id, or the first 8 or more digits of that.
    """
    if out.exists() and (not out.is_dir() or ({path.name for path in out.iterdir()} - {PAGE})):
        raise ValueError(f"{out}: holds other things than a comparison, expected a new folder or an older comparison")

    read = read_runs(runs)
    with replace_folder(out) as folder:
        (folder / PAGE).write_text(render(read), encoding="utf-8")
    for note in notes_of(read):
        print(f"note: {note}")
    print(table_of(read))
    print(out / PAGE)


if __name__ == "__main__":
    from pipeline.cli import run

    run("compare")
