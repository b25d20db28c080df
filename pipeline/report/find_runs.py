"""What a person calls a run → what is known of it. The only user of dvc.

A model folder, a DVC experiment or any git revision, or a run in MLflow: each leads to the others by the digest of the
weights, `model_digest`, since a model that DVC restored from its cache has no MLflow run of its own, and the model of
an MLflow run may be anywhere in that cache.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from began.base.addresses import without_secrets
from began.base.files import replace_file
from began.data.images import read_png, tiles
from began.gan.networks import Generator
from began.runs.curve import History, read_distances, read_history
from began.runs.model_folder import DESCRIPTION, GENERATOR, read_description, read_model
from pipeline.console.workspace import main_root
from pipeline.tracking.read import Recorded, Records, open_records

MODEL, REPORT = "data/model", "data/report"  # in the workspace, and in every revision
SHORTEST_ID = 8  # digits by which an MLflow run may be named
CURVE = ("M_global", "L_real", "L_fake", "k_t", "learning_rate")


@dataclass(frozen=True)
class Run:
    """What is known of one run. What is not there is None or empty, and `remarks` say why.

    parameters: dotted names of params.yaml, values as text. data: digest and source of the images, as in model.json.
    logged: tiles (N, S, S, 3) that the training left in MLflow; only there when the weights are not.
    """

    label: str
    origin: str  # where it was found, for people
    model_digest: str | None
    parameters: Mapping[str, str]
    data: Mapping[str, Any]
    image_size: int | None = None
    G: Generator | None = None  # the averaged generator
    step: int | None = None
    versions: str = ""  # of torch, with device and precision
    history: History | None = None
    distances: History | None = None
    numbers: Mapping[str, float | None] = field(default_factory=dict)
    logged: np.ndarray | None = None
    remarks: Sequence[str] = ()


def read_runs(names: Sequence[str]) -> list[Run]:
    """The runs that `names` mean, in this order; ValueError naming the first that means none, or is damaged."""
    with TemporaryDirectory() as scratch:
        revisions = _Revisions(main_root(), Path(scratch))
        store = _Store(Path(scratch))
        return _with_distinct_labels([_read_run(name, revisions, store) for name in names])


def fetch(name: str, path: str, to: Path) -> None:
    """Writes the file `path` of the experiment or git revision `name` to `to`, from git or from DVC's cache.

    ValueError naming `name` when there is no such revision, or when the file is not to be had.
    """
    revisions = _Revisions(main_root(), to.parent)
    commit = revisions.commit_of(name)
    if commit is None:
        raise ValueError(f"{name}: no DVC experiment or git revision has this name")
    revisions.fetch_file(commit, name, path, to)


class _Revisions:
    """The experiments and commits of a repository, and the models that DVC's cache holds of them."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self._root, self._scratch = root, scratch

    def commit_of(self, name: str) -> str | None:
        """The commit of the experiment or git revision `name`; None when there is none.

        As in DVC, of several experiments of one name it is that of the checked-out commit; ValueError when none is.
        """
        named = [(commit, baseline) for other, commit, baseline in self._experiments() if other == name]
        if len(named) > 1:
            head = self._git("rev-parse", "HEAD")
            named = [(commit, baseline) for commit, baseline in named if baseline == head]
            if len(named) != 1:
                raise ValueError(f"{name}: several experiments have this name; name one by its commit")
        if named:
            return named[0][0]
        return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")

    def fetch(self, commit: str, name: str) -> Path:
        """A folder with the model, and with what the report says of whom, from DVC's cache.

        ValueError naming `name` when the revision has no model or the cache lacks it.
        """
        folder = self._scratch / commit
        if (folder / REPORT).exists():  # fetched before
            return folder
        with self._explained(name, MODEL):
            files = self._files(commit)
            (folder / MODEL).parent.mkdir(parents=True, exist_ok=True)
            files.get(MODEL, str(folder / MODEL), recursive=True)
        (folder / REPORT).mkdir()
        for file in (DESCRIPTION, "metrics.json"):
            try:
                files.get(f"{REPORT}/{file}", str(folder / REPORT / file))
            except Exception:  # not every revision is evaluated, and a cache may have lost it
                (folder / REPORT / file).unlink(missing_ok=True)
        return folder

    def fetch_file(self, commit: str, name: str, path: str, to: Path) -> None:
        """Writes one file of the revision to `to`. ValueError naming `name` when the file is not to be had."""
        with (
            replace_file(to) as temporary,
            self._explained(name, path),
            # Copied: DVC's own `get` would leave a hard link into its cache.
            self._files(commit).open(path, "rb") as source,
            temporary.open("wb") as copy,
        ):
            shutil.copyfileobj(source, copy)

    def with_model(self, model_digest: str, first: str | None) -> tuple[str, str] | None:
        """Name and commit of an experiment, or of HEAD, whose model has this digest and is in the cache.

        `first` is tried first. Each pipeline's result is looked at once, however many commits have it.
        """
        known = sorted(self._experiments(), key=lambda experiment: experiment[0] != first)
        seen = set()
        for name, commit, _ in [*known, ("HEAD", "HEAD", "")]:
            lock = self._git("rev-parse", "--verify", "--quiet", f"{commit}:dvc.lock")
            if lock is None or lock in seen:
                continue
            seen.add(lock)
            try:
                description = json.loads(self._files(commit).read_text(f"{MODEL}/{DESCRIPTION}"))
                if description["weights"][GENERATOR] == model_digest:
                    return name, commit
            except Exception:  # a revision without a model, or one whose model is gone
                continue
        return None

    def _experiments(self) -> list[tuple[str, str, str]]:
        """Name, commit and the commit it started from; the newest first."""
        listed = self._git("for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", "refs/exps")
        found = []
        for line in (listed or "").splitlines():
            reference, commit = line.split()
            # refs/exps/ab/cdef…/name; DVC keeps its queue and its own marks beside them
            match = re.fullmatch(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/([^/]+)", reference)
            if match:
                found.append((match[3], commit, match[1] + match[2]))
        return found

    def _files(self, commit: str) -> Any:
        """The revision as DVC sees it: what git has, and what only the cache has."""
        logging.getLogger("dvc").setLevel(logging.CRITICAL)  # what fails is told in one line here
        from dvc.api import DVCFileSystem

        return DVCFileSystem(str(self._root), rev=commit)

    def _git(self, *arguments: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", "-C", str(self._root), *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return answer.stdout.strip()

    @contextmanager
    def _explained(self, name: str, path: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # DVC's own, those of its caches and of its git library share no base
            reason = without_secrets(" ".join(str(error).split()))[:200] or type(error).__name__
            raise ValueError(f"{name}: {path} of this revision is not to be had from DVC's cache: {reason}") from None


class _Store:
    """MLflow's runs, opened when first asked for; it may be away without harm to what does not need it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._records: Records | None = None
        self._is_open = False
        self.failure = ""

    @property
    def records(self) -> Records | None:
        if not self._is_open:
            self._is_open = True
            try:
                self._records = open_records()
                self.failure = "" if self._records else "there is no MLflow store here"
            except ValueError as error:
                self.failure = str(error)
        return self._records

    def of_model(self, model_digest: str) -> Recorded | None:
        try:
            return self.records.of_model(model_digest) if self.records else None
        except ValueError as error:
            self._records, self.failure = None, str(error)
            return None

    def named(self, name: str) -> Recorded | None:
        """The run of this id, beginning of an id, or name. ValueError when there are several."""
        if self.records is None:
            return None
        is_id = re.fullmatch(rf"[0-9a-f]{{{SHORTEST_ID},32}}", name)
        found = (self.records.with_id(name) if is_id else []) or self.records.with_name(name)
        if is_id and not found:
            self.records.check_deleted(name)
        if len(found) > 1:
            ids = ", ".join(recorded.run_id[:12] for recorded in found[:5])
            raise ValueError(f"{name}: {len(found)} MLflow runs are called so; name one by its id: {ids} …")
        return found[0] if found else None


def _read_run(name: str, revisions: _Revisions, store: _Store) -> Run:
    if (Path(name) / DESCRIPTION).is_file() and (Path(name) / GENERATOR).is_file():
        folder = Path(name)
        return _of_folder(folder, _folder_label(name), f"folder {name}", store)
    commit = revisions.commit_of(name)
    lacking = ""
    if commit is not None:
        try:
            folder = revisions.fetch(commit, name)
        except ValueError as error:
            lacking = str(error)
        else:
            with _renamed(folder, name):
                return _of_folder(folder / MODEL, name, f"DVC revision {commit[:10]}", store)
    recorded = store.named(name)
    if recorded is not None:
        return _of_record(recorded, name, revisions, store)
    if lacking:
        raise ValueError(lacking)
    where = f"; {store.failure}" if store.failure else ""
    raise ValueError(
        f"{name}: no such run: it is no folder with {DESCRIPTION}, no DVC experiment or git revision, and no MLflow "
        f"run’s name, id or first {SHORTEST_ID} digits of one{where}"
    )


def _of_folder(folder: Path, label: str, origin: str, store: _Store, recorded: Recorded | None = None) -> Run:
    """A model folder; its numbers are the report's beside it, where that is of this model, or else those of `recorded`.

    recorded: its run in MLflow; sought where it is needed.
    """
    model = read_model(folder)
    about = model.description
    remarks = [f"warning of the training: {text}" for text in about["warnings"]]
    numbers = _report_numbers(folder.parent / Path(REPORT).name, model.digest)
    if numbers is None:
        recorded = recorded or store.of_model(model.digest)
        numbers = _recorded_numbers(recorded, store) if recorded else {}
    history = read_history(folder / "history.csv")
    numbers = dict(numbers) | {"M_global": _last(history)}
    if "frechet_face" not in numbers:
        why = "no MLflow run has them" if store.records else f"MLflow was not asked: {store.failure}"
        remarks.append(f"it has no numbers: no report of this model lies beside it and {why}")
    return Run(
        label=label,
        origin=origin,
        model_digest=model.digest,
        parameters={key: str(value) for key, value in about["parameters"].items()},
        data=about["data"],
        image_size=about["architecture"]["image_size"],
        G=model.G_ema,
        step=about["step"],
        versions=f"{about['device']}, {about['precision']}, torch {about['versions'].get('torch', 'unknown')}",
        history=history,
        distances=read_distances(path) if (path := folder / "distances.csv").is_file() else None,
        numbers=numbers,
        remarks=remarks,
    )


def _of_record(recorded: Recorded, name: str, revisions: _Revisions, store: _Store) -> Run:
    """A run in MLflow, with the weights that its digest leads to, wherever they are."""
    experiment = recorded.tags.get("dvc.exp_name")
    label = name if name == recorded.name else experiment or recorded.run_id[:SHORTEST_ID]
    origin = f"MLflow run {recorded.run_id}"
    digest = recorded.tags.get("model_digest")
    if digest is not None:
        found = _find_weights(digest, experiment, revisions)
        if found is not None:
            folder, where = found
            with _renamed(folder, where):
                return _of_folder(folder / MODEL, label, f"{origin}, weights of {where}", store, recorded)
    assert store.records is not None
    history = _recorded_history(store.records, recorded)
    size = _number(recorded.params.get("preprocess.image_size"))
    grid = store.records.last_picture(recorded.run_id, "samples", store.scratch)
    logged = tiles(read_png(grid), int(size)) if grid and size else None
    why = "it ended before it had a model" if digest is None else "neither here nor in DVC's cache"
    shown = f"the faces are those it logged at step {int(grid.stem):,}, of another z" if grid else "it has no faces"
    return Run(
        label=label,
        origin=origin,
        model_digest=digest,
        parameters=recorded.params,
        data={"source": recorded.tags.get("source", ""), "digest": recorded.tags.get("data.digest", "")},
        image_size=int(size) if size else None,
        step=int(history["step"][-1]) if history else None,
        history=history,
        distances=_recorded_distances(store.records, recorded),
        numbers=_recorded_numbers(recorded, store),
        logged=logged,
        remarks=[f"its weights are not to be found ({why}): {shown}"],
    )


def _find_weights(digest: str, experiment: str | None, revisions: _Revisions) -> tuple[Path, str] | None:
    """A folder that holds data/model of this digest, and where that is, for people."""
    root = main_root()
    try:
        if read_description(root / MODEL)["weights"][GENERATOR] == digest:
            return root, "the workspace"
    except ValueError:
        pass
    found = revisions.with_model(digest, experiment)
    if found is None:
        return None
    name, commit = found
    try:
        return revisions.fetch(commit, name), name
    except ValueError:  # its cache lost a part of it
        return None


def _report_numbers(report: Path, model_digest: str) -> dict[str, float | None] | None:
    """metrics.json of a report of this very model; None where there is none."""
    path = report / "metrics.json"
    try:
        if read_description(report)["weights"][GENERATOR] != model_digest:
            return None
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(numbers, dict):
        return None
    return {name: _finite(value) for name, value in numbers.items() if isinstance(value, int | float | None)}


def _recorded_numbers(recorded: Recorded, store: _Store) -> dict[str, float | None]:
    """Those of the report that was logged last: among the run's metrics an earlier one's may stand beside them."""
    assert store.records is not None
    folder = store.records.report(recorded.run_id, store.scratch)
    digest = recorded.tags.get("model_digest")
    numbers = _report_numbers(folder, digest) if folder is not None and digest is not None else None
    return {name: _finite(value) for name, value in recorded.metrics.items()} if numbers is None else numbers


def _recorded_history(records: Records, recorded: Recorded) -> History | None:
    columns = {name: records.curve(recorded.run_id, name) for name in CURVE if name in recorded.metrics}
    steps = sorted(columns.get("M_global", {}))
    if len(columns) < len(CURVE) or not steps:
        return None
    history = {name: np.array([points.get(step, np.nan) for step in steps]) for name, points in columns.items()}
    return {"step": np.array(steps, dtype=float)} | history


def _recorded_distances(records: Records, recorded: Recorded) -> History | None:
    if "face_distance" not in recorded.metrics:
        return None
    points = records.curve(recorded.run_id, "face_distance")
    return {"step": np.array(list(points), dtype=float), "face_distance": np.array(list(points.values()))}


def _last(history: History) -> float | None:
    return _finite(float(history["M_global"][-1]))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _folder_label(name: str) -> str:
    """The part of a path that tells it from other checkouts': without data/model, which most end in."""
    parts = list(Path(name).parts)
    for ending in ("model", "data"):
        if len(parts) > 1 and parts[-1] == ending:
            parts.pop()
    return name if parts[-1] in ("data", "model", "/", "..") else parts[-1]


def _with_distinct_labels(runs: Sequence[Run]) -> list[Run]:
    taken: dict[str, int] = {}
    distinct = []
    for run in runs:
        taken[run.label] = taken.get(run.label, 0) + 1
        again = taken[run.label]
        distinct.append(run if again == 1 else replace(run, label=f"{run.label} ({again})"))
    return distinct


@contextmanager
def _renamed(folder: Path, name: str) -> Iterator[None]:
    """Within, an error names a file of the temporary `folder` as git would: name:data/model/…"""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(f"{folder}/", f"{name}:")) from None
