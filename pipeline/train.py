"""Stage 3: images.h5 → the model folder, its curves and pictures, and an MLflow run."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from began.divergence import DivergedError
    from pipeline.run_state import Job, RunState
    from pipeline.signals import Stop

MOST_REWINDS = 3
WAIT_SECONDS = 30.0  # for a process that is about to end


def train(
    images: Annotated[Path, typer.Argument(help="HDF5 file made by preprocess.")] = Path("data/images.h5"),
    model: Annotated[Path, typer.Argument(help="Folder for the model; replaced when the run is complete.")] = Path(
        "data/model"
    ),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    device: Annotated[str, typer.Option(envvar="BEGAN_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
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
    if model.is_dir() and any(model.iterdir()) and not (model / "generator.safetensors").is_file():
        raise ValueError(f"{model}: holds other things than a model, expected a new folder or an older model")

    from began.devices import resolve_device
    from began.divergence import DivergedError
    from began.hdf5 import open_images, verify_digest
    from began.resume import States, signature_of
    from pipeline.progress import follow
    from pipeline.run_state import Job
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
    job = Job(settings, file, chosen, model, states, signature, checkpoint_seconds)
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


def _run(job: Job, start: RunState, stop: Stop) -> None:
    """Trains from `start` to the end. DivergedError when that cannot be; StoppedError when a signal ends it."""
    from began.batches import open_batches
    from began.checkpoint import write_model
    from began.devices import device_name, explained_memory
    from began.files import replace_folder
    from began.progress import Progress
    from began.training import Training, train
    from pipeline import tracking
    from pipeline.progress import ProgressBar
    from pipeline.recording import Recorder
    from pipeline.run_state import machine_of
    from pipeline.signals import StoppedError
    from pipeline.workspace import git_commit

    settings = job.settings
    num_steps, batch_size = settings.train.num_steps, settings.train.batch_size
    smaller = f"train.batch_size: {batch_size}, train.n_filters: {settings.train.n_filters}, expected less of either"
    with explained_memory(job.device, smaller):
        training = Training(settings, job.file.image_size, job.device)
        batches = open_batches(job.file.train, batch_size, settings.seed, job.device)
        if start.training:
            _say_where(job, start, machine_of(training))
            training.load_state_dict(start.training)
    with (
        explained_memory(job.device, smaller),
        replace_folder(job.model) as folder,
        tracking.start_run(
            settings.flat(),
            job.data,
            signature=str(job.signature),
            run_id=start.run_id if start.parameters == settings.flat() else None,
            curve=start.points,
        ) as run,
        ProgressBar("train") as bar,
        Recorder(job, start, training, folder, run) as recorder,
    ):
        print(f"Training on {device_name(job.device)} in {training.precision}", file=sys.stderr)
        num_images = num_steps * batch_size
        bar.update(Progress(start.step * batch_size, num_images))
        for record in train(training, batches):
            recorder.keep(record)
            if record is not None:
                note = f"M_global {record.M_global:.4f} · k_t {record.k_t:.3f}"
                bar.update(Progress(record.step * batch_size, num_images, note=note))
                last = record
            # No state of the last step before the model is in its place: it would say that there is nothing to do.
            if training.num_done < num_steps:
                if stop.kind is not None:
                    where = "an earlier step: a loss is far above its best" if recorder.is_far else "there"
                    if not recorder.is_far:
                        recorder.save()
                    recorder.wait()
                    raise StoppedError(
                        stop.kind, f"stopped at step {training.num_done:,}; the same command goes on from {where}"
                    )
                recorder.save_if_due()
        recorder.wait()
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


def _start_from(job: Job, resume: Path | None) -> RunState:
    """The state with the most steps, if there are steps left to do; otherwise a fresh start."""
    from began.resume import States
    from pipeline.run_state import RunState

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
        own = RunState.newest(sorted(left, key=lambda state: state.step, reverse=True))
        if own is not None and (own.attempt, own.step) != (states[0].attempt, states[0].step):
            own.attempt = attempt
    if resume is not None:
        found = RunState.newest(States(resume).all())
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
    return own or RunState(attempt)


def _name_other_code(job: Job) -> None:
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


def _rewind(job: Job, error: DivergedError) -> RunState:
    """The last good state with half the learning rate, as a new attempt; `error` again after MOST_REWINDS of them."""
    from pipeline.run_state import RunState

    last_good = math.inf if error.last_good is None else error.last_good
    late = [state for state in job.states.all() if state.step > last_good]
    if len(late) < len(job.states.all()):  # else a late one is better than none
        for one in late:
            one.path.unlink()
    state = RunState.newest(job.states.all())
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


def _say_where(job: Job, start: RunState, machine: dict[str, str | int]) -> None:
    """A line about the step, and one where the last bits will differ from those of an uninterrupted run."""
    print(f"Going on from step {start.step:,} of {job.settings.train.num_steps:,}", file=sys.stderr)
    others = [name for name in machine if start.machine.get(name) != machine[name]]
    if others:
        was, now = (", ".join(f"{name} {m.get(name)}" for name in others) for m in (start.machine, machine))
        print(f"It was saved with {was}; here is {now}: the numbers will differ", file=sys.stderr)


def _warn_of_slow_bfloat16(device: torch.device) -> None:
    from began.devices import bfloat16_slowdown, device_name, resolve_precision

    slowdown = bfloat16_slowdown(device)
    if slowdown > 1:
        print(
            f"train.precision: bfloat16 is slower than float32 on {device_name(device)}: a matrix product takes "
            f"{slowdown:.1f} times as long; auto takes {resolve_precision('auto', device)} here",
            file=sys.stderr,
        )


if __name__ == "__main__":
    from pipeline.cli import run_stage

    run_stage("train")
