"""`began clean`: saved states of training that nobody needs any more."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import typer

from began.data.rows import open_images
from began.params import load_params
from began.runs.states import States, signature_of
from pipeline.console.workspace import runs_folder


def clean(params: Path, images: Path, yes: bool) -> None:
    """Remove the saved states of training, but for those of the present settings and of running processes.

    Shows them first and asks.
    """
    is_present = _present(params, images)
    old = [States(folder) for folder in sorted(runs_folder().glob("*")) if folder.is_dir()]
    old = [states for states in old if not is_present(states) and states.is_free()]
    for states in old:
        print(_line(states))
    if not old:
        print("No old states")
        return
    what = f"{len(old)} {'run' if len(old) == 1 else 'runs'}, {_size(old)}"
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Remove the states of {what}?")):
        print(f"Nothing removed; `began clean --yes` removes {what}")
        return
    for states in old:
        with states.hold(0):  # one may have been taken up meanwhile
            shutil.rmtree(states.folder)
    print(f"Removed {what}")


def _present(params: Path, images: Path) -> Callable[[States], bool]:
    """Whether states are of what `began train` would run now; without its images, whether they may be."""
    signature = signature_of(load_params(params), open_images(images).digest if images.exists() else "")

    def is_present(states: States) -> bool:
        if images.exists():
            return states.folder.name.partition("-")[0] == str(signature)
        theirs = [state.about().get("settings", {}) | {"data": ""} for state in states.all()]
        return signature.settings in theirs

    return is_present


def _line(states: States) -> str:
    """Which run it is, how far it came, when it was saved last."""
    newest = next(iter(states.all()), None)
    if newest is None:
        return f"{states.folder}: no state, {_size([states])}"
    parameters = newest.about().get("run", {}).get("parameters", {})
    saved = datetime.fromtimestamp(newest.path.stat().st_mtime)
    return (
        f"{states.folder}: gamma {parameters.get('gamma')}, {parameters.get('profile')}, step {newest.step:,} of "
        f"{parameters.get('train.num_steps')}, saved {saved:%Y-%m-%d %H:%M}, {_size([states])}"
    )


def _size(all_states: list[States]) -> str:
    num_bytes = sum(path.stat().st_size for states in all_states for path in states.folder.rglob("*"))
    return f"{num_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    from pipeline.cli import run

    run("clean")
