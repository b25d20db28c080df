"""Stage 3: images.h5 → the model folder, its curve and pictures, and an MLflow run."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch

    from began.hdf5 import ImageFile
    from began.params import Params
    from began.resume import Signature, State, States
    from began.training import Record, Training
    from pipeline.signals import Stop
    from pipeline.tracking import Run

NUM_PICTURES = 12  # at most, and half as many at least, where the run has as many steps
NUM_TILES = 64  # of a grid, 8×8
NUM_RECONSTRUCTIONS = 32
MOST_REWINDS = 3
WAIT_SECONDS = 30.0  # for a process that is about to end
_PICTURE = re.compile(r"(samples|reconstructions)/\d{7,}\.png\Z", re.ASCII)


def train(
    images: Annotated[Path, typer.Argument(help="HDF5 file made by preprocess.")] = Path("data/images.h5"),
    model: Annotated[Path, typer.Argument(help="Folder for the model; replaced when the run is complete.")] = Path(
        "data/model"
    ),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    device: Annotated[str, typer.Option(envvar="BEGAN_DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, envvar="BEGAN_CHECKPOINT_SECONDS", help="Between two saved states.")
    ] = 60,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of states of the same settings, made by other code.")
    ] = None,
) -> None:
    """Train a BEGAN, with curves and pictures in MLflow. A run that was interrupted goes on.

    Example: began train data/images.h5 data/model --device cpu
    """
    from began.params import load_params

    settings = load_params(params)
    if not checkpoint_seconds >= 0:  # nan
        raise ValueError(f"--checkpoint-seconds: {checkpoint_seconds}, expected 0 or more")
    if model.is_dir() and any(model.iterdir()) and not (model / "model.json").is_file():
        raise ValueError(f"{model}: holds other things than a model, expected a new folder or an older model")
    # Threads that wait for one another spin for milliseconds by default. With anything else on the machine, a second
    # experiment say, that made training ten times slower; so short a spin costs nothing. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    from began.devices import resolve_device
    from began.divergence import DivergedError
    from began.hdf5 import open_images, verify_digest
    from began.resume import States, signature_of
    from pipeline.progress import follow
    from pipeline.signals import stopping
    from pipeline.workspace import states_folder

    file = open_images(images)
    if file.image_size != settings.preprocess.image_size:
        raise ValueError(
            f"{images}: images of size {file.image_size}, expected {settings.preprocess.image_size} "
            f"(profiles.{settings.profile}.preprocess.image_size)"
        )
    follow(verify_digest(file), "check rows", brief=True)
    chosen = resolve_device(device)
    if settings.train.precision == "bfloat16":
        _warn_of_slow_bfloat16(chosen)
    signature = signature_of(settings, file.digest)
    states = States(states_folder() / str(signature))
    job = _Job(settings, file, chosen, model, states, signature, checkpoint_seconds)
    # Until the model is in its place: to throw it away there would take longer than to be done.
    with states.hold(WAIT_SECONDS), stopping() as stop:
        start = _start_from(job, resume)
        while True:
            try:
                _run(job, start, stop)
                return
            except DivergedError as error:
                if settings.train.on_divergence == "stop":
                    raise
                start = _rewind(job, error)


@dataclass(frozen=True)
class _Job:
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
class _RunState:
    """All that a run needs to go on; as it stands, a fresh start."""

    attempt: int
    training: dict[str, torch.Tensor] = field(default_factory=dict)
    curve: list[list[float]] = field(default_factory=list)  # in columns of CURVE, without the point at an earlier end
    pictures: dict[str, bytes] = field(default_factory=dict)  # path in the model folder → PNG
    warnings: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None  # of MLflow
    parameters: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, str | int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # as of its signature

    @property
    def step(self) -> int:
        return int(self.training["num_done"]) if self.training else 0

    @classmethod
    def newest(cls, states: Iterable[State]) -> _RunState | None:
        """Of the first whole one of `states`; each damaged one before it costs a line."""
        for state in states:
            try:
                return cls._read(state)
            except ValueError as error:
                print(f"{error}; the one before it is taken, if there is one", file=sys.stderr)
        return None

    @classmethod
    def _read(cls, state: State) -> _RunState:
        from began.training import CURVE

        tensors, about = state.read()
        prefix = "training."
        try:
            found = cls(
                attempt=state.attempt,
                training={name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)},
                curve=tensors["curve"].tolist(),
                pictures={name: tensor.numpy().tobytes() for name, tensor in tensors.items() if _PICTURE.match(name)},
                settings=about["settings"],
                **about["run"],
            )
            if found.step != state.step or any(len(row) != len(CURVE) for row in found.curve):
                raise ValueError("other content than its name says")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{state.path}: is not a state of this code: {error}") from None
        return found

    def save(self, job: _Job) -> None:
        """Adds it to the states of `job`. OSError when it cannot be written."""
        import numpy as np
        import torch

        pictures = {name: torch.from_numpy(np.frombuffer(png, np.uint8).copy()) for name, png in self.pictures.items()}
        curve = torch.tensor(self.curve, dtype=torch.float64)
        training = {f"training.{name}": tensor for name, tensor in self.training.items()}
        about = {
            "settings": job.signature.settings,
            "code": job.signature.code,
            "run": {name: getattr(self, name) for name in ("warnings", "run_id", "parameters", "machine")},
        }
        job.states.save(self.attempt, self.step, {"curve": curve, **pictures, **training}, about)


def _run(job: _Job, start: _RunState, stop: Stop) -> None:
    """Trains from `start` to the end. DivergedError when that cannot be; StoppedError when a signal ends it."""
    from began.batches import open_batches
    from began.checkpoint import write_model
    from began.devices import device_name, explained_memory
    from began.files import replace_folder
    from began.progress import Progress
    from began.training import Training, train
    from pipeline import tracking
    from pipeline.progress import ProgressBar
    from pipeline.signals import StoppedError
    from pipeline.workspace import git_commit

    settings = job.settings
    num_steps, batch_size = settings.train.num_steps, settings.train.batch_size
    smaller = f"train.batch_size: {batch_size}, train.n_filters: {settings.train.n_filters}, expected less of either"
    with explained_memory(job.device, smaller):
        training = Training(settings, job.file.image_size, job.device)
        batches = open_batches(job.file.train, batch_size, settings.seed, job.device)
        if start.training:
            _say_where(job, start, _machine(training))
            training.load_state_dict(start.training)
    with (
        explained_memory(job.device, smaller),
        replace_folder(job.model) as folder,
        tracking.start_run(
            settings.flat(),
            job.data,
            signature=str(job.signature),
            run_id=start.run_id if start.parameters == settings.flat() else None,
            curve={int(row[0]): _values(row) for row in start.curve},
        ) as run,
        ProgressBar("train") as bar,
        _Saver(job, start, training, folder, run) as saver,
    ):
        bar.update(Progress(start.step * batch_size, num_steps * batch_size))
        for record in train(training, batches):
            if record is not None:
                saver.keep(record)
                note = f"M_global {record.M_global:.4f} · k_t {record.k_t:.3f}"
                bar.update(Progress(record.step * batch_size, num_steps * batch_size, note=note))
                last = record
            # No state of the last step before the model is in its place: it would say that there is nothing to do.
            if training.num_done < num_steps:
                if stop.kind is not None:
                    saver.save()
                    saver.wait()
                    words = f"stopped at step {training.num_done:,}; the same command goes on from there"
                    raise StoppedError(stop.kind, words)
                saver.save_if_due()
        saver.wait()
        digest = write_model(
            folder,
            training.players.G,
            training.G_ema,
            training.players.D,
            settings,
            training.num_done,
            job.data,
            device=device_name(training.device),
            precision=training.precision,
            commit=git_commit(),
            signature=str(job.signature),
            warnings=list(saver.warnings.values()),
        )
        run.set_tag("model_digest", digest)
        run.log_file(folder / "model.json")
        end = saver.snapshot()
    try:
        end.save(job)
    except OSError as error:  # the model itself is whole
        print(f"warning: {error}; more steps would start from an earlier state", file=sys.stderr)
    print(f"{job.model}: {num_steps} steps, M_global {last.M_global:.4f}, k_t {last.k_t:.3f}")


def _start_from(job: _Job, resume: Path | None) -> _RunState:
    """The state with the most steps, if there are steps left to do; otherwise a fresh start."""
    from began.resume import States

    num_steps = job.settings.train.num_steps
    states = job.states.all()
    attempt = max((state.attempt for state in states), default=-1) + 1
    own = None
    if states and states[0].step >= num_steps:
        # Finished, and run again: from the start.
        if states[0].step > num_steps:
            print(
                f"{states[0].path}: has done {states[0].step:,} steps; starting afresh for {num_steps:,}",
                file=sys.stderr,
            )
    else:
        # One that an earlier attempt left may have come further.
        left = [state for state in states if state.step < num_steps]
        own = _RunState.newest(sorted(left, key=lambda state: state.step, reverse=True))
        if own is not None and (own.attempt, own.step) != (states[0].attempt, states[0].step):
            own.attempt = attempt
    if resume is not None:
        found = _RunState.newest(States(resume).all())
        if found is None:
            raise ValueError(f"--resume {resume}: expected a folder with a state in it (.began/state/…)")
        for name, ours in job.signature.settings.items():
            if found.settings.get(name) != ours:
                theirs = found.settings.get(name)
                raise ValueError(f"--resume {resume}: was made with {name} {theirs!r}, expected {ours!r} as now")
        if found.step >= num_steps:
            raise ValueError(f"--resume {resume}: has done {found.step:,} steps, train.num_steps is {num_steps:,}")
        if own is None or own.step < found.step:
            found.attempt, found.run_id = attempt, None
            return found
    elif not states:
        _name_other_code(job)
    return own or _RunState(attempt)


def _name_other_code(job: _Job) -> None:
    """A line for each folder with a state of these very settings, made by other code."""
    from began.resume import States

    for folder in sorted(job.states.folder.parent.iterdir()):
        for state in States(folder).all()[:1]:
            if state.about().get("settings") == job.signature.settings and state.step < job.settings.train.num_steps:
                print(
                    f"{folder}: step {state.step:,} of these settings, made by other code; "
                    f"`began train --resume {folder}` goes on from it",
                    file=sys.stderr,
                )


def _rewind(job: _Job, error: Exception) -> _RunState:
    """The last good state with half the learning rate, as a new attempt; `error` again after MOST_REWINDS of them."""
    state = _RunState.newest(job.states.all())
    if state is None:
        raise error
    num_rewinds = int(state.training["num_rewinds"]) + 1
    if num_rewinds > MOST_REWINDS:
        raise ValueError(f"{error}; {MOST_REWINDS} rewinds did not help") from None
    state.attempt += 1
    state.training["num_rewinds"] += 1
    state.training["learning_rate"] *= 0.5
    state.run_id = None  # what the old run has of later steps cannot be taken back
    what = str(error).partition(":")[0]
    words = f"{what}: went back to step {state.step:,} with 1/{2**num_rewinds} of the learning rate"
    state.warnings["divergence"] = words
    state.save(job)
    return state


def _say_where(job: _Job, start: _RunState, machine: dict[str, str | int]) -> None:
    """A line about the step, and one where the last bits will differ from those of an uninterrupted run."""
    print(f"Going on from step {start.step:,} of {job.settings.train.num_steps:,}", file=sys.stderr)
    others = [name for name in machine if start.machine.get(name) != machine[name]]
    if others:
        was, now = (", ".join(f"{name} {m.get(name)}" for name in others) for m in (start.machine, machine))
        print(f"It was saved with {was}; here is {now}: the numbers will differ", file=sys.stderr)


def _machine(training: Training) -> dict[str, str | int]:
    """What decides over the last bits of a step."""
    import platform

    import torch

    from began.devices import device_name

    return {
        "device": device_name(training.device),
        "precision": training.precision,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _warn_of_slow_bfloat16(device: torch.device) -> None:
    from began.devices import bfloat16_slowdown, device_name, resolve_precision

    slowdown = bfloat16_slowdown(device)
    if slowdown > 1:
        print(
            f"train.precision: bfloat16 is slower than float32 on {device_name(device)}: a matrix product takes "
            f"{slowdown:.1f} times as long; auto takes {resolve_precision('auto', device)} here",
            file=sys.stderr,
        )


class _Saver:
    """What a run leaves: the curve, pictures and warnings as they come, and its state now and then.

    A state is copied at once, and written while the training goes on.
    """

    def __init__(self, job: _Job, start: _RunState, training: Training, folder: Path, run: Run) -> None:
        self._job = job
        self._attempt = start.attempt
        self._training = training
        self._run = run
        self._curve = _Curve(folder / "history.csv", start.curve)
        self._pictures = _Pictures(folder, training, job.file)
        self._log_pictures(self._pictures.restore(start.pictures) or self._pictures.draw())
        self.warnings: dict[str, str] = {}
        for name, words in start.warnings.items():
            self._warn(name, words)
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.save()  # now, so that a later start knows of this MLflow run

    def __enter__(self) -> _Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from began.divergence import DivergedError

        self._writer.shutdown()
        if isinstance(error, DivergedError):
            self._run.set_tag("warning.divergence", str(error))

    def keep(self, record: Record) -> None:
        """Adds a point to the curve, and pictures where they are due; warns where that shows something wrong."""
        from began.divergence import warn_of_k_t

        self._run.log(record.step, _values(self._curve.append(record)))
        self._warn_once("k_t", warn_of_k_t(record.step, record.steps_at_bound))
        if self._pictures.are_due:
            self._log_pictures(self._pictures.draw())
            self._warn_once("collapse", self._pictures.warn_of_collapse())

    def snapshot(self) -> _RunState:
        """The run as it is. Raises DivergedError when a weight is not finite: only good states are kept."""
        import torch

        from began.divergence import DivergedError

        tensors = self._training.state_dict()
        for name, tensor in tensors.items():
            if name != "window_best" and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise DivergedError(f"{name} is not finite after step {self._training.num_done}: training diverged")
        return _RunState(
            self._attempt,
            tensors,
            [row for row in self._curve.rows if row[0] <= self._training.num_recorded],
            self._pictures.read(),
            dict(self.warnings),
            self._run.run_id,
            self._job.settings.flat(),
            _machine(self._training),
            self._job.signature.settings,
        )

    def save(self) -> None:
        """Saves the run as it is. OSError when the state before this one could not be written."""
        self._next = time.monotonic() + self._job.checkpoint_seconds
        self.wait()
        self._writing = self._writer.submit(self.snapshot().save, self._job)

    def save_if_due(self) -> None:
        if time.monotonic() >= self._next:
            self.save()

    def wait(self) -> None:
        """Until the last state is on disk."""
        if self._writing is not None:
            self._writing.result()

    def _log_pictures(self, paths: list[Path]) -> None:
        for path in paths:
            self._run.log_picture(path, path.parent.name)

    def _warn_once(self, name: str, words: str | None) -> None:
        if words is not None and name not in self.warnings:
            self._warn(name, words)

    def _warn(self, name: str, words: str) -> None:
        self.warnings[name] = words
        self._run.set_tag(f"warning.{name}", words)
        print(f"warning: {words}", file=sys.stderr)


class _Curve:
    """history.csv, one line a record, each on disk as soon as it is known."""

    def __init__(self, path: Path, rows: list[list[float]]) -> None:
        from began.training import CURVE

        self.rows: list[list[float]] = []
        self._path = path
        self._path.write_text(",".join(CURVE) + "\n")
        for row in rows:
            self._append(row)

    def append(self, record: Record) -> list[float]:
        from began.training import CURVE

        self._append([getattr(record, name) for name in CURVE])
        return self.rows[-1]

    def _append(self, row: list[float]) -> None:
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(",".join(f"{value:.9g}" for value in row) + "\n")


def _values(row: list[float]) -> dict[str, float]:
    """A row of the curve as metrics of its step."""
    from began.training import CURVE

    return dict(zip(CURVE[1:], row[1:], strict=True))


class _Pictures:
    """Sample grids from one fixed z and reconstructions of fixed held-out rows, one file a step."""

    def __init__(self, folder: Path, training: Training, file: ImageFile) -> None:
        from began.sampling import draw_z

        self._folder = folder
        self._training = training
        self._z = draw_z(NUM_TILES, training.params.train.N_h, training.params.seed)
        self._held_out = file.held_out[:NUM_RECONSTRUCTIONS]
        self._train = file.train[:NUM_TILES]
        self._samples = self._train[:0]
        # A power of two, so that the steps of a longer run are among those of a shorter one, and all have a record.
        self._interval = 1
        while self._interval * NUM_PICTURES < training.params.train.num_steps:
            self._interval *= 2

    @property
    def are_due(self) -> bool:
        step = self._training.num_done
        return step % self._interval == 0 or step == self._training.params.train.num_steps

    def draw(self) -> list[Path]:
        """Writes those of this step, and returns them; before the first step there are samples only."""
        step = self._training.num_done
        return [self._write_samples(step), self._write_reconstructions(step)] if step else [self._write_samples(0)]

    def read(self) -> dict[str, bytes]:
        """Path in the folder → content, of all that were drawn."""
        paths = sorted(path for kind in ("samples", "reconstructions") for path in (self._folder / kind).glob("*.png"))
        return {path.relative_to(self._folder).as_posix(): path.read_bytes() for path in paths}

    def restore(self, pictures: dict[str, bytes]) -> list[Path]:
        """Writes what `read` gave, but for steps at which this run draws none; returns their paths."""
        paths = []
        for name, png in pictures.items():
            path = self._folder / name
            if int(path.stem) % self._interval == 0:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(png)
                paths.append(path)
        return paths

    def warn_of_collapse(self) -> str | None:
        """Words about the samples drawn last, where they are too much alike."""
        from began.divergence import warn_of_collapse

        return warn_of_collapse(self._training.num_done, self._samples, self._train)

    def _write_samples(self, step: int) -> Path:
        import numpy as np

        from began.images import grid, write_png
        from began.sampling import generate

        path = self._folder / "samples" / f"{step:07d}.png"
        self._samples = np.concatenate(list(generate(self._training.G_ema, self._z)))
        write_png(path, grid(self._samples, columns=8))
        return path

    def _write_reconstructions(self, step: int) -> Path:
        import numpy as np

        from began.images import grid, write_png
        from began.sampling import reconstruct

        path = self._folder / "reconstructions" / f"{step:07d}.png"
        pairs = np.stack((self._held_out, reconstruct(self._training.players.D, self._held_out)), axis=1)
        write_png(path, grid(pairs.reshape(-1, *pairs.shape[2:]), columns=8))
        return path


if __name__ == "__main__":
    from pipeline.cli import run_stage

    run_stage("train")
