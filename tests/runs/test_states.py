"""States on disk and the signature they lie under."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from began.params import Params, load_params
from began.runs.states import NUM_KEPT, States, signature_of
from tests import REPOSITORY


@pytest.fixture(scope="module")
def params() -> Params:
    return load_params(REPOSITORY / "params.yaml")


def changed(params: Params, **train) -> Params:
    return params.model_copy(update={"train": params.train.model_copy(update=train)})


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"weights": torch.rand(3, 5, generator=generator), "count": torch.tensor(seed), "none": torch.empty(0)}


def saved(folder: Path, *steps: int) -> States:
    states = States(folder)
    for step in steps:
        states.save(step, tensors(step), {"run": {"step": step}})
    return states


def test_a_state_reads_back_as_it_was_saved(tmp_path):
    states = saved(tmp_path, 7)
    (state,) = states.all()
    found, about = state.read()
    assert about == state.about() == {"run": {"step": 7}}
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(7).items())


def test_the_last_two_are_kept_and_the_newest_comes_first(tmp_path):
    states = saved(tmp_path, 5, 10, 100, 1000)
    assert [state.step for state in states.all()] == [1000, 100]
    assert len(list(tmp_path.iterdir())) == NUM_KEPT


def test_of_two_of_one_step_the_one_saved_last_is_newer(tmp_path):
    """A run that goes on under a raised num_steps saves its first state anew, with another run of MLflow."""
    for num in range(8):
        saved(tmp_path / str(num), 1, 5).save(5, tensors(), {"run": {"id": num}})
        time.sleep(0.02)  # the clock of a file system has ticks
        States(tmp_path / str(num)).save(5, tensors(), {"run": {"id": "last"}})
        assert States(tmp_path / str(num)).all()[0].about() == {"run": {"id": "last"}}


@pytest.mark.parametrize("position", [0, 8, 60, 300, -1])
def test_a_damaged_state_is_known(tmp_path, position):
    (state,) = saved(tmp_path, 7).all()
    content = bytearray(state.path.read_bytes())
    content[position] ^= 1
    state.path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{state.path.name}: is damaged: its SHA-256"):
        state.read()


@pytest.mark.parametrize("num_bytes", [0, 3, 8, 200])
def test_a_state_that_is_cut_short_is_known(tmp_path, num_bytes):
    (state,) = saved(tmp_path, 7).all()
    state.path.write_bytes(state.path.read_bytes()[:num_bytes])
    with pytest.raises(ValueError, match="is damaged"):
        state.read()
    state.about()  # is for the looks, and fails never


def test_other_files_are_no_states_and_what_a_killed_process_left_goes(tmp_path):
    (tmp_path / "000000009-abc.safetensors").write_bytes(b"")
    (tmp_path / ".000000001-x.safetensors.999999.part").write_bytes(b"half")
    states = saved(tmp_path, 7)
    assert [state.step for state in states.all()] == [7]
    assert not list(tmp_path.glob(".*"))


def test_a_state_that_cannot_be_written_leaves_the_older_ones(tmp_path, monkeypatch):
    states = saved(tmp_path, 5, 7)
    before = sorted(tmp_path.iterdir())

    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        states.save(9, tensors(), {})
    assert sorted(tmp_path.iterdir()) == before


def test_another_process_waits_and_then_says_who_holds_them(tmp_path):
    program = (
        "from began.runs.states import States; from pathlib import Path\n"
        f"with States(Path({str(tmp_path)!r})).hold(0): "
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program + "print(flush=True); input()"],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "\n"
        states = States(tmp_path)
        assert not states.is_free()
        expected = rf"{tmp_path}: process {other.pid} on .* wait for it, or end it"
        with pytest.raises(ValueError, match=expected), states.hold(0.1):
            pass
        other.kill()  # what a dead process held is free
        other.wait()
        with states.hold(0.1):
            assert not States(tmp_path).is_free()
        assert states.is_free()
    finally:
        other.kill()
        other.communicate()


def test_what_shapes_a_step_makes_another_signature(params):
    one = str(signature_of(params, "0" * 64))
    assert len(one) == 16
    others = [
        signature_of(params, "1" * 64),
        *(signature_of(params.model_copy(update=change), "0" * 64) for change in SHARED),
        *(signature_of(changed(params, **change), "0" * 64) for change in SHAPING),
    ]
    assert len({one, *map(str, others)}) == 1 + len(others)


SHARED = ({"gamma": 0.7}, {"lambda_k": 0.5}, {"seed": 1})
SHAPING = (
    {"n_filters": 5},
    {"N_h": 5},
    {"skip_connections": False},
    {"vanishing_residual_steps": 5},
    {"eta": 2},
    {"mirror": True},
    {"batch_size": 5},
    {"learning_rate": 5e-5},
    {"learning_rate_floor": 5e-6},
    {"learning_rate_decay": "plateau"},
    {"decay_steps": 5},
    {"beta_1": 0.6},
    {"beta_2": 0.6},
    {"ema_decay": 0.6},
    {"precision": "bfloat16"},
    {"evaluate_every": 5},
)


def test_where_a_run_ends_makes_no_other_signature(params):
    one = signature_of(params, "0" * 64)
    for change in ({"num_steps": 5}, {"on_divergence": "rewind"}):
        assert signature_of(changed(params, **change), "0" * 64) == one
    assert signature_of(params.model_copy(update={"profile": "other"}), "0" * 64) == one


def test_every_setting_of_train_was_decided_about(params):
    """A new one is part of a step until somebody says otherwise."""
    decided = {name for change in SHAPING for name in change} | {"num_steps", "on_divergence"}
    assert decided == type(params.train).model_fields.keys()
