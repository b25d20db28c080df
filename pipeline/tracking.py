"""Records → MLflow. The only user of mlflow.

MLFLOW_TRACKING_URI names the store; without it everything goes to `mlflow.db` and `mlartifacts/` in the main
repository, also from the temporary copies that DVC's experiments run in (pipeline.store). Nothing stops or holds up a
run here: one thread sends what waits, again and again until the store has it, each point once; what it still lacks at
the end costs one line on standard error, and `send_run` (`began log`) sends it later.

Tags and parameters are those named here. `MlflowClient.create_run` adds none of its own but a made-up name (the person,
the program and the folder come from `mlflow.start_run`, which is not used).
"""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from pipeline.store import (
    EXPERIMENT,
    DeletedError,
    artifacts_folder,
    bring_artifacts_home,
    database,
    explain,
    is_server,
    shown_store,
    sqlite_uri,
    store_uri,
)
from pipeline.workspace import git_commit, main_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as StoredRun

SECONDS_BETWEEN_BATCHES = 5.0
SECONDS_BETWEEN_ATTEMPTS = 10.0  # after a failure
SECONDS_AT_START = 20.0  # longest wait for a new run's id: a local store needs a moment, a server may hang
SECONDS_AT_END = 30.0  # longest wait for the store to take what is left
SECONDS_OF_A_BROKEN_CONNECTION = 1.0  # what fails sooner is tried again at once, before it counts as a failure
MOST_METRICS_PER_BATCH = 1000  # MLflow's limit
CLOCK = "images_per_second"  # the metric that differs when a step is done again
IMAGES = "images"  # the artifact folder whose pictures MLflow's page of a run shows, where the run has this tag
IMAGES_TAG = {"mlflow.loggedImages": "True"}
LIGHT_PIXELS = 512  # across; the page enlarges nothing
WAY_ON = "`began log MODEL_DIR` sends it later"


class Run:
    """One MLflow run. No method raises or waits for the store, but `begin` and `end`, which are bounded.

    `run_id`: of the run; None while no store has answered and none was to be reopened.
    """

    def __init__(self, wanted: _Wanted, curve: Mapping[int, Mapping[str, float]]) -> None:
        self.run_id = wanted.run_id
        self._wanted = wanted
        self._stored: _Stored | None = None
        self._lock = threading.Lock()  # of the next two; never held while the store is spoken to
        self._points = [point for step, values in curve.items() for point in _points(step, values)]
        self._tags: list[tuple[str, str]] = []
        self._files: deque[_File] = deque()
        self._status = "RUNNING"
        self._failure: str | None = None  # of the last attempt
        self._missed: str | None = None  # why something will never be sent from here
        self._told_outage = self._told_return = False
        self._tried = threading.Event()
        self._ending = threading.Event()
        self._left_behind = False
        # A daemon: a process that has to leave does not wait for a server.
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    def begin(self) -> None:
        """Starts sending; waits until the run is made or that has failed, at most SECONDS_AT_START."""
        self._thread.start()
        self._tried.wait(SECONDS_AT_START)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Records `values` at `step`. They reach the store every few seconds, in one transaction."""
        points = _points(step, values)
        with self._lock:
            self._points += points

    def log_picture(self, path: Path, folder: str) -> None:
        """Copies the PNG STEP.png to the run's artifact `folder`, and shows it on the run's page, as `folder` at STEP.

        It has to stay as it is until the run ends.
        """
        self._files += _parts(path, folder)

    def log_file(self, path: Path) -> None:
        """Copies the file to the run's artifacts; it has to stay as it is until the run ends."""
        self._files += _parts(path, None)

    def set_tag(self, name: str, value: str) -> None:
        """Tags the run; `model_digest` is the tag by which evaluate finds it."""
        with self._lock:
            self._tags.append((name, value))

    def end(self, status: str) -> None:
        """Sends what waits and closes the run as FINISHED, FAILED or KILLED; gives up after SECONDS_AT_END."""
        self._status = status
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_AT_END)
        self._left_behind = True
        failure = self._failure or self._missed
        if self._thread.is_alive():
            failure = failure or f"no answer within {SECONDS_AT_END:g} s"
        if failure is None:
            return
        if self.run_id is None:
            _say(f"MLflow: this run is not recorded: {failure}; {WAY_ON}")
        else:
            _say(f"MLflow misses a part of this run: {failure}; {WAY_ON}")

    def _work(self) -> None:
        try:
            ending = False
            while not ending and not self._left_behind:
                ending = self._ending.is_set()  # all that was queued before is sent below
                pause = SECONDS_BETWEEN_BATCHES if self._attempt(ending) else SECONDS_BETWEEN_ATTEMPTS
                self._tried.set()
                self._ending.wait(pause)
        except ImportError as error:  # no MLflow, or no driver for its database: waiting helps nobody
            self._failure = None
            _say(f"MLflow: this run is not recorded: {explain(error)}; {WAY_ON}")
        finally:
            self._tried.set()

    def _attempt(self, ending: bool) -> bool:
        started = time.monotonic()
        try:
            self._send(ending)
        except Exception as error:  # whatever a store or a server throws: the run is worth more than its record
            if self._stored is not None:
                self._stored.doubt()
            elif isinstance(error, ImportError):
                raise
            is_first = self._failure is None
            self._failure = explain(error)
            if is_first and time.monotonic() - started < SECONDS_OF_A_BROKEN_CONNECTION:
                return self._attempt(ending)
            if not self._told_outage and not self._ending.is_set():
                self._told_outage = True
                _say(f"MLflow does not take this run for now: {self._failure}; it is sent when MLflow answers")
            return False
        if self._told_outage and not self._told_return and not self._left_behind:
            self._told_return = True
            _say("MLflow answers again and has all of this run so far")
        self._failure = None
        return True

    def _send(self, ending: bool) -> None:
        if self._stored is None:
            client, experiment = _open_store()
            if self._left_behind:  # by a server that hung
                return
            self._stored = _open_run(client, experiment, self._wanted, again=self._failure is not None)
            self.run_id = self._stored.run_id
        with self._lock:
            points, tags = self._points.copy(), self._tags.copy()
        self._stored.send_points(points)
        with self._lock:
            del self._points[: len(points)]
        self._stored.send_tags(dict(tags))
        with self._lock:
            del self._tags[: len(tags)]
        try:
            while self._files and not self._left_behind:
                self._send_file(self._stored, self._files[0])
                self._files.popleft()
        finally:
            if ending and not self._left_behind:
                self._stored.end(self._status)

    def _send_file(self, stored: _Stored, file: _File) -> None:
        try:
            file.path.open("rb").close()
        except OSError as error:
            self._missed = self._missed or explain(error)
            return
        # A picture's name holds its step; a file at the top may be of an attempt before this one.
        if file.folder is None:
            stored.send_file(file.path, None)
        else:
            stored.complete(file)


@contextmanager
def start_run(
    params: Mapping[str, object],
    data: Mapping[str, object],
    *,
    signature: str,
    run_id: str | None = None,
    curve: Mapping[int, Mapping[str, float]] | None = None,
) -> Iterator[Run]:
    """A run of the experiment `began` with `params` (dotted names) and tags; `data` says what it is trained on.

    `data["source"]` becomes the tag `source`, its other entries `data.…`. `run_id` names the run to go on with; where
    the store has none such with these parameters, and without `run_id`, it is a new one. `curve` (step → values) is
    what the run should have already: what it lacks of it is sent. The run ends FINISHED, after an exception FAILED,
    after Ctrl-C or SIGTERM KILLED.
    """
    name = os.environ.get("DVC_EXP_NAME")
    tags = _tags(data, git_commit(), signature) | ({"dvc.exp_name": name} if name else {})
    wanted = _Wanted(
        run_id, {key: str(value) for key, value in params.items()}, tags, name, signature, time.time_ns() // 1_000_000
    )
    run = Run(wanted, curve or {})
    status = "KILLED"
    try:
        run.begin()
        yield run
        status = "FINISHED"
    except (Exception, SystemExit):
        status = "FAILED"
        raise
    finally:
        run.end(status)


def log_report(model_digest: str, numbers: Mapping[str, float | None], report: Path) -> str | None:
    """Adds `numbers` and the folder `report` to the run that trained the model; returns the run's id, None without one.

    Numbers that are None are left out. A model that DVC restored from its cache may have no run in this store.
    """
    try:
        client, experiment = _open_store()
        found = _find_run(client, experiment, model_digest)
        if found is None:
            _say(
                "MLflow: no run has trained this model here (it comes from DVC's cache, or its run was deleted); the "
                "report is not added: `began log MODEL_DIR` makes a run of it, then `began evaluate` adds it"
            )
            return None
        run_id: str = found.info.run_id
        known = found.data.metrics  # sent before, maybe by a call that was cut short
        new = {name: value for name, value in numbers.items() if value is not None and known.get(name) != value}
        client.log_batch(run_id, metrics=_metrics(_points(0, new)))
        client.log_artifacts(run_id, str(report), "report")
    except Exception as error:
        _say(f"MLflow: the report is not added: {explain(error)}")
        return None
    return run_id


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
    signature: str | None,
    curve: Mapping[int, Mapping[str, float]],
    folder: Path,
    files: Sequence[Path],
) -> Sent:
    """Makes the run that trained a model whole: what it lacks is sent, in a new run where there is none.

    It is found by `model_digest`, or is one of the same `signature` and parameters that was left before it had a
    model. params, data: as for `start_run`; commit: of the code; curve: step → values; files: relative to `folder` as
    among the run's artifacts, where those in a folder are pictures as for `Run.log_picture`. The run ends FINISHED; the
    points get the time of sending. ValueError naming the store when something cannot be sent; another call sends the
    rest.
    """
    try:
        client, experiment = _open_store()
        wanted = {key: str(value) for key, value in params.items()}
        found = _find_run(client, experiment, model_digest)
        if found is None and signature:
            found = _find_left_run(client, experiment, model_digest, signature, wanted, curve)
        # The tag comes first: a run that is cut short is found again by it.
        tags = _tags(data, commit, signature) | {"model_digest": model_digest}
        run = found or client.create_run(experiment, tags=tags)
        stored = _Stored(client, run, is_new=False)
        stored.send_tags(IMAGES_TAG if model_digest == run.data.tags.get("model_digest") else tags)
        stored.send_params({key: value for key, value in wanted.items() if key not in run.data.params})
        points = stored.send_points([point for step, values in curve.items() for point in _points(step, values)])
        sent = [[stored.complete(part) for part in _parts(folder / file, _artifact_folder(file))] for file in files]
        num_files = sum(map(any, sent))
        if run.info.status != "FINISHED":
            stored.end("FINISHED")
    except Exception as error:
        raise ValueError(f"{shown_store()}: the run cannot be sent to MLflow: {explain(error)}") from None
    return Sent(stored.run_id, found is None, len({point.step for point in points}), num_files)


def create_store() -> None:
    """Makes the store and its experiment if they are missing. ValueError naming the store when that fails."""
    try:
        _open_store()
    except Exception as error:
        raise ValueError(f"{shown_store()}: MLflow's store cannot be opened: {explain(error)}") from None


@dataclass(frozen=True)
class Recorded:
    """A run as the store has it; `metrics` are the newest values."""

    run_id: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


class Records:
    """The store's runs, to read; a list has the newest first. ValueError naming the store when it does not answer."""

    def __init__(self, client: MlflowClient, experiment: str) -> None:
        self._client, self._experiment = client, experiment

    def with_id(self, beginning: str) -> list[Recorded]:
        """Those whose id starts with these hexadecimal digits."""
        return self._all(f"attributes.run_id LIKE '{beginning}%'")

    def with_name(self, name: str) -> list[Recorded]:
        quote = '"' if "'" in name else "'"
        return [] if quote in name else self._all(f"attributes.run_name = {quote}{name}{quote}")

    def of_model(self, model_digest: str) -> Recorded | None:
        """The newest one that trained the model."""
        return next(iter(self._all(f"tags.model_digest = '{model_digest}'")), None)

    def check_deleted(self, beginning: str) -> None:
        """DeletedError where a run whose id starts so was deleted."""
        for run in self._all(f"attributes.run_id LIKE '{beginning}%'", deleted=True):
            raise DeletedError("run", run.run_id)

    def curve(self, run_id: str, metric: str) -> dict[int, float]:
        """Step → value, ascending."""
        with _explained():
            points = self._client.get_metric_history(run_id, metric)
        return {point.step: point.value for point in sorted(points, key=lambda point: point.step)}

    def last_picture(self, run_id: str, folder: str, into: Path) -> Path | None:
        """The picture of the last step in the artifact `folder`, copied below `into`; None where there is none."""
        with _explained():
            pictures = [artifact.path for artifact in self._client.list_artifacts(run_id, folder)]
            numbered = [path for path in pictures if Path(path).stem.isdecimal()]
            if not numbered:
                return None
            (into / run_id).mkdir(exist_ok=True)
            return Path(self._client.download_artifacts(run_id, max(numbered), str(into / run_id)))

    def report(self, run_id: str, into: Path) -> Path | None:
        """A folder below `into` with metrics.json and model.json of its report; None where it has none."""
        wanted = {"report/metrics.json", "report/model.json"}
        with _explained():
            if not wanted <= {artifact.path for artifact in self._client.list_artifacts(run_id, "report")}:
                return None
            folder = into / run_id
            folder.mkdir(exist_ok=True)
            paths = [Path(self._client.download_artifacts(run_id, path, str(folder))) for path in sorted(wanted)]
        return paths[0].parent

    def _all(self, condition: str, deleted: bool = False) -> list[Recorded]:
        with _explained():
            found = _search(self._client, self._experiment, condition, deleted)
        return [
            Recorded(run.info.run_id, run.info.run_name or "", run.data.params, run.data.tags, run.data.metrics)
            for run in found
        ]


def open_records() -> Records | None:
    """The recorded runs; None where nothing was recorded yet, which this does not change."""
    path = database()
    if path is not None and not path.exists():
        return None
    with _explained():
        _prepare_mlflow()
        from mlflow import MlflowClient

        client = MlflowClient(store_uri())
        with suppress(sqlite3.Error):  # one that nobody may change can be read all the same
            bring_artifacts_home()
        experiment = _find_experiment(client)
    return None if experiment is None else Records(client, experiment)


class _Point(NamedTuple):
    """A value of one metric, in the order of MLflow's Metric."""

    name: str
    value: float
    time: int  # ms since 1970, fixed when the point is made: MLflow's databases take an exact repetition for the same
    step: int


class _File(NamedTuple):
    """A file for the artifact `folder`, or, `for_page`, a picture that the run's page shows in the row `folder`."""

    path: Path
    folder: str | None
    for_page: bool = False


class _Wanted(NamedTuple):
    """The run that start_run is to make, or to go on with."""

    run_id: str | None
    params: dict[str, str]
    tags: dict[str, str]
    name: str | None
    signature: str
    start_time: int  # ms since 1970; with the signature it tells this run from all others


class _Stored:
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

    def send_points(self, points: Sequence[_Point]) -> list[_Point]:
        """Sends those that the run lacks, metric by metric, and returns them."""
        lacked = [point for point in points if point.step not in self._steps_of(point.name)]
        lacked = list({(point.name, point.step): point for point in lacked}.values())
        for start in range(0, len(lacked), MOST_METRICS_PER_BATCH):
            batch = lacked[start : start + MOST_METRICS_PER_BATCH]
            self._client.log_batch(self.run_id, metrics=_metrics(batch))
            for point in batch:
                self._steps[point.name].add(point.step)
        return lacked

    def send_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(key, value) for key, value in params.items()])

    def send_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def complete(self, file: _File) -> bool:
        """Sends the file as far as the run lacks it; returns whether it did. No part of it is there twice."""
        if not file.for_page:
            return self._complete(file.path, file.folder)
        from began.images import read_png, webp_bytes

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


def _open_store() -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment `began`, made on first use."""
    _prepare_mlflow()
    from filelock import FileLock
    from mlflow import MlflowClient

    uri = store_uri()
    lock = main_root() / ".began" / "mlflow.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):  # two processes that create one SQLite store at once crash
        _create_database()
        client = MlflowClient(uri)
        bring_artifacts_home()
        experiment = _find_experiment(client)
        if experiment is None:
            artifacts = None if is_server(uri) else artifacts_folder().as_uri()
            experiment = client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        return client, experiment


def _find_experiment(client: MlflowClient) -> str | None:
    """The id of the experiment `began`; ValueError when it was deleted: its name is taken until it is restored."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    found: str = experiment.experiment_id
    if experiment.lifecycle_stage != "active":
        raise DeletedError("experiment", found)
    return found


def _prepare_mlflow() -> None:
    """Before the first use of it."""
    # MLflow would repeat a request whose answer was lost, unseen: two runs where one was wanted.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    for name, value in {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # its own patience is minutes
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow  # it sets its loggers' levels when it is first imported, so ours come after

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails is told in one line here
    if not is_server(store_uri()):
        import mlflow.store.db.utils

        mlflow.store.db.utils.MAX_RETRY_COUNT = 1  # of ten, two silent minutes; who can wait asks again


@contextmanager
def _explained() -> Iterator[None]:
    """Within, whatever a store or a server throws becomes a ValueError that names the store."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{shown_store()}: MLflow's store cannot be read: {explain(error)}") from None


def _create_database() -> None:
    """Whole or not at all: one that a kill left with half of its tables MLflow would refuse for ever."""
    from mlflow import MlflowClient

    path = database()
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for left in (part, part.with_name(f"{part.name}-journal")):
        left.unlink(missing_ok=True)
    MlflowClient(sqlite_uri(part)).search_experiments(max_results=1)
    part.replace(path)


def _open_run(client: MlflowClient, experiment: str, wanted: _Wanted, again: bool) -> _Stored:
    """The run to go on with, or a new one. again: a call before this one failed, and may have made it."""
    run = _find_known_run(client, wanted)
    if run is None and again:
        this = f"tags.signature = '{wanted.signature}' and attributes.start_time = {wanted.start_time}"
        run = next(iter(_search(client, experiment, this)), None)
    if run is None:
        made = client.create_run(experiment, wanted.start_time, wanted.tags, wanted.name)
        stored = _Stored(client, made, is_new=True)
    else:
        stored = _Stored(client, run, is_new=False)
        stored.send_tags(wanted.tags)
        client.update_run(stored.run_id, status="RUNNING")
    stored.send_params(wanted.params)
    return stored


def _find_known_run(client: MlflowClient, wanted: _Wanted) -> StoredRun | None:
    """The run that `wanted` names, if the store has it and it is of the same parameters."""
    from mlflow.exceptions import MlflowException

    if wanted.run_id is None:
        return None
    try:
        run = client.get_run(wanted.run_id)
    except MlflowException as error:
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise
    return run if _may_be(run, wanted.params) else None


def _find_run(client: MlflowClient, experiment: str, model_digest: str) -> StoredRun | None:
    """The newest one that trained the model."""
    return next(iter(_search(client, experiment, f"tags.model_digest = '{model_digest}'")), None)


def _find_left_run(
    client: MlflowClient,
    experiment: str,
    model_digest: str,
    signature: str,
    params: Mapping[str, str],
    curve: Mapping[int, Mapping[str, float]],
) -> StoredRun | None:
    """The newest one that was on its way to this model and has none: its store was away when it ended."""
    for run in _search(client, experiment, f"tags.signature = '{signature}'"):
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


def _search(client: MlflowClient, experiment: str, condition: str, deleted: bool = False) -> Sequence[StoredRun]:
    """The runs that meet it, the newest first: those that are there, or those that were deleted."""
    from mlflow.entities import ViewType

    which = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    order = ["attributes.start_time DESC"]
    runs: Sequence[StoredRun] = client.search_runs([experiment], condition, which, order_by=order)
    return runs


def _may_be(run: StoredRun, params: Mapping[str, str]) -> bool:
    """Whether the run is there to be written to, and its parameters are `params`, or those of them that arrived."""
    return run.info.lifecycle_stage == "active" and run.data.params.items() <= params.items()


def _tags(data: Mapping[str, object], commit: str | None, signature: str | None) -> dict[str, str]:
    tags = IMAGES_TAG | {f"data.{key}" if key != "source" else key: str(value) for key, value in data.items()}
    return tags | {name: tag for name, tag in (("git.commit", commit), ("signature", signature)) if tag}


def _points(step: int, values: Mapping[str, float]) -> list[_Point]:
    now = time.time_ns() // 1_000_000
    return [_Point(name, float(value), now, step) for name, value in values.items()]


def _metrics(points: Sequence[_Point]) -> list[Metric]:
    from mlflow.entities import Metric

    return [Metric(*point) for point in points]


def _parts(path: Path, folder: str | None) -> list[_File]:
    """What a file comes to; one in a folder is a picture."""
    return [_File(path, folder)] if folder is None else [_File(path, folder), _File(path, folder, for_page=True)]


def _artifact_folder(file: Path) -> str | None:
    """Where MLflow keeps `file`; it calls the top of the artifacts None."""
    return None if file.parent == Path() else file.parent.as_posix()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
