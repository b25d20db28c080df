"""What lets a run go on: its states on disk, under a signature that it shares with no other run.

A state is one safetensors file `STEP-SHA256.safetensors`, whose name holds the digest of its content; the text `about`
in its header says of which run it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from began.base.files import explained_disk, make_folder, replace_file
from began.params import Params

FORMAT = 4
NUM_KEPT = 2
_NO_PART = ("num_steps", "on_divergence")  # of a step: where a run ends, or what happens when it cannot go on
_MAX_HEADER_BYTES = 2**24
_NAME = re.compile(r"(\d+)-([0-9a-f]{64})\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Signature:
    """Which run it is: two with the same signature do the same steps, if their code is the same."""

    settings: dict[str, Any]  # what shapes a step: parameters, the digest of the data, the format of states

    def __str__(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


def signature_of(params: Params, data_digest: str) -> Signature:
    """The signature of training with `params` on the rows with `data_digest`."""
    train = {f"train.{name}": value for name, value in params.train.model_dump().items() if name not in _NO_PART}
    shared = {"gamma": params.gamma, "lambda_k": params.lambda_k, "seed": params.seed}
    return Signature({"format": FORMAT, "data": data_digest, **shared, **train})


@dataclass(frozen=True)
class State:
    """A saved state, after `step` steps."""

    step: int
    digest: str
    path: Path

    def about(self) -> dict[str, Any]:
        """What was given to `States.save`, unchecked; empty where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                (num_bytes,) = struct.unpack("<Q", file.read(8))
                about: dict[str, Any] = json.loads(
                    json.loads(file.read(min(num_bytes, _MAX_HEADER_BYTES)))["__metadata__"]["about"]
                )
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return {}
        return about if isinstance(about, dict) else {}

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors, on the CPU, and `about`. ValueError naming the file when it is damaged."""
        try:
            content = self.path.read_bytes()
            if hashlib.sha256(content).hexdigest() != self.digest:
                raise ValueError("its SHA-256 is not the one of its name")
            (num_bytes,) = struct.unpack_from("<Q", content)
            header = json.loads(content[8 : 8 + num_bytes])
            return load(content), json.loads(header["__metadata__"]["about"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, struct.error) as error:
            raise ValueError(f"{self.path}: is damaged: {error}") from None


class States:
    """The states of one signature in `folder`, of which the last NUM_KEPT are kept. One process at a time: `hold`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Adds a state; it is there when it is whole and on disk, and older ones go then.

        tensors: on the CPU, contiguous; about: what JSON can hold. OSError when it cannot be written.
        """
        content = save(tensors, {"about": json.dumps(about)})
        name = f"{step:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        for left in self.folder.glob(".*.part"):  # of a process that was killed
            left.unlink()
        with replace_file(self.folder / name) as temporary:
            temporary.write_bytes(content)
        self.remove(self.all()[NUM_KEPT:])

    def remove(self, states: list[State]) -> None:
        """Removes these, the first of them first."""
        for state in states:
            with suppress(OSError):
                state.path.unlink()

    def all(self) -> list[State]:
        """The newest first, unchecked: by step and time, for a run that goes on saves its state anew."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("*.safetensors")]
        states = [State(int(match[1]), match[2], path) for match, path in matches if match]
        return sorted(states, key=lambda state: (state.step, _time(state.path)), reverse=True)

    @contextmanager
    def hold(self, seconds: float) -> Iterator[None]:
        """Inside, no other process has these states. ValueError saying which one has, if it keeps them for longer."""
        make_folder(self.folder)
        holder = self.folder / "holder"
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            who = "another process"
            with suppress(OSError):
                who = holder.read_text(encoding="utf-8") or who
            words = "trains with the same settings and data; wait for it, or end it"
            raise ValueError(f"{self.folder}: {who} {words}") from None
        try:
            with explained_disk(holder):
                holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
        finally:
            lock.release()

    def is_free(self) -> bool:
        """Whether no process holds them."""
        try:
            with FileLock(self.folder / "lock", timeout=0):
                return True
        except Timeout:
            return False


def _time(path: Path) -> int:
    """Of the last change; 0 for a file that another process has just removed."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
