"""Against real SQLite stores, read back through MLflow's own client."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun

from began.data.images import write_png
from pipeline.tracking import write as tracking
from pipeline.tracking.store import is_server, sqlite_uri, store_uri
from pipeline.tracking.write import log_report, start_run

PARAMS = {"gamma": 0.7, "profile": "quick", "train.learning_rate": 1e-4, "download.url": None}
DATA = {"source": "portraits", "digest": "abc", "num_train": 8, "image_size": 32}
SIGNATURE = "51b5"


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A main repository with characters in its path that have a meaning in addresses."""
    root = tmp_path_factory.mktemp("main") / "röot of 100 %2F?a=b#c"
    (root / ".dvc").mkdir(parents=True)
    return root


@pytest.fixture
def root(made_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.chdir(made_root)
    return made_root


def stored_runs(root: Path) -> list[StoredRun]:
    """All runs of the experiment, the newest first."""
    client = MlflowClient(sqlite_uri(root / "mlflow.db"))
    experiment = client.get_experiment_by_name("began")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def history(root: Path, run_id: str | None, name: str) -> dict[int, float]:
    """Step → value, of each step once."""
    client = MlflowClient(sqlite_uri(root / "mlflow.db"))
    assert run_id is not None
    points = client.get_metric_history(run_id, name)
    found = {point.step: point.value for point in points}
    assert len(found) == len(points)
    return found


def artifacts_of(root: Path, run_id: str | None) -> Path:
    assert run_id is not None
    return root / "mlartifacts" / run_id / "artifacts"


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def draw(path: Path, seed: int = 0, size: int = 16) -> bytes:
    """Writes a PNG; returns its content."""
    write_png(path, np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))
    return path.read_bytes()


def images_of(root: Path, run_id: str | None) -> dict[tuple[str, int], bytes]:
    """What MLflow's page of a run shows: key and step → PNG. Each once, with a smaller file beside it."""
    files = sorted((artifacts_of(root, run_id) / "images").iterdir())
    parts = [re.fullmatch(r"(.+)\+step\+(\d+)\+timestamp\+\d+\+\w+(\+compressed\.webp|\.png)", p.name) for p in files]
    kinds = Counter((m[1], int(m[2]), m[3]) for m in parts if m)
    whole = {(m[1], int(m[2])): path.read_bytes() for m, path in zip(parts, files, strict=True)
             if m and m[3] == ".png"}  # fmt: skip
    light = {path.read_bytes()[8:12] for path in files if path.suffix == ".webp"}
    assert light == {b"WEBP"} and set(kinds.values()) == {1} and len(kinds) == len(files) == 2 * len(whole)
    return whole


def test_a_run_holds_parameters_tags_curve_pictures_and_files(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = root / "0000400.png"
    png = draw(picture)
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
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
    assert stored.data.tags["source"] == "portraits"
    assert stored.data.tags["data.digest"] == "abc"
    assert stored.data.tags["signature"] == SIGNATURE
    assert stored.data.tags["model_digest"] == "d1"
    assert history(root, run.run_id, "M_global") == {step: 1 / step for step in range(400, 12_400, 400)}
    assert (artifacts_of(root, run.run_id) / "samples" / "0000400.png").read_bytes() == png
    assert images_of(root, run.run_id) == {("samples", 400): png}
    assert stored.data.tags["mlflow.loggedImages"] == "True"
    assert (artifacts_of(root, run.run_id) / "0000400.png").exists()
    assert capfd.readouterr() == ("", "")


def test_nothing_of_the_person_goes_into_a_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    person = {"A_SECRET": "s3cret-1", "USER": "s3cret-2", "LOGNAME": "s3cret-3", "HOME": str(root / "s3cret-4")}
    for name, value in person.items():
        monkeypatch.setenv(name, value)
    picture = root / "0000001.png"
    draw(picture)
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log(1, {"k_t": 0.1})
        run.log_picture(picture, "samples")
        run.set_tag("model_digest", "d9")
    stored = stored_runs(root)[0]
    ours = {"source", "signature", "model_digest", "data.digest", "data.num_train", "data.image_size"}
    assert set(stored.data.tags) == ours | {"mlflow.runName", "mlflow.loggedImages"}
    assert re.fullmatch(r"[a-z]+-[a-z]+-\d+", stored.data.tags["mlflow.runName"])  # made up
    assert stored.data.params.keys() == PARAMS.keys()
    assert stored.info.user_id in ("", "unknown")
    assert not any(text in (root / "mlflow.db").read_bytes() for text in (b"s3cret", socket.gethostname().encode()))


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (SystemExit, "FAILED"), (KeyboardInterrupt, "KILLED"), (BaseException, "KILLED")],
)
def test_an_ended_run_says_how_it_ended_and_keeps_its_curve(
    root: Path, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log(7, {"M_global": 0.5})
        raise error
    assert stored_runs(root)[0].info.status == status
    assert history(root, run.run_id, "M_global") == {7: 0.5}


def test_more_points_than_a_batch_holds_all_arrive(root: Path) -> None:
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        for step in range(1200):
            run.log(step, {"k_t": step / 1200, "L_G": 0.1})
    assert len(history(root, run.run_id, "k_t")) == 1200


def test_points_reach_the_store_while_the_run_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_BATCHES", 0.01)
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log(1, {"k_t": 0.1})
        wait_until(lambda: history(root, run.run_id, "k_t") == {1: 0.1})


def test_a_value_that_is_no_number_is_recorded(root: Path) -> None:
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
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
    picture = copy / "0000001.png"
    draw(picture)
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log_picture(picture, "samples")
    assert {path.name for path in copy.iterdir()} == {".dvc", "0000001.png"}
    stored = stored_runs(root)[0]
    assert stored.info.run_id == run.run_id
    assert stored.info.run_name == "sunny-gull"
    assert stored.data.tags["dvc.exp_name"] == "sunny-gull"
    assert stored.data.tags["git.commit"] == "c0ffee"
    assert (artifacts_of(root, run.run_id) / "samples" / "0000001.png").exists()


def test_a_run_outside_an_experiment_is_tagged_with_the_checked_out_commit(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with start_run(PARAMS, DATA, signature=SIGNATURE):
        pass
    assert stored_runs(root)[0].data.tags["git.commit"] == head


def test_the_report_joins_the_run_that_trained_the_model(root: Path) -> None:
    report = root / "report"
    (report / "faces").mkdir(parents=True)
    (report / "index.html").write_text("page")
    (report / "faces" / "a.png").touch()
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log(3, {"M_global": 0.3, "k_t": 0.0})
        run.log(1, {"M_global": 0.1, "k_t": 0.0})
        run.set_tag("model_digest", "d2")
    with start_run(PARAMS, DATA, signature=SIGNATURE):
        pass
    numbers = {"frechet_distance": 48.0, "coverage_face": None, "attributes_overlap_skin": 0.5}
    for _ in range(2):  # the first call's answer may have been lost
        assert log_report("d2", numbers, report) == run.run_id
    assert history(root, run.run_id, "frechet_distance") == {0: 48.0}
    assert history(root, run.run_id, "coverage_face") == {}
    assert history(root, run.run_id, "attributes_overlap_skin") == {0: 0.5}
    artifacts = artifacts_of(root, run.run_id)
    assert (artifacts / "report" / "index.html").read_text() == "page"
    assert (artifacts / "report" / "faces" / "a.png").exists()
    assert history(root, run.run_id, "M_global") == {1: 0.1, 3: 0.3}


def test_a_model_without_a_run_is_told_in_one_line(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert log_report("unknown", {"frechet_distance": 48.0}, root) is None
    assert capfd.readouterr().err.count("\n") == 1


def test_a_named_store_wins(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
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
        ("", "sqlite+pysqlite:///{quoted}/mlflow.db"),
        ("sqlite:///x.db", "sqlite+pysqlite:///{quoted}/x.db"),
        ("sqlite:///x.db?timeout=9", "sqlite+pysqlite:///{quoted}/x.db?timeout=9"),
        ("sqlite:////runs/x.db", "sqlite:////runs/x.db"),
        ("sqlite:////a%20b/x.db", "sqlite:////a b/x.db"),
        ("sqlite:////a%3Fb/x.db", "sqlite+pysqlite:////a%3Fb/x.db"),
        ("sqlite:///file:x.db?mode=ro&uri=true", "sqlite:///file:x.db?mode=ro&uri=true"),
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
    quoted = str(root).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    assert store_uri() == meant.format(root=root, quoted=quoted)


@pytest.mark.parametrize("content", [b"no database", None], ids=["no database", "in no folder"])
def test_a_store_that_cannot_be_opened_is_told_at_the_start_and_at_the_end(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / ("mlflow.db" if content else "file/mlflow.db")
    (store if content else store.parent).write_bytes(content or b"")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log(1, {"M_global": 0.1})
    first, last = capfd.readouterr().err.splitlines()
    assert first.startswith("MLflow does not take this run for now: ")
    assert last.startswith("MLflow: this run is not recorded: ")
    assert log_report("d1", {}, tmp_path) is None
    assert capfd.readouterr().err.count("\n") == 1
    with pytest.raises(ValueError, match="cannot be opened"):
        tracking.create_store()


def test_a_server_that_is_gone_is_told_at_the_start_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_ATTEMPTS", 0.01)  # many fail, unseen
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
            assert run.run_id is None
            run.log(1, {"M_global": 0.1})
            run.log_file(Path("absent"))
            time.sleep(0.2)
    first, last = capfd.readouterr().err.splitlines()
    assert first.startswith("MLflow does not take this run for now: ")
    assert first.endswith("; it is sent when MLflow answers")
    assert last.startswith("MLflow: this run is not recorded: ")
    assert last.endswith("; `began log MODEL_DIR` sends it later")


def test_a_file_that_is_gone_costs_one_line_and_nothing_else(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log_file(root / "absent")
        run.log_picture(root / "0000002.png", "samples")
        run.log(1, {"M_global": 0.1})
        run.set_tag("model_digest", "d3")
    err = capfd.readouterr().err
    assert err.startswith("MLflow misses a part of this run: ")
    assert err.endswith("; `began log MODEL_DIR` sends it later\n")
    assert err.count("\n") == 1
    assert history(root, run.run_id, "M_global") == {1: 0.1}
    assert stored_runs(root)[0].info.status == "FINISHED"


def test_a_file_that_the_store_refuses_keeps_back_no_point_tag_or_status(
    root: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_BATCHES", 0.01)
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_ATTEMPTS", 0.01)
    picture = root / "0000001.png"
    draw(picture)
    with start_run(PARAMS, DATA, signature=SIGNATURE) as run:
        run.log_picture(picture, "../samples")
        run.log(1, {"M_global": 0.1})
        wait_until(lambda: "M_global" in stored_runs(root)[0].data.metrics)
        run.log(2, {"M_global": 0.2})
        run.set_tag("model_digest", "d4")
    assert capfd.readouterr().err.splitlines()[-1].startswith("MLflow misses a part of this run: ")
    stored = stored_runs(root)[0]
    assert (stored.info.status, stored.data.tags["model_digest"]) == ("FINISHED", "d4")
    assert history(root, run.run_id, "M_global") == {1: 0.1, 2: 0.2}


def curve_of(steps: range) -> dict[int, dict[str, float]]:
    return {step: {"M_global": step / 10, "k_t": 0.5} for step in steps}


def test_a_run_that_was_killed_goes_on_as_the_same_run_with_each_point_once(root: Path) -> None:
    """It had logged up to step 30 and drawn two pictures; the state is of step 20."""
    picture, other = root / "20.png", root / "30.png"
    first_png, second_png = draw(picture), draw(other, size=20)
    with pytest.raises(KeyboardInterrupt), start_run(PARAMS, DATA, signature=SIGNATURE) as first:
        for step, values in curve_of(range(1, 31)).items():
            if step not in (7, 12):  # never arrived
                first.log(step, values)
        first.log_picture(picture, "samples")
        raise KeyboardInterrupt
    with start_run(PARAMS, DATA, signature=SIGNATURE, run_id=first.run_id, curve=curve_of(range(1, 21))) as second:
        assert second.run_id == first.run_id
        stored = stored_runs(root)[0]
        assert (stored.info.run_id, stored.info.status) == (first.run_id, "RUNNING")
        second.log_picture(picture, "samples")
        second.log_picture(other, "samples")
        for step, values in curve_of(range(21, 41)).items():
            second.log(step, values)
        second.log(50, {"new": 1.0})
    stored = stored_runs(root)[0]
    assert (stored.info.run_id, stored.info.status) == (first.run_id, "FINISHED")
    assert history(root, second.run_id, "M_global") == {step: step / 10 for step in range(1, 41)}
    assert history(root, second.run_id, "k_t") == dict.fromkeys(range(1, 41), 0.5)
    assert history(root, second.run_id, "new") == {50: 1.0}
    assert (artifacts_of(root, second.run_id) / "samples" / "30.png").read_bytes() == second_png
    assert images_of(root, second.run_id) == {("samples", 20): first_png, ("samples", 30): second_png}


def test_a_picture_that_arrived_in_part_and_a_file_of_an_earlier_attempt_are_replaced(root: Path) -> None:
    picture, file = root / "8.png", root / "f.json"
    whole = draw(picture)
    with start_run(PARAMS, DATA, signature=SIGNATURE) as first:
        file.write_bytes(b"half")
        first.log_picture(picture, "samples")
        first.log_file(file)
    artifacts = artifacts_of(root, first.run_id)
    arrived = [artifacts / "samples" / "8.png", *(artifacts / "images").glob("*.png")]
    for path in arrived:
        path.write_bytes(whole[:100])
    with start_run(PARAMS, DATA, signature=SIGNATURE, run_id=first.run_id) as second:
        file.write_bytes(b"new!")
        second.log_picture(picture, "samples")
        second.log_file(file)
    assert len(arrived) == 2 and all(path.read_bytes() == whole for path in arrived)
    assert images_of(root, first.run_id) == {("samples", 8): whole}
    assert (artifacts / "f.json").read_bytes() == b"new!"


@pytest.mark.parametrize("case", ["of other parameters", "deleted", "of another store", "no id at all"])
def test_a_run_that_cannot_go_on_is_followed_by_a_new_one_with_the_whole_curve(case: str, root: Path) -> None:
    with start_run(PARAMS, DATA, signature=SIGNATURE) as first:
        first.log(1, {"M_global": 9.0})
    assert first.run_id is not None
    if case == "deleted":
        MlflowClient(sqlite_uri(root / "mlflow.db")).delete_run(first.run_id)
    run_id = {"of another store": "0" * 32, "no id at all": "it's none"}.get(case, first.run_id)
    params = PARAMS | {"gamma": 0.5} if case == "of other parameters" else PARAMS
    with start_run(params, DATA, signature=SIGNATURE, run_id=run_id, curve=curve_of(range(1, 21))) as second:
        pass
    assert second.run_id not in (None, run_id, first.run_id)
    assert history(root, second.run_id, "M_global") == {step: step / 10 for step in range(1, 21)}


def test_the_id_of_the_run_to_go_on_with_is_known_while_no_store_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with start_run(PARAMS, DATA, signature=SIGNATURE, run_id="0" * 32) as run:
            assert run.run_id == "0" * 32


def record(root: str, gamma: float) -> None:
    """In a new process: one run in a store that may not exist yet."""
    os.environ["DVC_ROOT"] = root
    with start_run({"gamma": gamma}, DATA, signature=SIGNATURE) as run:
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
