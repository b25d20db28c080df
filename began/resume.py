"""What lets a run go on: its states on disk, under a signature that it shares with no other run.

A state is one safetensors file `ATTEMPT-STEP-SHA256.safetensors`, whose name holds the digest of its content; the text
`about` in its header says of which run it is. An attempt is a fresh start of the same run, or a rewind.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from began.files import explained_disk, make_folder, replace_file
from began.params import Params

FORMAT = 3
NUM_KEPT = 2
CODE = (  # the modules that shape the numbers: those that the stage train depends on in dvc.yaml
    "began.addresses",
    "began.batches",
    "began.checkpoint",
    "began.cuda_graph",
    "began.devices",
    "began.distance",
    "began.divergence",
    "began.equilibrium",
    "began.features",
    "began.files",
    "began.hdf5",
    "began.images",
    "began.isolated",
    "began.metrics",
    "began.networks",
    "began.parallel",
    "began.params",
    "began.resume",
    "began.sampling",
    "began.seeds",
    "began.training",
    "pipeline.recording",
    "pipeline.run_state",
    "pipeline.train",
)
_NO_PART = ("num_steps", "on_divergence")  # of a step: where a run ends, or what happens when it cannot go on
_MOST_HEADER = 2**24  # bytes
_NAME = re.compile(r"(\d+)-(\d+)-([0-9a-f]{64})\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Signature:
    """Which run it is: two with the same signature do the same steps."""

    settings: dict[str, Any]  # what shapes a step: parameters, the digest of the data, the format
    code: str  # SHA-256 of the syntax trees of CODE

    def __str__(self) -> str:
        text = json.dumps([self.settings, self.code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def signature_of(params: Params, data_digest: str) -> Signature:
    """The signature of training with `params` on the rows with `data_digest`."""
    train = {f"train.{name}": value for name, value in params.train.model_dump().items() if name not in _NO_PART}
    shared = {"gamma": params.gamma, "lambda_k": params.lambda_k, "seed": params.seed}
    code = "\n".join(_plain_code(name) for name in CODE)
    return Signature(
        {"format": FORMAT, "data": data_digest, **shared, **train}, hashlib.sha256(code.encode()).hexdigest()
    )


@dataclass(frozen=True)
class State:
    """A saved state; `attempt` and `step` order them."""

    attempt: int
    step: int
    digest: str
    path: Path

    def about(self) -> dict[str, Any]:
        """What was given to `States.save`, unchecked; empty where it cannot be read."""
        try:
            with self.path.open("rb") as file:
                (num_bytes,) = struct.unpack("<Q", file.read(8))
                about: dict[str, Any] = json.loads(
                    json.loads(file.read(min(num_bytes, _MOST_HEADER)))["__metadata__"]["about"]
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
    """The states of one signature in `folder`, of which the last NUM_KEPT are kept. One process at a time: `hold`.

    Also kept is the furthest one, until a later attempt has come as far.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, attempt: int, step: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        """Adds a state; it is there when it is whole and on disk, and older ones go then.

        tensors: on the CPU, contiguous; about: what JSON can hold. OSError when it cannot be written.
        """
        content = save(tensors, {"about": json.dumps(about)})
        name = f"{attempt}-{step:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        for left in self.folder.glob(".*.part"):  # of a process that was killed
            left.unlink()
        with replace_file(self.folder / name) as temporary:
            temporary.write_bytes(content)
        newest, *others = self.all()
        others = others[NUM_KEPT - 1 :]
        # An earlier attempt that came further, so that more steps can still continue it.
        furthest = max(others, key=lambda state: state.step, default=newest)
        for state in others:
            if state is not furthest or state.step <= newest.step:
                with suppress(OSError):
                    state.path.unlink()

    def all(self) -> list[State]:
        """The newest first, unchecked: by attempt, step, and time, for a run that goes on saves its state anew."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("*.safetensors")]
        states = [State(int(m[1]), int(m[2]), m[3], path) for m, path in matches if m]
        return sorted(states, key=lambda state: (state.attempt, state.step, _time(state.path)), reverse=True)

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
            words = "trains with the same settings, data and code; wait for it, or end it"
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


def _plain_code(module: str) -> str:
    """The module's code as its syntax tree has it: without comments, docstrings and layout."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body[:1] = [] if node.body[1:] else [ast.Pass()]
    return ast.unparse(tree)
