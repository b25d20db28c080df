"""What every test stands on: an environment without a person's settings, and a store of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import REPOSITORY

# The tests' networks are too small for threads, which only wait for each other on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"


FIGURES = pytest.StashKey[dict[str, str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="all of the fault suite: `make faults`")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:  # one of several processes
        output["figures"] = session.config.stash[FIGURES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[FIGURES] |= getattr(node, "workeroutput", {}).get("figures", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if figures := config.stash[FIGURES]:
        terminalreporter.section("figures")
        for name, value in sorted(figures.items()):
            terminalreporter.write_line(f"| {name} | {value} |")


@pytest.fixture(scope="session")
def whole(pytestconfig: pytest.Config) -> bool:
    """Whether this is `make faults`; the fault suite is short in `make test`."""
    return bool(pytestconfig.getoption("--whole"))


@pytest.fixture(scope="session")
def figure(pytestconfig: pytest.Config) -> Callable[[str, str], None]:
    """Notes what was counted, for the table at the end."""
    return pytestconfig.stash[FIGURES].__setitem__


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
