"""The game after one and the same start: what each of its settings is worth.

    python -m benchmarks.search [--steps 400] [--only WORD] [--quick]

D's warm-up and G's flow as params.yaml has them, once; every case goes on from there with a change of its own. The
rate falls to its floor over the steps of the game. Numbers are the report's,
of 2,000 samples against 2,000 held-out images; k_t and L(G(z)) / L(x) are those of the end. One seed.

Writes benchmarks/search.json and docs/images/search.png; with --only, which takes the cases whose names hold WORD,
neither.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pipeline/cli.py does, before torch is loaded

import torch
from torch import Tensor

from began.batches import open_batches
from began.hdf5 import ImageFile
from began.params import Params
from began.training import Players, Training, train
from benchmarks.faces import NUM_JUDGED, PICTURES, Judge, images_and_settings, samples_of, side_by_side, with_train
from benchmarks.report import Row, print_table, write

CPU = torch.device("cpu")


def flow_plays(training: Training) -> None:
    assert training.players.G.flow is not None
    training.players.G.flow.requires_grad_(True)


def constrained(weight: float) -> Callable[[Training], None]:
    """BEGAN-CS (Chang et al. 2018): weight · mean (Enc(G(z)) − z)² in L_D, here for what enters the decoder, not z."""

    def prepare(training: Training) -> None:
        training.players.__class__ = type("Constrained", (_Constrained,), {"weight": weight})

    return prepare


class _Constrained(Players):
    weight = 0.0

    def forward(self, x: Tensor, z: Tensor, k_t: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        L_real, L_fake, L_G = super().forward(x, z, k_t, carry)
        with torch.no_grad():
            fake, entered = self.G(z, carry), self.G.project(self.G.flow(z) if self.G.flow is not None else z)
        of_fake = self.D.decoder.project(self.D.encoder(fake, carry))
        scale = entered.var(dim=0).mean().clamp(min=1e-12)
        return L_real + self.weight * (of_fake - entered).square().mean() / scale, L_fake, L_G


@dataclass(frozen=True)
class Case:
    changes: Mapping[str, Any] = field(default_factory=dict)  # of params.yaml's train section
    gamma: float | None = None  # None: params.yaml's, as is lambda_k
    lambda_k: float | None = None
    prepare: Callable[[Training], None] = lambda training: None


CASES = {
    "the profile's game": Case(),
    "the flow learns on, in the game": Case(prepare=flow_plays),
    "γ 1": Case(gamma=1.0),
    "γ 3": Case(gamma=3.0),
    "λ_e 0, γ 0.7: the paper's game": Case({"lambda_e": 0.0}, gamma=0.7),
    "λ_e 0, γ 2": Case({"lambda_e": 0.0}, gamma=2.0),
    "λ_e 1.5": Case({"lambda_e": 1.5}),
    "rate 5e-5": Case({"learning_rate": 5e-5}),
    "rate 5e-4": Case({"learning_rate": 5e-4}),
    "λ_k 0.001": Case(lambda_k=0.001),
    "average 0.999": Case({"ema_decay": 0.999}),
    "BEGAN-CS's constraint, 0.1": Case(prepare=constrained(0.1)),
}


def start(file: ImageFile, params: Params) -> Training:
    """As both begin to play."""
    training = Training(params, file.image_size, CPU)
    batches = open_batches(file.train, params.train.batch_size, params.seed, CPU)
    for _ in train(training, batches):
        if training.num_done == params.train.game_start:
            break
    return training


def play(case: Case, file: ImageFile, params: Params, start: Training, num_steps: int) -> tuple[Training, Row]:
    changes = {"num_steps": params.train.game_start + num_steps, "decay_steps": num_steps} | dict(case.changes)
    changed = with_train(params, **changes).model_copy(
        update={
            "gamma": params.gamma if case.gamma is None else case.gamma,
            "lambda_k": params.lambda_k if case.lambda_k is None else case.lambda_k,
        }
    )
    training = Training(changed, file.image_size, CPU)
    training.load_state_dict(start.state_dict())
    training.start_game()  # the rate of this case
    case.prepare(training)
    began = time.perf_counter()
    records = [record for record in train(training, _batches(file, changed)) if record is not None]
    last = records[-1]
    return training, {
        "seconds": round(time.perf_counter() - began),
        "k_t": round(last.k_t, 3),
        "L(G(z))/L(x)": round(last.L_fake / last.L_real, 2),
        "L(x)": round(last.L_real, 4),
    }


def _batches(file: ImageFile, params: Params) -> Any:
    return open_batches(file.train, params.train.batch_size, params.seed, CPU)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", default="", help="cases whose names hold this word")
    parser.add_argument("--quick", action="store_true", help="a few steps, and no JSON: shows that it works")
    arguments = parser.parse_args()
    file, params = images_and_settings()
    if arguments.quick:
        params = with_train(params, warm_up_steps=20, flow_steps=10)
    num_steps = 10 if arguments.quick else arguments.steps
    num = min(100 if arguments.quick else NUM_JUDGED, len(file.held_out))
    judge = Judge(file, num)
    at_first = start(file, params)
    rows: list[Row] = [{"what": "real", **judge.baseline}]
    grids = {"G as it starts": samples_of(at_first.G_ema, num)}
    rows.append({"what": "G as it starts", **judge.numbers_of(grids["G as it starts"])})
    print_table(rows)
    for title, case in CASES.items():
        if arguments.only not in title:
            continue
        training, said = play(case, file, params, at_first, num_steps)
        grids[title] = samples_of(training.G_ema, num)
        rows.append({"what": title, **judge.numbers_of(grids[title]), **said})
        print_table(rows[-1:])
    if arguments.quick or arguments.only:
        return
    settings = {"images": file.source, "gamma": params.gamma, "lambda_k": params.lambda_k, "steps": num_steps}
    write("search", settings | params.train.model_dump() | {"num_judged": num}, rows)
    side_by_side(grids, PICTURES / "search.png", columns=4)


if __name__ == "__main__":
    main()
