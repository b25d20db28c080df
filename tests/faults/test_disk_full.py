"""A full disk at every write: one line that names the file, and all that was there before is as it was.

Once by a limit on the size of a file, which each kind of file meets at another size; once by a small file system, where
one may be mounted.
"""

from __future__ import annotations

import hashlib
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from began.runs.model_folder import read_model
from pipeline.cli import main
from tests import REPOSITORY

STAGES = {
    "download": ("pipeline", "download", "data/raw/images.zip"),
    "preprocess": ("pipeline", "preprocess", "data/raw/images.zip", "data/images.h5"),
    "train": ("pipeline", "train", "data/images.h5", "data/model", "--device", "cpu", "--checkpoint-seconds", "0"),
    "sample": ("pipeline", "sample", "--num", "64", "--seed", "1", "--out", "faces.npz"),
    "evaluate": ("pipeline", "evaluate", "data/images.h5", "data/model", "data/report", "--device", "cpu"),
}
OURS = ("data", ".began", "faces.npz")  # MLflow's store is none of what must be kept
REASONS = ("No space left on device", "File too large")

# Mounts a file system of $1 KiB, fills it from $2, runs the rest in it, copies what is then there to $3.
IN_SMALL_FILE_SYSTEM = """
mount -t tmpfs -o size="$1"k tmpfs "$3" || exit 77
cp -a "$2"/. "$3" || exit 78
here=$(mktemp -d); out=$3; cd "$3"; shift 3
"$@"; code=$?
cp -a "$out"/. "$here"; cd /; umount -l "$out"; cp -a "$here"/. "$out"; rm -r "$here"
exit $code
"""


def command(stage: str) -> list[str]:
    module, *arguments = STAGES[stage]
    return [sys.executable, "-m", module, *arguments]


def run(
    stage: str, folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None = None, wrap: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Exit code and standard error of a stage in `folder`, no file of which may grow beyond `limit` bytes."""

    def enter() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    for name, value in {"DVC_ROOT": folder, "BEGAN_WORKERS": 1, "PYTHONPATH": REPOSITORY}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = subprocess.run(
        [*wrap, *command(stage)],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=240, preexec_fn=enter,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def settings(**train: object) -> str:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["gamma"] = 0.9
    params["download"] |= {"source": "portraits", "num_images": train.pop("num_images", 20)}
    quick = params["profiles"]["quick"]
    quick["train"] |= {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 12}
    quick["train"] |= train
    quick["evaluate"]["num_samples"] = 64
    return yaml.safe_dump(params)


def contents(folder: Path) -> dict[str, str]:
    """Path → digest of all files of ours, but those that say who holds a lock."""
    files = [path for name in OURS for path in ((folder / name).rglob("*") if name != "faces.npz" else [folder / name])]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and path.name not in ("lock", "holder")
    }


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages done once."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "params.yaml").write_text(settings(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DVC_ROOT", str(folder))
        for stage in ("download", "preprocess", "train", "sample"):
            with pytest.raises(SystemExit) as end:
                main(command(stage)[3:])
            assert end.value.code in (0, None)
    return folder


@pytest.fixture
def again(workspace: Path, tmp_path: Path) -> Path:
    """A copy in which every stage would now make something else."""
    folder = tmp_path / "again"
    shutil.copytree(workspace, folder)
    (folder / "params.yaml").write_text(settings(learning_rate=2.0e-4, num_images=24), encoding="utf-8")
    return folder


def sizes_to_try(stage: str, workspace: Path, whole: bool) -> list[int]:
    """Limits that each kind of file of the stage meets at its start, in the middle and at its last byte."""
    outputs = {
        "download": ["data/raw/*"],
        "preprocess": ["data/images.h5", "data/rejected.csv"],
        "train": ["data/model/*", "data/model/*/*", ".began/runs/*/*"],
        "sample": ["faces.npz"],
        "evaluate": ["data/model/*/*"],
    }[stage]
    sizes = {path.stat().st_size for pattern in outputs for path in workspace.glob(pattern) if path.is_file()}
    tried = sorted({limit for size in sizes for limit in (0, 1, size // 2, size - 1)} - {-1})
    if whole:
        return tried[:: max(1, len(tried) // 16)] + tried[-1:]
    return [tried[-1]]


def explained(code: int, stderr: str, folder: Path) -> None:
    assert "Traceback" not in stderr
    if code == 0:  # only the state after the last step did not fit, when the model was in its place
        assert any(reason in stderr for reason in REASONS), stderr
        return
    assert code == 2, stderr
    lines = [line for line in stderr.splitlines() if line.startswith("began: ")]
    assert len(lines) == 1 and stderr.endswith(lines[0] + "\n"), stderr
    assert any(reason in lines[0] for reason in REASONS), lines[0]
    named = lines[0].removeprefix("began: ").partition(": ")[0]
    assert (folder / named).is_relative_to(folder) and ".part" not in named, lines[0]


def unharmed(before: dict[str, str], folder: Path) -> None:
    """What was there is there, unchanged, and nothing of which a half could be taken for a whole."""
    after = contents(folder)
    model = "data/model/"
    if after[f"{model}model.json"] != before[f"{model}model.json"]:  # the model is another by now, and whole
        read_model(folder / model)
        before, after = (
            {name: digest for name, digest in files.items() if not name.startswith(model)} for files in (before, after)
        )
    # The states and curves of a run that is trained anew are its own.
    before = {name: digest for name, digest in before.items() if not name.startswith(".began/runs")}
    assert before.items() <= after.items(), before.keys() - after.keys()
    for name in after.keys() - before.keys():
        path = Path(name)
        assert path.parts[0] == ".began", name
        if path.suffix == ".safetensors":  # a state that still fitted; its name holds its digest
            assert after[name] in name


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_a_file_that_may_not_grow(
    stage: str,
    workspace: Path,
    again: Path,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str, str], None],
) -> None:
    if not whole and stage not in ("download", "preprocess"):
        pytest.skip("only in `make faults`")
    before = contents(again)
    limits = sizes_to_try(stage, workspace, whole)
    for limit in limits:
        code, stderr = run(stage, again, monkeypatch, limit)
        explained(code, stderr, again)
        unharmed(before, again)
        before = contents(again)
    figure(f"disk full: {stage}", f"{len(limits)} of {len(limits)} file sizes explained, earlier outputs unchanged")


def test_a_store_that_cannot_grow_does_not_stop_training(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 2**22  # above all of ours
    database = sqlite3.connect(again / "mlflow.db")
    database.execute("CREATE TABLE filling (bytes BLOB)")
    database.execute("INSERT INTO filling VALUES (zeroblob(?))", (2 * limit,))
    database.commit()
    database.close()
    code, stderr = run("train", again, monkeypatch, limit)
    assert code == 0 and "Traceback" not in stderr, stderr
    # Whether the run itself still fits depends on the room that the database has within.
    *first, last = (line for line in stderr.splitlines() if "MLflow" in line)
    assert [line.partition(": ")[0] for line in first] in ([], ["MLflow does not take this run for now"]), stderr
    assert last.startswith(("MLflow: this run is not recorded: ", "MLflow misses a part of this run: ")), stderr
    assert read_model(again / "data" / "model").description["step"] == 12


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_a_small_file_system(
    stage: str,
    again: Path,
    tmp_path: Path,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str, str], None],
) -> None:
    if not whole and stage != "train":
        pytest.skip("only in `make faults`")
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here, not even in a name space of its own")
    used = sum(-(-path.stat().st_size // 4096) * 4 for path in again.rglob("*") if path.is_file())
    before, num = contents(again), 0
    for free in (8, 16, 32, 64, 96, 128, 192, 256, 384, 512) if whole else (64,):
        small = tmp_path / f"small{free}"
        small.mkdir()
        wrap = ("unshare", "-rm", "sh", "-c", IN_SMALL_FILE_SYSTEM, "sh", str(used + free), str(again), str(small))
        monkeypatch.chdir(tmp_path)
        code, stderr = run(stage, small, monkeypatch, wrap=wrap)
        assert code != 77, stderr
        if code == 78:  # not even what was there before
            continue
        if code == 0 and not any(reason in stderr for reason in REASONS):  # all of it fitted
            break
        explained(code, stderr, small)
        unharmed(before, small)
        num += 1
    assert num
    figure(f"file system full: {stage}", f"{num} of {num} sizes explained, earlier outputs unchanged")
