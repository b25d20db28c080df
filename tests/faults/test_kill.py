"""kill -9 at random moments, to a stage and all its workers; started again until done, the bytes are the same."""

from __future__ import annotations

import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.faults.stages import NUM_IMAGES, TINY, Outputs, Process, Workspace, empty_store, settings
from tests.pipeline.clone import make_clone

KILLS = {"download": (1, 12), "preprocess": (1, 12), "train": (1, 26)}  # in the short form, in the whole one
INPUTS = {"download": (), "preprocess": ("raw",), "train": ("images.h5",)}
IMPORTS = {"download": 1.0, "preprocess": 1.0, "train": 5.0}  # seconds
NUM_STEPS = (48, 160)
EVALUATE_EVERY = 14  # steps
MOST_KILLS_A_RUN = 6
MAKE_STORE = [sys.executable, "-c", "from pipeline.tracking.write import create_store; create_store()"]

pytestmark = pytest.mark.timeout(3600)


def params(num_steps: int) -> str:
    return settings(num_steps=num_steps, evaluate_every=EVALUATE_EVERY)


@dataclass
class Reference:
    """A run that nothing disturbed."""

    place: Workspace
    store: Path  # MLflow's, empty
    seconds: dict[str, float]  # stage → how long a process of its own takes, about
    outputs: dict[str, str]
    num_steps: int


@dataclass
class Tally:
    survived: int = 0
    planned: int = 0
    steps_lost: list[int] = field(default_factory=list)  # where a state follows each step
    seconds_lost: list[float] = field(default_factory=list)  # where one follows after 0.3 s


@pytest.fixture(scope="module")
def reference(whole: bool, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    store = empty_store(tmp_path_factory.mktemp("store"))
    place = Workspace(tmp_path_factory.mktemp("reference"), params(NUM_STEPS[whole]))
    place.take_store(store)
    seconds = {}
    for stage in KILLS:
        start = time.monotonic()
        place.run_here(stage)
        seconds[stage] = IMPORTS[stage] + time.monotonic() - start
    return Reference(place, store, seconds, place.outputs(), NUM_STEPS[whole])


@pytest.fixture(scope="module")
def tally(whole: bool) -> Tally:
    return Tally(planned=sum(numbers[whole] for numbers in KILLS.values()))


@pytest.mark.parametrize("stage", KILLS)
def test_a_stage_that_is_killed_again_and_again_ends_with_the_same_bytes(
    stage: str, reference: Reference, tally: Tally, whole: bool, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    draw = random.Random(stage)
    left = KILLS[stage][whole]
    num_runs = 0
    while left:
        place = Workspace(tmp_path / str(num_runs), params(reference.num_steps))
        place.take(reference.place, *INPUTS[stage])
        if num_runs or not whole:  # otherwise MLflow makes its database under fire
            place.take_store(reference.store)
        num_runs += 1
        survived = _kill_until_done(place, stage, min(left, MOST_KILLS_A_RUN), reference, draw, tally)
        _check_end(place, stage, reference)
        left -= survived
        tally.survived += survived
    figure("kill points survived with identical bytes", f"{tally.survived} of {tally.planned}")
    if tally.steps_lost and tally.seconds_lost:
        figure(
            "work lost by a kill",
            f"at most {max(tally.seconds_lost):.1f} s with --checkpoint-seconds 0.3, "
            f"{max(tally.steps_lost)} of at most 2 steps with 0",
        )


def _kill_until_done(
    place: Workspace, stage: str, most: int, reference: Reference, draw: random.Random, tally: Tally
) -> int:
    """Starts the stage until it is done, and kills it `most` times at most; returns how often it was."""
    for num_killed in range(most):
        each_step = draw.random() < 0.4
        with place.start(stage, BEGAN_CHECKPOINT_SECONDS="0" if each_step else "0.3") as process:
            _wait_for_moment(place, process, stage, reference.seconds[stage], draw)
            process.send(signal.SIGKILL)
            killed = time.time()
            code = process.wait()
        if code == 0:
            return num_killed
        assert code == -signal.SIGKILL, process.words
        # What has its final name is whole.
        assert place.outputs().items() <= reference.outputs.items()
        if stage == "train":
            _note_loss(place, process, killed, each_step, tally)
            if place.states() and place.states()[0].step == reference.num_steps:  # its last act
                return num_killed + 1
    place.run(stage)
    return most


def _wait_for_moment(place: Workspace, process: Process, stage: str, seconds: float, draw: random.Random) -> None:
    """Anywhere in the `seconds` that the stage takes; for train often soon after a new state, or at the end."""
    kinds = ("anywhere", "after a state", "at the end") if stage == "train" else ("anywhere",)
    (kind,) = draw.choices(kinds, (4, 5, 1)[: len(kinds)])
    end = process.started + 2 * seconds + 60
    if kind == "anywhere":
        end = process.started + draw.uniform(0, seconds)
    else:
        before = {state.digest for state in place.states()}
        data = place.folder / "data"
        while process.is_running and time.monotonic() < end:
            if kind == "after a state" and {state.digest for state in place.states()} - before:
                break
            if kind == "at the end" and any(data.glob("*model*/model.json")):
                break
            time.sleep(0.01)
        end = time.monotonic() + draw.uniform(0, 0.8)
    while process.is_running and time.monotonic() < end:
        time.sleep(0.005)


def _note_loss(place: Outputs, process: Process, killed: float, each_step: bool, tally: Tally) -> None:
    """How far the killed process had come beyond the newest state."""
    newest = next(iter(place.states()), None)
    if newest is None:
        return
    history = newest.path.parent / "model/history.csv"
    *whole_lines, _ = history.read_text(encoding="utf-8").split("\n")
    if len(whole_lines) < 2:
        return
    if each_step:
        # One that is being written, and one that is being done. Up to step 64 each has its record.
        lost = int(whole_lines[-1].partition(",")[0]) - newest.step
        assert lost <= 2, process.words
        tally.steps_lost.append(max(lost, 0))
    elif newest.path.stat().st_mtime > killed - (time.monotonic() - process.started):  # its own
        tally.seconds_lost.append(killed - newest.path.stat().st_mtime)


def _check_end(place: Workspace, stage: str, reference: Reference) -> None:
    of_stage = {"download": "data/raw/", "preprocess": ("data/images.h5", "data/rejected.csv"), "train": "data/model/"}
    wanted = {name: digest for name, digest in reference.outputs.items() if name.startswith(of_stage[stage])}
    assert len(wanted) >= 2
    assert wanted.items() <= place.outputs().items()
    assert place.leftovers() == []
    if stage == "train":
        # One that was killed before its first state, of which the next start knew nothing, has no point.
        run, *others = [run for run in place.recorded() if run.points or run.model_digest]
        assert others == []
        place.check_recorded(run)


def test_a_run_that_is_killed_on_its_way_to_a_raised_num_steps_equals_a_longer_one(
    reference: Reference, whole: bool, tmp_path: Path
) -> None:
    if not whole:
        pytest.skip("only in `make faults`")
    place = Workspace(tmp_path, params(90))
    place.take(reference.place, *INPUTS["train"])
    place.take_store(reference.store)
    place.run("train")
    (tmp_path / "params.yaml").write_text(params(reference.num_steps), encoding="utf-8")
    with place.start("train") as process:
        place.wait_for_state(process, after=90)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    place.run("train")
    assert {name: place.outputs().get(name) for name in reference.outputs if name.startswith("data/model/")} == {
        name: digest for name, digest in reference.outputs.items() if name.startswith("data/model/")
    }
    short, long = place.recorded()
    assert short.status == "FINISHED"
    assert max(step for _, step in short.points) == 90
    place.check_recorded(long)


def test_a_repro_that_is_killed_goes_on(
    repository: Path, reference: Reference, whole: bool, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    if not whole:
        pytest.skip("only in `make faults`")
    clone = make_clone(
        repository,
        tmp_path,
        gamma=0.9,
        download={"num_images": NUM_IMAGES},
        quick={
            "train": TINY | {"num_steps": reference.num_steps, "evaluate_every": EVALUATE_EVERY},
            "evaluate": {"num_samples": 8},
        },
    )
    clone.environment["BEGAN_CHECKPOINT_SECONDS"] = "0.3"
    place = Outputs(clone.root)
    command = [sys.executable, "-m", "dvc", "repro"]
    with Process(command, clone.root, clone.environment, tmp_path / "log") as process:
        place.wait_for_state(process)
        process.send(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert "Going on from step" in clone.dvc("repro")
    outputs = {name: digest for name, digest in place.outputs().items() if name in reference.outputs}
    assert outputs == reference.outputs
    assert place.leftovers() == []
    place.check_recorded(place.recorded()[-1])
    figure("kill of `dvc repro`, then `dvc repro`", "identical bytes")


def test_a_store_whose_making_was_killed_is_made_anew(whole: bool, tmp_path: Path) -> None:
    """MLflow refuses for ever what it has left with half of its tables."""
    if not whole:
        pytest.skip("only in `make faults`")
    place = Workspace(tmp_path)
    part = tmp_path / "mlflow.db.part"
    for wait in (0.0, 0.3, 0.6, 1.2):
        with Process(MAKE_STORE, tmp_path, place.environment, tmp_path / "log") as process:
            while not part.exists() and process.is_running:
                time.sleep(0.01)
            time.sleep(wait)
            process.send(signal.SIGKILL)
            code = process.wait()
        assert (tmp_path / "mlflow.db").exists() == (code == 0)
        if code == 0:
            break
    with Process(MAKE_STORE, tmp_path, place.environment, tmp_path / "log") as process:
        assert process.wait() == 0, process.words
    assert place.recorded() == []
    assert not part.exists()
