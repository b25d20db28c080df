"""The training loop: it takes batches and yields records."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from began.data.batches import MOST_PLANNED, Batches
from began.device.cuda_graph import RecordedWork
from began.gan.training import Record, Training

MOST_STEPS_A_RECORD = 256


def record_interval(step: int) -> int:
    """The interval between records at `step`: a record is due if the interval divides the step.

    It is a power of two, a 32nd to a 64th of the run so far, and at most MOST_STEPS_A_RECORD. It depends on the step
    alone. So a run that goes on beyond its end has the same records as one that was longer from the start.
    """
    return min(1 << max(0, step.bit_length() - 6), MOST_STEPS_A_RECORD)


def train(training: Training, batches: Batches, record_every: int | None = None) -> Iterator[Record | None]:
    """Trains up to `params.train.num_steps`. Yields after each step: a record if one is due or at the end, else None.

    `record_interval` says when records are due; `record_every` gives a fixed number of steps instead. Between records
    the host does not wait for the device, except while a CUDA graph is made: at the start, and once the residuals have
    vanished. What the caller does between two steps, such as saving or loading a state, changes no number. If no record
    is due at the end, the last record does not reset the sums of `training`. A state taken then goes on as if there had
    been no end.

    Raises DivergedError at the first record that shows a loss that is not finite.
    """
    settings = training.params.train
    step = last_step = planned = training.num_done
    last_time = time.perf_counter()
    update = _update_of(training, batches)
    while step < settings.num_steps:
        if step == planned:
            planned = min(step + MOST_PLANNED, settings.num_steps)
            batches.seek(step, planned - step)
        batches.fetch()
        update()
        training.count()
        step = training.num_done
        if step == settings.vanishing_residual_steps:
            update = _update_of(training, batches)
        is_due = step % (record_every or record_interval(step)) == 0
        if not is_due and step < settings.num_steps:
            yield None
            continue
        if training.device.type == "cuda":
            torch.cuda.synchronize(training.device)
        num_images = (step - last_step) * settings.batch_size
        record = training.read_record(num_images / (time.perf_counter() - last_time))
        if is_due:
            training.end_record()
        yield record
        last_step, last_time = step, time.perf_counter()


def _update_of(training: Training, batches: Batches) -> Callable[[], None]:
    """A function that makes one update on the next batch. On CUDA it becomes a graph after a few calls."""

    def update() -> None:
        training.update(batches.gather())

    return RecordedWork(update, training.z_generator) if training.device.type == "cuda" else update
