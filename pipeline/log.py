"""`began log`: a trained model → its run in MLflow, for a run that was not, or not wholly, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from began.runs.curve import read_distances, read_history
from began.runs.model_folder import DESCRIPTION, GENERATOR, check_files, read_description
from pipeline.tracking.write import send_run


def log(model: Path) -> None:
    """Send a trained model's settings, curves and pictures to MLflow, as far as they are not there yet."""
    description = read_description(model)
    check_files(model, description)
    pictures = [Path(name) for name in description["files"] if name.endswith(".png")]
    sent = send_run(
        description["parameters"],
        description["data"],
        description.get("commit"),
        description["weights"][GENERATOR],
        description.get("signature"),
        _read_points(model, description),
        model,
        [*pictures, Path(DESCRIPTION)],
    )
    run = f"{model}: {'new ' if sent.is_new else ''}MLflow run {sent.run_id}"
    if sent.num_points or sent.num_files:
        print(f"{run}: {sent.num_points} points of the curve and {sent.num_files} files sent")
    else:
        print(f"{run} has all points and files already")


def _read_points(model: Path, description: dict[str, Any]) -> dict[int, dict[str, float]]:
    """Both curves of the model folder as step → values.

    ValueError naming the file when one is damaged, or the history ends before the last step.
    """
    last_step = description["step"]
    path = model / "history.csv"
    points = _by_step(path, read_history(path))
    if max(points) != last_step:
        raise ValueError(f"{path}: ends at step {max(points)}, expected {last_step}, the last one of model.json")
    path = model / "distances.csv"
    if path.name in description["files"]:  # an older model has none
        for step, values in _by_step(path, read_distances(path)).items():
            points.setdefault(step, {}).update(values)
        if max(points) != last_step:
            raise ValueError(f"{path}: goes on to step {max(points)}, expected {last_step} at most, as in model.json")
    return points


def _by_step(path: Path, columns: dict[str, np.ndarray]) -> dict[int, dict[str, float]]:
    steps = columns.pop("step").tolist()
    if not all(step.is_integer() and step >= 0 for step in steps) or steps != sorted(set(steps)):
        raise ValueError(f"{path}: step: expected whole numbers that grow from line to line")
    return {int(step): {name: float(values[i]) for name, values in columns.items()} for i, step in enumerate(steps)}


if __name__ == "__main__":
    from pipeline.cli import run

    run("log")
