"""Recorded runs, to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.store import DeletedError, database, explained

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
        with explained():
            points = self._client.get_metric_history(run_id, metric)
        return {point.step: point.value for point in sorted(points, key=lambda point: point.step)}

    def last_picture(self, run_id: str, folder: str, into: Path) -> Path | None:
        """The picture of the last step in the artifact `folder`, copied below `into`; None where there is none."""
        with explained():
            pictures = [artifact.path for artifact in self._client.list_artifacts(run_id, folder)]
            numbered = [path for path in pictures if Path(path).stem.isdecimal()]
            if not numbered:
                return None
            (into / run_id).mkdir(exist_ok=True)
            return Path(self._client.download_artifacts(run_id, max(numbered), str(into / run_id)))

    def report(self, run_id: str, into: Path) -> Path | None:
        """A folder below `into` with metrics.json and model.json of its report; None where it has none."""
        wanted = {"report/metrics.json", "report/model.json"}
        with explained():
            if not wanted <= {artifact.path for artifact in self._client.list_artifacts(run_id, "report")}:
                return None
            folder = into / run_id
            folder.mkdir(exist_ok=True)
            paths = [Path(self._client.download_artifacts(run_id, path, str(folder))) for path in sorted(wanted)]
        return paths[0].parent

    def _all(self, condition: str, deleted: bool = False) -> list[Recorded]:
        from pipeline.tracking.client import search

        with explained():
            found = search(self._client, self._experiment, condition, deleted)
        return [
            Recorded(run.info.run_id, run.info.run_name or "", run.data.params, run.data.tags, run.data.metrics)
            for run in found
        ]


def open_records() -> Records | None:
    """The recorded runs; None where nothing was recorded yet, which this does not change."""
    path = database()
    if path is not None and not path.exists():
        return None
    with explained():
        from pipeline.tracking.client import open_existing

        found = open_existing()
    return None if found is None else Records(*found)
