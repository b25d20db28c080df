"""Whether training for long keeps what it takes: anonymous memory, file handles and threads of a run, sampled.

    python -m benchmarks.soak [--minutes 30] [--quick]

A real run of the train stage, in a process of its own: a small network on portraits, a state saved every few seconds, a
curve and pictures to a store of MLflow. A minute of it sets how many steps there are, so that the pictures come spread
over the run; it then goes on from its state, and ends by SIGTERM when the time is over. RssAnon, file handles and
threads are those of the process and all that it starts. The first third is left out: allocators fill, MLflow loads. Of
the other two a line is fitted to the samples, and what it grows by counts: less than 1 % of memory, less than one
handle and less than one thread. Exits with 1 when one of them grows by more. Linux only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from began.params import Params, load_params
from began.runs.states import State, States
from benchmarks.end_to_end import write_params
from benchmarks.memory import num_open_files, num_threads, process_tree, rss_anon
from benchmarks.report import FOLDER, Row, print_table, write

NUM_PORTRAITS = 400
NETWORK = {"n_filters": 8, "N_h": 16, "batch_size": 4}
CHECKPOINT_SECONDS = 5.0
SECONDS_BETWEEN_SAMPLES = 2.0
SLACK = 1.3  # steps that there are, over those that the time is expected to suffice for
MOST_GROWTH = {"RssAnon, MiB": 0.01, "file handles": 1.0, "threads": 1.0}  # of memory: share of its mean
ENDED = 128 + signal.SIGTERM


def small(params: Params, num_steps: int) -> Params:
    """Settings of a short download and a small network that trains for `num_steps`."""
    train = params.train.model_copy(update={**NETWORK, "num_steps": num_steps})
    download = params.download.model_copy(update={"source": "portraits", "num_images": NUM_PORTRAITS})
    return params.model_copy(update={"train": train, "download": download})


def command(stage: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", stage]


def environment(folder: Path) -> dict[str, str]:
    """Such that all that a stage writes lands in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BEGAN_", "DVC_", "MLFLOW_"))}
    ours = {"PYTHONPATH": FOLDER.parent, "DVC_ROOT": folder, "BEGAN_CHECKPOINT_SECONDS": CHECKPOINT_SECONDS}
    return kept | {name: str(value) for name, value in ours.items()}


def newest(folder: Path) -> State | None:
    """The run's last state; there is one signature."""
    states = [state for place in (folder / ".began" / "state").glob("*") for state in States(place).all()]
    return states[0] if states else None


@contextmanager
def training(folder: Path, device: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that trains in `folder`; ended with SIGTERM afterwards. RuntimeError when it ends in another way."""
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command("train"), "--device", device], cwd=folder, env=environment(folder), stdout=log, stderr=log
        )
    try:
        yield process
        process.terminate()
        if process.wait(120) != ENDED:
            lines = (folder / "log").read_text(encoding="utf-8").splitlines()
            raise RuntimeError(f"train ended with {process.returncode}, expected {ENDED}: {lines[-1:]}")
    finally:
        process.kill()
        process.wait()


def steps_per_second(folder: Path, device: str, seconds: float) -> float:
    """Between the first state with a step in it and one that is at least `seconds` younger."""
    with training(folder, device) as process:
        first = None
        while process.poll() is None:
            time.sleep(0.5)
            state = newest(folder)
            if state is None or state.step == 0:
                continue
            first = first or (state.step, time.monotonic())
            passed = time.monotonic() - first[1]
            if passed >= seconds and state.step > first[0]:
                return (state.step - first[0]) / passed
    raise AssertionError("training() raises when the process ends by itself")


def soak(folder: Path, device: str, minutes: float) -> tuple[np.ndarray, set[str], int]:
    """Samples (num, 4) of seconds, RssAnon in MiB, handles, threads; the names of the states seen; the last step."""
    samples: list[tuple[float, float, int, int]] = []
    states: set[str] = set()
    before = newest(folder)
    with training(folder, device) as process:
        while newest(folder) == before and process.poll() is None:
            time.sleep(0.1)
        start = time.monotonic()
        while (passed := time.monotonic() - start) < 60 * minutes and process.poll() is None:
            pids = process_tree(process.pid)
            memory = sum(map(rss_anon, pids)) / 2**20
            samples.append((passed, memory, sum(map(num_open_files, pids)), sum(map(num_threads, pids))))
            states |= {path.name for path in (folder / ".began" / "state").glob("*/*.safetensors")}
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    last = newest(folder)
    assert last is not None
    return np.array(samples), states, last.step


def described(samples: np.ndarray) -> list[Row]:
    """A row for each of the columns but the first: at the start, and over the last two thirds of the time."""
    late = samples[samples[:, 0] >= samples[-1, 0] / 3]
    seconds = late[:, 0]
    rows: list[Row] = []
    for column, (what, allowed) in enumerate(MOST_GROWTH.items(), start=1):
        values = late[:, column]
        slope = float(np.polyfit(seconds, values, 1)[0])
        growth = slope * float(seconds[-1] - seconds[0])
        most = allowed * float(values.mean()) if what.startswith("RssAnon") else allowed
        rows.append(
            {
                "what": what,
                "at_start": float(samples[0, column]),
                "lowest": float(values.min()),
                "mean": float(values.mean()),
                "highest": float(values.max()),
                "at_end": float(values[-1]),
                "per_hour": slope * 3600,
                "growth": growth,
                "most_growth": most,
                "flat": "yes" if growth < most else "no",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="half a minute, and no JSON: shows that it works")
    arguments = parser.parse_args()
    minutes = 0.5 if arguments.quick else arguments.minutes
    params = load_params(FOLDER.parent / "params.yaml")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_params(small(params, 10**7), folder / "params.yaml")
        for stage in ("download", "preprocess"):
            subprocess.run(command(stage), cwd=folder, env=environment(folder), check=True)
        rate = steps_per_second(folder, arguments.device, min(60.0, 6 * minutes))
        begun = newest(folder)
        assert begun is not None
        num_steps = begun.step + round(SLACK * rate * 60 * minutes)
        write_params(small(params, num_steps), folder / "params.yaml")
        samples, states, last_step = soak(folder, arguments.device, minutes)
        num_pictures = len(list((folder / "mlartifacts").glob("*/artifacts/samples/*.png")))
    rows = described(samples)
    done = {"steps": last_step - begun.step, "states": len(states), "pictures": num_pictures}
    print(", ".join(f"{number:,} {what}" for what, number in done.items()))
    if arguments.quick:
        print_table(rows)
        return
    settings = {"minutes": minutes, "device": arguments.device, "image_size": params.preprocess.image_size, **NETWORK}
    write("soak", settings | {"checkpoint_seconds": CHECKPOINT_SECONDS, "samples": len(samples), **done}, rows)
    if any(row["flat"] == "no" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
