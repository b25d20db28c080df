"""A run in the store: what it has, and what it still lacks of what is to be sent."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException

from began.data.images import read_png, webp_bytes
from pipeline.tracking.client import open_store, search
from pipeline.tracking.items import IMAGES, File, Point, Wanted

__all__ = ["Stored", "find_left_run", "find_run", "metrics_of", "open_run", "open_store"]

MAX_METRICS_PER_BATCH = 1000  # MLflow's limit
CLOCK = "images_per_second"  # the metric that differs when a step is done again
LIGHT_PIXELS = 512  # across; the page enlarges nothing


class Stored:
    """A run in a store, and what it is known to have: each point sent through this is in the run once."""

    def __init__(self, client: MlflowClient, run: StoredRun, is_new: bool) -> None:
        self.run_id: str = run.info.run_id
        self._start_time: int = run.info.start_time
        self._client = client
        self._is_ours = is_new  # whether all it has was sent, and acknowledged, here
        self._steps: dict[str, set[int]] = {}  # metric → what is known to be there
        self._sizes: dict[str | None, dict[str, int | None]] = {}  # folder → path of an artifact → bytes

    def doubt(self) -> None:
        """After a failure, what was sent last may have arrived or not: from here on the store is asked."""
        self._is_ours = False
        self._steps.clear()
        self._sizes.clear()

    def send_points(self, points: Sequence[Point]) -> list[Point]:
        """Sends those that the run lacks, metric by metric, and returns them."""
        lacked = [point for point in points if point.step not in self._steps_of(point.name)]
        lacked = list({(point.name, point.step): point for point in lacked}.values())
        for start in range(0, len(lacked), MAX_METRICS_PER_BATCH):
            batch = lacked[start : start + MAX_METRICS_PER_BATCH]
            self._client.log_batch(self.run_id, metrics=metrics_of(batch))
            for point in batch:
                self._steps[point.name].add(point.step)
        return lacked

    def send_params(self, params: Mapping[str, str]) -> None:
        self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in params.items()])

    def send_tags(self, tags: Mapping[str, str]) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def complete(self, file: File) -> bool:
        """Sends the file as far as the run lacks it; returns whether it did. No part of it is there twice."""
        if not file.for_page:
            return self._complete(file.path, file.folder)
        picture = read_png(file.path)
        times = max(1, LIGHT_PIXELS // picture.shape[1])
        # As MlflowClient.log_image would name it, but the same each time.
        name = f"{file.folder}+step+{int(file.path.stem)}+timestamp+{self._start_time}+0"
        with TemporaryDirectory() as temporary:
            whole, light = Path(temporary, f"{name}.png"), Path(temporary, f"{name}+compressed.webp")
            whole.write_bytes(file.path.read_bytes())
            light.write_bytes(webp_bytes(picture.repeat(times, axis=0).repeat(times, axis=1)))
            lacked = [self._complete(part, IMAGES) for part in (whole, light)]
        return any(lacked)

    def send_file(self, path: Path, folder: str | None) -> None:
        self._client.log_artifact(self.run_id, str(path), folder)

    def _complete(self, path: Path, folder: str | None) -> bool:
        lacked = self._lacks(path, folder)
        if lacked:
            self.send_file(path, folder)
        return lacked

    def _lacks(self, path: Path, folder: str | None) -> bool:
        """Whether the artifact `folder` has no file of this name and size."""
        if folder not in self._sizes:
            listed = [] if self._is_ours else self._client.list_artifacts(self.run_id, folder)
            self._sizes[folder] = {artifact.path.rpartition("/")[2]: artifact.file_size for artifact in listed}
        return self._sizes[folder].get(path.name, -1) not in (path.stat().st_size, None)

    def end(self, status: str) -> None:
        self._client.set_terminated(self.run_id, status)

    def _steps_of(self, name: str) -> set[int]:
        if name not in self._steps:
            known = [] if self._is_ours else self._client.get_metric_history(self.run_id, name)
            self._steps[name] = {point.step for point in known}
        return self._steps[name]


def open_run(client: MlflowClient, experiment: str, wanted: Wanted, again: bool) -> Stored:
    """The run to go on with, or a new one. again: a call before this one failed, and may have made it."""
    run = _find_known_run(client, wanted)
    if run is None and again:
        this = f"tags.signature = '{wanted.signature}' and attributes.start_time = {wanted.start_time}"
        run = next(iter(search(client, experiment, this)), None)
    if run is None:
        made = client.create_run(experiment, wanted.start_time, wanted.tags, wanted.name)
        stored = Stored(client, made, is_new=True)
    else:
        stored = Stored(client, run, is_new=False)
        stored.send_tags(wanted.tags)
        client.update_run(stored.run_id, status="RUNNING")
    stored.send_params(wanted.params)
    return stored


def _find_known_run(client: MlflowClient, wanted: Wanted) -> StoredRun | None:
    """The run that `wanted` names, if the store has it and it is of the same parameters."""
    if wanted.run_id is None:
        return None
    try:
        run = client.get_run(wanted.run_id)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise
    return run if _may_be(run, wanted.params) else None


def find_run(client: MlflowClient, experiment: str, model_digest: str) -> StoredRun | None:
    """The newest one that trained the model."""
    return next(iter(search(client, experiment, f"tags.model_digest = '{model_digest}'")), None)


def find_left_run(
    client: MlflowClient,
    experiment: str,
    model_digest: str,
    signature: str,
    params: Mapping[str, str],
    curve: Mapping[int, Mapping[str, float]],
) -> StoredRun | None:
    """The newest one that was on its way to this model and has none: its store was away when it ended."""
    for run in search(client, experiment, f"tags.signature = '{signature}'"):
        # A tag that was under way when the store hung may just have arrived.
        is_left = run.info.status != "FINISHED" and run.data.tags.get("model_digest", model_digest) == model_digest
        if is_left and _may_be(run, params) and _agrees(client, run, curve):
            return run
    return None


def _agrees(client: MlflowClient, run: StoredRun, curve: Mapping[int, Mapping[str, float]]) -> bool:
    """Whether all points of `run` lie on `curve`. They do not where training was rewound, in another run."""
    for name in run.data.metrics.keys() - {CLOCK}:
        for point in client.get_metric_history(run.info.run_id, name):
            value = curve.get(point.step, {}).get(name)
            if value is None or math.isnan(value) != math.isnan(point.value):
                return False
            if not math.isnan(value) and not math.isclose(value, point.value, rel_tol=1e-6):
                return False
    return True


def _may_be(run: StoredRun, params: Mapping[str, str]) -> bool:
    """Whether the run is there to be written to, and its parameters are `params`, or those of them that arrived."""
    return run.info.lifecycle_stage == "active" and run.data.params.items() <= params.items()


def metrics_of(points: Sequence[Point]) -> list[Metric]:
    return [Metric(*point) for point in points]
