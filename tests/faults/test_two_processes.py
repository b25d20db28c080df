"""Two trainings at once: with one signature one waits for the other; with two signatures neither sees the other."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.stages import PATIENCE, TINY, Outputs, Process, Workspace, empty_store, settings
from tests.pipeline.clone import Clone, make_clone

NUM_STEPS = 96
WEIGHTS = "data/model/generator.safetensors"
WAIT = "import pipeline.train; pipeline.train.WAIT_SECONDS = {}"

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Images, and MLflow's empty store."""
    place = Workspace(tmp_path_factory.mktemp("data"))
    empty_store(place.folder)
    for stage in ("download", "preprocess"):
        place.run_here(stage)
    return place


def place_of(data: Workspace, folder: Path, gamma: float = 0.9) -> Workspace:
    place = Workspace(folder, settings(gamma=gamma, num_steps=NUM_STEPS))
    place.take(data, "images.h5")
    place.take_store(data.folder / "mlflow.db")
    return place


@pytest.fixture(scope="module")
def undisturbed(data: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], dict[str, str]]:
    """What training with a gamma gives; once each."""
    known: dict[float, dict[str, str]] = {}

    def outputs(gamma: float) -> dict[str, str]:
        if gamma not in known:
            place = place_of(data, tmp_path_factory.mktemp("undisturbed"), gamma)
            place.run_here("train")
            known[gamma] = place.outputs()
        return known[gamma]

    return outputs


def test_a_second_process_waits_and_then_says_who_has_the_states(data: Workspace, whole: bool, tmp_path: Path) -> None:
    place = place_of(data, tmp_path)
    with place.start("train") as first:
        place.wait_for_state(first)
        first.send(signal.SIGSTOP)  # it would be done too soon
        states = place.states()
        with place.start("train", patch="" if whole else WAIT.format(1)) as second:
            assert second.wait() == 2, second.words
        folder = states[0].path.parent
        assert second.last_line.startswith(f"began: {folder}: process {first.pid} on ")
        assert second.last_line.endswith("trains with the same settings and data; wait for it, or end it")
        assert second.words.count("\n") == 1
        assert place.states() == states
        first.send(signal.SIGTERM)
        first.send(signal.SIGCONT)
        assert first.wait() == 128 + signal.SIGTERM
    assert len(place.recorded()) == 1


def test_two_at_once_train_one_after_the_other(
    data: Workspace,
    undisturbed: Callable[[float], dict[str, str]],
    whole: bool,
    tmp_path: Path,
    figure: Callable[[str, str], None],
) -> None:
    if not whole:
        pytest.skip("only in `make faults`")
    place = place_of(data, tmp_path)
    patch = WAIT.format(PATIENCE)
    with place.start("train", patch=patch) as first, place.start("train", patch=patch) as second:
        assert (first.wait(), second.wait()) == (0, 0), first.words + second.words
    assert place.outputs() == undisturbed(0.9)
    assert place.leftovers() == []
    runs = place.recorded()
    assert len(runs) == 2
    for run in runs:
        place.check_recorded(run)
    figure("two processes with one signature at once", "one after the other, identical bytes")


def test_two_with_different_gamma_at_once_have_nothing_in_common(
    data: Workspace,
    undisturbed: Callable[[float], dict[str, str]],
    whole: bool,
    tmp_path: Path,
    figure: Callable[[str, str], None],
) -> None:
    if not whole:
        pytest.skip("only in `make faults`")
    one = place_of(data, tmp_path)
    # Where DVC runs an experiment: a copy inside, with the same main repository.
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "a"
    other = Workspace(copy, settings(gamma=0.5, num_steps=NUM_STEPS))
    other.environment["DVC_ROOT"] = str(copy)
    other.take(data, "images.h5")
    with one.start("train") as first, other.start("train") as second:
        assert (first.wait(), second.wait()) == (0, 0), first.words + second.words
    assert one.outputs() == undisturbed(0.9)
    assert other.outputs() == undisturbed(0.5)
    assert one.outputs() != other.outputs()
    assert len({state.path.parent for state in one.states()}) == 2
    assert other.states() == []
    digests = {place.outputs()[WEIGHTS]: place for place in (one, other)}
    for run in one.recorded():
        assert run.model_digest is not None
        digests.pop(run.model_digest).check_recorded(run)
    assert not digests
    figure("two processes with different gamma at once", "each its own bytes")


@pytest.fixture(scope="module")
def clone(repository: Path, whole: bool, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with data, in which nothing is trained yet."""
    if not whole:
        pytest.skip("only in `make faults`")
    clone = make_clone(
        repository,
        tmp_path_factory.mktemp("clone"),
        gamma=0.9,
        download={"num_images": 48},
        quick={"train": TINY | {"num_steps": NUM_STEPS}, "evaluate": {"num_samples": 8}},
    )
    clone.git("rm", "-q", "dvc.lock")
    clone.git("commit", "-qm", "as if nothing had ever run")
    clone.environment |= {"BEGAN_CHECKPOINT_SECONDS": "0.1", "BEGAN_DEVICE": "cpu"}
    clone.dvc("repro", "preprocess")
    return clone


def experiment(gamma: float) -> list[str]:
    return [sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", f"gamma={gamma}", "train"]


def test_an_interrupted_experiment_goes_on_in_its_next_copy_and_lends_its_state_to_nobody(
    clone: Clone, undisturbed: Callable[[float], dict[str, str]], tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    place = Outputs(clone.root)
    with Process(experiment(0.7), clone.root, clone.environment, tmp_path / "log") as process:
        place.wait_for_state(process)
        process.send(signal.SIGINT)
        assert process.wait() != 0
    assert "stopped at step" in process.words
    (folder,) = {state.path.parent for state in place.states()}
    states = place.states()

    other = clone.run(*experiment(0.5))
    assert other.returncode == 0, other.stdout + other.stderr
    assert "Going on" not in other.stdout + other.stderr
    assert [state for state in place.states() if state.path.parent == folder] == states

    again = clone.run(*experiment(0.7))
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"Going on from step {states[0].step} of {NUM_STEPS}" in again.stdout + again.stderr
    first, second = place.recorded()
    wanted = {gamma: undisturbed(gamma)[WEIGHTS] for gamma in (0.5, 0.7)}
    assert (first.status, first.model_digest) == ("FINISHED", wanted[0.7])
    assert (second.status, second.model_digest) == ("FINISHED", wanted[0.5])
    assert set(first.points.values()) == set(second.points.values()) == {1}
    assert first.points == second.points
    figure("an interrupted `dvc exp run --temp`, run again", "identical bytes")


def test_queued_experiments_at_once_have_a_state_each(
    clone: Clone, undisturbed: Callable[[float], dict[str, str]], tmp_path: Path
) -> None:
    place = Outputs(clone.root)
    before = len(place.recorded())
    clone.dvc("exp", "run", "--queue", "-S", "gamma=0.3,0.6", "train")
    start = [sys.executable, "-m", "dvc", "queue", "start", "-j", "2"]
    with Process(start, clone.root, clone.environment, tmp_path / "log"):
        end = time.monotonic() + 2 * PATIENCE
        while "Running" in (status := clone.dvc("queue", "status")) or "Queued" in status:
            assert time.monotonic() < end, status
            time.sleep(1)
    clone.dvc("queue", "stop")
    assert status.count("Success") == 2
    digests = {run.model_digest for run in place.recorded()[before:]}
    assert digests == {undisturbed(gamma)[WEIGHTS] for gamma in (0.3, 0.6)}
