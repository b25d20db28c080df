"""How different G(z) are over the first steps, and what decides it.

    python -m benchmarks.collapse [--quick]

Each row changes one thing about the paper's own equations (λ_e 0, no warm-up, γ 0.7) at the quick profile's size and
rate, and trains for 400 steps. Spread: mean standard deviation of a pixel over 64 samples of G as it is, over that of
64 training images; the more alike G(z) are, the lower. Writes benchmarks/collapse.json and docs/images/collapse.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
NUM_SAMPLES = 64
PAPER = {"lambda_e": 0.0, "warm_up_steps": 0}
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
    prepare: Callable[[Training], None] = lambda training: None


CASES = {
    "as in the paper, γ 0.7": Case(),
    "PyTorch's initial weights": Case(prepare=weights_of_pytorch),
    "no skip connections": Case({"skip_connections": False}),
    "G's first layer × 3": Case(prepare=first_layer_times(3)),
    "G's first layer × 1/3": Case(prepare=first_layer_times(1 / 3)),
    "k_0 0.3": Case(prepare=k_0(0.3)),
    "rate of G × 1/4": Case(prepare=rate_of_G_times(1 / 4)),
    "rate of both 3e-4": Case({"learning_rate": 3e-4}),
    "γ 0.3": Case(gamma=0.3),
    "γ 1": Case(gamma=1.0),
    "warm-up of 100 steps": Case({"warm_up_steps": 100}),
    "λ_e 0.2": Case({"lambda_e": 0.2}),
}


def run(case: Case, file: ImageFile, params: Params, num_steps: int) -> tuple[Curve, Training]:
    """Spread by step, of one case."""
    params = with_train(params, **(PAPER | dict(case.changes))).model_copy(update={"gamma": case.gamma})
    training = Training(params, file.image_size, CPU)
    case.prepare(training)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    wanted = spread(file.train[:NUM_SAMPLES])

    def now() -> float:
        return spread(samples_of(training.players.G, NUM_SAMPLES)) / wanted

    curve = {0: now()}
    steps = train(training, batches)
    while training.num_done < num_steps:
        next(steps)
        if training.num_done % EVERY == 0:
            curve[training.num_done] = now()
    return curve, training


def draw(curves: Mapping[str, Curve]) -> None:
    figure = Figure(figsize=(7.8, 4.4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (title, curve) in enumerate(curves.items()):
        style = ("-", "--", ":")[number // 4]
        axes.plot(list(curve), list(curve.values()), style, color=f"C{number % 4}", label=title, linewidth=1.4)
    axes.set_xlabel("step")
    axes.set_ylabel("spread of 64 samples over that of 64 images")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    figure.tight_layout()
    path = PICTURES / "collapse.png"
    figure.savefig(path)
    print(f"→ {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twenty steps, and no JSON: shows that it works")
    quick = parser.parse_args().quick
    file, params = images_and_settings()
    rows: list[Row] = []
    curves = {}
    for title, case in CASES.items():
        curves[title], training = run(case, file, params, EVERY if quick else NUM_STEPS)
        curve = curves[title]
        shown = {f"spread at {step}": round(curve[step], 3) for step in (0, 20, 100, 200, 400) if step in curve}
        rows.append({"what": title, **shown, "k_t": round(training.k_t.item(), 3)})
    if quick:
        print_table(rows)
        return
    write("collapse", {"steps": NUM_STEPS, "gamma": GAMMA, **params.train.model_dump(), **PAPER}, rows)
    draw(curves)


if __name__ == "__main__":
    main()
