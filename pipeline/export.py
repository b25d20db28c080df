"""A trained model, small enough to share."""

from __future__ import annotations

from pathlib import Path

from began.base.files import replace_folder
from began.runs.model_folder import read_model, write_half
from pipeline.console.workspace import is_new_or_empty


def export(out: Path, model: Path) -> None:
    """Copy a model with its weights in half precision, half of the size, to share.

    Every command that takes a model folder takes the copy. Its curves go with it, its pictures do not.
    """
    if not is_new_or_empty(out):
        raise ValueError(f"{out}: expected a new or an empty folder")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out}: the folder {str(out.parent)!r} does not exist")

    trained = read_model(model)
    with replace_folder(out) as folder:
        write_half(trained, folder)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    from pipeline.cli import run

    run("export")
