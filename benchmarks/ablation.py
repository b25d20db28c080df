"""Skip connections, vanishing residuals and BatchNorm: what each is worth, step by step.

    python -m benchmarks.ablation [--steps 1000] [--quick]

Skip connections and residuals: our loop with the settings of params.yaml, its learning rate falling over these steps.
The residuals vanish over four fifths of the steps. BatchNorm: the textbook loop in the paper's own equations
(artcg/BEGAN: "not using it made training much slower"), with PyTorch's initial weights, as there, and with ours; γ 0.7,
λ_k 0.01 and a constant rate of 4.5e-4, which all four bear. L(x) is of held-out images; D(x) is the Fréchet distance of
their reconstructions.

Writes benchmarks/ablation.json and docs/images/ablation.png.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pipeline/cli.py does, before torch is loaded

import numpy as np
import torch

from began.batches import open_batches, output_to_pixels, pixels_to_input
from began.hdf5 import ImageFile
from began.params import Params
from began.sampling import Pixels
from began.training import Training, train
from benchmarks.faces import (
    BATCH_SIZE,
    NUM_JUDGED,
    PICTURES,
    Judge,
    Numbers,
    images_and_settings,
    samples_of,
    side_by_side,
    with_train,
)
from benchmarks.report import Row, print_table, write
from benchmarks.textbook import TextbookTraining, new_players

CPU = torch.device("cpu")
RATE = 4.5e-4  # of the textbook loop
RESIDUAL_SHARE = 0.8  # of the steps, over which the residuals vanish
OURS = {
    "our loop": (True, False),
    "our loop, no skip connections": (False, False),
    "our loop, vanishing residuals": (True, True),
    "our loop, residuals, no skip connections": (False, True),
}  # (skip connections, vanishing residuals)
TEXTBOOK = {
    "textbook loop, PyTorch's weights": (True, False),
    "textbook loop, PyTorch's weights, BatchNorm": (True, True),
    "textbook loop, Glorot's weights": (False, False),
    "textbook loop, Glorot's weights, BatchNorm": (False, True),
}  # (PyTorch's initial weights, BatchNorm)


def cases(file: ImageFile, params: Params, num_steps: int, num: int) -> Iterator[tuple[str, Numbers, Pixels, Pixels]]:
    """For each: its name, what the training said, its samples, and its reconstructions of held-out images."""
    held_out = np.array(file.held_out[:num])
    params = with_train(params, num_steps=num_steps, decay_steps=num_steps)
    for title, (skip_connections, residuals) in OURS.items():
        residual_steps = int(RESIDUAL_SHARE * num_steps) if residuals else 0
        changed = with_train(params, skip_connections=skip_connections, vanishing_residual_steps=residual_steps)
        yield title, *_our_loop(file, changed, held_out)
    for title, (pytorch_weights, batch_norm) in TEXTBOOK.items():
        yield title, *_textbook_loop(file, params, pytorch_weights, batch_norm, num_steps, held_out)


def _our_loop(file: ImageFile, params: Params, held_out: Pixels) -> tuple[Numbers, Pixels, Pixels]:
    training = Training(params, file.image_size, CPU)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    start = time.perf_counter()
    for _ in train(training, batches):
        pass
    seconds = time.perf_counter() - start
    reconstructed = _reconstructed(training.players.D, held_out)
    said = {"seconds": round(seconds, 1), "L(x)": _loss(reconstructed, held_out)}
    return said, samples_of(training.G_ema, len(held_out)), reconstructed


def _textbook_loop(
    file: ImageFile, params: Params, pytorch_weights: bool, batch_norm: bool, num_steps: int, held_out: Pixels
) -> tuple[Numbers, Pixels, Pixels]:
    players = new_players(params, file.image_size, pytorch_weights)
    textbook = TextbookTraining(*players, gamma=0.7, lambda_k=0.01, learning_rate=RATE, batch_norm=batch_norm)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    start = time.perf_counter()
    for step in range(num_steps):
        batches.seek(step, 1)
        batches.fetch()
        textbook.step(batches.gather())
    seconds = time.perf_counter() - start
    reconstructed = _reconstructed(textbook.D, held_out)
    said = {"seconds": round(seconds, 1), "L(x)": _loss(reconstructed, held_out)}
    return said, textbook.samples(len(held_out)), reconstructed


def _loss(reconstructed: Pixels, images: Pixels) -> float:
    """L(x) of held-out images, of pixels as they are shown."""
    return round(float(np.abs(reconstructed.astype(float) - images).mean() / 127.5), 4)


@torch.no_grad()
def _reconstructed(D: torch.nn.Module, images: Pixels) -> Pixels:
    """D(v), by batches whose own statistics BatchNorm takes, as it does while it trains."""
    parts = (torch.from_numpy(images[first : first + BATCH_SIZE]) for first in range(0, len(images), BATCH_SIZE))
    return np.concatenate([output_to_pixels(D(pixels_to_input(part))).numpy() for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="ten steps, and no JSON: shows that it works")
    arguments = parser.parse_args()
    file, params = images_and_settings()
    steps = 10 if arguments.quick else arguments.steps
    num = min(100 if arguments.quick else NUM_JUDGED, len(file.held_out))
    judge = Judge(file, num)
    rows: list[Row] = []
    grids = {}
    for title, said, samples, reconstructions in cases(file, params, steps, num):
        distance = judge.numbers_of(reconstructions)["frechet"]
        rows.append({"what": title, **said, **judge.numbers_of(samples), "D(x)": distance})
        print_table(rows[-1:])
        grids[title] = samples
    if arguments.quick:
        return
    settings = {"images": file.source, "gamma": params.gamma, "num_judged": num}
    settings |= with_train(params, num_steps=steps, decay_steps=steps).train.model_dump()
    write("ablation", settings, rows)
    side_by_side(grids, PICTURES / "ablation.png", columns=4)


if __name__ == "__main__":
    main()
