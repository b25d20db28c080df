"""Where things are that outlive a run, also when DVC runs a stage in a temporary copy of the repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def main_root() -> Path:
    """The main repository's root.

    DVC names it in DVC_ROOT, also in temporary and queued experiments (`.dvc/tmp/exps/…`); without DVC it is the
    nearest parent of the current folder that has `.dvc/`, and else the current folder.
    """
    here = Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()
    parts = here.parts
    for i in range(len(parts) - 2):
        if parts[i : i + 3] == (".dvc", "tmp", "exps"):
            return Path(*parts[:i])
    for folder in (here, *here.parents):
        if (folder / ".dvc").is_dir():
            return folder
    return here


def is_new_or_empty(folder: Path) -> bool:
    """Whether a whole folder can be put in the place of `folder`: of a new name, or of an empty one other than `.`."""
    return bool(folder.name) and (not folder.exists() or (folder.is_dir() and not any(folder.iterdir())))


def downloads_folder() -> Path:
    """Partial and verified archives; outside DVC's outs, which DVC deletes before a rerun."""
    return main_root() / ".began" / "downloads"


def runs_folder() -> Path:
    """States and files of training, a folder for each signature; outside DVC's outs, shared by all experiments."""
    return main_root() / ".began" / "runs"


def features_folder() -> Path:
    """Features of real rows, a folder for each file's digest: all models of the same images share them."""
    return main_root() / ".began" / "features"


def git_commit() -> str | None:
    """The commit an experiment starts from, else the checked-out one."""
    if revision := os.environ.get("DVC_EXP_BASELINE_REV"):
        return revision
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--verify", "--quiet", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
