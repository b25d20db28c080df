"""What saving the state of a run costs, as a share of the time between two saves.

    python -m benchmarks.checkpoint [--device cpu|cuda] [--quick]

For the networks of each profile: how long the training waits while its state is copied, how long the writing beside it
takes (serialise, hash, write, flush to disk), and both over the default of `began train --checkpoint-seconds`. On a GPU
the writing costs the training nothing, as the host has little else to do; on a CPU it takes at most that share of its
cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from began.device.devices import resolve_device
from began.gan.training import Training
from began.params import Params, load_params
from began.runs.states import States, signature_of
from benchmarks.report import FOLDER, Row, print_table, write
from pipeline.recording.recorder import Recorder
from pipeline.recording.run_state import RunState

PROFILES = {"quick": 32, "paper64": 64, "paper128": 128}  # image sizes
REPEATS = 7
SECONDS_BETWEEN = 60.0  # the default of `began train --checkpoint-seconds`


def measure(profile: str, params: Params, image_size: int, device: torch.device, folder: Path) -> Row:
    """One row of the table."""
    # The batch is no part of a state, so a small one saves the time of its step.
    update = {"batch_size": 2, "precision": "float32", "evaluate_every": 0}
    params = params.model_copy(update={"train": params.train.model_copy(update=update)})
    training = Training(params, image_size, device)
    training.step(torch.rand(2, 3, image_size, image_size, device=device))
    signature = signature_of(params, "0" * 64)
    states = States(folder / profile)
    rows = np.random.default_rng(0).integers(0, 256, (64, image_size, image_size, 3), np.uint8)
    job: Any = SimpleNamespace(
        settings=params,
        states=states,
        work=folder / profile / "model",
        signature=signature,
        checkpoint_seconds=SECONDS_BETWEEN,
        file=SimpleNamespace(held_out=rows, train=rows),
    )
    run: Any = SimpleNamespace(run_id="0" * 32, log_picture=lambda path, folder: None)
    recorder = Recorder(job, RunState(), training, run)
    recorder.wait()
    copying, writing = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        state = recorder.snapshot()
        copied = time.perf_counter()
        state.save(job)
        copying.append(copied - start)
        writing.append(time.perf_counter() - copied)
        training.num_done += 1
    copy_seconds, write_seconds = statistics.median(copying[1:]), statistics.median(writing[1:])
    return {
        "profile": profile,
        "state_mb": states.all()[0].path.stat().st_size / 1e6,
        "copy_seconds": copy_seconds,
        "write_seconds": write_seconds,
        "share_waiting": copy_seconds / SECONDS_BETWEEN,
        "share_with_writing": (copy_seconds + write_seconds) / SECONDS_BETWEEN,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--quick", action="store_true", help="the quick profile alone, and no JSON: shows that it works"
    )
    arguments = parser.parse_args()
    try:
        device = resolve_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    profiles = ["quick"] if arguments.quick else list(PROFILES)
    text = (FOLDER.parent / "params.yaml").read_text(encoding="utf-8")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for profile in profiles:
            settings = Path(temporary) / "params.yaml"
            changed = text.replace("\nprofile: quick ", f"\nprofile: {profile} ")
            settings.write_text(changed, encoding="utf-8")
            params = load_params(settings)
            assert params.profile == profile
            rows.append(measure(profile, params, PROFILES[profile], device, Path(temporary)))
    if arguments.quick:
        print_table(rows)
    else:
        settings_shown = {"device": device.type, "checkpoint_seconds": SECONDS_BETWEEN, "repeats": REPEATS}
        write("checkpoint", settings_shown, rows)


if __name__ == "__main__":
    main()
