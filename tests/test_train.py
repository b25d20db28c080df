"""The train stage and `began sample`, on real files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from began.checkpoint import read_model
from began.devices import resolve_precision
from began.images import read_png, tiles
from pipeline.cli import main

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with tiny params.yaml, images.h5 (through the real preprocess) and a trained model."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BEGAN_WORKERS", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["download"] |= {"source": "avatars", "num_images": 40}
        params["profiles"]["quick"]["train"] |= {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 50}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        for stage in ("download", "preprocess", "train"):
            run(stage)
        yield folder


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code in (0, None)


def error_of(capsys, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    return message


def test_the_curve_has_at_least_twenty_points_with_the_agreed_columns(workspace):
    with Path("data/model/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("step", "M_global", "L_real", "L_fake", "L_D", "L_G", "k_t", "learning_rate", "images_per_second")
    ]
    assert len(rows) >= 20
    assert rows[-1]["step"] == "50"
    for row in rows:
        assert float(row["M_global"]) > 0 and 0 <= float(row["k_t"]) <= 1


def test_pictures_of_samples_and_reconstructions_lie_beside_the_model(workspace):
    samples = sorted(Path("data/model/samples").iterdir())
    assert samples[0].name == "0000000.png" and samples[-1].name == "0000050.png"
    assert len(samples) == 13
    assert tiles(read_png(samples[-1]), 32).shape == (64, 32, 32, 3)
    assert sorted(Path("data/model/reconstructions").iterdir())[-1].name == "0000050.png"


def test_the_model_says_what_made_it(workspace):
    description = json.loads(Path("data/model/model.json").read_text())
    assert description["step"] == 50
    assert description["parameters"]["gamma"] == 1.0
    assert description["data"]["source"] == "avatars"
    assert description["data"]["num_train"] == 32
    read_model(Path("data/model"))


def test_the_same_settings_train_the_same_bytes(workspace):
    run("train", "data/images.h5", "data/again")
    for name in ("generator.safetensors", "discriminator.safetensors", "samples/0000050.png"):
        assert Path("data/again", name).read_bytes() == Path("data/model", name).read_bytes()


def test_a_model_folder_is_replaced_whole(workspace):
    stray = Path("data/again2/stray.txt")
    stray.parent.mkdir()
    stray.write_text("older")
    run("train", "data/images.h5", "data/again2")
    assert not stray.exists() and Path("data/again2/model.json").exists()


def test_the_same_seed_samples_the_same_pixels(workspace):
    for name, seed in (("a.npz", "3"), ("b.npz", "3"), ("c.npz", "4")):
        run("sample", "--num", "5", "--seed", seed, "--out", name)
    a, b, c = (np.load(name)["images"] for name in ("a.npz", "b.npz", "c.npz"))
    assert a.shape == (5, 32, 32, 3) and a.dtype == np.uint8
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_a_grid_and_a_folder_hold_the_same_faces_as_the_array(workspace):
    for out in ("faces.npz", "faces.png", "faces"):
        run("sample", "--num", "9", "--out", out)
    array = np.load("faces.npz")["images"]
    assert np.array_equal(tiles(read_png(Path("faces.png")), 32), array)
    files = sorted(Path("faces").iterdir())
    assert [file.name for file in files] == [f"{i}.png" for i in range(9)]
    assert np.array_equal(np.stack([read_png(file) for file in files]), array)


def test_a_weights_file_can_be_named(workspace):
    run("sample", "--num", "2", "--model", "data/model/generator.safetensors", "--out", "two.png")
    assert Path("two.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sample", "--out", "x.jpg"), "'x.jpg', expected a name that ends in .png or .npz"),
        (("sample", "--out", "none/x.png"), "the folder 'none' does not exist"),
        (("sample", "--out", "data"), "expected a new or an empty folder"),
        (("sample", "--model", "nowhere"), "nowhere: no trained model there; `make repro` trains one"),
        (("sample", "--model", "data"), "data/model.json: no such file"),
        (("train", "params.yaml"), "params.yaml"),
        (("train", "nowhere.h5"), "nowhere.h5"),
        (("train", "--device", "gpu"), "device: 'gpu'"),
        (("train", "--params", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("train", "data/images.h5", "params.yaml"), "params.yaml: is a file, expected a folder"),
    ],
)
def test_bad_input_is_one_line_that_names_it(workspace, capsys, arguments, message):
    assert message in error_of(capsys, *arguments)


def test_another_image_size_is_refused(workspace, capsys, tmp_path):
    text = Path("params.yaml").read_text().replace("image_size: 32", "image_size: 64")
    (tmp_path / "params.yaml").write_text(text)
    message = error_of(capsys, "train", "--params", str(tmp_path / "params.yaml"))
    assert "images of size 32, expected 64" in message


def test_a_failed_run_leaves_the_older_model_alone(workspace, capsys, tmp_path):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["profiles"]["quick"]["train"]["batch_size"] = 33
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    before = Path("data/model/model.json").read_bytes()
    message = error_of(capsys, "train", "--params", str(tmp_path / "params.yaml"))
    assert "batch_size: 33, expected at most the 32 training rows" in message
    assert Path("data/model/model.json").read_bytes() == before
    assert not list(Path("data").glob(".*.part"))


def test_bfloat16_where_it_is_slower_costs_a_line_with_the_reason(workspace, capsys, tmp_path):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["profiles"]["quick"]["train"] |= {"precision": "bfloat16", "num_steps": 2}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    run("train", "data/images.h5", str(tmp_path / "model"), "--params", str(tmp_path / "params.yaml"))
    warned = re.findall(
        r"^train.precision: bfloat16 is slower than float32 on cpu: a matrix product takes [\d.]+ times as long; "
        r"auto takes float32 here$",
        capsys.readouterr().err,
        re.MULTILINE,
    )
    assert len(warned) == (resolve_precision("auto", torch.device("cpu")) == "float32")
    assert json.loads((tmp_path / "model/model.json").read_text())["precision"] == "bfloat16"


def test_the_curve_keeps_float32_precision(workspace):
    """Nine digits tell any two float32 apart."""
    with Path("data/model/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("M_global", "L_real", "k_t", "learning_rate"):
        for row in rows:
            value = np.float32(row[name])
            assert float(row[name]) == pytest.approx(float(value), rel=1e-8)
    assert len({row["M_global"] for row in rows}) == len(rows)
