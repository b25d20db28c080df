"""`began log` on models that the train stage made, in a real SQLite store read back through MLflow's own client."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Param
from mlflow.entities import Run as StoredRun
from safetensors.torch import load_file, save_file

from began.data.rows import ImageWriter
from began.params import load_params
from began.runs.model_folder import write_description
from pipeline.cli import main
from pipeline.tracking.write import create_store, start_run
from tests import REPOSITORY, hide_mlflow

NUM_STEPS = 24


@dataclass(frozen=True)
class Workspace:
    """A folder with params.yaml, images.h5, a model trained without MLflow and DVC, and what that training printed."""

    folder: Path
    trained: subprocess.CompletedProcess[str]

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def copy_model(self, name: str, signature: str | None = None) -> Path:
        """The same model under another `model_digest`: to the store another model."""
        copy = self.folder / name
        shutil.copytree(self.model, copy)
        generator = copy / "generator.safetensors"
        save_file(load_file(generator), generator, {"name": name})
        write_description(copy, describe(copy) | {"signature": signature or name})
        return copy

    def runs(self, model: Path) -> list[StoredRun]:
        digest = digest_of(model)
        return list(self.client.search_runs(["1"], f"tags.model_digest = '{digest}'"))

    def points(self, run_id: str, names: list[str]) -> dict[str, list[tuple[int, float]]]:
        """Metric → all its points, those of one step too."""
        histories = {name: self.client.get_metric_history(run_id, name) for name in names}
        return {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}

    def files(self, run_id: str) -> list[str]:
        folders = (None, "samples", "reconstructions")
        listed = [file for folder in folders for file in self.client.list_artifacts(run_id, folder)]
        return sorted(file.path for file in listed if not file.is_dir)

    def shown(self, run_id: str) -> list[str]:
        """What MLflow's page of the run shows, each once with a lighter file beside it, named as in the folder."""
        names = [file.path.removeprefix("images/") for file in self.client.list_artifacts(run_id, "images")]
        whole = [name.removesuffix(".png") for name in names if name.endswith(".png")]
        assert sorted(names) == sorted(f"{name}{end}" for name in whole for end in (".png", "+compressed.webp"))
        parts = [name.split("+") for name in whole]
        return sorted(f"{part[0]}/{int(part[2]):07d}.png" for part in parts)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")


def make_noise(folder: Path, batch_size: int, num_steps: int) -> None:
    """images.h5 of noise, and params.yaml of a small training on it."""
    document = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    settings = {
        "n_filters": 2,
        "N_h": 4,
        "batch_size": batch_size,
        "num_steps": num_steps,
        "precision": "float32",
    }
    settings |= {"evaluate_every": 12}
    document["gamma"] = 0.9
    document["profiles"]["quick"]["train"] |= settings
    (folder / "params.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    rows = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    with ImageWriter(folder / "images.h5", 32, len(rows)) as writer:
        writer.append(rows)
        writer.finish([f"{i}.png" for i in range(len(rows))], 16, {"source": "noise", "licence": "CC0", "credit": ""})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("log")
    make_noise(folder, batch_size=4, num_steps=NUM_STEPS)
    hidden = folder / "hidden"
    hidden.mkdir()
    for package in ("mlflow", "dvc"):
        error = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n"
        (hidden / f"{package}.py").write_text(error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{hidden}{os.pathsep}{REPOSITORY}")
        patch.setenv("DVC_ROOT", str(folder))
        patch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        trained = subprocess.run(
            [sys.executable, "-m", "pipeline", "train", "images.h5", "model", "--device", "cpu"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        create_store()
    return Workspace(folder, trained)


@pytest.fixture(autouse=True)
def _one_store(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(workspace.folder))  # making another costs seconds


def describe(model: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((model / "model.json").read_text(encoding="utf-8"))
    return read


def digest_of(model: Path) -> str:
    """`model_digest`"""
    digest: str = describe(model)["weights"]["generator.safetensors"]
    return digest


def curve_of(model: Path, name: str = "history.csv") -> dict[str, list[tuple[int, float]]]:
    """history.csv as metric → (step, value)."""
    with (model / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["step"]), float(row[name])) for row in rows] for name in rows[0] if name != "step"}


def distances_of(model: Path) -> dict[str, list[tuple[int, float]]]:
    """distances.csv likewise."""
    distances = curve_of(model, "distances.csv")
    assert [step for step, _ in distances["face_distance"]] == [12, 24]
    return distances


def files_of(model: Path) -> list[str]:
    pictures = [path.relative_to(model).as_posix() for path in model.rglob("*.png")]
    return sorted([*pictures, "model.json"])


def log(capfd: pytest.CaptureFixture[str], model: Path) -> str:
    """`began log` → the line that it printed."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["log", str(model)])
    out, err = capfd.readouterr()
    assert (ended.value.code, err, out.count("\n")) == (0, "", 1)
    return str(out.strip())


def test_without_mlflow_and_dvc_training_says_so_in_one_line_and_leaves_the_whole_curve(workspace: Workspace) -> None:
    assert workspace.trained.returncode == 0, workspace.trained.stderr
    lines = [line for line in workspace.trained.stderr.splitlines() if "MLflow" in line or "mlflow" in line]
    assert lines == ["MLflow: this run is not recorded: No module named 'mlflow'; `began log MODEL_DIR` sends it later"]
    curve = curve_of(workspace.model)
    assert len(curve) == 8
    assert all([step for step, _ in points] == list(range(1, NUM_STEPS + 1)) for points in curve.values())


def test_such_a_run_can_be_sent_afterwards_and_only_once(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    curve, num_files = curve_of(workspace.model), len(files_of(workspace.model))
    line = log(capfd, workspace.model)
    (run,) = workspace.runs(workspace.model)
    assert line == (
        f"{workspace.model}: new MLflow run {run.info.run_id}: "
        f"{NUM_STEPS} points of the curve and {num_files} files sent"
    )
    assert run.info.status == "FINISHED"
    settings = load_params(workspace.folder / "params.yaml").flat()
    assert run.data.params == {name: str(value) for name, value in settings.items()}
    assert run.data.tags["git.commit"] == "c0ffee"
    assert run.data.tags["source"] == "noise"
    assert run.data.tags["signature"] == describe(workspace.model)["signature"]
    assert run.data.tags["data.num_train"] == "16"
    assert workspace.points(run.info.run_id, list(curve)) == curve
    assert workspace.files(run.info.run_id) == files_of(workspace.model)
    assert workspace.shown(run.info.run_id) == files_of(workspace.model)[1:]
    assert workspace.points(run.info.run_id, ["face_distance"]) == distances_of(workspace.model)

    again = log(capfd, workspace.model)
    assert again == f"{workspace.model}: MLflow run {run.info.run_id} has all points and files already"
    assert [other.info.run_id for other in workspace.runs(workspace.model)] == [run.info.run_id]
    assert workspace.points(run.info.run_id, list(curve)) == curve
    assert workspace.points(run.info.run_id, ["face_distance"]) == distances_of(workspace.model)
    assert workspace.shown(run.info.run_id) == files_of(workspace.model)[1:]


def test_a_run_that_train_recorded_lacks_nothing_and_looks_like_one_that_was_sent(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # no git there, as there was none for the other
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")
    text = (workspace.folder / "params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("seed: 0", "seed: 1"), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(workspace.folder / "images.h5"), "model", "--device", "cpu"])
    assert ended.value.code == 0
    assert log(capfd, Path("model")).endswith("has all points and files already")
    (recorded,) = workspace.runs(Path("model"))
    sent_model = workspace.copy_model("d-sent")
    log(capfd, sent_model)
    (sent,) = workspace.runs(sent_model)
    assert recorded.data.params | {"seed": "0"} == sent.data.params
    names = {"mlflow.runName", "model_digest", "signature"}
    assert {name: value for name, value in recorded.data.tags.items() if name not in names} == {
        name: value for name, value in sent.data.tags.items() if name not in names
    }
    assert recorded.data.metrics.keys() == sent.data.metrics.keys()
    assert workspace.files(recorded.info.run_id) == workspace.files(sent.info.run_id)
    assert workspace.shown(recorded.info.run_id) == workspace.shown(sent.info.run_id)


def test_a_run_with_missing_points_is_completed_without_duplicates(
    workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    model = workspace.copy_model("d-part")
    curve = curve_of(model)
    with start_run({"gamma": 0.25}, {"source": "noise"}, signature="") as begun:
        for i in range(NUM_STEPS):
            if i not in (3, 4, NUM_STEPS - 1):
                values = {name: points[i][1] for name, points in curve.items() if (i, name) != (7, "k_t")}
                begun.log(i + 1, values)
        begun.log(12, {name: points[0][1] for name, points in distances_of(model).items()})
        begun.log_picture(model / "samples" / "0000000.png", "samples")
        begun.set_tag("model_digest", digest_of(model))
    num_missing = len(files_of(model)) - 1
    assert log(capfd, model) == (
        f"{model}: MLflow run {begun.run_id}: 4 points of the curve and {num_missing} files sent"
    )
    (run,) = workspace.runs(model)
    assert workspace.points(run.info.run_id, list(curve)) == curve
    assert workspace.files(run.info.run_id) == files_of(model)
    assert run.data.params["gamma"] == "0.25"  # what was recorded stays
    assert run.data.params["seed"] == "0"


def test_a_run_whose_end_the_store_missed_is_ended(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    model = workspace.copy_model("d-open")
    left = workspace.client.create_run("1", tags={"model_digest": digest_of(model)})
    assert left.info.status == "RUNNING"
    log(capfd, model)
    (run,) = workspace.runs(model)
    assert (run.info.run_id, run.info.status) == (left.info.run_id, "FINISHED")


def leave_run(
    workspace: Workspace, model: Path, params: dict[str, str], tags: dict[str, str], status: str, off: float = 0
) -> str:
    """The first points of the model's curve in a run whose training went on without the store; off: added to them."""
    left = workspace.client.create_run("1", tags=tags)
    run_id: str = left.info.run_id
    workspace.client.log_batch(run_id, params=[Param(name, value) for name, value in params.items()])
    for name, points in curve_of(model).items():
        for step, value in points[:9]:
            clock = 100.0 if name == "images_per_second" else 0.0  # steps were done again
            workspace.client.log_metric(run_id, name, value + off + clock, step=step)
    workspace.client.update_run(run_id, status=status)
    return run_id


@pytest.mark.parametrize("status", ["RUNNING", "KILLED", "FAILED"])
def test_a_run_whose_store_was_away_to_the_end_is_completed(
    status: str, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    model = workspace.copy_model(f"d-left-{status}", signature=f"s-{status}")
    settings = {name: str(value) for name, value in describe(model)["parameters"].items()}
    some = dict(list(settings.items())[3:])
    left = leave_run(workspace, model, some, {"signature": f"s-{status}"}, status)
    num_files = len(files_of(model))
    line = f"{model}: MLflow run {left}: {NUM_STEPS - 9} points of the curve and {num_files} files sent"
    assert log(capfd, model) == line
    assert log(capfd, model) == f"{model}: MLflow run {left} has all points and files already"
    (run,) = workspace.runs(model)
    assert (run.info.run_id, run.info.status, run.data.params) == (left, "FINISHED", settings)
    assert run.data.tags["source"] == "noise"
    curve = curve_of(model)
    del curve["images_per_second"]
    assert workspace.points(left, list(curve)) == curve
    assert len(workspace.points(left, ["images_per_second"])["images_per_second"]) == NUM_STEPS


OTHERS: dict[str, tuple[dict[str, str], dict[str, str], str, float]] = {
    "of another signature": ({}, {"signature": "another"}, "RUNNING", 0),
    "of other parameters": ({"gamma": "0.25"}, {}, "RUNNING", 0),
    "of another model": ({}, {"model_digest": "another"}, "RUNNING", 0),
    "that is finished": ({}, {}, "FINISHED", 0),
    "of another curve": ({}, {}, "FAILED", 0.01),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_is_not_taken_for_this_models_own(
    case: str, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    params, tags, status, off = OTHERS[case]
    signature = case.replace(" ", "-")
    model = workspace.copy_model(f"d-{signature}", signature=signature)
    settings = {name: str(value) for name, value in describe(model)["parameters"].items()}
    other = leave_run(workspace, model, settings | params, {"signature": signature} | tags, status, off)
    assert log(capfd, model).startswith(f"{model}: new MLflow run ")
    (run,) = workspace.runs(model)
    assert run.info.run_id != other
    assert run.data.tags["signature"] == signature
    assert workspace.points(run.info.run_id, list(curve_of(model))) == curve_of(model)


def test_an_interrupted_sending_is_taken_up_again(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    """Interrupted by a picture that cannot be stored, when the points have gone."""
    model = workspace.copy_model("d-cut")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(MlflowClient, "log_artifact", lambda *_: 1 / 0)
        main(["log", str(model)])
    assert ended.value.code == 2
    assert "the run cannot be sent to MLflow: " in capfd.readouterr().err
    assert ": 0 points of the curve and " in log(capfd, model)
    (run,) = workspace.runs(model)
    assert run.info.status == "FINISHED"
    assert workspace.points(run.info.run_id, ["k_t"])["k_t"] == curve_of(model)["k_t"]
    assert workspace.files(run.info.run_id) == files_of(model)


def test_a_curve_of_more_values_than_a_batch_holds_arrives(
    workspace: Workspace, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.tracking.stored.MAX_METRICS_PER_BATCH", 50)
    model = workspace.copy_model("d-long")
    log(capfd, model)
    (run,) = workspace.runs(model)
    assert workspace.points(run.info.run_id, list(curve_of(model))) == curve_of(model)


def test_a_value_that_is_no_number_is_sent_once(workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    model = workspace.copy_model("d-nan")
    history = model / "history.csv"
    header, first, *others = history.read_text().splitlines()
    step, _, *values = first.split(",")
    history.write_text("\n".join([header, ",".join([step, "nan", *values]), *others]) + "\n")
    write_description(model, describe(model))
    log(capfd, model)
    assert log(capfd, model).endswith("has all points and files already")
    (run,) = workspace.runs(model)
    values_sent = [value for _, value in workspace.points(run.info.run_id, ["M_global"])["M_global"]]
    assert len(values_sent) == NUM_STEPS and np.isnan(values_sent).sum() == 1


def lose(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def put(name: str, content: bytes) -> Callable[[Path], None]:
    def prepare(model: Path) -> None:
        (model / name).write_bytes(content)
        if name != "model.json":
            write_description(model, describe(model))

    return prepare


def edit(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def prepare(model: Path) -> None:
        path = model / "history.csv"
        path.write_text("".join(line + "\n" for line in change(path.read_text().splitlines())))
        write_description(model, describe(model))

    return prepare


BAD: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "another picture": (
        lambda model: (model / "samples" / "0000000.png").write_bytes(b"another"),
        ("samples/0000000.png", "SHA-256", "damaged or replaced"),
    ),
    "an edited description": (
        lambda model: (model / "model.json").write_text(json.dumps(describe(model) | {"step": 25})),
        ("model.json", "damaged or edited"),
    ),
    "no folder": (shutil.rmtree, ("model.json", "no such file")),
    "no model": (lose("model.json"), ("model.json", "no such file")),
    "a damaged description": (put("model.json", b'{"format": 1'), ("model.json", "not the description of a model")),
    "another's description": (put("model.json", b"{}"), ("model.json", "format")),
    "no curve": (lose("history.csv"), ("history.csv", "no such file")),
    "no distances": (lose("distances.csv"), ("distances.csv", "no such file")),
    "distances that are none": (put("distances.csv", b"step,face_distance\n12,far\n"), ("distances.csv", "numbers")),
    "an empty curve": (put("history.csv", b""), ("history.csv", "no column 'step'")),
    "a curve without points": (edit(lambda lines: lines[:1]), ("history.csv", "no row")),
    "no text": (put("history.csv", b"\xff\xfe\x00"), ("history.csv", "not a table of numbers")),
    "no numbers": (edit(lambda lines: [*lines, "25,a,b"]), ("history.csv", "not a table of numbers")),
    "a cut line": (edit(lambda lines: [*lines[:-1], lines[-1][:9]]), ("history.csv", "not a table of numbers")),
    "a cut curve": (edit(lambda lines: lines[:-4]), ("history.csv", "ends at step 20, expected 24")),
    "a step twice": (edit(lambda lines: [*lines, lines[-1]]), ("history.csv", "step", "grow")),
    "half a step": (edit(lambda lines: [lines[0], "0." + lines[1], *lines[2:]]), ("history.csv", "step", "whole")),
    "a step that is no number": (edit(lambda lines: [*lines, "nan" + lines[-1][2:]]), ("history.csv", "step")),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_model_folder_is_one_line_that_names_the_file(
    case: str, workspace: Workspace, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, needed = BAD[case]
    model = workspace.copy_model(f"d-{case.replace(' ', '-').replace(chr(39), '')}")
    digest = digest_of(model)
    damage(model)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["log", str(model)])
    out, err = capfd.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"began: {model}/")
    for text in needed:
        assert text in err
    assert workspace.client.search_runs(["1"], f"tags.model_digest = '{digest}'") == []


@pytest.mark.parametrize("store", ["a server that is gone", "no database"])
def test_a_store_that_cannot_be_reached_is_an_error(
    store: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{taken.getsockname()[1]}"
        uri = server if "server" in store else f"sqlite:///{tmp_path / 'mlflow.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(SystemExit) as ended:
            main(["log", str(workspace.model)])
    out, err = capfd.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"began: {uri}: the run cannot be sent to MLflow: ")


def test_without_mlflow_nothing_can_be_sent(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hide_mlflow(monkeypatch)
    with pytest.raises(SystemExit) as ended:
        main(["log", str(workspace.model)])
    out, err = capfd.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert "the run cannot be sent to MLflow: " in err and "mlflow" in err
