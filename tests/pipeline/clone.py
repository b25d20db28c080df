"""A clone of the checkout's present content with tiny settings, in which the real pipeline runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities import Run


class Clone:
    """A clone of the checkout's current content, with tiny settings."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # As in a shell with the environment active and nothing else set.
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "BEGAN_"))
        }
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False, timeout=280
        )

    def dvc(self, *arguments: str) -> str:
        """Both output streams of a `dvc` command that succeeds."""
        done = self.run(sys.executable, "-m", "dvc", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def git(self, *arguments: str) -> str:
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def set(self, **settings: Any) -> None:
        """Changes keys of params.yaml: mappings are merged, `quick` stands for the profile."""
        file = self.root / "params.yaml"
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        _merge(document, settings)
        _merge(document["profiles"]["quick"], document.pop("quick", {}))
        file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")

    def mlflow(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self) -> list[Run]:
        """The recorded runs, the newest first."""
        experiment = self.mlflow().get_experiment_by_name("began")
        assert experiment is not None
        return list(self.mlflow().search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))

    def curve(self, run: Run) -> dict[int, float]:
        return {point.step: point.value for point in self.mlflow().get_metric_history(run.info.run_id, "M_global")}

    def artifacts(self, run: Run) -> set[str]:
        folder = self.root / "mlartifacts" / run.info.run_id / "artifacts"
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _merge(into: dict[str, Any], settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def make_clone(repository: Path, folder: Path, **settings: Any) -> Clone:
    """A clone in `folder` of what `repository` holds now, in which nothing has run."""
    origin, clone = Clone(folder / "origin"), Clone(folder / "clone")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (repository / name).is_file():
            (origin.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, origin.root / name)
    origin.set(**settings)
    for command in (
        ("init", "-q"),
        ("add", "--all"),
        ("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "first"),
        ("clone", "-q", str(origin.root), str(clone.root)),
    ):
        origin.git(*command)
    clone.git("config", "user.name", "a")
    clone.git("config", "user.email", "a@example.org")
    return clone
