"""The train stage and `began sample`, on real files."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient

import began.gan.divergence
import began.gan.training
from began import pretrained
from began.data.images import read_png, tiles
from began.data.rows import ImageFile
from began.gan.training import Training
from began.runs.model_folder import read_model
from began.runs.states import States
from pipeline.cli import main
from pipeline.console.workspace import runs_folder
from pipeline.tracking.store import store_uri
from tests import REPOSITORY


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with tiny params.yaml, images.h5 (through the real preprocess) and a trained model."""
    folder = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("BEGAN_WORKERS", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
        params["gamma"] = 0.9
        params["download"] |= {"source": "portraits", "num_images": 40}
        params["profiles"]["quick"]["train"] |= {
            "n_filters": 4,
            "N_h": 8,
            "batch_size": 4,
            "num_steps": 50,
        }
        Path("params.yaml").write_text(yaml.safe_dump(params))
        for stage in ("download", "preprocess", "train"):
            run(stage)
        yield folder


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code in (0, None)


def error_of(capsys, *arguments: str, last: bool = False) -> str:
    """The one line on standard error; the last one where progress stands before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 or last
    return lines[-1]


def test_the_curve_has_at_least_twenty_points_with_the_agreed_columns(workspace):
    with Path("data/model/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("step", "M_global", "L_real", "L_fake", "L_D", "L_G", "k_t", "learning_rate", "images_per_second")
    ]
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 51)]
    for row in rows:
        assert float(row["M_global"]) > 0 and 0 <= float(row["k_t"]) <= 1


def test_pictures_of_samples_and_reconstructions_lie_beside_the_model(workspace):
    samples = sorted(Path("data/model/samples").iterdir())
    assert samples[0].name == "0000000.png" and samples[-1].name == "0000050.png"
    assert [path.stem for path in samples[1:-1]] == [f"{step:07d}" for step in range(8, 50, 8)]
    assert tiles(read_png(samples[-1]), 32).shape == (64, 32, 32, 3)
    assert sorted(Path("data/model/reconstructions").iterdir())[-1].name == "0000050.png"


def test_the_model_says_what_made_it(workspace):
    description = json.loads(Path("data/model/model.json").read_text())
    assert description["step"] == 50
    assert description["parameters"]["gamma"] == 0.9
    assert description["data"]["source"] == "portraits"
    assert description["data"]["num_train"] == 32
    read_model(Path("data/model"))


def test_the_same_settings_train_the_same_bytes(workspace):
    run("train", "data/images.h5", "data/again")
    for name in ("generator.safetensors", "discriminator.safetensors", "samples/0000050.png"):
        assert Path("data/again", name).read_bytes() == Path("data/model", name).read_bytes()


def test_a_finished_run_starts_afresh_when_it_is_run_again(workspace, capsys):
    """… as `dvc repro --force` asks for."""
    for _ in range(2):
        run("train", "data/images.h5", "data/fresh")
        assert "Going on" not in capsys.readouterr().err


def test_a_model_folder_is_replaced_whole(workspace):
    run("train", "data/images.h5", "data/again2")
    stray = Path("data/again2/stray.txt")
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


def test_an_exported_model_is_sampled_like_any_other(workspace, capsys):
    run("export", "shared")
    assert "shared: 0." in capsys.readouterr().out
    for model, name in (("shared", "half.npz"), ("data/model", "whole.npz")):
        run("sample", "--num", "4", "--model", model, "--out", name)
    half, whole = (np.load(name)["images"].astype(int) for name in ("half.npz", "whole.npz"))
    assert np.abs(half - whole).max() <= 3  # of 255: weights have eleven bits
    assert not list(Path("shared").rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "data"), "data: expected a new or an empty folder"),
        (("export", "none/x"), "the folder 'none' does not exist"),
        (("export", "new", "--model", "data"), "data/model.json: no such file"),
        (("sample", "--out", "x.jpg"), "'x.jpg', expected a name that ends in .png or .npz"),
        (("sample", "--out", "none/x.png"), "the folder 'none' does not exist"),
        (("sample", "--out", "data"), "expected a new or an empty folder"),
        (
            ("sample", "--model", "nowhere"),
            f"nowhere: no trained model there; `make repro` trains one, ready is {', '.join(pretrained.names())}",
        ),
        (("sample", "--model", "data"), "data/model.json: no such file"),
        (("train", "params.yaml"), "params.yaml"),
        (("train", "nowhere.h5"), "nowhere.h5"),
        (("train", "--device", "gpu"), "device: 'gpu'"),
        (("train", "--params", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("train", "data/images.h5", "data"), "data: holds other things than a model, expected a new folder"),
        (("train", "data/images.h5", "params.yaml"), "params.yaml: is a file, expected a folder"),
    ],
)
def test_bad_input_is_one_line_that_names_it(workspace, capsys, arguments, message):
    assert message in error_of(capsys, *arguments)


@pytest.mark.parametrize("arguments", [("sample", "--out", "."), ("export", ".")])
def test_the_current_folder_is_not_replaced(capsys, monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    assert "expected a new or an empty folder" in error_of(capsys, *arguments)


def test_another_image_size_is_refused(workspace, capsys, tmp_path):
    text = Path("params.yaml").read_text().replace("image_size: 32", "image_size: 64")
    (tmp_path / "params.yaml").write_text(text)
    message = error_of(capsys, "train", "--params", str(tmp_path / "params.yaml"))
    assert "images of size 32, expected 64" in message


def settings_file(folder: Path, name: str = "params.yaml", **train: object) -> tuple[str, str]:
    """`--params FILE` with the workspace's settings and `train`."""
    document = yaml.safe_load(Path("params.yaml").read_text())
    document["profiles"]["quick"]["train"] |= train
    document["gamma"] = 0.61  # so that no other test's state is met
    (folder / name).write_text(yaml.safe_dump(document))
    return "--params", str(folder / name)


def newest_folder() -> Path:
    return max(runs_folder().iterdir(), key=lambda folder: folder.stat().st_mtime_ns)


def state_folder(model: str | Path) -> Path:
    return runs_folder() / json.loads((Path(model) / "model.json").read_text())["signature"]


def curve(model: Path) -> list[dict[str, str]]:
    """history.csv but for its clock."""
    with (model / "history.csv").open() as file:
        return [{name: row[name] for name in row if name != "images_per_second"} for row in csv.DictReader(file)]


def files(model: Path) -> dict[str, bytes]:
    """The model folder but for the clock and MLflow's way."""
    return {
        str(path.relative_to(model)): path.read_bytes()
        for path in sorted(model.rglob("*"))
        if path.is_file() and path.name not in ("history.csv", "model.json")
    }


def distances(model: Path) -> dict[int, float]:
    """distances.csv as step → distance."""
    with (model / "distances.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "face_distance"]
    return {int(step): float(distance) for step, distance in rows[1:]}


def recorded(model: Path) -> str:
    """The id of the model's run in MLflow."""
    digest = json.loads((model / "model.json").read_text())["weights"]["generator.safetensors"]
    return str(MlflowClient(store_uri()).search_runs(["1"], f"tags.model_digest = '{digest}'")[0].info.run_id)


@contextmanager
def at_step(k: int, action: Callable[[Training], object]) -> Iterator[None]:
    """Inside, `action(training)` is done between step k and the next."""
    original = began.gan.loop.train

    def watched(training, batches):
        for step in original(training, batches):
            if training.num_done == k:
                action(training)
            yield step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(began.gan.loop, "train", watched)
        yield


def stop(training: Training) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_goes_on_to_the_same_bytes(workspace, capsys, tmp_path, kind, code):
    params = settings_file(tmp_path, ema_decay=0.9 + kind / 1000, evaluate_every=9)
    run("train", "data/images.h5", str(tmp_path / "whole"), *params)
    shutil.rmtree(state_folder(tmp_path / "whole"))
    before = signal.getsignal(kind)
    for step in (17, 36):
        with at_step(step, lambda training: os.kill(os.getpid(), kind)), pytest.raises(SystemExit) as end:
            main(["train", "data/images.h5", str(tmp_path / "cut"), *params])
        assert end.value.code == code
        assert f"began: stopped at step {step}; the same command goes on from there" in capsys.readouterr().err
        assert States(state_folder(tmp_path / "whole")).all()[0].step == step
        assert not list(tmp_path.glob("*cut*"))
    assert signal.getsignal(kind) == before
    run("train", "data/images.h5", str(tmp_path / "cut"), *params)
    assert "Going on from step 36 of 50" in capsys.readouterr().err
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole")
    assert list(distances(tmp_path / "cut")) == [9, 18, 27, 36, 45]


def test_a_signal_after_the_last_step_ends_nothing(workspace, tmp_path):
    with at_step(50, stop):
        run("train", "data/images.h5", str(tmp_path / "model"), *settings_file(tmp_path, ema_decay=0.8))
    read_model(tmp_path / "model")


def test_more_steps_continue_and_equal_one_longer_run(workspace, capsys, tmp_path):
    longer = settings_file(tmp_path, "longer.yaml", num_steps=83, evaluate_every=67)
    run("train", "data/images.h5", str(tmp_path / "whole"), *longer)
    shutil.rmtree(state_folder(tmp_path / "whole"))
    # 67 is a step at which the longer run has neither a record nor a picture.
    shorter = settings_file(tmp_path, "shorter.yaml", num_steps=67, evaluate_every=67)
    run("train", "data/images.h5", str(tmp_path / "first"), *shorter)
    capsys.readouterr()
    run("train", "data/images.h5", str(tmp_path / "rest"), *longer)
    assert "Going on from step 67 of 83" in capsys.readouterr().err
    assert files(tmp_path / "rest") == files(tmp_path / "whole")
    assert list(distances(tmp_path / "rest")) == [67]
    assert curve(tmp_path / "rest") == curve(tmp_path / "whole")


def test_fewer_steps_start_afresh_and_the_longer_run_can_still_be_continued(workspace, capsys, tmp_path):
    longest, long, short = (settings_file(tmp_path, f"{num}.yaml", beta_1=0.21, num_steps=num) for num in (50, 40, 10))
    run("train", "data/images.h5", str(tmp_path / "model"), *long)
    capsys.readouterr()
    run("train", "data/images.h5", str(tmp_path / "model"), *short)
    err = capsys.readouterr().err
    assert "has done 40 steps; starting afresh for 10" in err and "Going on" not in err
    run("train", "data/images.h5", str(tmp_path / "model"), *longest)
    assert "Going on from step 40 of 50" in capsys.readouterr().err
    fresh = settings_file(tmp_path, "fresh.yaml", beta_1=0.21, num_steps=50)
    shutil.rmtree(state_folder(tmp_path / "model"))
    run("train", "data/images.h5", str(tmp_path / "whole"), *fresh)
    assert files(tmp_path / "model") == files(tmp_path / "whole")
    assert curve(tmp_path / "model") == curve(tmp_path / "whole")


def test_a_state_that_cannot_be_read_is_passed_over(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_1=0.23)
    with at_step(20, stop), pytest.raises(SystemExit):
        main(["train", "data/images.h5", str(tmp_path / "model"), *params])
    (newest_folder() / f"000000021-{'0' * 64}.safetensors").mkdir()
    run("train", "data/images.h5", str(tmp_path / "model"), *params)
    assert "Going on from step 20 of 50" in capsys.readouterr().err


def test_another_gamma_never_goes_on_from_this_ones_state(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_1=0.4)
    with at_step(20, stop), pytest.raises(SystemExit):
        main(["train", "data/images.h5", str(tmp_path / "one"), *params])
    text = Path(params[1]).read_text()
    Path(params[1]).write_text(text.replace("gamma: 0.61", "gamma: 0.62"))
    capsys.readouterr()
    run("train", "data/images.h5", str(tmp_path / "other"), *params)
    assert "Going on" not in capsys.readouterr().err


def test_what_is_no_state_of_this_code_is_passed_over(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_1=0.22)
    model = str(tmp_path / "model")
    with at_step(30, stop), pytest.raises(SystemExit):
        main(["train", "data/images.h5", model, *params])
    states = States(newest_folder())
    tensors, about = states.all()[0].read()
    changes = (
        lambda t, a: a.pop("run"),
        lambda t, a: a["run"].update(more=1),
        lambda t, a: t.pop("num_recorded"),
        lambda t, a: t.pop("num_done"),
        lambda t, a: t.update(num_recorded=torch.tensor(39)),  # a point that the curve lacks
    )
    for step, change in enumerate(changes, 31):
        other_tensors, other_about = dict(tensors), json.loads(json.dumps(about))
        change(other_tensors, other_about)
        states.save(40, other_tensors, other_about)
        capsys.readouterr()
        with at_step(step, stop), pytest.raises(SystemExit):
            main(["train", "data/images.h5", model, *params])
        first, second, *_ = capsys.readouterr().err.splitlines()
        assert f"{states.folder}/000000040-" in first and "is not a state of this code" in first
        assert "Going on from step" in second
        states.remove([state for state in states.all() if state.step == 40])


def test_a_curve_that_was_cut_short_costs_the_states_that_need_it(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_1=0.24)
    with at_step(20, stop), pytest.raises(SystemExit):
        main(["train", "data/images.h5", str(tmp_path / "model"), *params])
    (newest_folder() / "model/history.csv").unlink()
    capsys.readouterr()
    run("train", "data/images.h5", str(tmp_path / "model"), *params)
    err = capsys.readouterr().err
    assert "history.csv: cannot be gone on with" in err and "Going on" not in err
    assert len(curve(tmp_path / "model")) == 50


def test_a_damaged_state_costs_a_line_and_the_one_before_it_is_taken(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_1=0.1)
    run("train", "data/images.h5", str(tmp_path / "whole"), *params)
    folder = state_folder(tmp_path / "whole")
    shutil.rmtree(folder)
    with at_step(30, stop), pytest.raises(SystemExit):
        main(["train", "data/images.h5", str(tmp_path / "cut"), "--checkpoint-seconds", "0", *params])
    newest, older = States(folder).all()
    assert (newest.step, older.step) == (30, 30) or older.step == 29
    newest.path.write_bytes(newest.path.read_bytes()[:-1])
    capsys.readouterr()
    run("train", "data/images.h5", str(tmp_path / "cut"), *params)
    err = capsys.readouterr().err
    assert f"{newest.path}: is damaged" in err and f"Going on from step {older.step} of 50" in err
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_another_machine_is_told_when_a_run_goes_on_there(workspace, capsys, tmp_path, monkeypatch):
    params = settings_file(tmp_path, beta_1=0.05)
    with at_step(20, stop), pytest.raises(SystemExit):
        main(["train", "data/images.h5", str(tmp_path / "model"), *params])
    here = torch.__version__
    monkeypatch.setattr(torch, "__version__", "9.9")
    capsys.readouterr()
    run("train", "data/images.h5", str(tmp_path / "model"), *params)
    expected = f"It was saved with torch {here}; here is torch 9.9: the numbers will differ"
    assert expected in capsys.readouterr().err


def test_distances_to_held_out_images_come_as_often_as_asked_for_and_change_no_step(workspace, tmp_path):
    for name, every in (("without", 0), ("with", 16)):
        params = settings_file(tmp_path, f"{name}.yaml", beta_1=0.41, evaluate_every=every)
        run("train", "data/images.h5", str(tmp_path / name), *params)
    found = distances(tmp_path / "with")
    assert list(found) == [16, 32, 48]  # 50, the last step, is no multiple
    assert all(distance > 0 for distance in found.values()) and len(set(found.values())) == 3
    points = MlflowClient(store_uri()).get_metric_history(recorded(tmp_path / "with"), "face_distance")
    assert {point.step: point.value for point in points} == found
    assert len(points) == len(found)

    assert distances(tmp_path / "without") == {}
    with_, without = files(tmp_path / "with"), files(tmp_path / "without")
    assert with_.pop("distances.csv") != without.pop("distances.csv")
    assert with_ == without
    assert curve(tmp_path / "with") == curve(tmp_path / "without")


def test_a_distance_that_is_not_due_loads_no_network(workspace, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("began.evaluation.face_distance.FaceDistance", lambda *_: 1 / 0)
    run("train", "data/images.h5", str(tmp_path / "model"), *settings_file(tmp_path, beta_1=0.42, evaluate_every=51))
    assert "face distance" not in capsys.readouterr().err
    assert distances(tmp_path / "model") == {}


@pytest.mark.parametrize("lacking", ["a package", "rows"])
def test_where_no_distance_can_be_measured_a_line_says_why(workspace, capsys, tmp_path, monkeypatch, lacking):
    if lacking == "a package":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        for name in ("began.evaluation.face_distance", "began.evaluation.features"):
            monkeypatch.delitem(sys.modules, name, raising=False)
    else:
        monkeypatch.setattr(ImageFile, "held_out", property(lambda file: file.rows[file.num_train :][:1]))
    params = settings_file(tmp_path, beta_1=0.43 if lacking == "rows" else 0.44, evaluate_every=16)
    run("train", "data/images.h5", str(tmp_path / "model"), *params)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "distance" in line]
    why = "1 held-out images, expected at least 2" if lacking == "rows" else "onnxruntime"
    assert line.startswith("train.evaluate_every: no face distance is measured: ") and why in line
    assert distances(tmp_path / "model") == {}
    read_model(tmp_path / "model")


def poison(training) -> None:
    with torch.no_grad():
        training.players.D.decoder.last.bias.fill_(torch.nan)


def test_a_run_that_diverges_stops_with_its_last_good_state_kept(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_2=0.9)
    with at_step(20, poison), pytest.raises(SystemExit) as end:
        main(["train", "data/images.h5", str(tmp_path / "model"), "--checkpoint-seconds", "0", *params])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"began: .* not finite after step 20|began: M_global is nan after step 21", line)
    assert not (tmp_path / "model").exists()
    assert [state.step for state in States(newest_folder()).all()] == [19, 18]


def test_a_run_that_may_rewind_goes_back_with_half_the_learning_rate(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_2=0.91, on_divergence="rewind", evaluate_every=20, learning_rate=4e-4)
    with at_step(40, lambda training: poison(training) if training.num_rewinds < 2 else None):
        run("train", "data/images.h5", str(tmp_path / "model"), *params)
    err = capsys.readouterr().err
    assert "M_global is nan after step 41: went back to step 0 with 1/2 of the learning rate" in err
    assert "M_global is nan after step 41: went back to step 0 with 1/4 of the learning rate" in err
    assert json.loads((tmp_path / "model/model.json").read_text())["warnings"] == [
        "M_global is nan after step 41: went back to step 0 with 1/4 of the learning rate"
    ]
    rows = curve(tmp_path / "model")
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 51)]  # of the last attempt only
    assert float(rows[0]["learning_rate"]) == pytest.approx(1e-4, rel=0.01)
    assert list(distances(tmp_path / "model")) == [20, 40]


def test_rewinding_has_an_end(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_2=0.92, on_divergence="rewind")
    with at_step(10, poison), pytest.raises(SystemExit) as end:
        main(["train", "data/images.h5", str(tmp_path / "model"), *params])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("; 3 rewinds did not help")


def explode(training) -> None:
    """Finite, and with a low rate too far away to come back from."""
    with torch.no_grad():
        training.players.D.decoder.last.weight.mul_(100)


def test_a_loss_that_explodes_but_stays_finite_ends_the_run(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_2=0.93, num_steps=80, learning_rate=1e-5)
    with at_step(20, explode), pytest.raises(SystemExit) as end:
        main(["train", "data/images.h5", str(tmp_path / "model"), "--checkpoint-seconds", "0", *params])
    assert end.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"began: L_real is \S+ after step 52, its best was \S+: training diverged after step 20; "
        r"train.learning_rate: 1e-05, expected a lower one",
        line,
    )
    assert not (tmp_path / "model").exists()
    assert max(state.step for state in States(newest_folder()).all()) <= 20  # none of the explosion


@pytest.mark.parametrize(("checkpoint_seconds", "goes_back_to"), [("3600", range(1)), ("0", range(10, 20))])
def test_an_explosion_is_rewound_to_before_it(workspace, capsys, tmp_path, checkpoint_seconds, goes_back_to):
    beta_2 = 0.94 if checkpoint_seconds == "0" else 0.942
    params = settings_file(tmp_path, beta_2=beta_2, num_steps=80, learning_rate=1e-5, on_divergence="rewind")
    options = ("--checkpoint-seconds", checkpoint_seconds, *params)
    with at_step(20, lambda training: explode(training) if training.num_rewinds < 1 else None):
        run("train", "data/images.h5", str(tmp_path / "model"), *options)
    [words] = json.loads((tmp_path / "model/model.json").read_text())["warnings"]
    match = re.match(r"L_real is \S+ after step 52, .* went back to step (\d+) with 1/2 of the learning rate", words)
    assert match and int(match[1]) in goes_back_to
    assert max(float(row["L_real"]) for row in curve(tmp_path / "model")) < 3


def test_an_explosion_near_the_end_is_told(workspace, capsys, tmp_path):
    params = settings_file(tmp_path, beta_2=0.95)
    with at_step(30, explode):
        run("train", "data/images.h5", str(tmp_path / "model"), *params)
    [words] = json.loads((tmp_path / "model/model.json").read_text())["warnings"]
    assert re.match(r"L_real is \S+ after step 31, its best was \S+: training exploded", words)


def test_a_collapsed_generator_and_a_stuck_k_t_are_told_once_and_kept(workspace, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(began.gan.divergence, "COLLAPSE_GRACE_STEPS", 20)
    monkeypatch.setattr(began.gan.divergence, "COLLAPSED_SHARE", 9.0)
    monkeypatch.setattr(began.gan.divergence, "STEPS_AT_BOUND", 10)
    monkeypatch.setattr(began.gan.training, "K_T_GRACE_STEPS", 15)
    document = yaml.safe_load(Path(settings_file(tmp_path)[1]).read_text()) | {"lambda_k": 0.0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    run("train", "data/images.h5", str(tmp_path / "model"), "--params", str(tmp_path / "params.yaml"))
    warned = [line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    assert len(warned) == 2
    assert warned[0].startswith("at step 24 samples varied ")
    assert warned[1].startswith("at step 25 k_t had been 0 or 1 for 10 steps")
    description = json.loads((tmp_path / "model/model.json").read_text())
    assert description["warnings"] == warned
    (found,) = (
        run.data.tags
        for run in MlflowClient(store_uri()).search_runs(["1"])
        if run.data.tags.get("signature") == description["signature"]
    )
    assert [found["warning.collapse"], found["warning.k_t"]] == warned


def test_a_failed_run_leaves_the_older_model_alone(workspace, capsys, tmp_path):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["profiles"]["quick"]["train"]["batch_size"] = 33
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    before = Path("data/model/model.json").read_bytes()
    message = error_of(capsys, "train", "--params", str(tmp_path / "params.yaml"))
    assert "batch_size: 33, expected at most the 32 training rows" in message
    assert Path("data/model/model.json").read_bytes() == before
    assert not list(Path("data").glob(".*.part"))


def test_the_curve_keeps_float32_precision(workspace):
    """Nine digits tell any two float32 apart."""
    with Path("data/model/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("M_global", "L_real", "k_t", "learning_rate"):
        for row in rows:
            value = np.float32(row[name])
            assert float(row[name]) == pytest.approx(float(value), rel=1e-8)
    assert len({row["M_global"] for row in rows}) == len(rows)
