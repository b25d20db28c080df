"""Against real SQLite stores, read back through MLflow's own client."""

from __future__ import annotations

import math
import multiprocessing
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun

from pipeline import tracking
from pipeline.tracking import Run, is_server, log_report, start_run, store_uri

PARAMS = {"gamma": 0.7, "profile": "quick", "train.learning_rate": 1e-4, "download.url": None}
DATA = {"source": "avatars", "digest": "abc", "num_train": 8, "image_size": 32}


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A main repository with a character that needs quoting in its path."""
    root = tmp_path_factory.mktemp("main") / "röot of 100 %"
    (root / ".dvc").mkdir(parents=True)
    return root


@pytest.fixture
def root(made_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.chdir(made_root)
    return made_root


def stored_runs(root: Path) -> list[StoredRun]:
    """All runs of the experiment, the newest first."""
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("began")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def history(root: Path, run_id: str, name: str) -> dict[int, float]:
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    return {point.step: point.value for point in client.get_metric_history(run_id, name)}


def test_a_run_holds_parameters_tags_curve_pictures_and_files(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = root / "0000400.png"
    picture.write_bytes(b"png")
    with start_run(PARAMS, DATA) as run:
        for step in range(400, 12_400, 400):
            run.log(step, {"M_global": 1 / step, "k_t": 0.1})
        run.log_picture(picture, "samples")
        run.log_file(picture)
        run.set_tag("model_digest", "d1")
    stored = stored_runs(root)[0]
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {
        "gamma": "0.7",
        "profile": "quick",
        "train.learning_rate": "0.0001",
        "download.url": "None",
    }
    assert stored.data.tags["source"] == "avatars"
    assert stored.data.tags["data.digest"] == "abc"
    assert stored.data.tags["model_digest"] == "d1"
    assert history(root, run.run_id, "M_global") == {step: 1 / step for step in range(400, 12_400, 400)}
    assert (root / "mlartifacts" / run.run_id / "artifacts" / "samples" / "0000400.png").read_bytes() == b"png"
    assert (root / "mlartifacts" / run.run_id / "artifacts" / "0000400.png").exists()
    assert capfd.readouterr() == ("", "")


def test_nothing_of_the_person_goes_into_a_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "secret")
    with start_run(PARAMS, DATA):
        pass
    tags = stored_runs(root)[0].data.tags
    assert set(tags) <= {"source", "data.digest", "data.num_train", "data.image_size", "mlflow.runName"}


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED"), (BaseException, "KILLED")],
)
def test_an_ended_run_says_how_it_ended_and_keeps_its_curve(
    root: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), start_run(PARAMS, DATA) as run:
        run.log(7, {"M_global": 0.5})
        raise error
    assert stored_runs(root)[0].info.status == status
    assert history(root, run.run_id, "M_global") == {7: 0.5}


def test_more_points_than_a_batch_holds_all_arrive(root: Path) -> None:
    with start_run(PARAMS, DATA) as run:
        for step in range(1200):
            run.log(step, {"k_t": step / 1200, "L_G": 0.1})
    assert len(history(root, run.run_id, "k_t")) == 1200


def test_points_reach_the_store_while_the_run_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_BATCHES", 0.0)
    with start_run(PARAMS, DATA) as run:
        run.log(1, {"k_t": 0.1})
        assert history(root, run.run_id, "k_t") == {1: 0.1}


def test_a_value_that_is_no_number_is_recorded(root: Path) -> None:
    with start_run(PARAMS, DATA) as run:
        run.log(1, {"M_global": math.nan})
    assert math.isnan(history(root, run.run_id, "M_global")[1])


def test_an_experiment_records_in_the_main_repository_with_its_name_and_commit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = root / ".dvc" / "tmp" / "exps" / "standalone" / "tmpx"
    (copy / ".dvc").mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "sunny-gull")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "c0ffee")
    picture = copy / "a.png"
    picture.touch()
    with start_run(PARAMS, DATA) as run:
        run.log_picture(picture, "samples")
    assert {path.name for path in copy.iterdir()} == {".dvc", "a.png"}
    stored = stored_runs(root)[0]
    assert stored.info.run_id == run.run_id
    assert stored.info.run_name == "sunny-gull"
    assert stored.data.tags["dvc.exp_name"] == "sunny-gull"
    assert stored.data.tags["git.commit"] == "c0ffee"
    assert (root / "mlartifacts" / run.run_id / "artifacts" / "samples" / "a.png").exists()


def test_a_run_outside_an_experiment_is_tagged_with_the_checked_out_commit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with start_run(PARAMS, DATA):
        pass
    assert stored_runs(root)[0].data.tags["git.commit"] == head


def test_the_report_joins_the_run_that_trained_the_model(root: Path) -> None:
    report = root / "report"
    (report / "faces").mkdir(parents=True)
    (report / "index.html").write_text("page")
    (report / "faces" / "a.png").touch()
    with start_run(PARAMS, DATA) as run:
        run.log(3, {"M_global": 0.3, "k_t": 0.0})
        run.log(1, {"M_global": 0.1, "k_t": 0.0})
        run.set_tag("model_digest", "d2")
    with start_run(PARAMS, DATA):
        pass
    assert log_report("d2", {"frechet_distance": 48.0}, report) == run.run_id
    assert history(root, run.run_id, "frechet_distance") == {0: 48.0}
    artifacts = root / "mlartifacts" / run.run_id / "artifacts"
    assert (artifacts / "report" / "index.html").read_text() == "page"
    assert (artifacts / "report" / "faces" / "a.png").exists()
    assert history(root, run.run_id, "M_global") == {1: 0.1, 3: 0.3}


def test_a_model_without_a_run_is_told_in_one_line(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert log_report("unknown", {"frechet_distance": 48.0}, root) is None
    assert capfd.readouterr().err.count("\n") == 1


def test_a_named_store_wins(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with start_run(PARAMS, DATA) as run:
        pass
    assert stored_runs(tmp_path)[0].info.run_id == run.run_id


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        ("http://127.0.0.1:5000", True),
        ("https://mlflow.example.org", True),
        ("databricks", True),
        ("databricks://profile", True),
        ("postgresql://me@example.org/runs", False),
        ("sqlite:////runs/mlflow.db", False),
        ("/runs", False),
        ("runs", False),
    ],
)
def test_a_server_is_named_by_its_address(uri: str, server: bool) -> None:
    assert is_server(uri) == server


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("", "sqlite:///{root}/mlflow.db"),
        ("sqlite:///x.db", "sqlite:///{root}/x.db"),
        ("sqlite:////runs/x.db", "sqlite:////runs/x.db"),
        ("runs", "{root}/runs"),
        ("/runs", "/runs"),
        ("databricks", "databricks"),
        ("postgresql://me@example.org/runs", "postgresql://me@example.org/runs"),
    ],
)
def test_relative_stores_lie_in_the_main_repository(
    named: str, meant: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = root / ".dvc" / "tmp" / "exps" / "standalone" / "tmpy"
    copy.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", named)
    assert store_uri() == meant.format(root=root)


@pytest.mark.parametrize("content", [b"no database", None], ids=["no database", "in no folder"])
def test_a_store_that_cannot_be_opened_costs_one_line(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / ("mlflow.db" if content else "file/mlflow.db")
    (store if content else store.parent).write_bytes(content or b"")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    with start_run(PARAMS, DATA) as run:
        run.log(1, {"M_global": 0.1})
    assert log_report("d1", {}, tmp_path) is None
    assert capfd.readouterr().err.count("\n") == 2
    with pytest.raises(ValueError, match="cannot be opened"):
        tracking.create_store()


def test_a_server_that_is_gone_costs_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with start_run(PARAMS, DATA) as run:
            run.log(1, {"M_global": 0.1})
            run.log_file(Path("absent"))
    err = capfd.readouterr().err
    assert err.startswith("MLflow: this run is not recorded: ")
    assert err.endswith("; `began log MODEL_DIR` sends it later\n")
    assert err.count("\n") == 1


@contextmanager
def hung_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """Its address, and the connections that it accepted and never answers."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", accepted
        finally:
            server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
            thread.join()
            for connection in accepted:
                connection.close()


def test_a_server_that_hangs_is_left_alone_until_it_matters(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_BATCHES", 0.0)
    picture = tmp_path / "a.png"
    picture.touch()
    with hung_server() as (uri, accepted):
        run = Run(MlflowClient(uri), "0" * 32)
        for step in range(5):
            run.log_picture(picture, "samples")
            run.log_file(picture)
            run.log(step, {"M_global": 0.1})
        assert len(accepted) == 1
        run.set_tag("model_digest", "d1")
        assert len(accepted) == 2
        run.end("FINISHED")  # the curve, then the status
        assert len(accepted) == 4
    assert capfd.readouterr().err.count("\n") == 1


def test_a_store_that_fails_on_the_way_costs_one_line(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_run(PARAMS, DATA) as run:
        run.log_file(root / "absent")
        run.log_picture(root / "absent", "samples")
        run.log(1, {"M_global": 0.1})
    err = capfd.readouterr().err
    assert err.startswith("MLflow misses a part of this run: ")
    assert err.endswith("; `began log MODEL_DIR` sends it later\n")
    assert err.count("\n") == 1
    assert history(root, run.run_id, "M_global") == {1: 0.1}


def record(root: str, gamma: float) -> None:
    """In a new process: one run in a store that may not exist yet."""
    os.environ["DVC_ROOT"] = root
    with start_run({"gamma": gamma}, DATA) as run:
        for step in range(20):
            run.log(step, {"M_global": gamma})


def test_runs_that_start_at_once_share_one_fresh_store(tmp_path: Path) -> None:
    """Two workers of `dvc queue start` on a machine where nothing was recorded yet."""
    (tmp_path / ".dvc").mkdir()
    context = multiprocessing.get_context("spawn")
    gammas = (0.3, 0.7)
    workers = [context.Process(target=record, args=(str(tmp_path), gamma)) for gamma in gammas]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    runs = stored_runs(tmp_path)
    assert {run.data.params["gamma"] for run in runs} == {"0.3", "0.7"}
    assert all(len(history(tmp_path, run.info.run_id, "M_global")) == 20 for run in runs)
