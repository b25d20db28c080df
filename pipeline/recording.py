"""What a run leaves while it trains: curve, distances, pictures and warnings, in the model folder, in MLflow and in its
states."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from began.divergence import EXPLODED, DivergedError, is_too_long, last_near, warn_of_collapse, warn_of_k_t
from began.hdf5 import ImageFile
from began.images import grid, write_png
from began.sampling import draw_z, generate, reconstruct
from began.training import CURVE, Record, Training
from pipeline.run_state import DISTANCES, Job, RunState, machine_of

if TYPE_CHECKING:
    from began.distance import FaceDistance
    from pipeline.tracking import Run

NUM_PICTURES = 12  # at most, and half as many at least, where the run has as many steps
NUM_TILES = 64  # of a grid, 8×8
NUM_RECONSTRUCTIONS = 32


class Recorder:
    """Writes what a run leaves as it comes, and its state now and then.

    A state is copied at once, and written while the training goes on.
    """

    def __init__(self, job: Job, start: RunState, training: Training, folder: Path, run: Run) -> None:
        self._job = job
        self._attempt = start.attempt
        self._training = training
        self._run = run
        self._curve = _Table(folder / "history.csv", CURVE, start.curve)
        self._distances = _Distances(folder, training, job.file, start.distances)
        self._pictures = _Pictures(folder, training, job.file)
        self._log_pictures(self._pictures.restore(start.pictures) or self._pictures.draw())
        self.is_far = False  # a loss is far above its best
        self.warnings: dict[str, str] = {}
        for name, words in start.warnings.items():
            self._warn(name, words)
        self._writer = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self.save()  # now, so that a later start knows of this MLflow run

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()
        if isinstance(error, DivergedError):
            self._run.set_tag("warning.divergence", str(error))

    def keep(self, record: Record | None) -> None:
        """Adds what is due after a step: a point of the curve, a distance, pictures; warns where that shows a fault."""
        if record is not None:
            self._run.log(record.step, self._curve.append([getattr(record, name) for name in CURVE]))
            self._warn_once("k_t", warn_of_k_t(record.step, record.steps_at_bound))
            self._watch_for_explosion(record)
        if self._distances.are_due:
            self._run.log(self._training.num_done, self._distances.measure())
        if self._pictures.are_due:
            self._log_pictures(self._pictures.draw())
            self._warn_once("collapse", self._pictures.warn_of_collapse())

    def snapshot(self) -> RunState:
        """The run as it is. Raises DivergedError when a weight is not finite: only good states are kept."""
        tensors = self._training.state_dict()
        for name, tensor in tensors.items():
            if name != "window_best" and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise DivergedError(f"{name} is not finite after step {self._training.num_done}: training diverged")
        return RunState(
            attempt=self._attempt,
            training=tensors,
            curve=[row for row in self._curve.rows if row[0] <= self._training.num_recorded],
            distances=list(self._distances.rows),
            pictures=self._pictures.read(),
            warnings=dict(self.warnings),
            run_id=self._run.run_id,
            parameters=self._job.settings.flat(),
            machine=machine_of(self._training),
            settings=self._job.signature.settings,
        )

    def save(self) -> None:
        """Saves the run as it is. OSError when the state before this one could not be written."""
        self._next = time.monotonic() + self._job.checkpoint_seconds
        self.wait()
        self._writing = self._writer.submit(self.snapshot().save, self._job)

    def save_if_due(self) -> None:
        """Not while a loss is far above its best: a run that is rewound goes back to before the explosion."""
        if time.monotonic() >= self._next and not self.is_far:
            self.save()

    def wait(self) -> None:
        """Until the last state is on disk."""
        if self._writing is not None:
            self._writing.result()

    def _watch_for_explosion(self, record: Record) -> None:
        """Warns where L(x) or M_global is far above its best; raises DivergedError where it has been so for long."""
        train = self._training.params.train
        steps = [row[0] for row in self._curve.rows]
        self.is_far = False
        for name in ("L_real", "M_global"):
            losses = [row[CURVE.index(name)] for row in self._curve.rows]
            near = last_near(steps, losses)
            if near == record.step:
                continue
            self.is_far = True
            rate = f"train.learning_rate: {train.learning_rate}, expected a lower one"
            what = f"{name} is {losses[-1]:.3g} after step {record.step:,}, its best was {min(losses):.3g}"
            if is_too_long(record.step - near, train.num_steps):
                raise DivergedError(f"{what}: training diverged after step {near:,}; {rate}", near)
            if losses[-1] > EXPLODED * min(losses) or record.step == train.num_steps:
                self._warn_once("explosion", f"{what}: training exploded, and has diverged if that lasts; {rate}")

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


class _Table:
    """A CSV file of numbers, the first of each row a step; each row is on disk as soon as it is known."""

    def __init__(self, path: Path, columns: tuple[str, ...], rows: list[list[float]]) -> None:
        self.rows: list[list[float]] = []
        self._path = path
        self._columns = columns
        self._path.write_text(",".join(columns) + "\n")
        for row in rows:
            self.append(row)

    def append(self, row: list[float]) -> dict[str, float]:
        """Returns it as metrics of its step."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(",".join(f"{value:.9g}" for value in row) + "\n")
        return dict(zip(self._columns[1:], row[1:], strict=True))


class _Distances:
    """distances.csv: how far the averaged generator's samples are from held-out images, every `evaluate_every` steps.

    Its header alone where none can be measured, with a line that says why.
    """

    def __init__(self, folder: Path, training: Training, file: ImageFile, rows: list[list[float]]) -> None:
        self._table = _Table(folder / "distances.csv", DISTANCES, rows)
        self._training = training
        self._every = training.params.train.evaluate_every
        self._distance = self._open(file) if self._some_are_to_come else None

    @property
    def rows(self) -> list[list[float]]:
        return self._table.rows

    @property
    def are_due(self) -> bool:
        step = self._training.num_done
        return self._distance is not None and step % self._every == 0

    def measure(self) -> dict[str, float]:
        """Adds the point of this step, and returns it as a metric."""
        assert self._distance is not None
        return self._table.append([self._training.num_done, self._distance.measure(self._training.G_ema)])

    @property
    def _some_are_to_come(self) -> bool:
        """The network takes a moment to load."""
        if self._every == 0:
            return False
        return self._training.num_done // self._every < self._training.params.train.num_steps // self._every

    def _open(self, file: ImageFile) -> FaceDistance | None:
        params = self._training.params
        try:
            from began.distance import FaceDistance

            return FaceDistance(file.held_out, params.train.N_h, params.seed)
        except (ImportError, OSError, ValueError) as error:
            print(f"train.evaluate_every: no face distance is measured: {error}", file=sys.stderr)
            return None


class _Pictures:
    """Sample grids from one fixed z and reconstructions of fixed held-out rows, one file a step."""

    def __init__(self, folder: Path, training: Training, file: ImageFile) -> None:
        self._folder = folder
        self._training = training
        self._z = draw_z(NUM_TILES, training.params.train.N_h, training.params.seed)
        self._held_out = file.held_out[:NUM_RECONSTRUCTIONS]
        self._train = file.train[:NUM_TILES]
        self._samples = self._train[:0]
        # A power of two, so that the steps of a longer run are among those of a shorter one, and all but step 0 have a
        # record.
        self._interval = 1
        while self._interval * NUM_PICTURES < training.params.train.num_steps:
            self._interval *= 2

    @property
    def are_due(self) -> bool:
        step = self._training.num_done
        return self._is_regular(step) or step == self._training.params.train.num_steps

    def draw(self) -> list[Path]:
        """Writes those of this step, and returns them; at step 0 samples alone."""
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
            if self._is_regular(int(path.stem)):
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(png)
                paths.append(path)
        return paths

    def warn_of_collapse(self) -> str | None:
        """Words about the samples drawn last, where they are too much alike."""
        return warn_of_collapse(self._training.num_done, self._samples, self._train)

    def _is_regular(self, step: int) -> bool:
        return step % self._interval == 0

    def _write_samples(self, step: int) -> Path:
        path = self._folder / "samples" / f"{step:07d}.png"
        self._samples = np.concatenate(list(generate(self._training.G_ema, self._z)))
        write_png(path, grid(self._samples, columns=8))
        return path

    def _write_reconstructions(self, step: int) -> Path:
        path = self._folder / "reconstructions" / f"{step:07d}.png"
        pairs = np.stack((self._held_out, reconstruct(self._training.players.D, self._held_out)), axis=1)
        write_png(path, grid(pairs.reshape(-1, *pairs.shape[2:]), columns=8))
        return path
