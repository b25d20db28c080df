"""What every test stands on: an environment without a person's settings, and a store of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The tests' networks are too small for threads, which only wait for each other on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout under test."""
    return REPOSITORY


@pytest.fixture(scope="session")
def _main_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main")


@pytest.fixture(autouse=True)
def _own_environment(_main_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No named setting of the caller's gets in, and nothing a test records lands in the checkout."""
    for name in os.environ:
        if name.startswith(("DVC_", "MLFLOW_", "BEGAN_", "GIT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_ROOT", str(_main_root))
