"""What names mean: a real sweep in a fresh clone, recorded in a real MLflow store."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.entities import Run as StoredRun

from began.runs.model_folder import read_description
from pipeline.cli import main
from pipeline.report.find_runs import Run, _folder_label, read_runs
from tests.pipeline import browser
from tests.pipeline.clone import Clone, make_clone

pytestmark = pytest.mark.timeout(900)  # the sweep runs the whole pipeline

TINY = {
    "preprocess": {"held_out": 0.4},
    "train": {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 24},
    "evaluate": {"num_samples": 16},
}
LOW, HIGH = "gamma-0.3-seed-0", "gamma-0.7-seed-0"

Read = Callable[..., list[Run]]


def make_sweep(clone: Clone) -> subprocess.CompletedProcess[str]:
    """`make sweep` of two γ, with this Python's environment in the place of .venv."""
    ready = clone.root.parent / "ready"
    ready.touch()
    environment = Path(sys.executable).parent.parent
    variables = (f"VENV={environment}", f"READY={ready}", "GAMMAS=0.3 0.7", "SEEDS=0")
    command = ["make", "--no-print-directory", *variables, "sweep"]
    return subprocess.run(
        command, cwd=clone.root, env=clone.environment, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.fixture(scope="module")
def swept(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone in which `make sweep` has run, and what that printed; nothing of it is checked out."""
    folder = tmp_path_factory.mktemp("runs")
    clone = make_clone(repository, folder, gamma=0.9, download={"num_images": 60}, quick=TINY)
    done = make_sweep(clone)
    assert done.returncode == 0, done.stdout + done.stderr
    return clone, done.stdout


@pytest.fixture
def clone(swept: tuple[Clone, str]) -> Clone:
    return swept[0]


@pytest.fixture
def read(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Read:
    """`read_runs` as it is called in the clone."""
    monkeypatch.setenv("DVC_ROOT", str(clone.root))
    monkeypatch.chdir(clone.root)
    return lambda *names: read_runs(list(names))


def error_of(capsys: pytest.CaptureFixture[str], *names: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["compare", *names])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def recorded(clone: Clone, name: str) -> StoredRun:
    return next(run for run in clone.runs() if run.data.tags.get("dvc.exp_name") == name)


@contextmanager
def without_store(clone: Clone) -> Iterator[None]:
    store = clone.root / "mlflow.db"
    store.rename(store.with_suffix(".away"))
    try:
        yield
        assert not store.exists()
    finally:
        store.with_suffix(".away").rename(store)


def test_make_sweep_ends_in_a_page_and_prints_its_numbers_and_path(swept: tuple[Clone, str]) -> None:
    clone, printed = swept
    *table, path = printed.splitlines()[-6:]
    assert path == "data/comparison/index.html"
    assert any(line.startswith("M_global") for line in table)
    assert "γ = 0.3  γ = 0.7" in " ".join(printed.splitlines()[-20:])
    browser.check(clone.root / path)
    assert not (clone.root / "data" / "model").exists()


def test_a_sweep_fails_when_an_experiment_does_and_the_next_trains_nothing_again(swept: tuple[Clone, str]) -> None:
    clone, printed = swept
    before = [run.info.run_id for run in clone.runs()]
    params = (clone.root / "params.yaml").read_text()
    clone.set(quick={"train": {"batch_size": 1000}})  # more than there are images
    failed = make_sweep(clone)
    assert failed.returncode != 0
    assert f"{LOW} failed: began: " in failed.stderr
    (clone.root / "params.yaml").write_text(params)
    again = make_sweep(clone)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Stage 'train' is cached" in again.stderr
    assert [run.info.run_id for run in clone.runs()] == before
    assert again.stdout.splitlines()[-6:] == printed.splitlines()[-6:]


def test_experiments_are_read_from_the_cache_with_the_numbers_of_their_reports(clone: Clone, read: Read) -> None:
    low, high = read(LOW, HIGH)
    assert (low.label, high.label) == (LOW, HIGH)
    assert (low.parameters["gamma"], high.parameters["gamma"]) == ("0.3", "0.7")
    assert low.G is not None and low.history is not None and low.distances is not None
    assert low.numbers["frechet_face"] is not None and low.numbers["frechet_face"] != high.numbers["frechet_face"]
    assert low.model_digest == recorded(clone, LOW).data.tags["model_digest"]
    commit = clone.git("for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{HIGH}").strip()
    assert read(commit[:10])[0].model_digest == high.model_digest


def test_everything_is_there_without_mlflow(clone: Clone, read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = recorded(clone, LOW).info.run_id
    with_store = read(LOW)[0]
    with without_store(clone):
        alone = read(LOW)[0]
        assert (alone.numbers, alone.parameters) == (with_store.numbers, with_store.parameters)
        error = error_of(capsys, run_id)
    assert error.startswith(f"began: {run_id}: no such run") and error.endswith("there is no MLflow store here")


def test_an_mlflow_run_leads_to_its_weights(clone: Clone, read: Read) -> None:
    stored = recorded(clone, HIGH)
    whole, short = read(stored.info.run_id, stored.info.run_id[:8])
    assert whole.label == HIGH and short.label == f"{HIGH} (2)"
    for run in (whole, short):
        assert run.G is not None and run.model_digest == stored.data.tags["model_digest"]
        assert run.numbers["frechet_face"] == stored.data.metrics["frechet_face"]


def test_a_folder_without_a_report_has_the_numbers_that_mlflow_knows(clone: Clone, read: Read, tmp_path: Path) -> None:
    model = tmp_path / "elsewhere" / "data" / "model"
    clone.dvc("get", ".", "data/model", "--rev", LOW, "-o", str(model))
    run = read(str(model))[0]
    assert run.label == "elsewhere"
    assert run.numbers["frechet_face"] == read(LOW)[0].numbers["frechet_face"]
    with without_store(clone):
        alone = read(str(model))[0]
    assert alone.numbers.keys() == {"M_global"} and "no report of this model" in alone.remarks[-1]


def test_a_report_of_another_model_is_not_believed(clone: Clone, read: Read, tmp_path: Path) -> None:
    clone.dvc("get", ".", "data/model", "--rev", LOW, "-o", str(tmp_path / "model"))
    clone.dvc("get", ".", "data/report", "--rev", HIGH, "-o", str(tmp_path / "report"))
    low, high = read(LOW, HIGH)
    assert read(str(tmp_path / "model"))[0].numbers["frechet_face"] == low.numbers["frechet_face"]
    shutil.rmtree(tmp_path / "report")
    clone.dvc("get", ".", "data/report", "--rev", LOW, "-o", str(tmp_path / "report"))
    with without_store(clone):
        assert read(str(tmp_path / "model"))[0].numbers["recall_face"] == low.numbers["recall_face"]
    assert low.model_digest != high.model_digest


def test_a_damaged_model_is_named(clone: Clone, read: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    clone.dvc("get", ".", "data/model", "--rev", LOW, "-o", str(model))
    weights = model / "generator.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    assert f"{weights}: its SHA-256 is not" in error_of(capsys, str(model))


@pytest.mark.parametrize("name", ["nonsense", "0123456789", "a'b\"c", "no/such/folder", "HEAD~99", "éß"])
def test_a_name_that_means_nothing_is_one_line(name: str, read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    error = error_of(capsys, LOW, name)
    assert error.startswith(f"began: {name}: no such run: it is no folder with model.json, no DVC experiment")


def test_a_commit_without_a_model_says_so(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "HEAD").startswith("began: HEAD: data/model of this revision is not to be had")


def test_a_name_of_two_mlflow_runs_is_ambiguous(clone: Clone, read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = clone.runs()[:2]
    for run in (first, second):
        clone.mlflow().update_run(run.info.run_id, name="twin")
    error = error_of(capsys, "twin")
    assert "2 MLflow runs are called so" in error and first.info.run_id[:12] in error
    for run in (first, second):
        clone.mlflow().update_run(run.info.run_id, name=run.info.run_name)


def test_weights_are_found_in_other_experiments_and_the_workspace_and_else_the_logged_faces_are_shown(
    clone: Clone, read: Read, tmp_path: Path
) -> None:
    """The last one: it removes what the others need."""
    stored = recorded(clone, LOW)
    clone.dvc("exp", "run", "--temp", "--name", "restored", "-S", "gamma=0.3")
    clone.dvc("exp", "remove", LOW)
    assert (
        len([run for run in clone.runs() if run.data.tags.get("model_digest") == stored.data.tags["model_digest"]]) == 1
    )
    found = read(LOW)[0]  # the name is now only MLflow's
    assert found.G is not None and found.origin.endswith("weights of restored")
    restored = read("restored")[0]
    assert restored.model_digest == found.model_digest and restored.numbers == found.numbers

    clone.dvc("get", ".", "data/model", "--rev", "restored", "-o", str(tmp_path / "model"))
    clone.dvc("exp", "remove", "restored")
    logged = read(stored.info.run_id[:12])[0]
    assert logged.G is None and logged.logged is not None and logged.logged.shape == (64, 32, 32, 3)
    assert "its weights are not to be found" in logged.remarks[0] and "step 24" in logged.remarks[0]
    assert logged.history is not None and logged.numbers["frechet_face"] == stored.data.metrics["frechet_face"]
    page = tmp_path / "page"
    with pytest.raises(SystemExit) as ended:
        main(["compare", HIGH, stored.info.run_id, "--out", str(page)])
    assert ended.value.code == 0 and "of another z" in (page / "index.html").read_text()

    shutil.move(tmp_path / "model", clone.root / "data" / "model")
    assert read(stored.info.run_id)[0].origin.endswith("weights of the workspace")
    assert read_description(Path("data/model"))["weights"]["generator.safetensors"] == restored.model_digest


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("data/model", "data/model"),
        ("model", "model"),
        ("/home/a/began/data/model", "began"),
        ("../other/data/model", "other"),
        ("runs/tall", "tall"),
    ],
)
def test_a_folder_is_called_by_what_tells_it_from_others(path: str, label: str) -> None:
    assert _folder_label(path) == label
