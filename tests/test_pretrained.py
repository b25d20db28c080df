"""Weights that ship: small, whole, and better than what an untrained network draws."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from began.data.images import read_png
from began.gan.sampling import draw_z, generate
from began.pretrained import BEST, folder_of, names
from began.runs.model_folder import read_model
from pipeline.cli import main
from tests import REPOSITORY

MOST_BYTES = 5_000_000
CARD_NAMES = ("licence", "credit", "steps", "parameters", "Fréchet", "coverage", "not for")


@pytest.mark.parametrize("name", names())
def test_weights_that_ship_are_small_half_precision_and_have_a_card(name):
    folder = folder_of(name)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    for file in folder.glob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert [word for word in CARD_NAMES if word.casefold() not in card.casefold()] == []
    description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert f"{description['step']:,}" in card
    assert not description["warnings"]


@pytest.mark.parametrize("name", names())
def test_their_faces_are_different_ones(name):
    """Sixty-four faces differ as sixty-four images do: background, skin and hair; a collapsed G has a tenth of it."""
    model = read_model(folder_of(name))
    z = draw_z(64, model.description["architecture"]["N_h"], seed=1)
    faces = np.concatenate(list(generate(model.G_ema, z)))
    assert faces.std(axis=0).mean() > 30  # of 255; the drawn portraits have 44


def test_the_best_is_one_of_them():
    assert BEST in names()
    assert folder_of("portraits31") is None


def test_sample_takes_the_best_of_them_where_nothing_is_trained_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main_exits_well("sample", "--num", "4")
    assert f"the faces are of {BEST}, the weights that ship" in capsys.readouterr().out
    main_exits_well("sample", "--num", "4", "--model", BEST, "--out", "named.png")
    assert np.array_equal(read_png(Path("samples.png")), read_png(Path("named.png")))


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(BEST).mkdir()
    with pytest.raises(SystemExit) as ended:
        main(["sample", "--model", BEST])
    assert ended.value.code == 2  # an empty folder is no model


def test_weights_come_with_an_installed_package(tmp_path):
    """setuptools takes along what pyproject.toml names; a weight it forgets is missed only by those who install."""
    source = REPOSITORY
    for name in ("began", "pipeline"):
        shutil.copytree(source / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source / name, tmp_path)
    script = "import setuptools; setuptools.setup(script_args=['-q', 'build_py', '--build-lib', 'out'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for file in folder_of(BEST).iterdir():
        assert (tmp_path / "out" / "began" / "pretrained" / BEST / file.name).read_bytes() == file.read_bytes()


def main_exits_well(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code in (0, None)
