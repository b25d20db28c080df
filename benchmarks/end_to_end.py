"""Share of a pipeline run's wall time in each stage and in logging.

    python -m benchmarks.end_to_end [--device cpu|cuda] [--quick]

Measured: the four stages with the settings of params.yaml, one after the other in this process and in a workspace of
their own; images, steps and samples are cut to a quarter. Every call of pipeline.tracking is timed. The store is a
fresh SQLite file, which is the dearest case: importing MLflow and creating the store count as logging. What else is
imported counts in the stage that needs it first.

Projected: logging's part of a whole training run, without the report's. The cut run has as many records and pictures
as a whole one, so their calls cost the same; the curve goes out every few seconds, so its part grows with the run. How
long the whole run takes follows from the seconds a step. Without MLflow there are no rows of logging.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from began.params import Params, load_params
from benchmarks.report import FOLDER, Row, print_table, write
from pipeline.download import download
from pipeline.evaluate import evaluate
from pipeline.preprocess import preprocess
from pipeline.tracking import write as tracking
from pipeline.train import train

CUT = 4
QUICK_CUT = 100
KINDS = {
    "begin": "import, store and new run",
    "log": "curve",
    "log_picture": "pictures",
    "log_file": "files and tags",
    "set_tag": "files and tags",
    "end": "end",
}  # method of tracking.Run → row

seconds: dict[str, float] = {}  # kind of call → in all


@contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - start


def time_logging() -> None:
    """From here on every call of pipeline.tracking.write counts its time."""
    for method, what in KINDS.items():
        setattr(tracking.Run, method, timed(what)(getattr(tracking.Run, method)))
    tracking.log_report = timed("report")(tracking.log_report)


def cut(params: Params, divisor: int) -> Params:
    """The same settings with fewer images, steps and samples."""
    train_params = params.train
    sections = {
        "download": {"source": "portraits", "num_images": params.download.num_images // divisor},
        "train": {
            "num_steps": train_params.num_steps // divisor,
            "decay_steps": train_params.decay_steps // divisor,
            "vanishing_residual_steps": train_params.vanishing_residual_steps // divisor,
        },
        "evaluate": {"num_samples": params.evaluate.num_samples // divisor},
    }
    return params.model_copy(
        update={name: getattr(params, name).model_copy(update=changes) for name, changes in sections.items()}
    )


def write_params(params: Params, path: Path) -> None:
    """As the stages read them; JSON is YAML."""
    document = params.model_dump()
    sections = {name: document.pop(name) for name in ("preprocess", "train", "evaluate")}
    path.write_text(json.dumps(document | {"profiles": {params.profile: sections}}), encoding="utf-8")


def measure(folder: Path, params: Params, divisor: int, device: str) -> list[Row]:
    """Runs the stages in `folder`; a row for each, and where MLflow is installed for each kind of call."""
    shorter = cut(params, divisor)
    file = folder / "params.yaml"
    write_params(shorter, file)
    os.environ["DVC_ROOT"] = str(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    time_logging()
    archive, images, model, report = (folder / name for name in ("raw/images.zip", "images.h5", "model", "report"))
    stages = {
        "download": partial(download, archive, file, 0),
        "preprocess": partial(preprocess, archive, images, file, 0),
        "train": partial(train, images, model, file, device, 60.0),
        "evaluate": partial(evaluate, images, model, report, file, device, None),
    }
    walls: dict[str, float] = {}
    logged: dict[str, float] = {}
    for name, stage in stages.items():
        start, before = time.perf_counter(), sum(seconds.values())
        stage()
        walls[name] = time.perf_counter() - start
        logged[name] = sum(seconds.values()) - before

    total = sum(walls.values())

    def row(what: str, part: float, of: str = "this run", whole: float = total) -> Row:
        return {"what": what, "seconds": part, "percent": 100 * part / whole, "of": of}

    rows = [row(f"{name} (without logging)" if logged[name] else name, walls[name] - logged[name]) for name in stages]
    if importlib.util.find_spec("mlflow"):
        with (model / "history.csv").open() as history:
            rate = statistics.median(float(record["images_per_second"]) for record in csv.DictReader(history))
        left = params.train.num_steps - shorter.train.num_steps
        curve = seconds["curve"] * left / shorter.train.num_steps
        whole = walls["train"] + left * params.train.batch_size / rate + curve
        rows += [
            *(row(f"logging: {what}", part) for what, part in seconds.items()),
            row("logging (MLflow) in all", sum(seconds.values())),
            row("logging (MLflow) in all", logged["train"] + curve, "a whole training run, projected", whole),
        ]
    return [*rows, row("in all", total)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="a hundredth, and no JSON: shows that it works")
    arguments = parser.parse_args()
    if not importlib.util.find_spec("mlflow"):
        print("MLflow is not installed: no rows of logging")
    params = load_params(FOLDER.parent / "params.yaml")
    divisor = QUICK_CUT if arguments.quick else CUT
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(Path(temporary), params, divisor, arguments.device)
    if arguments.quick:
        print_table(rows)
    else:
        settings = {"profile": params.profile, "cut_to": f"1/{divisor}", "device": arguments.device}
        write("end_to_end", settings | cut(params, divisor).flat(), rows)


if __name__ == "__main__":
    main()
