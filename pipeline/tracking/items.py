"""What is sent to the store: the wanted run, its points and its files."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

IMAGES = "images"  # the artifact folder whose pictures MLflow's page of a run shows, where the run has this tag
IMAGES_TAG = {"mlflow.loggedImages": "True"}


class Point(NamedTuple):
    """A value of one metric, in the order of MLflow's Metric."""

    name: str
    value: float
    time: int  # ms since 1970, fixed when the point is made: MLflow's databases take an exact repetition for the same
    step: int


class File(NamedTuple):
    """A file for the artifact `folder`, or, `for_page`, a picture that the run's page shows in the row `folder`."""

    path: Path
    folder: str | None
    for_page: bool = False


class Wanted(NamedTuple):
    """The run that start_run is to make, or to go on with."""

    run_id: str | None
    params: dict[str, str]
    tags: dict[str, str]
    name: str | None
    signature: str
    start_time: int  # ms since 1970; with the signature it tells this run from all others


def tags_of(data: Mapping[str, object], commit: str | None, signature: str | None) -> dict[str, str]:
    tags = IMAGES_TAG | {f"data.{key}" if key != "source" else key: str(value) for key, value in data.items()}
    return tags | {name: tag for name, tag in (("git.commit", commit), ("signature", signature)) if tag}


def points_of(step: int, values: Mapping[str, float]) -> list[Point]:
    now = time.time_ns() // 1_000_000
    return [Point(name, float(value), now, step) for name, value in values.items()]


def parts_of(path: Path, folder: str | None) -> list[File]:
    """What a file comes to; one in a folder is a picture."""
    return [File(path, folder)] if folder is None else [File(path, folder), File(path, folder, for_page=True)]


def artifact_folder(file: Path) -> str | None:
    """Where MLflow keeps `file`; it calls the top of the artifacts None."""
    return None if file.parent == Path() else file.parent.as_posix()
