"""Our training step against the textbook loop: arithmetic per image, images a second, share of the machine's ceiling.

    python -m benchmarks.train_step [--device cpu|cuda] [--quick]

Both steps start from the same weights and run in turn in one process; the median over the pairs counts. GFLOP per image
come from PyTorch's flop counter. The ceiling is the best rate of a large matrix product in the same number format,
measured in the same process between the pairs. Rows of the other device stay as they were measured last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from began.devices import resolve_device, resolve_precision
from began.networks import Discriminator, Generator
from began.params import load_params
from began.training import Players, Training
from benchmarks.report import FOLDER, Row, write
from benchmarks.textbook import TextbookTraining

SECONDS_A_SIDE = 1.5  # of each side of a pair, at least one step


@dataclass(frozen=True)
class Size:
    name: str
    image_size: int
    n_filters: int
    N_h: int
    skip_connections: bool
    batch_size: int
    num_pairs: int


def sizes(device: str) -> list[Size]:
    """paper.md's three sizes, and the quick profile as it stands in params.yaml."""
    quick = load_params(FOLDER.parent / "params.yaml")
    train = quick.train
    of_128 = (16, 7) if device == "cuda" else (2, 1)
    return [
        Size(
            "quick profile",
            quick.preprocess.image_size,
            train.n_filters,
            train.N_h,
            train.skip_connections,
            train.batch_size,
            7,
        ),
        Size("32×32", 32, 32, 32, False, 16, 7),
        Size("64×64", 64, 64, 64, False, 16, 5),
        Size("128×128", 128, 128, 128, False, *of_128),
    ]


def measure(size: Size, device: torch.device, precision: str, num_pairs: int) -> Row:
    """One row of the table."""
    ours = _training(size, device, precision)
    textbook = TextbookTraining(ours.players.G, ours.players.D)
    x = torch.rand(size.batch_size, 3, size.image_size, size.image_size, device=device) * 2 - 1
    x_ours = x.to(memory_format=torch.channels_last)

    def our_step() -> None:
        ours.step(x_ours)

    def textbook_step() -> None:
        textbook.step(x)

    gflop = _gflop_per_image(size)
    seconds: dict[str, list[float]] = {"ours": [], "textbook": [], "ceiling": []}
    multiply, product_gflop = _matrix_product(device, precision)
    for pair in range(num_pairs + 1):
        for name, work in (("ours", our_step), ("textbook", textbook_step), ("ceiling", multiply)):
            measured = _seconds_per_call(work, device)
            if pair > 0 or num_pairs == 1:  # the first pair warms up
                seconds[name].append(measured)
    pairs = list(zip(seconds["ours"], seconds["textbook"], seconds["ceiling"], strict=True))
    return {
        "size": size.name,
        "device": device.type,
        "n": size.n_filters,
        "N_h": size.N_h,
        "skip": "yes" if size.skip_connections else "no",
        "batch": size.batch_size,
        "precision": precision,
        "gflop_per_image": round(gflop["ours"], 4),
        "textbook_gflop": round(gflop["textbook"], 4),
        "images_per_second": round(size.batch_size / statistics.median(seconds["ours"]), 2),
        "textbook_images_per_second": round(size.batch_size / statistics.median(seconds["textbook"]), 2),
        "ours_over_textbook": round(statistics.median(b / a for a, b, _ in pairs), 2),
        "ceiling_gflops": round(product_gflop / statistics.median(seconds["ceiling"]), 0),
        "share_of_ceiling": round(
            statistics.median((size.batch_size * gflop["ours"] / a) / (product_gflop / c) for a, _, c in pairs), 3
        ),
        "num_pairs": len(pairs),
    }


def _training(size: Size, device: torch.device, precision: str) -> Training:
    params = load_params(FOLDER.parent / "params.yaml")
    changes = {
        "n_filters": size.n_filters,
        "N_h": size.N_h,
        "skip_connections": size.skip_connections,
        "batch_size": size.batch_size,
        "precision": precision,
        "vanishing_residual_steps": 0,
    }
    return Training(
        params.model_copy(update={"train": params.train.model_copy(update=changes)}), size.image_size, device
    )


def _gflop_per_image(size: Size) -> dict[str, float]:
    """Counted on tensors without data: the arithmetic does not depend on the device."""
    architecture = (size.image_size, size.n_filters, size.N_h, size.skip_connections)
    with torch.device("meta"):
        G, D = Generator(*architecture), Discriminator(*architecture)
        x = torch.empty(size.batch_size, 3, size.image_size, size.image_size)
        z = torch.empty(size.batch_size, size.N_h)
        with FlopCounterMode(display=False) as counter:
            L_real, L_fake = Players(G, D, eta=1)(x, z, torch.empty(()), None)
            (L_real + L_fake).backward()
        ours = counter.get_total_flops() / size.batch_size / 1e9
        textbook = TextbookTraining(G, D)
        with FlopCounterMode(display=False) as counter:
            fake = textbook.G(z)
            for loss in ((x - textbook.D(x)), (fake.detach() - textbook.D(fake.detach())), (fake - textbook.D(fake))):
                loss.abs().mean().backward()
    return {"ours": ours, "textbook": counter.get_total_flops() / size.batch_size / 1e9}


def _matrix_product(device: torch.device, precision: str) -> tuple[Callable[[], object], float]:
    width = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = torch.randn(2, width, width, device=device).to(dtype)
    return lambda: a @ b, 2 * width**3 / 1e9


def _seconds_per_call(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - start < SECONDS_A_SIDE:
        for _ in range(20 if device.type == "cuda" else 1):
            work()
            calls += 1
        _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _older_rows(device: str) -> list[Row]:
    """The other device's rows of the last run; placeholders where it was never measured."""
    other = "cuda" if device == "cpu" else "cpu"
    path = FOLDER / "train_step.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    kept = [row for row in rows if row["device"] == other]
    if kept:
        return kept
    placeholders: list[Row] = []
    for size in sizes(other):
        gflop = _gflop_per_image(size)
        placeholders.append(
            {
                "size": size.name,
                "device": other,
                "n": size.n_filters,
                "N_h": size.N_h,
                "skip": "yes" if size.skip_connections else "no",
                "batch": size.batch_size,
                "precision": "not measured",
                "gflop_per_image": round(gflop["ours"], 4),
                "textbook_gflop": round(gflop["textbook"], 4),
                "images_per_second": "not measured",
                "textbook_images_per_second": "not measured",
                "ours_over_textbook": "not measured",
                "ceiling_gflops": "not measured",
                "share_of_ceiling": "not measured",
                "num_pairs": 0,
            }
        )
    return placeholders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="one pair per size, without 128×128: does it run?")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    precision = resolve_precision("auto", device)
    rows = []
    for size in sizes(device.type):
        if not (arguments.quick and size.image_size == 128):
            rows.append(measure(size, device, precision, 1 if arguments.quick else size.num_pairs))
    if not arguments.quick:
        rows += _older_rows(device.type)
    settings = {"seconds_a_side": SECONDS_A_SIDE, "num_threads": torch.get_num_threads(), "quick": arguments.quick}
    write("train_step", settings, rows)


if __name__ == "__main__":
    main()
