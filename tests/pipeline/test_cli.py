from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from began import __version__
from pipeline.cli import main
from tests import REPOSITORY

COMMANDS = ("download", "preprocess", "train", "evaluate", "sample", "export", "compare", "log", "ui")

# Importing one of these takes longer than `--help` may.
HEAVY = {"torch", "mlflow", "numpy", "scipy", "h5py", "PIL", "pydantic", "yaml", "matplotlib", "onnx", "onnxruntime"}


def python(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
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
def test_every_command_is_one_of_the_package_too(command: str) -> None:
    """DVC runs `python -m pipeline STAGE`, uninstalled, from its own copy of the code."""
    for called in (("pipeline", command), (f"pipeline.{command}",)):
        done = python("-m", *called, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Usage: began {command}" in done.stdout


def test_the_module_of_the_commands_is_the_program_too() -> None:
    done = python("-m", "pipeline.cli", "sample", "--num", "x")
    assert done.returncode == 2
    assert "began sample" in done.stderr


def test_without_git_make_tells_dvc_so(tmp_path: Path) -> None:
    """A downloaded zip has no .git."""
    (tmp_path / ".dvc").mkdir()
    shutil.copy2(REPOSITORY / "Makefile", tmp_path)
    shutil.copy2(REPOSITORY / ".dvc" / "config", tmp_path / ".dvc")
    (tmp_path / "dvc.yaml").write_text("stages:\n  download:\n    cmd: echo it ran\n")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".ready").touch()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))  # older than .ready
    done = subprocess.run(["make", "repro"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No git repository: dvc repro works, dvc exp run does not" in done.stdout
    assert "it ran" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"began {__version__}\n"


@pytest.mark.parametrize("arguments", [("trian",), ("train", "--gpu"), ("sample", "--num", "0"), ("ui", "--port", "x")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_a_command_in_this_process_leaves_its_handlers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert exit_code("--version") == 0
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("venv", "expected"), [(".venv", "{root}/.venv/bin"), ("/some/where", "/some/where/bin")])
def test_make_puts_its_environment_first(venv: str, expected: str, tmp_path: Path) -> None:
    root = tmp_path / "with a space"
    root.mkdir()
    shutil.copy2(REPOSITORY / "Makefile", root)
    show = ["make", "--no-print-directory", '--eval=show: ; @echo "$$PATH"', f"VENV={venv}", "show"]
    shown = subprocess.run(show, cwd=root, capture_output=True, text=True, check=True).stdout
    assert shown.split(os.pathsep)[0] == expected.format(root=root)


def test_ci_refuses_a_checkout_that_is_not_clean(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    shutil.copytree(REPOSITORY / ".ci", tmp_path / ".ci")
    done = subprocess.run([".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(".ci/run: the checkout is not clean")
    assert done.stderr.count("\n") == 1
