"""The real pipeline with tiny settings, in a fresh clone: DVC runs the stages, MLflow's client reads the runs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from began.data.card import read_card
from began.data.images import read_png, write_png
from began.data.rows import open_images
from tests.pipeline.clone import Clone, make_clone

TINY = {
    "preprocess": {"held_out": 0.4},
    "train": {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 24},
    "evaluate": {"num_samples": 16},
}
NUM_IMAGES = 60


@pytest.fixture(scope="module")
def clone(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `dvc repro` has run once."""
    folder = tmp_path_factory.mktemp("pipeline")
    clone = make_clone(repository, folder, gamma=0.9, download={"num_images": NUM_IMAGES}, quick=TINY)
    home = folder / "home"
    home.mkdir()
    clone.environment = {name: value for name, value in clone.environment.items() if not name.startswith("XDG_")}
    clone.environment["HOME"] = str(home)
    clone.dvc("repro")
    return clone


def test_repro_makes_every_output(clone: Clone) -> None:
    data = clone.root / "data"
    assert read_card(data / "raw" / "card.json").count == NUM_IMAGES
    images = open_images(data / "images.h5")
    assert images.rows.shape == (NUM_IMAGES, 32, 32, 3)
    assert images.num_train == 36
    assert (data / "rejected.csv").read_text().splitlines() == ["name,reason"]
    assert json.loads((data / "model" / "model.json").read_text())["step"] == 24
    with (data / "model" / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 20
    assert "</html>" in (data / "report" / "index.html").read_text()


def test_repro_leaves_nothing_for_git_but_the_lock(clone: Clone) -> None:
    changes = {line.split()[-1] for line in clone.git("status", "--porcelain", "--untracked-files=all").splitlines()}
    assert changes == {"dvc.lock"}


def test_repro_leaves_nothing_in_the_home_folder(clone: Clone) -> None:
    """Telemetry would keep an id of the machine there, matplotlib its list of fonts."""
    assert list(Path(clone.environment["HOME"]).rglob("*")) == []


@pytest.mark.skipif(not shutil.which("strace") or subprocess.call(["strace", "true"]) != 0, reason="needs strace")
def test_training_and_evaluation_look_up_no_name_and_reach_no_other_machine(clone: Clone, tmp_path: Path) -> None:
    store = f"MLFLOW_TRACKING_URI=sqlite:///{tmp_path / 'mlflow.db'}"
    watch = [
        "env",
        store,
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-o",
        str(tmp_path / "trace"),
    ]
    for command in ("train", "evaluate"):
        model = (str(tmp_path / "model"), *([str(tmp_path / "report")] if command == "evaluate" else []))
        done = clone.run(*watch, sys.executable, "-m", "pipeline", command, "data/images.h5", *model)
        assert done.returncode == 0, done.stderr
        calls = (tmp_path / "trace").read_text(encoding="utf-8").splitlines()
        assert [call for call in calls if "AF_INET" in call and not re.search('"(127.0.0.1|::1)"', call)] == []


def test_a_second_repro_does_nothing(clone: Clone) -> None:
    runs = len(clone.runs())
    answer = clone.dvc("repro")
    assert "Data and pipelines are up to date." in answer
    assert "Running stage" not in answer
    assert clone.dvc("status").strip() == "Data and pipelines are up to date."
    assert len(clone.runs()) == runs


def test_compiled_modules_and_half_written_files_change_nothing(clone: Clone) -> None:
    cache = clone.root / "began" / "data" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "new.pyc").touch()
    half = clone.root / "images" / ".a.png.1.part"
    half.touch()
    assert clone.dvc("status").strip() == "Data and pipelines are up to date."
    half.unlink()


def test_metrics_and_plots_are_shown(clone: Clone, tmp_path: Path) -> None:
    numbers = json.loads(clone.dvc("metrics", "show", "--json"))
    assert numbers[""]["data"]["data/report/metrics.json"]["data"]
    clone.dvc("plots", "show", "-o", str(tmp_path))
    page = (tmp_path / "index.html").read_text()
    for name in ("M_global", "k_t", "L_real", "learning_rate", "samples.png", "convergence.png"):
        assert name in page


def test_the_run_is_in_mlflow_with_parameters_curve_pictures_and_report(clone: Clone) -> None:
    run = clone.runs()[-1]
    assert run.info.status == "FINISHED"
    assert run.data.params["gamma"] == "0.9"
    assert run.data.params["train.num_steps"] == "24"
    assert run.data.tags["source"] == "portraits"
    assert run.data.tags["git.commit"] == clone.git("rev-parse", "HEAD").strip()
    curve = clone.curve(run)
    assert len(curve) >= 20
    with (clone.root / "data" / "model" / "history.csv").open() as file:
        assert curve == pytest.approx({int(row["step"]): float(row["M_global"]) for row in csv.DictReader(file)})
    artifacts = clone.artifacts(run)
    assert {"samples/0000024.png", "report/index.html", "report/metrics.json"} <= artifacts
    numbers = json.loads((clone.root / "data" / "report" / "metrics.json").read_text())
    numbers = {name: value for name, value in numbers.items() if value is not None and name != "M_global"}
    assert "frechet_face" in numbers
    assert {name: run.data.metrics[name] for name in numbers} == pytest.approx(numbers)


def test_a_temporary_experiment_trains_again_and_records_in_the_main_store(clone: Clone) -> None:
    before = clone.runs()
    answer = clone.dvc("exp", "run", "--temp", "-S", "gamma=0.7")
    ran = {stage for stage in ("download", "preprocess", "train", "evaluate") if f"Running stage '{stage}'" in answer}
    assert ran == {"train", "evaluate"}
    run, *others = clone.runs()
    assert len(others) == len(before)
    assert run.info.status == "FINISHED"
    assert run.data.params["gamma"] == "0.7"
    assert run.data.tags["dvc.exp_name"] in clone.dvc("exp", "show", "--csv")
    assert len(clone.curve(run)) >= 20
    assert {"samples/0000024.png", "report/index.html"} <= clone.artifacts(run)
    assert clone.dvc("status").strip() == "Data and pipelines are up to date."


def test_a_queued_sweep_records_every_run(clone: Clone) -> None:
    before = len(clone.runs())
    clone.dvc("exp", "run", "--queue", "-S", "gamma=0.3,0.5", "train")
    # With its output in a pipe, `queue start` waits for its workers.
    subprocess.run(
        [sys.executable, "-m", "dvc", "queue", "start", "-j", "2"],
        cwd=clone.root,
        env=clone.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    end = time.monotonic() + 240
    while len([run for run in clone.runs() if run.info.status == "FINISHED"]) < before + 2:
        assert time.monotonic() < end, clone.dvc("queue", "status")
        time.sleep(1)
    # DVC itself fails now and then when it reads what a worker is just writing.
    while (status := clone.run(sys.executable, "-m", "dvc", "queue", "status")).stdout.count("Success") < 2:
        assert time.monotonic() < end and "Failed" not in status.stdout, status.stdout + status.stderr
        time.sleep(1)
    clone.dvc("queue", "stop")
    runs = clone.runs()[:2]
    assert len(clone.runs()) == before + 2
    assert {run.data.params["gamma"] for run in runs} == {"0.3", "0.5"}
    assert all(len(clone.curve(run)) >= 20 for run in runs)


def test_a_mistyped_parameter_is_refused(clone: Clone) -> None:
    answer = clone.run(sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", "gama=0.7")
    assert answer.returncode != 0
    assert "gama" in answer.stderr


def test_a_model_restored_from_the_cache_is_no_new_run(clone: Clone) -> None:
    """… and what evaluate makes of it joins the run that trained it."""
    before = clone.runs()
    clone.set(quick={"evaluate": {"num_samples": 18}})
    shutil.rmtree(clone.root / "data" / "model")
    answer = clone.dvc("repro")
    assert "Running stage 'evaluate'" in answer
    assert "Running stage 'train'" not in answer
    assert [run.info.run_id for run in clone.runs()] == [run.info.run_id for run in before]
    assert before[-1].data.metrics["num_samples"] == 16
    assert clone.runs()[-1].data.metrics["num_samples"] == 18


def test_an_image_added_to_the_folder_is_noticed(clone: Clone, tmp_path: Path) -> None:
    images = clone.root / "images"
    picture = read_png(next((clone.root / "data" / "model" / "samples").iterdir()))
    write_png(images / "a.png", picture)
    clone.set(download={"source": "folder"})
    clone.dvc("repro", "download")
    assert read_card(clone.root / "data" / "raw" / "card.json").count == 1
    (images / "more").mkdir()
    write_png(images / "more" / "b.png", picture)
    assert "modified:           images" in clone.dvc("status", "download")

    # In a temporary experiment, for a folder outside of the repository.
    for num in (1, 2):
        write_png(tmp_path / f"{num}.png", picture)
        answer = clone.dvc("exp", "run", "--temp", "-S", f"download.folder={tmp_path}", "download")
        assert f"{num} images from folder" in answer


def test_scale_and_data_are_changed_by_parameters_alone(clone: Clone) -> None:
    overrides = ("-S", "profile=paper64", "-S", "download.source=celeba")
    answer = clone.run(sys.executable, "-m", "dvc", "exp", "run", "--temp", *overrides, "download")
    assert answer.returncode != 0
    assert "download.accept_celeba_licence" in answer.stderr
    clone.set(profile="paper64")
    status = clone.dvc("status")
    for stage in ("preprocess", "train", "evaluate"):
        assert f"profiles.paper64.{stage}" in status
