"""Records → MLflow.

MLFLOW_TRACKING_URI names the store; without it everything goes to `mlflow.db` and `mlartifacts/` in the main
repository, also from the temporary copies that DVC's experiments run in (pipeline.tracking.store). Nothing stops or
holds up a run here: one thread sends what waits, again and again until the store has it, each point once; what it still
lacks at the end costs one line on standard error, and `send_run` (`began log`) sends it later.

Tags and parameters are those named here. `MlflowClient.create_run` adds none of its own but a made-up name (the person,
the program and the folder come from `mlflow.start_run`, which is not used).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.console.workspace import git_commit
from pipeline.tracking.items import IMAGES_TAG, File, Wanted, artifact_folder, parts_of, points_of, tags_of
from pipeline.tracking.store import explain, shown_store

if TYPE_CHECKING:
    from pipeline.tracking.stored import Stored

SECONDS_BETWEEN_BATCHES = 5.0
SECONDS_BETWEEN_ATTEMPTS = 10.0  # after a failure
SECONDS_AT_START = 20.0  # longest wait for a new run's id: a local store needs a moment, a server may hang
SECONDS_AT_END = 30.0  # longest wait for the store to take what is left
SECONDS_OF_A_BROKEN_CONNECTION = 1.0  # what fails sooner is tried again at once, before it counts as a failure
WAY_ON = "`began log MODEL_DIR` sends it later"


class Run:
    """One MLflow run. No method raises or waits for the store, but `begin` and `end`, which are bounded.

    `run_id`: of the run; None while no store has answered and none was to be reopened.
    """

    def __init__(self, wanted: Wanted, curve: Mapping[int, Mapping[str, float]]) -> None:
        self.run_id = wanted.run_id
        self._wanted = wanted
        self._stored: Stored | None = None
        self._lock = threading.Lock()  # of the next two; never held while the store is spoken to
        self._points = [point for step, values in curve.items() for point in points_of(step, values)]
        self._tags: list[tuple[str, str]] = []
        self._files: deque[File] = deque()
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
        points = points_of(step, values)
        with self._lock:
            self._points += points

    def log_picture(self, path: Path, folder: str) -> None:
        """Copies the PNG STEP.png to the run's artifact `folder`, and shows it on the run's page, as `folder` at STEP.

        It has to stay as it is until the run ends.
        """
        self._files += parts_of(path, folder)

    def log_file(self, path: Path) -> None:
        """Copies the file to the run's artifacts; it has to stay as it is until the run ends."""
        self._files += parts_of(path, None)

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
            from pipeline.tracking import stored

            client, experiment = stored.open_store()
            if self._left_behind:  # by a server that hung
                return
            self._stored = stored.open_run(client, experiment, self._wanted, again=self._failure is not None)
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

    def _send_file(self, stored: Stored, file: File) -> None:
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
    tags = tags_of(data, git_commit(), signature) | ({"dvc.exp_name": name} if name else {})
    wanted = Wanted(
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
        from pipeline.tracking import stored

        client, experiment = stored.open_store()
        found = stored.find_run(client, experiment, model_digest)
        if found is None:
            _say(
                "MLflow: no run has trained this model here (it comes from DVC's cache, or its run was deleted); the "
                "report is not added: `began log MODEL_DIR` makes a run of it, then `began evaluate` adds it"
            )
            return None
        run_id: str = found.info.run_id
        known = found.data.metrics  # sent before, maybe by a call that was cut short
        new = {name: value for name, value in numbers.items() if value is not None and known.get(name) != value}
        client.log_batch(run_id, metrics=stored.metrics_of(points_of(0, new)))
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
        from pipeline.tracking import stored

        client, experiment = stored.open_store()
        wanted = {key: str(value) for key, value in params.items()}
        found = stored.find_run(client, experiment, model_digest)
        if found is None and signature:
            found = stored.find_left_run(client, experiment, model_digest, signature, wanted, curve)
        # The tag comes first: a run that is cut short is found again by it.
        tags = tags_of(data, commit, signature) | {"model_digest": model_digest}
        run = found or client.create_run(experiment, tags=tags)
        whole = stored.Stored(client, run, is_new=False)
        whole.send_tags(IMAGES_TAG if model_digest == run.data.tags.get("model_digest") else tags)
        whole.send_params({key: value for key, value in wanted.items() if key not in run.data.params})
        points = whole.send_points([point for step, values in curve.items() for point in points_of(step, values)])
        sent = [[whole.complete(part) for part in parts_of(folder / file, artifact_folder(file))] for file in files]
        num_files = sum(map(any, sent))
        if run.info.status != "FINISHED":
            whole.end("FINISHED")
    except Exception as error:
        raise ValueError(f"{shown_store()}: the run cannot be sent to MLflow: {explain(error)}") from None
    return Sent(whole.run_id, found is None, len({point.step for point in points}), num_files)


def create_store() -> None:
    """Makes the store and its experiment if they are missing. ValueError naming the store when that fails."""
    try:
        from pipeline.tracking.client import open_store

        open_store()
    except Exception as error:
        raise ValueError(f"{shown_store()}: MLflow's store cannot be opened: {explain(error)}") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr)
