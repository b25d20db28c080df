"""`began log`: a trained model → its run in MLflow, for a run that was not, or not wholly, recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def log(
    model: Annotated[Path, typer.Argument(help="Model folder made by train.")] = Path("data/model"),
) -> None:
    """Send a trained model's settings, curve and pictures to MLflow, as far as they are not there yet.

    Example: began log data/model
    """
    from began.checkpoint import DESCRIPTION, GENERATOR, check_files, read_description
    from pipeline.tracking import send_run

    description = read_description(model)
    check_files(model, description)
    pictures = [path for folder in ("samples", "reconstructions") for path in sorted((model / folder).glob("*.png"))]
    sent = send_run(
        description["parameters"],
        description["data"],
        description.get("commit"),
        description["weights"][GENERATOR],
        description.get("signature"),
        _read_curve(model / "history.csv", description["step"]),
        model,
        [*(path.relative_to(model) for path in pictures), Path(DESCRIPTION)],
    )
    run = f"{model}: {'new ' if sent.is_new else ''}MLflow run {sent.run_id}"
    if sent.num_points or sent.num_files:
        print(f"{run}: {sent.num_points} points of the curve and {sent.num_files} files sent")
    else:
        print(f"{run} has all points and files already")


def _read_curve(path: Path, last_step: int) -> dict[int, dict[str, float]]:
    """history.csv as step → values. ValueError naming the file when it is damaged or ends before `last_step`."""
    from pipeline.plots import read_history

    history = read_history(path)
    steps = history.pop("step").tolist()
    if not all(step.is_integer() and step >= 0 for step in steps) or steps != sorted(set(steps)):
        raise ValueError(f"{path}: step: expected whole numbers that grow from line to line")
    if steps[-1] != last_step:
        raise ValueError(f"{path}: ends at step {steps[-1]:g}, expected {last_step}, the last one of model.json")
    return {int(step): {name: float(values[i]) for name, values in history.items()} for i, step in enumerate(steps)}


if __name__ == "__main__":
    from pipeline.cli import run_stage

    run_stage("log")
