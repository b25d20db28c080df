"""The pipeline's stages as real processes in a folder of their own, and what they leave there."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from began.runs.states import State, States
from pipeline.cli import main
from pipeline.tracking.write import create_store
from tests import REPOSITORY

ARGUMENTS = {
    "download": ("data/raw/images.zip",),
    "preprocess": ("data/raw/images.zip", "data/images.h5"),
    "train": ("data/images.h5", "data/model", "--device", "cpu"),
}
CLOCK = "images_per_second"
TINY = {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 200, "evaluate_every": 0}
NUM_IMAGES = 48
PATIENCE = 200.0  # seconds, for what takes one or two on a machine with nothing else to do


def settings(num_images: int = NUM_IMAGES, gamma: float = 0.9, **train: Any) -> str:
    """params.yaml of a small run."""
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["gamma"] = gamma
    params["download"] |= {"source": "portraits", "num_images": num_images}
    params["profiles"]["quick"]["train"] |= TINY | train
    return yaml.safe_dump(params)


def command(stage: str, *options: str, patch: str = "") -> list[str]:
    """`python -m pipeline STAGE`, where `options` may repeat one; `patch`: code that its process runs before."""
    if patch:
        begin = ["-c", f"import sys; {patch}; from pipeline.cli import main; main(sys.argv[1:])", stage]
    else:
        begin = ["-m", "pipeline", stage]
    return [sys.executable, *begin, *ARGUMENTS[stage], *options]


class Process:
    """A command that leads a group of processes, as one started by a terminal does. Used in `with`: none is left."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self.started = time.monotonic()
        self.pid = self.process.pid

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGKILL)
        self.process.wait()

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def words(self) -> str:
        """What it and its children have written to standard output and error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def last_line(self) -> str:
        return (self.words.splitlines() or [""])[-1]

    def send(self, kind: int, group: bool = True) -> None:
        """A signal, to the whole group or to the process alone."""
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, kind)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code; -9 after kill -9."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s: {self.words}") from None


class Outputs:
    """What the stages have left in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def states(self) -> list[State]:
        """Of all signatures, the newest first."""
        return [state for place in (self.folder / ".began" / "runs").glob("*") for state in States(place).all()]

    def wait_for_state(self, process: Process, after: int = 0) -> State:
        """Until there is a state of a later step than `after`; returns it."""
        while process.is_running and time.monotonic() < process.started + PATIENCE:
            if newest := next((state for state in self.states() if state.step > after), None):
                return newest
            time.sleep(0.01)
        raise AssertionError(f"no state after step {after}: {process.words}")

    def outputs(self, model: str = "data/model") -> dict[str, str]:
        """What must be the same each time: path → SHA-256. history.csv counts without its clock, model.json not."""
        files = ("data/raw/images.zip", "data/raw/card.json", "data/images.h5", "data/rejected.csv")
        weights = ("generator.safetensors", "discriminator.safetensors")
        found = [self.folder / name for name in files]
        found += [self.folder / model / name for name in (*weights, "distances.csv")]
        found += (self.folder / model).glob("*/*.png")
        contents = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found if path.exists()}
        history = self.folder / model / "history.csv"
        if history.exists():
            rows = list(csv.DictReader(history.read_text(encoding="utf-8").splitlines()))
            contents[f"{model}/history.csv"] = repr([{**row, CLOCK: None} for row in rows]).encode()
        # Under the same name whatever folder the model is in.
        return {name.replace(model, "data/model"): hashlib.sha256(data).hexdigest() for name, data in contents.items()}

    def curves(self, model: str = "data/model") -> Counter[tuple[str, int]]:
        """The points that a run has: metric, step."""
        points: Counter[tuple[str, int]] = Counter()
        for name in ("history.csv", "distances.csv"):
            with (self.folder / model / name).open() as file:
                rows = list(csv.DictReader(file))
            points.update((name, int(row["step"])) for row in rows for name in row if name != "step")
        return points

    def leftovers(self) -> list[Path]:
        """Half-made files, but those of a living process: a number may belong to another one by now."""
        paths = [path for name in ("data", ".began") for path in (self.folder / name).rglob("*.part*")]
        numbers = [re.search(r"\.(\d+)\.(older\.)?part", path.name) for path in paths]
        return [path for path, number in zip(paths, numbers, strict=True) if not (number and _is_alive(int(number[1])))]

    def recorded(self) -> list[Recorded]:
        """The runs of the store, the oldest first."""
        database = self.folder / "mlflow.db"
        if not database.exists():  # to connect would make it
            return []
        with closing(sqlite3.connect(database)) as store:
            runs = store.execute("select run_uuid, status from runs order by start_time").fetchall()
            tags = {(run, key): value for run, key, value in store.execute("select run_uuid, key, value from tags")}
            points = store.execute("select run_uuid, key, step from metrics").fetchall()
        return [
            Recorded(
                status,
                tags.get((run, "model_digest")),
                Counter((key, step) for its_run, key, step in points if its_run == run),
            )
            for run, status in runs
        ]

    def check_recorded(self, run: Recorded, model: str = "data/model") -> None:
        """That `run` is finished, and has each point of each curve once."""
        assert run.status == "FINISHED"
        weights = self.folder / model / "generator.safetensors"
        assert run.model_digest == hashlib.sha256(weights.read_bytes()).hexdigest()
        points = Counter({point: num for point, num in run.points.items() if point[1] > 0})  # those at 0 are evaluate's
        assert points == self.curves(model)


class Workspace(Outputs):
    """A folder with params.yaml, in which stages run."""

    def __init__(self, folder: Path, params: str | None = None) -> None:
        super().__init__(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "params.yaml").write_text(params or settings(), encoding="utf-8")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BEGAN_", "DVC_", "MLFLOW_"))}
        self.environment = kept | {
            "PYTHONPATH": str(REPOSITORY),
            "DVC_ROOT": str(folder),
            "BEGAN_WORKERS": "2",
            "BEGAN_CHECKPOINT_SECONDS": "0.3",
        }
        self._num_started = 0

    def start(self, stage: str, *options: str, patch: str = "", **environment: str) -> Process:
        self._num_started += 1
        log = self.folder / f"{stage}.{self._num_started}.log"
        return Process(command(stage, *options, patch=patch), self.folder, self.environment | environment, log)

    def run(self, stage: str, *options: str, **environment: str) -> str:
        """What a stage that succeeds has written."""
        with self.start(stage, *options, **environment) as process:
            assert process.wait() == 0, process.words
            return process.words

    def run_here(self, stage: str, **environment: str) -> None:
        """A stage that succeeds, in this process, which need not import everything again."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, value in (self.environment | {"BEGAN_WORKERS": "1"} | environment).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main([stage, *ARGUMENTS[stage]])
        assert ended.value.code in (0, None)

    def take(self, other: Workspace, *names: str) -> None:
        """Copies files and folders under data/."""
        for name in names:
            source, target = other.folder / "data" / name, self.folder / "data" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)

    def take_states(self, other: Workspace) -> None:
        """The states of `other` but for its last one, so that the end is near."""
        (_, before) = other.states()
        folder = self.folder / before.path.parent.relative_to(other.folder)
        shutil.copytree(before.path.parent / "model", folder / "model")
        shutil.copy2(before.path, folder)

    def take_store(self, empty: Path) -> None:
        """A copy of the database `empty`: making one takes seconds."""
        shutil.copy2(empty, self.folder / "mlflow.db")
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store, store:
            store.execute("update experiments set artifact_location = ?", ((self.folder / "mlartifacts").as_uri(),))


@dataclass(frozen=True)
class Recorded:
    """A run in MLflow's database."""

    status: str
    model_digest: str | None
    points: Counter[tuple[str, int]]  # metric, step → how often


def empty_store(folder: Path) -> Path:
    """MLflow's database without a run, made in `folder`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        create_store()
    return folder / "mlflow.db"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
