"""Our training step against the textbook loop: arithmetic per image, images a second, share of the machine's ceiling.

    python -m benchmarks.train_step [--device cpu|cuda] [--quick]

Both steps start from the same weights and run in turn in one process; the median over the pairs counts. Ours is all
that `train` does between two records, gathering rows and drawing z included; the textbook loop is handed its images.
GFLOP per image come from PyTorch's flop counter. The ceiling is the best rate of a large matrix product in the same
number format, measured in the same process between the pairs. Some rows show why the step is as it is, with the way
that was not taken: on a CPU the batch as a whole instead of a half for each of two threads, alone and beside a process
that keeps one core busy; on CUDA each operation launched by itself, or a graph of what torch.compile makes, instead of
a graph of the operations. Rows of the other device stay as they were measured last: `on`, `torch` and `date` of each
row say where and when; what stands above the rows is of the last run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pipeline/console/environment.py does, before torch is loaded

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from began.data.batches import MOST_PLANNED, open_batches
from began.device.cuda_graph import RecordedWork
from began.device.devices import resolve_device, resolve_precision
from began.gan.networks import Discriminator, Generator
from began.gan.step import Players
from began.gan.training import Training
from began.params import load_params
from benchmarks.report import FOLDER, Row, hardware, print_table, write
from benchmarks.textbook import TextbookTraining

SECONDS_A_SIDE = {"cpu": 1.0, "cuda": 0.25}  # of each side of a pair, at least one step
NUM_ROWS = 256
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Case:
    size: str
    image_size: int
    n_filters: int
    N_h: int
    skip_connections: bool
    batch_size: int
    num_pairs: int
    way: str = "halves"  # halves | whole, on a CPU; graph | launches | compiled graph, on CUDA
    busy: bool = False  # beside another process


def cases(device: str) -> list[Case]:
    """The quick profile as it stands in params.yaml, and paper.md's three sizes."""
    quick = load_params(FOLDER.parent / "params.yaml")
    train = quick.train
    architecture = (quick.preprocess.image_size, train.n_filters, train.N_h, train.skip_connections)
    found = [
        Case("quick profile", *architecture, train.batch_size, num_pairs=7),
        Case("32×32", 32, 32, 32, False, 16, num_pairs=7),
        Case("64×64", 64, 64, 64, False, 16, num_pairs=5),
        Case("128×128", 128, 128, 128, False, 2 if device == "cpu" else 16, num_pairs=1 if device == "cpu" else 7),
    ]
    if device == "cuda":
        found = [replace(case, way="graph") for case in found]
        return [*found, replace(found[2], way="launches"), replace(found[2], way="compiled graph")]
    whole = replace(found[0], way="whole", num_pairs=5)
    return [*found, whole, replace(whole, busy=True), replace(whole, way="halves", busy=True)]


def measure(case: Case, device: torch.device, precision: str, num_pairs: int) -> Row:
    """One row of the table."""
    training, our_step = _our_step(case, device, precision)
    textbook = TextbookTraining(training.players.G, training.players.D)
    x = torch.rand(case.batch_size, 3, case.image_size, case.image_size, device=device) * 2 - 1
    gflop = gflop_per_image(case)
    multiply, product_gflop = _matrix_product(device, precision)
    work = {"ours": our_step, "textbook": lambda: textbook.step(x), "ceiling": multiply}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with _busy_process() if case.busy else nullcontext():
        for pair in range(num_pairs + 1):
            for name, call in work.items():
                measured = _seconds_per_call(call, device)
                if pair > 0:  # the first pair warms up
                    seconds[name].append(measured)
    pairs = list(zip(seconds["ours"], seconds["textbook"], seconds["ceiling"], strict=True))
    machine = hardware()
    return _described(case, device.type, precision, gflop) | {
        "images_per_second": round(case.batch_size / statistics.median(seconds["ours"]), 2),
        "textbook_images_per_second": round(case.batch_size / statistics.median(seconds["textbook"]), 2),
        "ours_over_textbook": round(statistics.median(b / a for a, b, _ in pairs), 2),
        "ceiling_gflops": round(product_gflop / statistics.median(seconds["ceiling"]), 0),
        "share_of_ceiling": round(
            statistics.median((case.batch_size * gflop["ours"] / a) / (product_gflop / c) for a, _, c in pairs), 3
        ),
        "num_pairs": len(pairs),
        "on": machine["gpu" if device.type == "cuda" else "processor"],
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _described(case: Case, device: str, precision: str, gflop: dict[str, float]) -> dict[str, str | float | int | None]:
    """A row whose measured columns are still open."""
    measured = ("images_per_second", "textbook_images_per_second", "ours_over_textbook")
    return {
        "size": case.size,
        "device": device,
        "way": case.way + ", busy" * case.busy,
        "precision": precision,
        "n": case.n_filters,
        "N_h": case.N_h,
        "skip": "yes" if case.skip_connections else "no",
        "batch": case.batch_size,
        "gflop_per_image": round(gflop["ours"], 4),
        "textbook_gflop": round(gflop["textbook"], 4),
        **dict.fromkeys((*measured, "ceiling_gflops", "share_of_ceiling"), NOT_MEASURED),
        "num_pairs": 0,
        **dict.fromkeys(("on", "torch", "date"), NOT_MEASURED),
    }


def _our_step(case: Case, device: torch.device, precision: str) -> tuple[Training, Callable[[], None]]:
    """What `train` does between two records, over rows of noise."""
    params = load_params(FOLDER.parent / "params.yaml")
    changes = {
        "n_filters": case.n_filters,
        "N_h": case.N_h,
        "skip_connections": case.skip_connections,
        "batch_size": case.batch_size,
        "precision": precision,
        "vanishing_residual_steps": 0,
    }
    params = params.model_copy(update={"train": params.train.model_copy(update=changes)})
    training = Training(params, case.image_size, device)
    shape = (NUM_ROWS, case.image_size, case.image_size, 3)
    rows = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    batches = open_batches(rows, case.batch_size, 0, device)

    def update() -> None:
        training.update(batches.gather())

    if case.way == "compiled graph":
        training.players = torch.compile(training.players)  # type: ignore[assignment]
    if case.way == "whole":
        training.halves = None
    if case.way in ("graph", "compiled graph"):
        update = RecordedWork(update, training.z_generator)  # type: ignore[assignment]

    def step() -> None:
        if training.num_done % MOST_PLANNED == 0:
            batches.seek(training.num_done, MOST_PLANNED)
        batches.fetch()
        update()
        training.count()

    return training, step


def gflop_per_image(case: Case) -> dict[str, float]:
    """Counted on tensors without data: the arithmetic does not depend on the device."""
    architecture = (case.image_size, case.n_filters, case.N_h, case.skip_connections)
    with torch.device("meta"):
        G, D = Generator(*architecture), Discriminator(*architecture)
        x = torch.empty(case.batch_size, 3, case.image_size, case.image_size)
        z = torch.empty(case.batch_size, case.N_h)
        with FlopCounterMode(display=False) as counter:
            L_real, L_G = Players(G, D, eta=1)(x, z, torch.empty(()), None)
            (L_real + L_G).backward()
        ours = counter.get_total_flops() / case.batch_size / 1e9
        textbook = TextbookTraining(G, D)
        with FlopCounterMode(display=False) as counter:
            fake = textbook.G(z)
            for loss in ((x - textbook.D(x)), (fake.detach() - textbook.D(fake.detach())), (fake - textbook.D(fake))):
                loss.abs().mean().backward()
    return {"ours": ours, "textbook": counter.get_total_flops() / case.batch_size / 1e9}


def _matrix_product(device: torch.device, precision: str) -> tuple[Callable[[], object], float]:
    width = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = torch.randn(2, width, width, device=device).to(dtype)
    return lambda: a @ b, 2 * width**3 / 1e9


def _seconds_per_call(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < SECONDS_A_SIDE[device.type]:
        for _ in range(20 if device.type == "cuda" else 1):
            work()
            calls += 1
        _wait(device)
    return (time.perf_counter() - start) / calls


@contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _unmeasured_rows(device: str, precision: str) -> list[Row]:
    """The other device's rows of the last run, and placeholders for what nobody measured."""
    path = FOLDER / "train_step.json"
    older = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows: list[Row] = []
    for other, its_precision in (("cpu", "float32"), ("cpu", "bfloat16"), ("cuda", "bfloat16")):
        if (other, its_precision) == (device, precision):
            continue
        measured = [row for row in older if (row["device"], row["precision"]) == (other, its_precision)]
        rows += measured or [_described(case, other, its_precision, gflop_per_image(case)) for case in cases(other)]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="one pair, without 128×128, and no JSON: does it run?")
    arguments = parser.parse_args()
    try:
        device = resolve_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    precision = resolve_precision("auto", device)
    rows = [
        measure(case, device, precision, 1 if arguments.quick else case.num_pairs)
        for case in cases(device.type)
        if not (arguments.quick and case.image_size == 128)
    ]
    if arguments.quick:
        print_table(rows)
        return
    rows += _unmeasured_rows(device.type, precision)
    write("train_step", {"seconds_a_side": SECONDS_A_SIDE[device.type], "num_threads": torch.get_num_threads()}, rows)


if __name__ == "__main__":
    main()
