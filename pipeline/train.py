"""Stage 3: images.h5 → the model folder, its curves and pictures, and an MLflow run."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NoReturn

from began.base.files import replace_folder
from began.base.progress import Progress
from began.data.batches import open_batches
from began.data.rows import open_images, verify_digest
from began.device.devices import device_name, explained_memory, resolve_device
from began.gan import loop
from began.gan.divergence import DivergedError
from began.gan.training import Training
from began.params import load_params
from began.runs.model_folder import write_model
from began.runs.states import signature_of
from pipeline.console.progress_bar import ProgressBar, follow
from pipeline.console.signals import Stop, StoppedError, stopping
from pipeline.console.workspace import git_commit
from pipeline.recording.recorder import Recorder
from pipeline.recording.resume import rewind, say_where, start_of, states_of
from pipeline.recording.run_state import Job, RunState, machine_of
from pipeline.tracking import write

WAIT_SECONDS = 30.0  # for a process that is about to end


def train(images: Path, model: Path, params: Path, device: str, checkpoint_seconds: float) -> None:
    """Train a BEGAN, with curves and pictures in MLflow. A run that was interrupted goes on.

    ValueError naming the key, option or file that is wrong; StoppedError when a signal ends it.
    """
    settings = load_params(params)
    if not checkpoint_seconds >= 0:  # nan
        raise ValueError(f"--checkpoint-seconds: {checkpoint_seconds}, expected 0 or more")
    if model.is_dir() and any(model.iterdir()) and not (model / "generator.safetensors").is_file():
        raise ValueError(f"{model}: holds other things than a model, expected a new folder or an older model")

    file = open_images(images)
    if file.image_size != settings.preprocess.image_size:
        raise ValueError(
            f"{images}: images of size {file.image_size}, expected {settings.preprocess.image_size} "
            f"(profiles.{settings.profile}.preprocess.image_size)"
        )
    follow(verify_digest(file), "check rows", brief=True)
    chosen = resolve_device(device)
    signature = signature_of(settings, file.digest)
    states = states_of(signature, settings.train.num_steps)
    job = Job(settings, file, chosen, model, states, signature, checkpoint_seconds)
    # Until the model is in its place: to throw it away there would take longer than to be done.
    with states.hold(WAIT_SECONDS), stopping() as stop:
        start = start_of(job)
        while True:
            try:
                _run(job, start, stop)
                return
            except DivergedError as error:
                if settings.train.on_divergence == "stop":
                    raise
                start = rewind(job, error)


def _run(job: Job, start: RunState, stop: Stop) -> None:
    """Trains from `start` to the end. DivergedError when that cannot be; StoppedError when a signal ends it."""
    settings = job.settings
    num_steps, batch_size = settings.train.num_steps, settings.train.batch_size
    smaller = f"train.batch_size: {batch_size}, train.n_filters: {settings.train.n_filters}, expected less of either"
    with explained_memory(job.device, smaller):
        training = Training(settings, job.file.image_size, job.device)
        batches = open_batches(job.file.train, batch_size, settings.seed, job.device)
        if start.training:
            say_where(job, start, machine_of(training))
            training.load_state_dict(start.training)
    with (
        explained_memory(job.device, smaller),
        replace_folder(job.model) as folder,
        write.start_run(
            settings.flat(),
            job.data,
            signature=str(job.signature),
            run_id=start.run_id if start.parameters == settings.flat() else None,
            curve=start.points,
        ) as run,
        ProgressBar("train") as bar,
        Recorder(job, start, training, run) as recorder,
    ):
        print(f"Training on {device_name(job.device)} in {training.precision}", file=sys.stderr)
        num_images = num_steps * batch_size
        bar.update(Progress(start.step * batch_size, num_images))
        for record in loop.train(training, batches):
            recorder.keep(record)
            if record is not None:
                note = f"M_global {record.M_global:.4f} · k_t {record.k_t:.3f}"
                bar.update(Progress(record.step * batch_size, num_images, note=note))
                last = record
            # No state of the last step before the model is in its place: it would say that there is nothing to do.
            if training.num_done < num_steps:
                if stop.kind is not None:
                    _stop(recorder, training.num_done, stop.kind)
                if record is not None:
                    recorder.save_if_due()
        recorder.wait()
        shutil.copytree(job.work, folder, dirs_exist_ok=True)
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
            warnings=list(recorder.warnings.values()),
        )
        run.set_tag("model_digest", digest)
        run.log_file(folder / "model.json")
        end = recorder.snapshot()
    try:
        if not recorder.is_far:
            end.save(job)
    except OSError as error:  # the model itself is whole
        print(f"warning: {error}; more steps would start from an earlier state", file=sys.stderr)
    print(f"{job.model}: {num_steps} steps, M_global {last.M_global:.4f}, k_t {last.k_t:.3f}")


def _stop(recorder: Recorder, step: int, kind: int) -> NoReturn:
    """Raises StoppedError, after a last state where that is of use."""
    if recorder.is_far:
        where = "an earlier step: a loss is far above its best"
    else:
        where = "there"
        recorder.save()
    recorder.wait()
    raise StoppedError(kind, f"stopped at step {step:,}; the same command goes on from {where}")


if __name__ == "__main__":
    from pipeline.cli import run

    run("train")
