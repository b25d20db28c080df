"""Records → MLflow. The only user of mlflow.

MLFLOW_TRACKING_URI names the store; without it everything goes to `mlflow.db` and `mlartifacts/` in the main
repository, also from the temporary copies that DVC's experiments run in. Nothing stops a run here: what cannot be
recorded costs one line on standard error, and `send_run` (`began log`) sends it later.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.workspace import git_commit, main_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

EXPERIMENT = "began"
SECONDS_BETWEEN_BATCHES = 5.0
SECONDS_BETWEEN_ATTEMPTS = 60.0  # after a failure, so that a server that is gone does not hold up the training
MOST_METRICS_PER_BATCH = 1000  # MLflow's limit
WAY_ON = "`began log MODEL_DIR` sends it later"


class Run:
    """One MLflow run, or nothing where there is no store. No method raises; the first failure is told in one line.

    After a failure nothing is tried for SECONDS_BETWEEN_ATTEMPTS, but `set_tag` and `end`: points of the curve wait,
    pictures and files are left out.
    """

    def __init__(self, client: MlflowClient | None, run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._metrics: list[Metric] = []
        self._next_batch = time.monotonic() + SECONDS_BETWEEN_BATCHES
        self._next_attempt = 0.0
        self._warned = False

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` at `step`. They reach the store every few seconds, in one transaction."""
        if self._client is None:
            return
        self._metrics += _point(step, values)
        if time.monotonic() >= self._next_batch:
            self._flush()

    def log_picture(self, path: Path, folder: str) -> None:
        """Copies the picture to the run's artifact `folder`."""
        self._attempt(lambda client: client.log_artifact(self.run_id, str(path), folder))

    def log_file(self, path: Path) -> None:
        """Copies the file to the run's artifacts."""
        self._attempt(lambda client: client.log_artifact(self.run_id, str(path)))

    def set_tag(self, name: str, value: str) -> None:
        """Tags the run; `model_digest` is the tag by which evaluate finds it."""
        self._attempt(lambda client: client.set_tag(self.run_id, name, value), urgent=True)

    def end(self, status: str) -> None:
        """Writes what is buffered and closes the run as FINISHED, FAILED or KILLED."""
        self._flush(urgent=True)
        self._attempt(lambda client: client.set_terminated(self.run_id, status), urgent=True)

    def _flush(self, urgent: bool = False) -> None:
        while self._metrics and self._attempt(self._record_batch, urgent):
            pass
        self._next_batch = time.monotonic() + SECONDS_BETWEEN_BATCHES

    def _record_batch(self, client: MlflowClient) -> None:
        batch = self._metrics[:MOST_METRICS_PER_BATCH]
        client.log_batch(self.run_id, metrics=batch)
        del self._metrics[: len(batch)]

    def _attempt(self, record: Callable[[MlflowClient], object], urgent: bool = False) -> bool:
        if self._client is None:
            return True
        if time.monotonic() < self._next_attempt and not urgent:
            return False
        try:
            record(self._client)
        except Exception as error:  # whatever a store or a server throws: the run is worth more than its record
            if not self._warned:
                _say(f"MLflow misses a part of this run: {_one_line(error)}; {WAY_ON}")
                self._warned = True
            self._next_attempt = time.monotonic() + SECONDS_BETWEEN_ATTEMPTS
            return False
        self._next_attempt = 0.0
        return True


@contextmanager
def start_run(params: Mapping[str, object], data: Mapping[str, object]) -> Iterator[Run]:
    """A new run of the experiment `began` with `params` (dotted names) and tags; `data` says what it is trained on.

    `data["source"]` becomes the tag `source`, its other entries `data.…`. The run ends FINISHED, after an exception
    FAILED, after Ctrl-C or SIGTERM KILLED.
    """
    run = _new_run(params, data)
    status = "KILLED"
    try:
        yield run
        status = "FINISHED"
    except (Exception, SystemExit):
        status = "FAILED"
        raise
    finally:
        run.end(status)


def log_report(model_digest: str, numbers: Mapping[str, float], report: Path) -> str | None:
    """Adds `numbers` and the folder `report` to the run that trained the model; returns the run's id, None without one.

    A model that DVC restored from its cache may have no run in this store.
    """
    try:
        client, experiment = _open_store()
        found = _find_run(client, experiment, model_digest)
        if found is None:
            _say("MLflow: no run has trained this model here (it comes from DVC's cache); the report is not added")
            return None
        client.log_batch(found, metrics=_point(0, numbers))
        client.log_artifacts(found, str(report), "report")
    except Exception as error:
        _say(f"MLflow: the report is not added: {_one_line(error)}")
        return None
    return found


@dataclass(frozen=True)
class Sent:
    """What `send_run` added to which run."""

    run_id: str
    is_new: bool
    num_points: int  # of the curve: steps of which the run lacked a value
    num_files: int


def send_run(
    params: Mapping[str, object],
    data: Mapping[str, object],
    commit: str | None,
    model_digest: str,
    curve: Mapping[int, Mapping[str, float]],
    folder: Path,
    files: Sequence[Path],
) -> Sent:
    """Makes the run that trained a model whole: what it lacks is sent, in a new run where there is none.

    params, data: as for `start_run`; commit: of the code; curve: step → values; files: relative to `folder` as among
    the run's artifacts. The run ends FINISHED; the points get the time of sending. ValueError naming the store when
    something cannot be sent; another call sends the rest.
    """
    try:
        client, experiment = _open_store()
        found = _find_run(client, experiment, model_digest)
        # The tag comes first: a run that is cut short is found again by it.
        tags = _tags(data, commit) | {"model_digest": model_digest}
        run_id = found or client.create_run(experiment, tags=tags).info.run_id
        known = client.get_run(run_id)
        _log_params(client, run_id, {key: value for key, value in params.items() if key not in known.data.params})
        points = _missing_points(client, run_id, curve)
        metrics = [metric for step, values in points.items() for metric in _point(step, values)]
        for start in range(0, len(metrics), MOST_METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS_PER_BATCH])
        lacked = _missing_files(client, run_id, files)
        for file in lacked:
            client.log_artifact(run_id, str(folder / file), _artifact_folder(file))
        if known.info.status != "FINISHED":
            client.set_terminated(run_id, "FINISHED")
    except Exception as error:
        raise ValueError(f"{store_uri()}: the run cannot be sent to MLflow: {_one_line(error)}") from None
    return Sent(run_id, found is None, len(points), len(lacked))


def store_uri() -> str:
    """MLFLOW_TRACKING_URI, or else the SQLite store `mlflow.db`; relative paths start at the main repository."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{main_root() / uri.removeprefix('sqlite:///')}"
    return uri if ":" in uri or is_server(uri) else str(main_root() / uri)


def is_server(uri: str) -> bool:
    """Whether the store is a server's, which has its own pages and decides where artifacts go."""
    return uri.startswith(("http://", "https://", "databricks"))


def create_store() -> None:
    """Makes the store and its experiment if they are missing. ValueError naming the store when that fails."""
    try:
        _open_store()
    except Exception as error:
        raise ValueError(f"{store_uri()}: MLflow's store cannot be opened: {_one_line(error)}") from None


def _open_store() -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment `began`, made on first use."""
    # One line of ours is enough when a server is gone; MLflow's own patience is minutes.
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    from filelock import FileLock
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    uri = store_uri()
    root = main_root()
    lock = root / ".began" / "mlflow.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):  # two processes that create one SQLite store at once crash
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            return client, experiment.experiment_id
        # Fixed once and for all runs: never inside a temporary copy, which DVC deletes.
        artifacts = None if is_server(uri) else (root / "mlartifacts").as_uri()
        return client, client.create_experiment(EXPERIMENT, artifact_location=artifacts)


def _new_run(params: Mapping[str, object], data: Mapping[str, object]) -> Run:
    try:
        client, experiment = _open_store()
        name = os.environ.get("DVC_EXP_NAME")
        tags = _tags(data, git_commit()) | ({"dvc.exp_name": name} if name else {})
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        _log_params(client, run_id, params)
    except Exception as error:
        _say(f"MLflow: this run is not recorded: {_one_line(error)}; {WAY_ON}")
        return Run(None, "")
    return Run(client, run_id)


def _tags(data: Mapping[str, object], commit: str | None) -> dict[str, str]:
    tags = {f"data.{key}" if key != "source" else key: str(value) for key, value in data.items()}
    return tags | ({"git.commit": commit} if commit else {})


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])


def _point(step: int, values: Mapping[str, float]) -> list[Metric]:
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    return [Metric(name, float(value), now, step) for name, value in values.items()]


def _missing_points(
    client: MlflowClient, run_id: str, curve: Mapping[int, Mapping[str, float]]
) -> dict[int, dict[str, float]]:
    """The part of `curve` that the run has not, metric by metric."""
    names = {name for values in curve.values() for name in values}
    known = {(name, point.step) for name in names for point in client.get_metric_history(run_id, name)}
    missing = {
        step: {name: value for name, value in values.items() if (name, step) not in known}
        for step, values in curve.items()
    }
    return {step: values for step, values in missing.items() if values}


def _missing_files(client: MlflowClient, run_id: str, files: Sequence[Path]) -> list[Path]:
    folders = {_artifact_folder(file) for file in files}
    known = {artifact.path for folder in folders for artifact in client.list_artifacts(run_id, folder)}
    return [file for file in files if file.as_posix() not in known]


def _artifact_folder(file: Path) -> str | None:
    """Where MLflow keeps `file`; it calls the top of the artifacts None."""
    return None if file.parent == Path() else file.parent.as_posix()


def _find_run(client: MlflowClient, experiment: str, model_digest: str) -> str | None:
    runs = client.search_runs(
        [experiment], f"tags.model_digest = '{model_digest}'", max_results=1, order_by=["attributes.start_time DESC"]
    )
    return runs[0].info.run_id if runs else None


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
