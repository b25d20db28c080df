from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient

from began import __version__
from began.hdf5 import ImageWriter
from began.images import png_bytes
from pipeline.cli import main

COMMANDS = ("download", "preprocess", "train", "evaluate", "sample", "log", "ui")
CODE = Path(__file__).resolve().parent.parent

# Importing one of these takes longer than `--help` may.
HEAVY = {"torch", "mlflow", "numpy", "scipy", "h5py", "PIL", "pydantic", "yaml", "matplotlib", "onnx", "onnxruntime"}


def python(*arguments: str, cwd: Path = CODE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def exit_code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_help_loads_nothing_heavy() -> None:
    done = python("-c", "import sys, pipeline.cli; print(*{name.split('.')[0] for name in sys.modules})")
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {command} " in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "--help") == 0
    assert f"Example: began {command}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_a_module_too(command: str) -> None:
    """DVC runs `python -m pipeline.STAGE`, uninstalled, from its own copy of the code."""
    done = python("-m", f"pipeline.{command}", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: began {command}" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"began {__version__}\n"


@pytest.mark.parametrize("arguments", [("trian",), ("train", "--gpu"), ("sample", "--num", "0"), ("ui", "--port", "x")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert "Error: " in capsys.readouterr().err


# Bad input: a command line, what prepares it, and what the line must say.


class Place:
    """An empty folder with a valid params.yaml of tiny settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document: dict[str, Any] = yaml.safe_load((CODE / "params.yaml").read_text(encoding="utf-8"))
        self.document["profiles"]["quick"]["train"] |= {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 2}
        self.save()

    def save(self) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.document), encoding="utf-8")

    def set(self, section: str, **settings: object) -> None:
        tree = self.document
        for key in section.split(".") if section else ():
            tree = tree[key]
        tree.update(settings)
        self.save()

    def images(self, data: np.ndarray, name: str = "images", **options: Any) -> None:
        """images.h5 with one data set."""
        with h5py.File(self.folder / "images.h5", "w") as file:
            file.create_dataset(name, data=data, **options)
            file.attrs.update({"image_size": 32, "num_train": 8, "source": "test", "digest": "0" * 64})


def keep(place: Place) -> None:
    pass


def settings(section: str, **values: object) -> Callable[[Place], None]:
    return lambda place: place.set(section, **values)


def file(name: str, content: bytes = b"not what it should be") -> Callable[[Place], None]:
    def prepare(place: Place) -> None:
        (place.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (place.folder / name).write_bytes(content)

    return prepare


def dataset(data: np.ndarray, name: str = "images", **options: Any) -> Callable[[Place], None]:
    return lambda place: place.images(data, name, **options)


def empty_zip(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "images.zip", "w"):
        pass


def escaping_zip(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "images.zip", "w") as archive:
        archive.writestr("../../escaped.png", png_bytes(np.zeros((32, 32, 3), np.uint8)))


def undecodable_zip(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "images.zip", "w") as archive:
        for i in range(10):
            archive.writestr(f"broken{i}.png", b"\x89PNG\r\n\x1a\n broken")


def empty_folder(place: Place) -> None:
    (place.folder / "empty").mkdir()
    place.set("download", source="folder", folder="empty")


def archive_by_url(place: Place) -> None:
    with zipfile.ZipFile(place.folder / "a.zip", "w") as archive:
        archive.writestr("a.png", png_bytes(np.zeros((32, 32, 3), np.uint8)))
    place.set("download", source="url", url=(place.folder / "a.zip").as_uri(), sha256="0" * 64)


ROWS = np.zeros((10, 32, 32, 3), np.uint8)
DOWNLOAD = ("download", "out/images.zip")
PREPROCESS = ("preprocess", "images.zip", "out/images.h5")
TRAIN = ("train", "images.h5", "out/model")
EVALUATE = ("evaluate", "images.h5", "model", "out/report")

BAD: dict[str, tuple[tuple[str, ...], Callable[[Place], None], tuple[str, ...]]] = {
    "unknown key": (DOWNLOAD, settings("", gama=0.7), ("params.yaml", "gama", "unknown key")),
    "wrong type": (DOWNLOAD, settings("", gamma="high"), ("params.yaml", "gamma", "'high'")),
    "out of range": (TRAIN, settings("", gamma=1.5), ("params.yaml", "gamma", "1.5")),
    "no 32·2^m": (
        PREPROCESS,
        settings("profiles.quick.preprocess", image_size=48),
        ("profiles.quick.preprocess.image_size", "48", "32·2^m"),
    ),
    "no settings": ((*DOWNLOAD, "--params", "absent.yaml"), keep, ("absent.yaml", "no such file")),
    "unknown source": (DOWNLOAD, settings("download", source="faces"), ("download.source", "'faces'", "'avatars'")),
    "missing folder": (
        DOWNLOAD,
        settings("download", source="folder", folder="absent"),
        ("download.folder", "absent"),
    ),
    "folder without an image": (DOWNLOAD, empty_folder, ("download.folder", "empty", "no image")),
    "no url": (DOWNLOAD, settings("download", source="url"), ("download.url", "null")),
    "ftp": (DOWNLOAD, settings("download", source="url", url="ftp://localhost/a.zip"), ("download.url", "ftp://")),
    "wrong checksum": (DOWNLOAD, archive_by_url, ("a.zip", "SHA-256", "0" * 64)),
    "no licence accepted": (
        DOWNLOAD,
        settings("download", source="celeba"),
        ("download.accept_celeba_licence", "non-commercial"),
    ),
    "no CelebA zip": (
        DOWNLOAD,
        settings("download", source="celeba", accept_celeba_licence=True, celeba_zip="absent.zip"),
        ("download.celeba_zip", "absent.zip"),
    ),
    "no archive": (PREPROCESS, keep, ("images.zip",)),
    "not a zip": (PREPROCESS, file("images.zip"), ("images.zip", "zip")),
    "empty zip": (PREPROCESS, empty_zip, ("images.zip",)),
    "a member that escapes": (PREPROCESS, escaping_zip, ("images.zip", "../../escaped.png")),
    "only broken images": (PREPROCESS, undecodable_zip, ("broken", "max_rejected")),
    "no HDF5": (TRAIN, keep, ("images.h5",)),
    "not HDF5": (TRAIN, file("images.h5"), ("images.h5", "HDF5")),
    "another data set": (TRAIN, dataset(ROWS, "faces"), ("images.h5", "images")),
    "another type": (TRAIN, dataset(ROWS.astype(np.float32)), ("images.h5", "float32", "uint8")),
    "another shape": (TRAIN, dataset(ROWS[..., 0]), ("images.h5", "(10, 32, 32)")),
    "compressed": (TRAIN, dataset(ROWS, compression="gzip"), ("images.h5", "contiguous")),
    "another size": (
        TRAIN,
        lambda place: (place.images(ROWS), place.set("profiles.quick.preprocess", image_size=64))[1],
        ("images.h5", "32", "64", "image_size"),
    ),
    "unknown device": ((*TRAIN, "--device", "tpu"), dataset(ROWS), ("device", "tpu")),
    "no model": (EVALUATE, dataset(ROWS), ("model",)),
    "not a model": (EVALUATE, file("model/model.json"), ("model.json",)),
    "half a description": (EVALUATE, file("model/model.json", b"{}"), ("model.json",)),
    "nothing to sample from": (("sample", "--out", "out.png"), keep, ("data/model", "make repro")),
    "another suffix": (("sample", "--out", "out.gif"), keep, ("--out", "out.gif", ".png", ".npz")),
    "no parent folder": (("sample", "--out", "absent/out.png"), keep, ("--out", "absent")),
    "archive in a file": (("download", "file/images.zip"), file("file"), ("file",)),
    "archive is a folder": (("download", "folder"), file("folder/a"), ("folder",)),
    "model in a file": (("train", "images.h5", "params.yaml/model"), dataset(ROWS), ("params.yaml",)),
    "model is a file": (("train", "images.h5", "params.yaml"), dataset(ROWS), ("params.yaml", "folder")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_names_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, prepare, needed = BAD[case]
    monkeypatch.chdir(tmp_path)
    prepare(Place(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    assert exit_code(*arguments) == 2
    line, *more = capsys.readouterr().err.splitlines()
    assert more == []
    assert line.startswith("began: ")
    for text in needed:
        assert text in line, line
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path != tmp_path / "out"]
    assert [path for path in left if ".began" not in path.parts] == []


@pytest.mark.parametrize("stage", ["download", "train"])
def test_bad_input_has_no_traceback_in_a_real_process(stage: str, tmp_path: Path) -> None:
    done = python("-m", f"pipeline.{stage}", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("began: params.yaml: no such file")
    assert done.stderr.count("\n") == 1


def test_a_terminated_training_leaves_nothing_half_made_and_ends_its_run(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.set("profiles.quick.train", num_steps=10**6)
    with ImageWriter(tmp_path / "images.h5", 32, len(ROWS)) as writer:
        writer.append(ROWS)
        writer.finish([f"{i}.png" for i in range(len(ROWS))], 8, {"source": "test", "licence": "CC0", "credit": ""})
    before = set(tmp_path.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.train", "images.h5", "model", "--device", "cpu"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CODE), "DVC_ROOT": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (tmp_path / f".model.{process.pid}.part" / "samples" / "0000000.png").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        err = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == "began: terminated"
    assert "Traceback" not in err
    made = {path.name for path in set(tmp_path.iterdir()) - before}
    assert made - {"mlartifacts"} == {"mlflow.db", ".began"}  # the first picture may not have reached the store
    (run,) = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").search_runs(["1"])
    assert run.info.status == "KILLED"


def test_a_command_in_this_process_leaves_its_handlers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code("--version") == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("venv", "expected"), [(".venv", "{root}/.venv/bin"), ("/some/where", "/some/where/bin")])
def test_make_puts_its_environment_first(venv: str, expected: str, tmp_path: Path) -> None:
    root = tmp_path / "with a space"
    root.mkdir()
    shutil.copy2(CODE / "Makefile", root)
    show = ["make", "--no-print-directory", '--eval=show: ; @echo "$$PATH"', f"VENV={venv}", "show"]
    shown = subprocess.run(show, cwd=root, capture_output=True, text=True, check=True).stdout
    assert shown.split(os.pathsep)[0] == expected.format(root=root)


def test_ci_refuses_a_checkout_that_is_not_clean(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    shutil.copytree(CODE / ".ci", tmp_path / ".ci")
    done = subprocess.run([".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(".ci/run: the checkout is not clean")
    assert done.stderr.count("\n") == 1
