"""The share of a training run's time that MLflow takes: opening the run, curve, pictures and files.

    python -m benchmarks.logging [--quick]

The real `train` stage runs with the settings of params.yaml, on rows of noise and into a fresh SQLite store, which is
the dearest case: importing MLflow and creating the store count as well. Every call of pipeline.tracking is timed. The
run is cut to NUM_STEPS steps: it has as many records and pictures as a whole one. What a whole run takes follows from
the seconds a step; the curve goes out every few seconds, so its part grows with the run.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from began.hdf5 import ImageWriter
from began.params import Params, load_params
from benchmarks.report import FOLDER, Row, print_table, write
from pipeline import tracking
from pipeline.train import train

NUM_IMAGES = 2000
NUM_STEPS = 600

seconds: dict[str, float] = {}
calls: dict[str, int] = {}


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - start
        calls[what] = calls.get(what, 0) + 1


class TimedRun(tracking.Run):
    """A run whose methods count their time."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        with timed("curve"):
            super().log(step, values)

    def log_picture(self, path: Path, folder: str) -> None:
        with timed("pictures"):
            super().log_picture(path, folder)

    def log_file(self, path: Path) -> None:
        with timed("files and tags"):
            super().log_file(path)

    def set_tag(self, name: str, value: str) -> None:
        with timed("files and tags"):
            super().set_tag(name, value)

    def end(self, status: str) -> None:
        with timed("end"):
            super().end(status)


def write_noise(path: Path, image_size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, image_size, image_size, 3), dtype=np.uint8)
    with ImageWriter(path, image_size, NUM_IMAGES) as writer:
        writer.append(pixels)
        writer.finish(map(str, range(NUM_IMAGES)), NUM_IMAGES * 9 // 10, {"source": "noise"})


def measure(folder: Path, num_steps: int) -> tuple[Params, list[Row]]:
    """Trains `num_steps` steps in `folder`; a row for each kind of call, and the whole run's as params.yaml has it."""
    params = load_params(FOLDER.parent / "params.yaml")
    params_file = folder / "params.yaml"
    text = (FOLDER.parent / "params.yaml").read_text(encoding="utf-8")
    params_file.write_text(re.sub(r"num_steps: \d+", f"num_steps: {num_steps}", text), encoding="utf-8")
    write_noise(folder / "images.h5", params.preprocess.image_size)
    os.environ["DVC_ROOT"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    new_run = tracking._new_run

    def timed_new_run(settings: Mapping[str, object], data: Mapping[str, object]) -> tracking.Run:
        with timed("import, store and new run"):
            return new_run(settings, data)

    tracking._new_run = timed_new_run
    tracking.Run = TimedRun  # type: ignore[misc]
    start = time.perf_counter()
    train(folder / "images.h5", folder / "model", params_file)
    total = time.perf_counter() - start

    with (folder / "model" / "history.csv").open() as file:
        rate = statistics.median(float(record["images_per_second"]) for record in csv.DictReader(file))
    whole = total + (params.train.num_steps - num_steps) * params.train.batch_size / rate
    seconds["curve"] *= params.train.num_steps / num_steps

    def row(what: str, num_calls: int | None, part: float) -> Row:
        return {"what": what, "calls": num_calls, "seconds": part, "percent": 100 * part / whole}

    rows = [row(what, calls[what], seconds[what]) for what in seconds]
    return params, [*rows, row("MLflow in all", None, sum(seconds.values())), row("the whole run", None, whole)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, and no JSON: shows that it works")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as temporary:
        params, rows = measure(Path(temporary), NUM_STEPS // 10 if quick else NUM_STEPS)
    if quick:
        print_table(rows)
    else:
        train_params = params.train
        write(
            "logging",
            {"profile": params.profile, "num_steps": train_params.num_steps, "batch_size": train_params.batch_size},
            rows,
        )


if __name__ == "__main__":
    main()
