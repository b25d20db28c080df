"""What a run is given, and what it needs to go on: all that a state of it holds."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from began.devices import device_name
from began.hdf5 import ImageFile
from began.params import Params
from began.resume import Signature, State, States
from began.training import CURVE, Training

DISTANCES = ("step", "face_distance")  # columns of distances.csv, as CURVE are of history.csv
_PICTURE = re.compile(r"(samples|reconstructions)/\d{7,}\.png\Z", re.ASCII)


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
    def data(self) -> dict[str, Any]:
        """What is known of the rows."""
        names = ("digest", "source", "num_train", "image_size", "licence", "credit")
        return {name: getattr(self.file, name) for name in names}


@dataclass
class RunState:
    """All that a run needs to go on; as it stands, a fresh start."""

    attempt: int
    training: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)  # in columns of CURVE, without the point at an earlier end
    distances: list[list[float]] = field(default_factory=list)  # in columns of DISTANCES
    pictures: dict[str, bytes] = field(default_factory=dict)  # path in the model folder → PNG
    warnings: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None  # of MLflow
    parameters: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str | int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # as of its signature

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
    def newest(cls, states: Iterable[State]) -> RunState | None:
        """Of the first whole one of `states`; each damaged one before it costs a line."""
        for state in states:
            try:
                return cls._read(state)
            except ValueError as error:
                print(f"{error}; the one before it is taken, if there is one", file=sys.stderr)
        return None

    @classmethod
    def _read(cls, state: State) -> RunState:
        tensors, about = state.read()
        prefix = "training."
        try:
            found = cls(
                attempt=state.attempt,
                training={name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
                curve=_rows(tensors["curve"], CURVE),
                distances=_rows(tensors["distances"], DISTANCES),
                pictures={name: tensor.numpy().tobytes() for name, tensor in tensors.items() if _PICTURE.match(name)},
                settings=about["settings"],
                **about["run"],
            )
            if found.step != state.step:
                raise ValueError("other content than its name says")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{state.path}: is not a state of this code: {error}") from None
        return found

    def save(self, job: Job) -> None:
        """Adds it to the states of `job`. OSError when it cannot be written."""
        pictures = {name: torch.from_numpy(np.frombuffer(png, np.uint8).copy()) for name, png in self.pictures.items()}
        tables = {"curve": self.curve, "distances": self.distances}
        tensors = {
            **{name: torch.tensor(rows, dtype=torch.float64) for name, rows in tables.items()},
            **pictures,
            **{f"training.{name}": tensor for name, tensor in self.training.items()},
        }
        about = {
            "settings": job.signature.settings,
            "code": job.signature.code,
            "run": {name: getattr(self, name) for name in ("warnings", "run_id", "parameters", "machine")},
        }
        job.states.save(self.attempt, self.step, tensors, about)


def machine_of(training: Training) -> dict[str, str | int]:
    """What decides over the last bits of a step."""
    return {
        "device": device_name(training.device),
        "precision": training.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _rows(tensor: torch.Tensor, columns: tuple[str, ...]) -> list[list[float]]:
    rows: list[list[float]] = tensor.tolist()
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a row of other columns than {', '.join(columns)}")
    return rows
