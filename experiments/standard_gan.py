"""What BEGAN's balance brings, and what it costs: a standard GAN on the same images, for the same seconds.

    python -m experiments.standard_gan --tune      # a grid of settings, seed 0, 90 seconds each
    python -m experiments.standard_gan             # the best of them and BEGAN, three seeds
    python -m experiments.standard_gan --quick     # twenty steps of each, and no files: shows that it works

The standard GAN is that of Goodfellow et al. (2014) with the non-saturating loss. Its G is BEGAN's, with the same
initial weights, z and average. Its D is the encoder of BEGAN's D with one output, a logit, and enough filters that both
players have as many parameters as BEGAN's. Its settings are tuned: BEGAN's are those of params.yaml. The penalty R1 of
Mescheder et al. (2018), (γ_R1 / 2)·|∇D(x)|² on each 16th step, is not Goodfellow's; it is in the grid because nearly
every GAN of today has it.

Each seed trains BEGAN for `num_steps`, and the others for as many seconds. Numbers are the report's: 2,000 samples
against 2,000 held-out images. Writes experiments/standard_gan.json after each run, docs/images/standard-gan.png, and
the table of docs/standard-gan.md.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pipeline/cli.py does, before torch is loaded

import torch
import torch.nn.functional as F
from torch import Tensor

from began.batches import Batches, open_batches
from began.files import replace_file
from began.hdf5 import ImageFile
from began.networks import Encoder, uniform_z
from began.params import Params
from began.sampling import Pixels
from began.training import Training, train
from benchmarks.faces import Judge, images_and_settings, samples_of, with_train
from experiments.page import markdown, write_table
from experiments.pictures import COLUMNS, IMAGES, labelled_rows
from experiments.runs import FOLDER, call
from pipeline.page import format_number

CPU = torch.device("cpu")
RECORD = FOLDER / "standard_gan.json"
PAGE = Path("docs/standard-gan.md")
SEEDS = (0, 1, 2)
TUNE_SECONDS = 90.0
GRID = {"learning_rate": (1e-4, 2e-4, 5e-4, 1e-3), "beta_1": (0.0, 0.5), "r1": (0.0, 1.0)}
BETA_2 = 0.99
R1_EVERY = 16
NUMBERS = ("spread", "coverage", "recall", "precision", "frechet")

Entry = dict[str, Any]


class StandardGAN:
    """G and D of a standard GAN, and one update of both."""

    def __init__(self, params: Params, image_size: int, learning_rate: float, beta_1: float, r1: float) -> None:
        began = Training(params, image_size, CPU)
        self.G, self.G_ema, self.average = began.players.G, began.G_ema, began.average
        self.step_count = began.step_count
        self.D = encoder_of(image_size, num_parameters_of(began.players.D)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.z_generator = torch.Generator().manual_seed(params.seed)
        self.N_z, self.r1 = params.train.N_h, r1
        self.adam_G, self.adam_D = (
            torch.optim.Adam(player.parameters(), lr=learning_rate, betas=(beta_1, BETA_2), fused=True)
            for player in (self.G, self.D)
        )

    def step(self, x: Tensor) -> None:
        """One update of D, then one of G; x (B, 3, S, S) in [−1, 1]."""
        z = uniform_z(len(x), self.N_z, self.z_generator)
        fake = self.G(z)
        self.adam_D.zero_grad()
        (discriminator_loss(*self.D((x, fake.detach())).chunk(2)) + self._penalty(x)).backward()  # type: ignore[no-untyped-call]
        self.adam_D.step()
        self.adam_G.zero_grad()
        generator_loss(self.D(fake)).backward()  # type: ignore[no-untyped-call]
        self.adam_G.step()
        with torch.no_grad():
            self.step_count += 1
            self.average()

    def _penalty(self, x: Tensor) -> Tensor | float:
        if not self.r1 or int(self.step_count) % R1_EVERY:
            return 0.0
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.D(x).sum(), x, create_graph=True)
        return R1_EVERY * self.r1 / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """−log σ(D(x)) − log(1 − σ(D(G(z)))), each the mean over a batch of logits."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The non-saturating loss −log σ(D(G(z))), the mean over a batch of logits."""
    return F.softplus(-fake).mean()


def encoder_of(image_size: int, num_parameters: int) -> Encoder:
    """The encoder with one output whose number of parameters is the nearest to `num_parameters`."""

    def distance(n_filters: int) -> int:
        with torch.device("meta"):
            return abs(num_parameters_of(Encoder(image_size, n_filters, 1)) - num_parameters)

    return Encoder(image_size, min(range(1, 257), key=distance), 1)


def num_parameters_of(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def train_began(file: ImageFile, params: Params) -> tuple[Training, float]:
    """The trained model, and the seconds that took."""
    training = Training(params, file.image_size, CPU)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    start = time.perf_counter()
    for _ in train(training, batches):
        pass
    return training, time.perf_counter() - start


def train_gan(file: ImageFile, params: Params, settings: Entry, seconds: float) -> tuple[StandardGAN, int]:
    """Trains for `seconds`; also the number of steps."""
    gan = StandardGAN(params, file.image_size, **settings)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    end = time.perf_counter() + seconds
    for steps, x in enumerate(_endless(batches), 1):
        gan.step(x)
        if time.perf_counter() >= end:
            return gan, steps
    raise AssertionError


def _endless(batches: Batches) -> Iterator[Tensor]:
    step = 0
    while True:
        batches.seek(step, 1)
        batches.fetch()
        yield batches.gather()
        step += 1


def tune(file: ImageFile, params: Params, judge: Judge, num: int) -> list[Entry]:
    """An entry for each point of GRID, written as they come."""
    entries: list[Entry] = []
    for values in product(*GRID.values()):
        settings = dict(zip(GRID, values, strict=True))
        gan, steps = train_gan(file, params, settings, TUNE_SECONDS)
        entries.append({**settings, "steps": steps, **judge.numbers_of(samples_of(gan.G_ema, num))})
        print(json.dumps(entries[-1]), flush=True)
        _write(tuning=entries)
    return entries


def compare(file: ImageFile, params: Params, judge: Judge, num: int, tuning: list[Entry]) -> None:
    """BEGAN and the best of each kind of the grid, with each seed; then the table and the picture."""
    kinds = {"standard GAN": best(tuning, r1=False), "standard GAN with R1": best(tuning, r1=True)}
    entries: list[Entry] = []
    rows: dict[str, Pixels] = {}

    def keep(what: str, seed: int, steps: int, seconds: float, num_parameters: int, samples: Pixels) -> None:
        counts = {"seed": seed, "steps": steps, "seconds": round(seconds, 1), "num_parameters": num_parameters}
        entries.append({"what": what, **counts, **judge.numbers_of(samples)})
        rows.setdefault(what, samples[:COLUMNS])
        print(json.dumps(entries[-1]), flush=True)
        _write(tuning=tuning, runs=entries, real=judge.baseline)

    for seed in SEEDS:
        seeded = params.model_copy(update={"seed": seed})
        training, seconds = train_began(file, seeded)
        samples = samples_of(training.G_ema, num)
        keep("BEGAN", seed, training.num_done, seconds, num_parameters_of(training.players), samples)
        for what, settings in kinds.items():
            gan, steps = train_gan(file, seeded, settings, seconds)
            both = num_parameters_of(gan.G) + num_parameters_of(gan.D)
            keep(what, seed, steps, seconds, both, samples_of(gan.G_ema, num))
    labelled_rows(IMAGES / "standard-gan.png", rows)
    write_table(PAGE, "standard-gan", table(entries, judge.baseline))


def best(tuning: list[Entry], r1: bool) -> Entry:
    """The settings with the least Fréchet distance, with or without the penalty; ValueError when there are none."""
    found = [entry for entry in tuning if bool(entry["r1"]) == r1]
    if not found:
        raise ValueError(f"{RECORD}: has no tuned settings; `python -m experiments.standard_gan --tune` finds them")
    chosen = min(found, key=lambda entry: float(entry["frechet"]))
    return {key: chosen[key] for key in GRID}


def table(entries: list[Entry], real: Entry) -> str:
    """A line for each way of training, with the means over the seeds, and the least and largest in brackets."""
    lines = []
    for what in dict.fromkeys(entry["what"] for entry in entries):
        own = [entry for entry in entries if entry["what"] == what]
        cells = []
        for name in ("num_parameters", "steps", *NUMBERS):
            values = [float(entry[name]) for entry in own]
            mean, least, most = map(format_number, (sum(values) / len(values), min(values), max(values)))
            cells.append(f"{mean} ({least}–{most})")
        lines.append([what, *cells])
    lines.append(["real images", "", "", *(format_number(real[name]) for name in NUMBERS)])
    return markdown(["", "parameters", "steps", *NUMBERS], lines)


def _write(**content: Any) -> None:
    with replace_file(RECORD) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> bool:
    """True: all runs finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="find the standard GAN's settings")
    parser.add_argument("--quick", action="store_true", help="twenty steps, and no files")
    arguments = parser.parse_args()
    file, params = images_and_settings()
    if arguments.quick:
        training, seconds = train_began(file, with_train(params, num_steps=20, decay_steps=20))
        settings = {key: values[-1] for key, values in GRID.items()}
        gan, steps = train_gan(file, params, settings, seconds)
        print(f"BEGAN: 20 steps in {seconds:.1f} s; standard GAN: {steps}")
        print(
            f"parameters: {num_parameters_of(training.players)}, {num_parameters_of(gan.G) + num_parameters_of(gan.D)}"
        )
        return True
    num = min(params.evaluate.num_samples, len(file.held_out))
    judge = Judge(file, num)
    if arguments.tune:
        tune(file, params, judge, num)
        return True
    tuning = json.loads(RECORD.read_text(encoding="utf-8"))["tuning"] if RECORD.is_file() else []
    compare(file, params, judge, num, tuning)
    return True


if __name__ == "__main__":
    call(main)
