"""What the same minutes buy: our default, and the textbook loop with its usual settings, on the same images.

    python -m benchmarks.quality [--quick]

Ours trains as params.yaml says, for as many steps. The seconds of processor time that this takes are the others'
budget, one after the other in this process; on one quiet core that is the wall clock.

The textbook loop: two phases, two optimizers, z normal, γ 0.5, λ_k 0.001, a learning rate of 1e-4, Adam (0.5, 0.999),
no averaging, float32; networks of the same size, without BatchNorm. It runs twice: with PyTorch's initial weights, as
its implementations in PyTorch do, and with ours.

Numbers are the report's, of 2,000 samples against 2,000 held-out images; real: training images in the samples' place.
Writes benchmarks/quality.json and docs/images/quality.png.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pipeline/console/environment.py does, before torch is loaded

import torch

from began.data.batches import open_batches
from began.data.rows import ImageFile
from began.gan.sampling import Pixels
from began.params import Params
from benchmarks.faces import (
    NUM_JUDGED,
    PICTURES,
    Judge,
    images_and_settings,
    samples_of,
    side_by_side,
    train_timed,
    with_train,
)
from benchmarks.report import Row, print_table, write
from benchmarks.textbook import TextbookTraining, new_players

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Trained:
    """What came of one way of training."""

    samples: Pixels
    steps: int
    seconds: float


def train_ours(file: ImageFile, params: Params, num_samples: int) -> Trained:
    training, seconds = train_timed(file, params)
    return Trained(samples_of(training.G_ema, num_samples), training.num_done, seconds)


def train_textbook(file: ImageFile, params: Params, pytorch_weights: bool, budget: float, num_samples: int) -> Trained:
    """For `budget` seconds of processor time."""
    settings = params.train
    players = new_players(params, file.image_size, pytorch_weights)
    textbook = TextbookTraining(*players, normal_z=True)
    batches = open_batches(file.train, settings.batch_size, params.seed, CPU)
    steps = 0
    start = time.process_time()
    while time.process_time() - start < budget:
        batches.seek(steps, 1)
        batches.fetch()
        textbook.step(batches.gather())
        steps += 1
    seconds = time.process_time() - start
    return Trained(textbook.samples(num_samples), steps, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twenty steps, and no JSON: shows that it works")
    quick = parser.parse_args().quick
    file, params = images_and_settings()
    num = min(100 if quick else NUM_JUDGED, len(file.held_out))
    if quick:
        params = with_train(params, num_steps=20)
    ours = train_ours(file, params, num)
    results = {"ours": ours}
    for pytorch_weights, title in (
        (True, "textbook, PyTorch's initial weights"),
        (False, "textbook, our initial weights"),
    ):
        results[title] = train_textbook(file, params, pytorch_weights, ours.seconds, num)
    judge = Judge(file, num)
    rows: list[Row] = [{"what": "real", "steps": None, "seconds": None, **judge.baseline}]
    for title, trained in results.items():
        counts = {"steps": trained.steps, "seconds": round(trained.seconds, 1)}
        rows.append({"what": title, **counts, **judge.numbers_of(trained.samples)})
    if quick:
        print_table(rows)
        return
    settings = {"images": file.source, "gamma": params.gamma, **params.train.model_dump(), "num_judged": num}
    write("quality", settings, rows)
    side_by_side({title: trained.samples for title, trained in results.items()}, PICTURES / "quality.png", columns=3)


if __name__ == "__main__":
    main()
