"""MLflow's client for the store, which is made on first use. Importing this imports MLflow."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress

import mlflow.store.db.utils
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun
from mlflow.entities import ViewType

from pipeline.console.workspace import main_root
from pipeline.tracking.store import (
    EXPERIMENT,
    DeletedError,
    artifacts_folder,
    bring_artifacts_home,
    database,
    is_server,
    sqlite_uri,
    store_uri,
)

_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # its own patience is minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

# After MLflow has set its own levels, as it is imported. What fails is told in one line here.
for _name in ("mlflow", "alembic", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def open_store() -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment `began`, made on first use."""
    lock = main_root() / ".began" / "mlflow.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):  # two processes that create one SQLite store at once crash
        _create_database()
        client = _client()
        bring_artifacts_home()
        experiment = _find_experiment(client)
        if experiment is None:
            artifacts = None if is_server(store_uri()) else artifacts_folder().as_uri()
            experiment = client.create_experiment(EXPERIMENT, artifact_location=artifacts)
        return client, experiment


def open_existing() -> tuple[MlflowClient, str] | None:
    """As `open_store`, but None where there is no experiment yet, which this does not change."""
    client = _client()
    with suppress(sqlite3.Error):  # a store that nobody may change can be read all the same
        bring_artifacts_home()
    experiment = _find_experiment(client)
    return None if experiment is None else (client, experiment)


def _client() -> MlflowClient:
    # MLflow would repeat a request whose answer was lost, unseen: two runs where one was wanted.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if not is_server(store_uri()):
        mlflow.store.db.utils.MAX_RETRY_COUNT = 1  # of ten, two silent minutes; who can wait asks again
    return MlflowClient(store_uri())


def _find_experiment(client: MlflowClient) -> str | None:
    """The id of the experiment `began`; ValueError when it was deleted: its name is taken until it is restored."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return None
    found: str = experiment.experiment_id
    if experiment.lifecycle_stage != "active":
        raise DeletedError("experiment", found)
    return found


def _create_database() -> None:
    """Whole or not at all: one that a kill left with half of its tables MLflow would refuse for ever."""
    path = database()
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for left in (part, part.with_name(f"{part.name}-journal")):
        left.unlink(missing_ok=True)
    MlflowClient(sqlite_uri(part)).search_experiments(max_results=1)
    part.replace(path)


def search(client: MlflowClient, experiment: str, condition: str, deleted: bool = False) -> Sequence[StoredRun]:
    """The runs that meet it, the newest first: those that are there, or those that were deleted."""
    which = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    order = ["attributes.start_time DESC"]
    runs: Sequence[StoredRun] = client.search_runs([experiment], condition, which, order_by=order)
    return runs
