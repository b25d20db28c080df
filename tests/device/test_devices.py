from __future__ import annotations

import pytest
import torch

from began.device.devices import explained_memory, resolve_device, resolve_precision

CPU = torch.device("cpu")


def test_too_little_memory_is_one_line_that_says_what_to_change():
    expected = r"^cpu: its memory is too small for this; train.batch_size: 16$"
    with pytest.raises(ValueError, match=expected), explained_memory(CPU, "train.batch_size: 16"):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="something else"), explained_memory(CPU, ""):
        raise RuntimeError("something else")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:99999", "cuda:-1", "tpu", "mps", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(ValueError, match=f"device: '{name}'"):
        resolve_device(name)


def test_an_apple_gpu_is_taken_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("mps") == torch.device("mps")
    assert resolve_device("auto").type != "mps"
    assert resolve_precision("auto", torch.device("mps")) == "float32"


def test_auto_picks_what_the_machine_has():
    device = resolve_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_precision("auto", device) in ("float32", "bfloat16")
    assert resolve_precision("bfloat16", device) == "bfloat16"
