"""Stage 3: images.h5 → the model folder, its curve and pictures, and an MLflow run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

    from began.hdf5 import ImageFile
    from began.training import Record, Training

NUM_RECORDS = 60  # points of the curve at least, where the run has as many steps
MOST_STEPS_A_RECORD = 250
NUM_PICTURES = 12
NUM_TILES = 64  # of a grid, 8×8
NUM_RECONSTRUCTIONS = 32


def train(
    images: Annotated[Path, typer.Argument(help="HDF5 file made by preprocess.")] = Path("data/images.h5"),
    model: Annotated[Path, typer.Argument(help="Folder for the model; replaced when the run is complete.")] = Path(
        "data/model"
    ),
    params: Annotated[Path, typer.Option(help="Settings.")] = Path("params.yaml"),
    device: Annotated[str, typer.Option(envvar="BEGAN_DEVICE", help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Train a BEGAN, with curves and pictures in MLflow.

    Example: began train data/images.h5 data/model --device cpu
    """
    from began.params import load_params

    settings = load_params(params)
    # Threads that wait for one another spin for milliseconds by default. With anything else on the machine, a second
    # experiment say, that made training ten times slower; so short a spin costs nothing. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

    from began.batches import open_batches
    from began.checkpoint import write_model
    from began.devices import device_name, explained_memory, resolve_device
    from began.files import replace_folder
    from began.hdf5 import open_images
    from began.progress import Progress
    from began.training import Training, train
    from pipeline import tracking
    from pipeline.progress import ProgressBar
    from pipeline.workspace import git_commit

    file = open_images(images)
    if file.image_size != settings.preprocess.image_size:
        raise ValueError(
            f"{images}: images of size {file.image_size}, expected {settings.preprocess.image_size} "
            f"(profiles.{settings.profile}.preprocess.image_size)"
        )
    chosen = resolve_device(device)
    if settings.train.precision == "bfloat16":
        _warn_of_slow_bfloat16(chosen)
    num_steps, batch_size = settings.train.num_steps, settings.train.batch_size
    smaller = f"train.batch_size: {batch_size}, train.n_filters: {settings.train.n_filters}, expected less of either"
    with explained_memory(chosen, smaller):
        training = Training(settings, file.image_size, chosen)
        batches = open_batches(file.train, batch_size, settings.seed, chosen)
    record_every = max(1, min(num_steps // NUM_RECORDS, MOST_STEPS_A_RECORD))
    picture_steps = _picture_steps(num_steps, record_every)
    data = {
        "digest": file.digest,
        "source": file.source,
        "num_train": file.num_train,
        "image_size": file.image_size,
        "licence": file.licence,
        "credit": file.credit,
    }
    with (
        explained_memory(chosen, smaller),
        replace_folder(model) as folder,
        tracking.start_run(settings.flat(), data) as run,
        ProgressBar("train") as bar,
    ):
        curve = _Curve(folder / "history.csv")
        pictures = _Pictures(folder, training, file)
        run.log_picture(pictures.write_samples(0), "samples")
        bar.update(Progress(0, num_steps * batch_size))
        for record in train(training, batches, record_every):
            values = curve.append(record)
            run.log(record.step, {name: value for name, value in values.items() if name != "step"})
            note = f"M_global {record.M_global:.4f} · k_t {record.k_t:.3f}"
            bar.update(Progress(record.step * batch_size, num_steps * batch_size, note=note))
            if record.step in picture_steps:
                run.log_picture(pictures.write_samples(record.step), "samples")
                run.log_picture(pictures.write_reconstructions(record.step), "reconstructions")
        digest = write_model(
            folder,
            training.players.G,
            training.G_ema,
            training.players.D,
            settings,
            training.num_done,
            data,
            device=device_name(training.device),
            precision=training.precision,
            commit=git_commit(),
        )
        run.set_tag("model_digest", digest)
        run.log_file(folder / "model.json")
    print(f"{model}: {num_steps} steps, M_global {record.M_global:.4f}, k_t {record.k_t:.3f}")


def _warn_of_slow_bfloat16(device: torch.device) -> None:
    from began.devices import bfloat16_slowdown, device_name, resolve_precision

    slowdown = bfloat16_slowdown(device)
    if slowdown > 1:
        print(
            f"train.precision: bfloat16 is slower than float32 on {device_name(device)}: a matrix product takes "
            f"{slowdown:.1f} times as long; auto takes {resolve_precision('auto', device)} here",
            file=sys.stderr,
        )


def _picture_steps(num_steps: int, record_every: int) -> set[int]:
    """About NUM_PICTURES steps, evenly spaced, each a step of a record; the last one always."""
    wanted = (num_steps * i / NUM_PICTURES for i in range(1, NUM_PICTURES + 1))
    return {max(record_every, round(step / record_every) * record_every) for step in wanted} | {num_steps}


class _Curve:
    """history.csv, one line a record, each on disk as soon as it is known."""

    def __init__(self, path: Path) -> None:
        from began.training import CURVE

        self._path = path
        self._path.write_text(",".join(CURVE) + "\n")

    def append(self, record: Record) -> dict[str, float]:
        from dataclasses import asdict

        values = asdict(record)
        with self._path.open("a") as file:
            file.write(",".join(f"{value:.9g}" for value in values.values()) + "\n")
        return values


class _Pictures:
    """Sample grids from one fixed z and reconstructions of fixed held-out rows, one file a step."""

    def __init__(self, folder: Path, training: Training, file: ImageFile) -> None:
        from began.sampling import draw_z

        self._folder = folder
        self._training = training
        self._z = draw_z(NUM_TILES, training.params.train.N_h, training.params.seed)
        self._held_out = file.held_out[:NUM_RECONSTRUCTIONS]

    def write_samples(self, step: int) -> Path:
        import numpy as np

        from began.images import grid, write_png
        from began.sampling import generate

        path = self._folder / "samples" / f"{step:07d}.png"
        images = np.concatenate(list(generate(self._training.G_ema, self._z)))
        write_png(path, grid(images, columns=8))
        return path

    def write_reconstructions(self, step: int) -> Path:
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
