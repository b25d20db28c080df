"""BEGAN beside a standard GAN (Goodfellow et al. 2014), on the same images and for the same time.

    python -m experiments.standard_gan --tune     # 16 short trainings, half an hour: finds each GAN's settings
    python -m experiments.standard_gan            # then seeds 0, 1 and 2 of BEGAN and of each GAN with its whole grid
    python -m experiments.standard_gan --quick    # 20 steps of each, writes nothing: shows that it works

BEGAN trains as params.yaml says. The seconds that this takes are the budget of each GAN of that seed. They are seconds
of processor time, so that other work on the machine does not decide; on a quiet core that is the wall clock.

The GAN has BEGAN's generator with the same initial weights, z uniform, and BEGAN's encoder with one output as its D. An
encoder alone has fewer parameters than BEGAN's D, which is an auto-encoder. So it is wider: G and D together have as
many parameters as BEGAN's. The GAN plays with the non-saturating loss: L_D = softplus(−D(x)) + softplus(D(G(z))) and
L_G = softplus(−D(G(z))). Batches, the average of G's weights and the use of the cores are BEGAN's. Adam has β2 0.99.
The GAN knows no `train.mirror`, which is an error here, and ignores `train.vanishing_residual_steps`.

There are two GANs. One has the R1 penalty (Mescheder et al. 2018) every sixteenth step, which goes beyond Goodfellow's
equations and is what most GANs are trained with.

The tuning tries four learning rates and two values of β1 for each GAN, with seed 0 and 90 seconds each. The lowest
Fréchet distance wins, to the same held-out images that the final runs are compared with. Over the budget the rate falls
by a cosine to a tenth. BEGAN's falls to `train.learning_rate_floor`, a hundredth in the quick profile.

Both write each result to experiments/standard_gan.json as it comes, and a command that was killed goes on where it
stopped. The second also writes docs/images/standard-gan.png: the first samples of seed 0, which wait in
data/standard-gan until all are there.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pipeline/console/environment.py does, before torch is loaded

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from began.base.parallel import num_cores
from began.base.seeds import derive_seed
from began.data.batches import open_batches
from began.data.rows import ImageFile
from began.device.devices import resolve_precision
from began.device.threads import keep_freed_memory, thread_pool
from began.gan.networks import Discriminator, Encoder, Generator, uniform_z
from began.gan.sampling import Pixels
from began.params import Params
from benchmarks.faces import (
    NUM_JUDGED,
    NUM_SHOWN,
    PICTURES,
    ROOT,
    Judge,
    images_and_settings,
    samples_of,
    side_by_side,
    train_timed,
    with_train,
)
from benchmarks.report import Row, print_table, save
from experiments.runs import call

CPU = torch.device("cpu")
RESULTS = Path(__file__).with_suffix(".json")
SHOWN = ROOT / "data" / "standard-gan"  # the first samples of each kind, seed 0
SEEDS = (0, 1, 2)
LEARNING_RATES = (1e-4, 2e-4, 5e-4, 1e-3)
BETA_2 = 0.99
RATE_AT_THE_END = 0.1  # of the first
TUNING_SECONDS = 90.0
R1_INTERVAL = 16  # steps from one penalty to the next


@dataclass(frozen=True)
class Variant:
    """One kind of standard GAN."""

    title: str
    gamma_R1: float  # weight of the R1 penalty


VARIANTS = (Variant("GAN", 0.0), Variant("GAN with R1", 1.0))


@dataclass(frozen=True)
class Settings:
    """What is tuned."""

    learning_rate: float
    beta_1: float


GRID = tuple(Settings(learning_rate, beta_1) for learning_rate in LEARNING_RATES for beta_1 in (0.0, 0.5))


@dataclass(frozen=True)
class Trained:
    """What came of one training."""

    G: Generator  # with the averaged weights
    num_parameters: tuple[int, int]  # of G and of D
    steps: int
    seconds: float


def discriminator_loss(of_real: Tensor, of_fake: Tensor) -> Tensor:
    """L_D, the mean over the batch, of the logits D(x) and D(G(z)), (B, 1) each."""
    return F.softplus(-of_real).mean() + F.softplus(of_fake).mean()


def generator_loss(of_fake: Tensor) -> Tensor:
    """The non-saturating L_G, the mean over the batch, of the logits D(G(z)) (B, 1)."""
    return F.softplus(-of_fake).mean()


def r1_penalty(of_real: Tensor, x: Tensor) -> Tensor:
    """½·E‖∂D(x)/∂x‖², of x (B, 3, S, S), which requires a gradient, and its logits D(x) (B, 1)."""
    (gradient,) = torch.autograd.grad(of_real.sum(), x, create_graph=True)
    return gradient.square().sum() / (2 * len(x))


class StandardGan:
    """The whole state of a run."""

    def __init__(self, params: Params, image_size: int, variant: Variant, settings: Settings) -> None:
        train = params.train
        torch.manual_seed(derive_seed(params.seed, "weights"))  # BEGAN draws G first too: these are its weights
        self.G = Generator(image_size, train.n_filters, train.N_h, train.skip_connections)
        self.D = Encoder(image_size, widened_n(params, image_size), 1)
        for player in (self.G, self.D):
            player.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)
        self.z_generator = torch.Generator().manual_seed(derive_seed(params.seed, "training z"))
        self.num_done = 0
        self._N_z = train.N_h
        self._ema_decay = train.ema_decay
        self._gamma_R1 = variant.gamma_R1
        self._bfloat16 = resolve_precision(train.precision, CPU) == "bfloat16"
        betas = settings.beta_1, BETA_2
        self._adam_G = torch.optim.Adam(self.G.parameters(), settings.learning_rate, betas, fused=True)
        self._adam_D = torch.optim.Adam(self.D.parameters(), settings.learning_rate, betas, fused=True)
        # As in BEGAN's training, each half of a batch has a thread with half of the cores.
        self._threads = thread_pool(2, max(1, num_cores() // 2))

    def step(self, x: Tensor, learning_rate: float) -> None:
        """One update of D and then one of G on x (B, 3, S, S) in [−1, 1]; both see the same G(z)."""
        z = uniform_z(len(x), self._N_z, self.z_generator)
        for adam in (self._adam_D, self._adam_G):
            adam.zero_grad(set_to_none=True)
            adam.param_groups[0]["lr"] = learning_rate
        shares = [len(half) / len(x) for half in x.chunk(2)]
        fakes = list(self._threads.map(self._backward_D, x.chunk(2), z.chunk(2), shares))
        self._adam_D.step()
        list(self._threads.map(self._backward_G, fakes, shares))
        self._adam_G.step()
        self.num_done += 1
        self._average()

    def _backward_D(self, x: Tensor, z: Tensor, share: float) -> Tensor:
        """Adds to D's gradient; returns G(z)."""
        penalised = self._gamma_R1 > 0 and self.num_done % R1_INTERVAL == 0
        x.requires_grad_(penalised)
        with self._autocast():
            fake: Tensor = self.G(z)
            of_real, of_fake = self.D((x, fake.detach())).float().chunk(2)
        loss = discriminator_loss(of_real, of_fake)
        if penalised:
            loss = loss + self._gamma_R1 * R1_INTERVAL * r1_penalty(of_real, x)
        (loss * share).backward(inputs=list(self.D.parameters()))  # type: ignore[no-untyped-call]
        return fake

    def _backward_G(self, fake: Tensor, share: float) -> None:
        """Adds to G's gradient, and not to D's."""
        with self._autocast():
            of_fake = self.D(fake).float()
        loss = generator_loss(of_fake) * share
        loss.backward(inputs=list(self.G.parameters()))  # type: ignore[no-untyped-call]

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, self._bfloat16, cache_enabled=False)

    @torch.no_grad()
    def _average(self) -> None:
        """BEGAN's rule for its averaged generator."""
        decay = min((1 + self.num_done) / (10 + self.num_done), self._ema_decay)
        torch._foreach_lerp_(list(self.G_ema.parameters()), list(self.G.parameters()), 1 - decay)


def widened_n(params: Params, image_size: int) -> int:
    """The n of the encoder with one output that has as many parameters as BEGAN's D, as nearly as can be."""
    train = params.train
    with torch.device("meta"):
        D = Discriminator(image_size, train.n_filters, train.N_h, train.skip_connections)
        wanted = num_parameters(D)
        return min(
            range(train.n_filters, 4 * train.n_filters),
            key=lambda n: abs(num_parameters(Encoder(image_size, n, 1)) - wanted),
        )


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def train_began(file: ImageFile, params: Params) -> Trained:
    training, seconds = train_timed(file, params)
    players = training.players
    return Trained(training.G_ema, (num_parameters(players.G), num_parameters(players.D)), training.num_done, seconds)


def train_gan(file: ImageFile, params: Params, variant: Variant, settings: Settings, budget: float) -> Trained:
    """For `budget` seconds of processor time."""
    gan = StandardGan(params, file.image_size, variant, settings)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    start = time.process_time()
    while (seconds := time.process_time() - start) < budget:
        fallen = (1 - math.cos(math.pi * seconds / budget)) / 2
        batches.seek(gan.num_done, 1)
        batches.fetch()
        gan.step(batches.gather(), settings.learning_rate * (1 - (1 - RATE_AT_THE_END) * fallen))
    return Trained(gan.G_ema, (num_parameters(gan.G), num_parameters(gan.D)), gan.num_done, seconds)


def tuning(file: ImageFile, params: Params, known: Sequence[Row], judge: Judge, num: int) -> Iterator[Row]:
    """One row for each GAN, learning rate and β1, without those that are `known`."""
    for variant, settings in itertools.product(VARIANTS, GRID):
        if _find(known, "tuning", variant.title, params.seed, settings):
            continue
        trained = train_gan(file, params, variant, settings, TUNING_SECONDS)
        yield _row("tuning", variant.title, params.seed, settings, trained, judge, samples_of(trained.G, num))


def finals(
    file: ImageFile,
    params: Params,
    settings_of: Mapping[Variant, Settings],
    known: Sequence[Row],
    judge: Judge,
    num: int,
) -> Iterator[tuple[Row, Pixels]]:
    """For BEGAN and then for each GAN, with the seed of `params`: the row, and `num` samples.

    Rows that are `known` are left out; the known row of BEGAN sets the others' budget.
    """
    began = _find(known, "final", "BEGAN", params.seed, None)
    if began is None:
        trained = train_began(file, params)
        samples = samples_of(trained.G, num)
        began = _row("final", "BEGAN", params.seed, None, trained, judge, samples)
        yield began, samples
    for variant, settings in settings_of.items():
        if _find(known, "final", variant.title, params.seed, settings):
            continue
        trained = train_gan(file, params, variant, settings, _number(began["seconds"]))
        samples = samples_of(trained.G, num)
        yield _row("final", variant.title, params.seed, settings, trained, judge, samples), samples


def _row(
    run: str, what: str, seed: int, settings: Settings | None, trained: Trained, judge: Judge, samples: Pixels
) -> Row:
    of_G, of_D = trained.num_parameters
    return {
        **_identity(run, what, seed, settings),
        "parameters_G": of_G,
        "parameters_D": of_D,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        **judge.numbers_of(samples),
    }


def _identity(run: str, what: str, seed: int, settings: Settings | None) -> Row:
    """What tells a row from others. BEGAN's learning rate and β1 are those of params.yaml: None here."""
    return {
        "run": run,
        "what": what,
        "seed": seed,
        "learning_rate": settings.learning_rate if settings else None,
        "beta_1": settings.beta_1 if settings else None,
    }


def _find(rows: Sequence[Row], run: str, what: str, seed: int, settings: Settings | None) -> Row | None:
    wanted = _identity(run, what, seed, settings).items()
    return next((row for row in rows if wanted <= row.items()), None)


def best_settings(rows: Sequence[Row]) -> dict[Variant, Settings]:
    """For each GAN with its whole grid in the tuning's `rows`, the settings of the lowest Fréchet distance."""
    found = {}
    for variant in VARIANTS:
        tried = {settings: _find(rows, "tuning", variant.title, SEEDS[0], settings) for settings in GRID}
        distances = {settings: _number(row["frechet"]) for settings, row in tried.items() if row is not None}
        if len(distances) == len(GRID):
            found[variant] = min(GRID, key=distances.__getitem__)
    return found


def means(rows: Sequence[Row]) -> list[Row]:
    """For each kind in the finals' `rows`, one row of means over its seeds."""
    found: list[Row] = []
    for what in dict.fromkeys(row["what"] for row in rows):
        own = [row for row in rows if row["what"] == what]
        counted = list(own[0])[list(own[0]).index("steps") :]
        averages = {name: round(statistics.mean(_number(row[name]) for row in own), 4) for name in counted}
        found.append({**own[0], "run": f"mean of {len(own)}", "seed": None, **averages})
    return found


def _number(value: str | float | int | None) -> float:
    assert isinstance(value, float | int)
    return value


def _known(settings: Mapping[str, object]) -> list[Row]:
    """The trainings that RESULTS has. ValueError when they had other `settings`."""
    if not RESULTS.is_file():
        return []
    document = json.loads(RESULTS.read_text(encoding="utf-8"))
    if document["settings"] != settings:
        raise ValueError(
            f"{RESULTS.name}: its rows had other settings than params.yaml has now; remove it to start anew"
        )
    return [row for row in document["rows"] if row["run"] in ("tuning", "final")]


def main() -> bool:
    """True: all went well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--tune", action="store_true", help="finds each GAN's learning rate and β1")
    mode.add_argument("--quick", action="store_true", help="twenty steps, and no files: shows that it works")
    arguments = parser.parse_args()
    keep_freed_memory()  # as BEGAN's training does
    file, params = images_and_settings()
    if params.train.mirror:
        raise ValueError("train.mirror: true, expected false: the GAN does not mirror images")
    num = min(100 if arguments.quick else NUM_JUDGED, len(file.held_out))
    if arguments.quick:
        anything = dict.fromkeys(VARIANTS, Settings(2e-4, 0.5))
        judge = Judge(file, num)
        print_table([row for row, _ in finals(file, with_train(params, num_steps=20), anything, [], judge, num)])
        return True
    settings = {
        "images": f"{file.source} {file.digest}",
        "gamma": params.gamma,
        "lambda_k": params.lambda_k,
        **params.train.model_dump(),
        "num_judged": num,
    }
    rows = _known(settings)
    settings_of = best_settings(rows)
    if not arguments.tune and not settings_of:
        raise ValueError(
            f"{RESULTS.name}: no GAN has its whole grid; `python -m experiments.standard_gan --tune` runs it"
        )
    judge = Judge(file, num)

    def kept(new: Row) -> None:
        print_table([new])
        rows.append(new)
        save(RESULTS, settings, rows)

    if arguments.tune:
        for row in tuning(file, params.model_copy(update={"seed": SEEDS[0]}), rows, judge, num):
            kept(row)
        return True
    SHOWN.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for row, samples in finals(file, params.model_copy(update={"seed": seed}), settings_of, rows, judge, num):
            if seed == SEEDS[0]:
                np.save(SHOWN / f"{row['what']}.npy", samples[:NUM_SHOWN])
            kept(row)
    shown = {what: SHOWN / f"{what}.npy" for what in ("BEGAN", *(variant.title for variant in settings_of))}
    if all(path.is_file() for path in shown.values()):  # not where another machine trained
        grids = {"training images": np.array(file.train[:NUM_SHOWN])}
        grids |= {what: np.load(path) for what, path in shown.items()}
        side_by_side(grids, PICTURES / "standard-gan.png", columns=2)
    summary = means([row for row in rows if row["run"] == "final"])
    real = {name: judge.baseline.get(name) for name in summary[0]}
    summary.insert(0, {**real, "run": "real", "what": "training images"})
    print_table(summary)
    save(RESULTS, settings, rows + summary)
    return True


if __name__ == "__main__":
    call(main)
