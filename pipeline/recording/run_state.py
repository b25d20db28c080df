"""What a run is given, where it keeps its files, and what it needs to go on."""

from __future__ import annotations

import hashlib
import platform
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

import began
from began.data.rows import ImageFile
from began.device.devices import device_name
from began.gan.training import Training
from began.params import Params
from began.runs.curve import CURVE, DISTANCES, read_rows
from began.runs.states import Signature, State, States


@dataclass(frozen=True)
class Job:
    """What a run is given."""

    settings: Params
    file: ImageFile
    device: torch.device
    model: Path
    states: States
    signature: Signature
    checkpoint_seconds: float

    @property
    def work(self) -> Path:
        """Where curves and pictures are written; a copy of it becomes the model folder."""
        return self.states.folder / "model"

    @property
    def data(self) -> dict[str, Any]:
        """What is known of the rows."""
        names = ("digest", "source", "num_train", "image_size", "licence", "credit")
        return {name: getattr(self.file, name) for name in names}


@dataclass
class RunState:
    """All that a run needs to go on; as it stands, a fresh start. Its curves are read from the run's files."""

    training: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)  # in columns of CURVE, without the point at an earlier end
    distances: list[list[float]] = field(default_factory=list)  # in columns of DISTANCES
    warnings: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None  # of MLflow
    parameters: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str | int] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return int(self.training["num_done"]) if self.training else 0

    @property
    def points(self) -> dict[int, dict[str, float]]:
        """Step → metric → value, of the curve and the distances."""
        points: dict[int, dict[str, float]] = {}
        for columns, rows in ((CURVE, self.curve), (DISTANCES, self.distances)):
            for row in rows:
                points.setdefault(int(row[0]), {}).update(zip(columns[1:], row[1:], strict=True))
        return points

    @classmethod
    def newest(cls, job: Job) -> RunState | None:
        """Of the newest whole state of `job`; each damaged one before it costs a line."""
        for state in job.states.all():
            try:
                return cls._read(state, job.work)
            except ValueError as error:
                print(f"{error}; the one before it is taken, if there is one", file=sys.stderr)
        return None

    @classmethod
    def _read(cls, state: State, work: Path) -> RunState:
        training, about = state.read()
        try:
            found = cls(training, **about["run"])
            if found.step != state.step:
                raise ValueError("other content than its name says")
            last = int(training["num_recorded"])
            found.curve = read_rows(work / "history.csv", CURVE, last)
            if last not in (0, *(row[0] for row in found.curve[-1:])):
                raise ValueError(f"{work / 'history.csv'} has no row of step {last}")
            found.distances = read_rows(work / "distances.csv", DISTANCES, found.step)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{state.path}: is not a state of this code: {error}") from None
        return found

    def save(self, job: Job) -> None:
        """Adds it to the states of `job`. OSError when it cannot be written."""
        about = {
            "settings": job.signature.settings,
            "run": {name: getattr(self, name) for name in ("warnings", "run_id", "parameters", "machine")},
        }
        job.states.save(self.step, self.training, about)


@cache
def _code() -> str:
    """Digest of the code that shapes a step, read once. A state that other code left goes on, and the run says so."""
    package = Path(began.__file__).parent
    files = sorted(path for room in ("base", "device", "data", "gan") for path in (package / room).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


def machine_of(training: Training) -> dict[str, str | int]:
    """What decides over the last bits of a step."""
    return {
        "code": _code(),
        "device": device_name(training.device),
        "precision": training.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
