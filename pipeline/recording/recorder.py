"""What a run leaves while it trains: curve, distances, pictures and warnings, in its working folder and in MLflow."""

from __future__ import annotations

import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from began.base.files import flush, replace_file
from began.data.images import grid, write_png
from began.data.rows import ImageFile
from began.gan.divergence import DivergedError, LossWatch, is_too_long, warn_of_collapse, warn_of_k_t
from began.gan.sampling import draw_z, generate, reconstruct
from began.gan.training import Record, Training
from began.runs.curve import CURVE, DISTANCES
from pipeline.recording.run_state import Job, RunState, machine_of

if TYPE_CHECKING:
    from began.evaluation.face_distance import FaceDistance
    from pipeline.tracking.write import Run

NUM_PICTURES = 12  # at most, and half as many at least, where the run has as many steps
NUM_TILES = 64  # of a grid, 8×8
NUM_RECONSTRUCTIONS = 32


class Recorder:
    """Writes what a run leaves as it comes, and its state now and then.

    A state is copied at once, and written while the training goes on. Files that an earlier process left are cut to
    what `start` knows.
    """

    def __init__(self, job: Job, start: RunState, training: Training, run: Run) -> None:
        self._job = job
        self._training = training
        self._run = run
        if start.step == 0:
            shutil.rmtree(job.work, ignore_errors=True)
        job.work.mkdir(parents=True, exist_ok=True)
        self._curve = _Table(job.work / "history.csv", CURVE, start.curve)
        self._distances = _Distances(job.work, training, job.file, start.distances)
        self._pictures = _Pictures(job.work, training, job.file)
        self._log_pictures(self._pictures.cut() or self._pictures.draw())
        self._watches = {name: LossWatch() for name in ("L_real", "M_global")}
        for row in start.curve:
            for name, watch in self._watches.items():
                watch.add(int(row[0]), row[CURVE.index(name)])
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
            training=tensors,
            warnings=dict(self.warnings),
            run_id=self._run.run_id,
            parameters=self._job.settings.flat(),
            machine=machine_of(self._training),
        )

    def save(self) -> None:
        """Saves the run as it is. OSError when the state before this one could not be written."""
        self._next = time.monotonic() + self._job.checkpoint_seconds
        self.wait()
        self._writing = self._writer.submit(self._write, self.snapshot())

    def save_if_due(self) -> None:
        """After a record. Not while a loss is far above its best: a run that is rewound goes back to before that."""
        if time.monotonic() >= self._next and not self.is_far:
            self.save()

    @property
    def is_far(self) -> bool:
        """Whether a loss is far above its best."""
        return any(watch.is_far for watch in self._watches.values())

    def _write(self, state: RunState) -> None:
        """The files first: a state is of use with its curve alone."""
        for path in (self._curve.path, self._distances.path):
            flush(path)
        state.save(self._job)

    def wait(self) -> None:
        """Until the last state is on disk."""
        if self._writing is not None:
            self._writing.result()

    def _watch_for_explosion(self, record: Record) -> None:
        """Warns where L(x) or M_global is far above its best; raises DivergedError where it has been so for long."""
        train = self._training.params.train
        for name, watch in self._watches.items():
            loss = getattr(record, name)
            watch.add(record.step, loss)
            if not watch.is_far:
                continue
            rate = f"train.learning_rate: {train.learning_rate}, expected a lower one"
            what = f"{name} is {loss:.3g} after step {record.step:,}, its best was {watch.best:.3g}"
            near = watch.last_near
            if is_too_long(record.step - near, train.num_steps):
                raise DivergedError(f"{what}: training diverged after step {near:,}; {rate}", near)
            if watch.has_exploded or record.step == train.num_steps:
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
    """A CSV file of numbers, the first of each row a step; each row is in the file as soon as it is known."""

    def __init__(self, path: Path, columns: tuple[str, ...], rows: list[list[float]]) -> None:
        self.path = path
        self._columns = columns
        with replace_file(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in (",".join(columns), *map(_line, rows))))

    def append(self, row: list[float]) -> dict[str, float]:
        """Returns what the file has of it, as metrics of its step."""
        line = _line(row)
        with self.path.open("a") as file:
            file.write(f"{line}\n")
        return dict(zip(self._columns[1:], map(float, line.split(",")[1:]), strict=True))


def _line(row: list[float]) -> str:
    return ",".join(f"{value:.9g}" for value in row)


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
    def path(self) -> Path:
        return self._table.path

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
            from began.evaluation.face_distance import FaceDistance

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

    def cut(self) -> list[Path]:
        """Removes pictures of later steps, and of steps at which this run draws none; returns the others."""
        kept = []
        for path in sorted(path for kind in ("samples", "reconstructions") for path in (self._folder / kind).glob("*")):
            if path.suffix == ".png" and self._is_regular(int(path.stem)) and int(path.stem) <= self._training.num_done:
                kept.append(path)
            else:
                path.unlink()
        return kept

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
