"""A real server, asked for a page, then ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.tracking.write import start_run
from pipeline.ui import ui
from tests import REPOSITORY


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


def processes_at(port: int) -> list[psutil.Process]:
    """The server and its workers, while any of them lives."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"--port", str(port), "--workers"} <= set(process.info["cmdline"] or [])
    ]


@contextmanager
def started(root: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`began ui` as its own process, on a store in `root`."""
    (root / ".dvc").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "ui", "--port", str(port)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "DVC_ROOT": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        for left in (process, *processes_at(port)):
            left.kill()
        process.communicate()


def test_the_pages_show_the_runs_until_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    with start_run({"gamma": 0.7}, {"source": "portraits"}, signature="") as run:
        run.log(1, {"M_global": 0.1})
    port = free_port()
    with started(tmp_path, port) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Starting MLflow …\n"
        assert process.stdout.readline() == f"http://127.0.0.1:{port} until Ctrl-C\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as answer:
            assert b"<title>MLflow</title>" in answer.read()
        address = f"http://127.0.0.1:{port}/api/2.0/mlflow/metrics/get-history?metric_key=M_global&run_id={run.run_id}"
        with urllib.request.urlopen(address) as answer:
            assert json.load(answer)["metrics"][0]["value"] == 0.1
        assert len(processes_at(port)) == 2
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
        assert processes_at(port) == []


def test_a_closed_terminal_leaves_no_server(tmp_path: Path) -> None:
    port = free_port()
    with started(tmp_path, port) as process:
        while not processes_at(port):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert processes_at(port) == []


def test_a_taken_port_is_named() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: is taken"):
            ui(port)


def test_a_store_that_is_no_server_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself refuses folders now."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    with pytest.raises(ValueError, match=r"mlruns: MLflow's store cannot be opened: .*folder"):
        ui(free_port())


def test_a_server_named_by_the_environment_has_its_own_pages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example.org:5000")
    ui(5000)
    assert "http://mlflow.example.org:5000" in capsys.readouterr().out
