"""MLflow's store in the states in which people have it: moved, copied, of another version, deleted from, read-only."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking.read import open_records
from pipeline.tracking.store import explain, sqlite_uri
from pipeline.tracking.write import Sent, create_store, log_report, send_run, start_run
from pipeline.ui import ui
from tests.pipeline.tracking.test_write import draw

PARAMS = {"gamma": 0.7}
DATA = {"source": "portraits"}
SECRET = "s3cret"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose store has one run with a picture, `first`, of the model d1."""
    root = tmp_path_factory.mktemp("made") / "100 %3F?a=b#c ü"
    (root / ".dvc").mkdir(parents=True)
    draw(root / "0000001.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        with start_run(PARAMS, DATA, signature="s") as run:
            run.log_picture(root / "0000001.png", "samples")
            run.set_tag("model_digest", "d1")
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, below another path."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    return copy


def client_of(root: Path) -> MlflowClient:
    return MlflowClient(sqlite_uri(root / "mlflow.db"))


def first_of(root: Path) -> str:
    """The id of the one run."""
    run_id: str = client_of(root).search_runs(["1"])[0].info.run_id
    return run_id


def send(root: Path, digest: str = "d1") -> Sent:
    """As `began log`."""
    return send_run(PARAMS, DATA, None, digest, "s", {1: {"M_global": 0.5}}, root, [Path("0000001.png")])


def change(root: Path, statement: str) -> None:
    with closing(sqlite3.connect(root / "mlflow.db")) as connection, connection:
        connection.execute(statement)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_store_lies_in_its_repository_whatever_that_is_called(made: Path) -> None:
    assert [path.name for path in made.parent.iterdir()] == [made.name]
    assert {path.name for path in made.iterdir()} == {".dvc", ".began", "0000001.png", "mlflow.db", "mlartifacts"}


def test_a_copy_writes_its_pictures_into_itself_and_leaves_the_original_as_it_was(
    made: Path, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files_below(made)
    with start_run(PARAMS, DATA, signature="s") as run:
        run.log_picture(root / "0000001.png", "samples")
    assert run.run_id is not None
    assert (root / "mlartifacts" / run.run_id / "artifacts" / "samples" / "0000001.png").is_file()
    assert files_below(made) == before
    assert capfd.readouterr().err == ""


def test_a_moved_store_finds_the_pictures_that_came_along(root: Path, tmp_path: Path) -> None:
    records = open_records()
    assert records is not None
    picture = records.last_picture(first_of(root), "samples", tmp_path)
    assert picture is not None and picture.read_bytes() == (root / "0000001.png").read_bytes()
    uri = client_of(root).get_run(first_of(root)).info.artifact_uri
    assert uri == (root / "mlartifacts" / first_of(root) / "artifacts").as_uri()


def test_a_moved_store_that_nobody_may_change_can_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("pipeline.tracking.client.bring_artifacts_home", refuse)
    records = open_records()
    assert records is not None and records.of_model("d1") is not None


def test_an_artifact_location_that_is_not_ours_is_left_alone(root: Path) -> None:
    change(root, "UPDATE experiments SET artifact_location = 's3://bucket/mlartifacts' WHERE name = 'began'")
    create_store()
    experiment = client_of(root).get_experiment_by_name("began")
    assert experiment is not None and experiment.artifact_location == "s3://bucket/mlartifacts"


@pytest.mark.parametrize("link", [False, True])
def test_a_store_elsewhere_is_shared_and_left_alone(
    link: bool, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    (other / ".dvc").mkdir(parents=True)
    monkeypatch.setenv("DVC_ROOT", str(other))
    if link:
        (other / "mlflow.db").symlink_to(made / "mlflow.db")
    else:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(made / "mlflow.db"))
    create_store()
    experiment = client_of(made).get_experiment_by_name("began")
    assert experiment is not None and experiment.artifact_location == (made / "mlartifacts").as_uri()


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            "0584bdc529eb",
            "made by an older MLflow (schema 0584bdc529eb); .* `mlflow db upgrade sqlite:////.*/mlflow.db`",
        ),
        ("ffffffffffff", "made by a newer MLflow (schema ffffffffffff .*`pip install --upgrade mlflow`"),
    ],
)
def test_a_store_of_another_version_is_told_as_such(
    schema: str, expected: str, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(root, f"UPDATE alembic_version SET version_num = '{schema}'")
    expected = expected.replace("(", r"\(").replace(");", r"\);")
    for use in (create_store, open_records, lambda: send(root)):
        with pytest.raises(ValueError, match=expected):
            use()
    with start_run(PARAMS, DATA, signature="s"):
        pass
    log_report("d1", {}, root)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and all(re.search(expected, line) for line in lines)


def mend(error: Exception) -> None:
    """Runs the command that its one line names, as it stands there."""
    found = re.search("`([^`]*)`", str(error))
    assert found is not None and "\n" not in str(error)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")} | {"PATH": path}
    subprocess.run(found[1], shell=True, env=environment, check=True, capture_output=True)


def test_a_deleted_experiment_comes_back_by_the_command_that_is_named(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "a%2Fb ?c"
    shutil.copytree(made, root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    client_of(root).delete_experiment("1")
    with start_run(PARAMS, DATA, signature="s"):
        pass
    assert "the experiment 1 was deleted in MLflow" in capfd.readouterr().err.splitlines()[-1]
    for use in (create_store, open_records):
        with pytest.raises(ValueError, match="the experiment 1 was deleted in MLflow"):
            use()
    with pytest.raises(ValueError, match="the experiment 1 was deleted in MLflow") as error:
        send(root)
    mend(error.value)
    assert not send(root).is_new
    assert send(root, "d2").is_new
    assert [path.name for path in tmp_path.iterdir()] == [root.name]


def test_a_deleted_run_is_named_and_what_it_had_is_sent_again(root: Path) -> None:
    deleted = first_of(root)
    client_of(root).delete_run(deleted)
    records = open_records()
    assert records is not None
    with pytest.raises(ValueError, match=f"the run {deleted} was deleted .*runs restore --run-id {deleted}`"):
        records.check_deleted(deleted[:8])
    records.check_deleted("ffffffff")
    assert send(root).is_new
    assert not send(root).is_new


def test_a_run_that_is_deleted_while_it_goes_on_is_told(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with start_run(PARAMS, DATA, signature="s") as run:
        assert run.run_id is not None
        client_of(root).delete_run(run.run_id)
        run.log(1, {"M_global": 0.5})
    (line,) = capfd.readouterr().err.splitlines()
    assert f"mlflow runs restore --run-id {run.run_id}` brings it back; `began log MODEL_DIR` sends it later" in line


def test_a_store_that_cannot_be_written_is_named_with_the_command(root: Path) -> None:
    database = root / "mlflow.db"
    with (
        closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection,
        pytest.raises(sqlite3.OperationalError) as refused,
    ):
        connection.execute("UPDATE experiments SET name = 'x'")
    assert re.match(
        rf"{database}: cannot be written; `chmod u\+rwX {database}` .* MLFLOW_TRACKING_URI$", explain(refused.value)
    )
    folder = root / "mlartifacts"
    words = explain(PermissionError(13, "Permission denied", str(folder)))
    assert words.startswith(f"{folder}: cannot be written; `chmod u+rwX {folder}`")


def test_a_database_that_does_not_open_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow tries it ten times, over two minutes."""

    def fail(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr("mlflow.store.db.utils.time.sleep", fail)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}")
    with pytest.raises(ValueError, match=f"opened: {tmp_path}: is a folder, expected an SQLite file"):
        create_store()


def test_a_folder_as_store_is_told_with_the_command_that_moves_it(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my runs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(folder))
    with pytest.raises(
        ValueError, match=r"no longer takes a folder as its store; name a file: MLFLOW_TRACKING_URI='sqlite"
    ):
        create_store()
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        old = MlflowClient(str(tmp_path / "old"))
        old.create_run(old.create_experiment("began", artifact_location="file:///gone"), tags={"model_digest": "d7"})
    (tmp_path / "old").rename(folder)  # MLflow keeps a store that it has opened
    with pytest.raises(ValueError, match=r"no longer takes a folder as its store; `mlflow migrate-filestore") as error:
        create_store()
    mend(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shlex.split(str(error.value).rpartition("URI=")[2])[0])
    records = open_records()
    assert records is not None and records.of_model("d7") is not None
    assert (root / "my runs.db").is_file() and (root / "mlflow.db").is_file()


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:s3cret@127.0.0.1:{port}/mlflow?token=s3cret",
        "http://me:a/s3cret@127.0.0.1:{port}",
        "http://s3cret@[bad",
        "postgresql://me:s3cret@127.0.0.1:{port}/runs?password=s3cret",
        "sqlite://me:s3cret@127.0.0.1/runs",
        "nothing://me:s3cret@127.0.0.1/runs",
    ],
)
def test_nobody_prints_the_password_of_a_store(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uses: list[Callable[[], object]] = [create_store, open_records, lambda: send(tmp_path), lambda: ui(1)]
    said = ""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(port=silent.getsockname()[1]))
        for use in uses:
            try:
                use()
            except ValueError as error:
                said += str(error)
        with start_run(PARAMS, DATA, signature="s"):
            pass
        log_report("d1", {}, tmp_path)
    captured = capfd.readouterr()
    assert "MLflow" in said and captured.err
    assert SECRET not in said + captured.out + captured.err
