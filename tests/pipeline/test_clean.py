"""`began clean`: shows first, then removes what nobody needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from began.data.rows import ImageWriter, open_images
from began.params import load_params
from began.runs.states import States, signature_of
from pipeline.cli import main
from pipeline.console.workspace import runs_folder
from tests import REPOSITORY


@pytest.fixture
def present(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The signature of a folder's own settings and images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    Path("params.yaml").write_text((REPOSITORY / "params.yaml").read_text())
    rows = np.zeros((10, 32, 32, 3), np.uint8)
    Path("data").mkdir()
    with ImageWriter(Path("data/images.h5"), 32, len(rows)) as writer:
        writer.append(rows)
        writer.finish([str(i) for i in range(len(rows))], 8, {"source": "test"})
    return str(signature_of(load_params(Path("params.yaml")), open_images(Path("data/images.h5")).digest))


def save(name: str, step: int = 5, gamma: float = 0.5) -> States:
    states = States(runs_folder() / name)
    parameters = {"gamma": gamma, "profile": "quick", "train.num_steps": 100}
    states.save(step, {"a": torch.zeros(10)}, {"run": {"parameters": parameters}})
    return states


def clean(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["clean", *arguments])
    assert end.value.code in (0, None)


def test_it_shows_and_removes_nothing_without_a_yes(present: str, capsys: pytest.CaptureFixture[str]) -> None:
    save("old", step=1234, gamma=0.7)
    clean()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{runs_folder() / 'old'}: gamma 0.7, quick, step 1,234 of 100, saved 20")
    assert last.startswith("Nothing removed; `began clean --yes` removes 1 run, 0.0 MB")
    assert (runs_folder() / "old").exists()


def test_with_a_yes_it_removes_all_but_the_present_settings(present: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("old", "older", present):
        save(name)
    clean("--yes")
    assert [path.name for path in runs_folder().iterdir()] == [present]
    assert capsys.readouterr().out.splitlines()[-1].startswith("Removed 2 runs, ")
    clean("--yes")
    assert capsys.readouterr().out == "No old states\n"


def test_what_a_running_process_holds_stays(present: str, capsys: pytest.CaptureFixture[str]) -> None:
    with save("held").hold(0):
        clean("--yes")
    assert capsys.readouterr().out == "No old states\n"
    assert (runs_folder() / "held").exists()


def test_without_images_or_states_it_still_works(present: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/images.h5").unlink()
    clean()
    assert capsys.readouterr().out == "No old states\n"
    (runs_folder() / "empty").mkdir(parents=True)
    save("old")
    clean("--yes")
    assert not list(runs_folder().iterdir())


def test_without_its_images_the_present_run_is_known_by_its_settings(present: str) -> None:
    """DVC removes images.h5 before it makes it anew."""
    settings = signature_of(load_params(Path("params.yaml")), "of some images").settings
    for name, about in (("present", settings), ("other", settings | {"gamma": 0.123})):
        States(runs_folder() / name).save(5, {"a": torch.zeros(1)}, {"settings": about})
    Path("data/images.h5").unlink()
    clean("--yes")
    clean("--yes", "--images", "mistyped.h5")
    assert [path.name for path in runs_folder().iterdir()] == ["present"]


def test_settings_that_are_none_are_an_error(present: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump({"gamma": 1}))
    with pytest.raises(SystemExit) as end:
        main(["clean", "--yes"])
    assert end.value.code == 2
    assert "params.yaml" in capsys.readouterr().err
