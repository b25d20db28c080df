"""How different G(z) are over the first steps, what decides it, and what M_global says of it.

    python -m benchmarks.collapse [--quick]

Each row changes one thing about the paper's equations (λ_e 0, no warm-up, γ 0.7) at the quick profile's size and λ_k
and the rate of its warm-up, and trains for 400 steps; one takes the paper's own rate and λ_k. Spread: mean standard
deviation of a pixel over 64 samples of G as it is, over that of 64 training images; the more alike G(z) are, the lower.
M_global: mean over the last 50 steps.

Writes benchmarks/collapse.json, whose rows have the curves by step, and docs/images/collapse.png.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pipeline/cli.py does, before torch is loaded

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from began.batches import open_batches
from began.hdf5 import ImageFile
from began.params import Params
from began.training import Training, train
from benchmarks.faces import PICTURES, images_and_settings, samples_of, spread, with_train
from benchmarks.report import Row, print_table, write
from benchmarks.textbook import reset_to_pytorch

CPU = torch.device("cpu")
NUM_STEPS = 400
EVERY = 20
LAST = 50  # steps over which M_global is averaged
NUM_SAMPLES = 64
PAPER = {
    "lambda_e": 0.0,
    "warm_up_steps": 0,
    "flow_steps": 0,
    "learning_rate": 1.8e-3,
    "learning_rate_floor": 1.8e-5,
    "decay_steps": 4900,
}
GAMMA = 0.7

Curve = dict[int, float]


def weights_of_pytorch(training: Training) -> None:
    for player in (training.players.G, training.players.D):
        reset_to_pytorch(player)


def first_layer_times(factor: float) -> Callable[[Training], None]:
    def scale(training: Training) -> None:
        with torch.no_grad():
            training.players.G.project.weight.mul_(factor)

    return scale


def k_0(value: float) -> Callable[[Training], None]:
    def start(training: Training) -> None:
        training.k_t.fill_(value)

    return start


def rate_of_G_times(factor: float) -> Callable[[Training], None]:
    def split(training: Training) -> None:
        rate_of_G = training.learning_rate * factor  # of its own: over so few steps the cosine hardly falls
        of_G, of_D = list(training.players.G.parameters()), list(training.players.D.parameters())
        optimizer = training.optimizer
        optimizer.param_groups.clear()
        optimizer.add_param_group({"params": of_D, "lr": training.learning_rate})
        optimizer.add_param_group({"params": of_G, "lr": rate_of_G})

    return split


@dataclass(frozen=True)
class Case:
    """One line of the picture."""

    changes: Mapping[str, Any] = field(default_factory=dict)  # of params.yaml's train section
    gamma: float = GAMMA
    lambda_k: float | None = None  # None: params.yaml's
    prepare: Callable[[Training], None] = lambda training: None


BASE = "paper's equations, γ 0.7"
PANELS = {
    "the scale of z": {
        "PyTorch's initial weights": Case(prepare=weights_of_pytorch),
        "no skip connections": Case({"skip_connections": False}),
        "G's first layer × 3": Case(prepare=first_layer_times(3)),
        "G's first layer × 1/3": Case(prepare=first_layer_times(1 / 3)),
    },
    "k_0 and the rates": {
        "k_0 0.3": Case(prepare=k_0(0.3)),
        "rate of G × 1/4": Case(prepare=rate_of_G_times(1 / 4)),
        "rate of G × 4": Case(prepare=rate_of_G_times(4)),
        "rate of both 3e-4": Case({"learning_rate": 3e-4}),
        "the paper's: both 1e-4, λ_k 0.001": Case({"learning_rate": 1e-4}, lambda_k=0.001),
    },
    "what G is asked for": {
        "γ 0.3": Case(gamma=0.3),
        "γ 1": Case(gamma=1.0),
        "warm-up of 100 steps": Case({"warm_up_steps": 100}),
        "λ_e 0.2": Case({"lambda_e": 0.2}),
    },
}  # what is drawn together, each beside BASE


@dataclass(frozen=True)
class Run:
    """What came of a case."""

    spread: Curve
    """By step, since G plays."""
    M_global: float
    k_t: float


def run(case: Case, file: ImageFile, params: Params, num_steps: int) -> Run:
    balance = {"gamma": case.gamma, "lambda_k": params.lambda_k if case.lambda_k is None else case.lambda_k}
    params = with_train(params, **(PAPER | dict(case.changes))).model_copy(update=balance)
    training = Training(params, file.image_size, CPU)
    case.prepare(training)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    wanted = spread(file.train[:NUM_SAMPLES])
    curve: Curve = {}
    measures = []
    steps = train(training, batches, record_every=1)
    while True:
        done = training.num_done
        if done % EVERY == 0 and done >= params.train.warm_up_steps:
            curve[done] = spread(samples_of(training.players.G, NUM_SAMPLES)) / wanted
        if done == num_steps:
            break
        if record := next(steps):
            measures.append(record.M_global)
    last = measures[-LAST:] or [math.nan]  # --quick ends within the warm-up, where there is one
    return Run(curve, sum(last) / len(last), training.k_t.item())


def draw(runs: Mapping[str, Run]) -> None:
    figure = Figure(figsize=(11, 4.8), dpi=130)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (title, cases) in zip(axes, PANELS.items(), strict=True):
        for name in (BASE, *cases):
            curve = runs[name].spread
            black = {"color": "black"} if name == BASE else {}
            panel.plot(list(curve), list(curve.values()), label=name, linewidth=1.5, **black)
        panel.axhline(1, color="grey", linewidth=0.8, linestyle=":")
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False, fontsize=8)
    axes[0].set_ylabel("spread of 64 samples, 1: the data")
    axes[0].set_ylim(bottom=0)
    figure.tight_layout()
    path = PICTURES / "collapse.png"
    figure.savefig(path)
    print(f"→ {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twenty steps, and no JSON: shows that it works")
    quick = parser.parse_args().quick
    file, params = images_and_settings()
    cases = {BASE: Case()} | {name: case for panel in PANELS.values() for name, case in panel.items()}
    rows: list[Row] = []
    runs = {}
    for title, case in cases.items():
        runs[title] = run(case, file, params, EVERY if quick else NUM_STEPS)
        numbers = {"M_global": round(runs[title].M_global, 4), "k_t": round(runs[title].k_t, 3)}
        curve = {str(step): runs[title].spread.get(step) for step in runs[BASE].spread}
        rows.append({"what": title, **numbers, **{step: value and round(value, 3) for step, value in curve.items()}})
    if quick:
        print_table(rows)
        return
    settings = {"steps": NUM_STEPS, "gamma": GAMMA, "lambda_k": params.lambda_k, **params.train.model_dump(), **PAPER}
    write("collapse", settings, rows)
    draw(runs)


if __name__ == "__main__":
    main()
