"""Ctrl-C and SIGTERM, as a terminal, a scheduler and DVC pass them on."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import began.base.files
from began.data.archives import write_member
from began.runs.states import States
from pipeline.tracking import write as tracking
from tests.faults.stages import PATIENCE, TINY, Outputs, Process, Workspace, empty_store, settings
from tests.pipeline.clone import Clone, make_clone

NUM_STEPS = 96
KINDS = (signal.SIGINT, signal.SIGTERM)
STOPPED = re.compile(r"began: stopped at step (\d+); the same command goes on from there")
WORDS = {signal.SIGINT: "began: interrupted", signal.SIGTERM: "began: terminated"}
REPRO = [sys.executable, "-m", "dvc", "repro"]

pytestmark = pytest.mark.timeout(1800)


@dataclass
class Reference:
    """A run that nothing disturbed."""

    place: Workspace
    store: Path  # MLflow's, empty
    outputs: dict[str, str]

    def copy(self, folder: Path, params: str = "") -> Workspace:
        """A folder with the same inputs for train."""
        place = Workspace(folder, params or settings(num_steps=NUM_STEPS))
        place.take(self.place, "images.h5")
        place.take_store(self.store)
        return place

    @property
    def model(self) -> dict[str, str]:
        return {name: digest for name, digest in self.outputs.items() if name.startswith("data/model/")}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    store = empty_store(tmp_path_factory.mktemp("store"))
    place = Workspace(tmp_path_factory.mktemp("reference"), settings(num_steps=NUM_STEPS))
    place.take_store(store)
    for stage in ("download", "preprocess", "train"):
        place.run_here(stage)
    return Reference(place, store, place.outputs())


def model_of(place: Outputs) -> dict[str, str]:
    return {name: digest for name, digest in place.outputs().items() if name.startswith("data/model/")}


def wait_for_steps(place: Workspace, process: Process, num: int) -> None:
    """Until the curve of the running training has `num` points."""
    while process.is_running and time.monotonic() < process.started + PATIENCE:
        histories = list(place.folder.glob(".began/runs/*/model/history.csv"))
        if any(history.read_text().count("\n") > num for history in histories):
            return
        time.sleep(0.01)
    raise AssertionError(f"no {num} points: {process.words}")


@pytest.mark.parametrize("kind", KINDS)
def test_training_stops_after_the_step_and_goes_on_from_there(
    kind: signal.Signals, reference: Reference, whole: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == signal.SIGINT and not whole:
        pytest.skip("only in `make faults`")
    place = reference.copy(tmp_path)
    with place.start("train", BEGAN_CHECKPOINT_SECONDS="3600") as process:
        wait_for_steps(place, process, 8)
        process.send(kind)
        assert process.wait() == 128 + kind, process.words
    assert "Traceback" not in process.words
    stopped = STOPPED.fullmatch(process.last_line)
    assert stopped, process.words
    step = int(stopped[1])
    assert [state.step for state in place.states()] == [step, 0]
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"images.h5"}
    (run,) = place.recorded()
    assert run.status == "KILLED"
    assert max(at for _, at in run.points) == step
    place.run_here("train")
    assert f"Going on from step {step} of {NUM_STEPS}\n" in capsys.readouterr().err
    assert model_of(place) == reference.model
    (run,) = place.recorded()
    place.check_recorded(run)


def test_a_second_ctrl_c_leaves_at_once(reference: Reference, whole: bool, tmp_path: Path) -> None:
    """… in the middle of a step, which takes seconds here."""
    if not whole:
        pytest.skip("only in `make faults`")
    place = reference.copy(tmp_path, settings(n_filters=128, N_h=64, batch_size=38))
    with place.start("train", BEGAN_CHECKPOINT_SECONDS="0") as process:
        place.wait_for_state(process, after=-1)
        time.sleep(1)
        process.send(signal.SIGINT)
        time.sleep(0.5)
        assert process.is_running, "the step was too short for this test"
        process.send(signal.SIGINT)
        assert process.wait() in (130, -signal.SIGINT)
    assert "stopped at" not in process.words
    assert [state.step for state in place.states()] == [0]


@pytest.mark.parametrize("moment", ["the model is written", "MLflow gets it", "it is put in its place", "the end"])
def test_a_signal_while_the_model_is_finished_does_not_keep_it_from_being_whole(
    moment: str, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping there would be slower than being done, and the work since the last state would be lost."""
    place = reference.copy(tmp_path)
    place.take_states(reference.place)
    owner, name = {
        "the model is written": (sys.modules["pipeline.train"], "write_model"),
        "MLflow gets it": (tracking.Run, "end"),
        "it is put in its place": (began.base.files, "flush"),
        "the end": (States, "save"),
    }[moment]
    original: Callable[..., object] = getattr(owner, name)
    sent = []

    def send_first(*arguments: object, **named: object) -> object:
        is_at_end = name == "write_model" or any((tmp_path / "data").glob("*model*/model.json"))
        if is_at_end and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, send_first)
    place.run_here("train")
    assert sent
    assert model_of(place) == reference.model
    (run,) = place.recorded()
    place.check_recorded(run)
    assert place.states()[0].step == NUM_STEPS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["download", "preprocess"])
def test_a_stage_with_workers_ends_with_one_line_and_leaves_nothing(
    stage: str, kind: signal.Signals, reference: Reference, whole: bool, tmp_path: Path
) -> None:
    if (stage, kind) != ("preprocess", signal.SIGINT) and not whole:
        pytest.skip("only in `make faults`")
    draw = random.Random(f"{stage} {kind}")
    place = Workspace(tmp_path, settings(num_images=50_000))
    raw = tmp_path / "data" / "raw"
    raw.mkdir(parents=True)
    if stage == "preprocess":
        _many_images(reference.place.folder / "data" / "raw" / "images.zip", raw / "images.zip")
    before = sorted((tmp_path / "data").rglob("*"))
    for _ in range(6 if whole else 1):
        with place.start(stage) as process:
            while not any((tmp_path / "data").rglob("*.part")) and process.is_running:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 2))  # while the workers start, and when they are at work
            process.send(kind)
            assert process.wait() == 128 + kind, process.words
            assert process.last_line == WORDS[kind], process.words
            assert all(line.startswith(f"{stage} ") or line == WORDS[kind] for line in process.words.splitlines())
            assert sorted((tmp_path / "data").rglob("*")) == before
            _wait_for_the_group(process)
    again = Workspace(tmp_path)
    if stage == "preprocess":
        (raw / "images.zip").unlink()
        raw.rmdir()
        again.take(reference.place, "raw")
    again.run(stage)
    assert again.outputs().items() <= reference.outputs.items()
    assert len(again.outputs()) == (2 if stage == "download" else 4)


def _many_images(source: Path, archive: Path) -> None:
    """More than can be decoded in the time of the test."""
    with zipfile.ZipFile(source) as file:
        picture = file.read(file.namelist()[0])
    with zipfile.ZipFile(archive, "w") as file:
        for i in range(10_000):
            write_member(file, f"{i:05}.png", picture)


def _wait_for_the_group(process: Process) -> None:
    """Until none of its processes is left."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a worker is left")


@pytest.fixture(scope="module")
def clone(repository: Path, reference: Reference, whole: bool, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with data, in which nothing is trained yet."""
    if not whole:
        pytest.skip("only in `make faults`")
    train = TINY | {"num_steps": NUM_STEPS}
    clone = make_clone(
        repository,
        tmp_path_factory.mktemp("clone"),
        gamma=0.9,
        download={"num_images": 48},
        quick={"train": train, "evaluate": {"num_samples": 8}},
    )
    clone.git("rm", "-q", "dvc.lock")
    clone.git("commit", "-qm", "as if nothing had ever run")
    clone.environment |= {"BEGAN_CHECKPOINT_SECONDS": "0.1", "BEGAN_DEVICE": "cpu"}
    clone.dvc("repro", "preprocess")
    return clone


@pytest.mark.parametrize("kind", KINDS)
def test_repro_goes_on_after_a_signal_to_all(
    kind: signal.Signals, clone: Clone, reference: Reference, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    """Ctrl-C in a terminal, and a scheduler's SIGTERM."""
    place = Outputs(clone.root)
    with Process(REPRO, clone.root, clone.environment, tmp_path / "log") as process:
        step = place.wait_for_state(process, after=_last_step(place)).step
        process.send(kind)
        assert process.wait() not in (0, None)
        _wait_for_the_group(process)
        stopped = STOPPED.search(process.words)
    assert stopped, process.words
    assert int(stopped[1]) >= step
    assert "Traceback" not in process.words
    if kind == KINDS[0]:  # the next signal is for the same run
        return
    assert f"Going on from step {stopped[1]} of {NUM_STEPS}" in clone.dvc("repro")
    assert model_of(place) == reference.model
    assert place.leftovers() == []
    (run,) = place.recorded()
    place.check_recorded(run)
    figure("Ctrl-C and SIGTERM through `dvc repro`, then `dvc repro`", "identical bytes")


def _last_step(place: Outputs) -> int:
    return max((state.step for state in place.states()), default=0)


def test_a_training_that_outlives_its_dvc_is_not_doubled(clone: Clone, reference: Reference, tmp_path: Path) -> None:
    clone.set(gamma=0.8)
    place = Outputs(clone.root)
    known = {state.digest for state in place.states()}
    with Process(REPRO, clone.root, clone.environment, tmp_path / "log") as process:
        while not (new := [state for state in place.states() if state.digest not in known and state.step > 0]):
            assert process.is_running, process.words
            time.sleep(0.01)
        process.send(signal.SIGTERM, group=False)
        assert process.wait() == -signal.SIGTERM
        holder = (new[0].path.parent / "holder").read_text()
        orphan = int(holder.split()[1])
        os.kill(orphan, signal.SIGSTOP)  # it would be done too soon
        states = States(new[0].path.parent).all()

        answer = clone.run(*REPRO)
        assert answer.returncode != 0
        assert f"process {orphan} on" in answer.stderr + answer.stdout
        assert "trains with the same settings, data and code" in answer.stderr + answer.stdout
        assert States(new[0].path.parent).all() == states

        os.kill(orphan, signal.SIGTERM)
        os.kill(orphan, signal.SIGCONT)
        _wait_for_the_group(process)
    stopped = STOPPED.search(process.words)
    assert stopped, process.words
    assert f"Going on from step {stopped[1]} of {NUM_STEPS}" in clone.dvc("repro")
    other = reference.copy(tmp_path / "other", settings(gamma=0.8, num_steps=NUM_STEPS))
    other.run_here("train")
    assert model_of(place) == model_of(other)
    place.check_recorded(place.recorded()[-1])
    assert len(place.recorded()) == 2
