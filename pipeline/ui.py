"""`began ui`: MLflow's pages of the runs recorded here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from pipeline.console.workspace import main_root
from pipeline.tracking.store import is_server, shown_store, store_uri
from pipeline.tracking.write import create_store

HOST = "127.0.0.1"
SECONDS_TO_END = 10.0


def ui(port: int) -> None:
    """Show the runs in MLflow's pages, on this machine only, until Ctrl-C."""
    uri = store_uri()
    if is_server(uri):
        print(f"MLFLOW_TRACKING_URI names a server, which has its own pages: {shown_store()}")
        return
    if _answers(port):
        raise ValueError(f"--port {port}: is taken; choose another one")
    print("Starting MLflow …", flush=True)
    create_store()
    log = main_root() / ".began" / "mlflow-ui.log"
    endings: list[int] = []
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda kind, frame: endings.append(kind))
    with log.open("w") as output:
        # In a process group of its own, so that its workers end with it.
        server = subprocess.Popen(
            _command(port), env=_environment(uri), stdout=output, stderr=output, start_new_session=True
        )
    address = f"http://{HOST}:{port}"
    try:
        while server.poll() is None and not endings:
            if address and _answers(port):
                print(f"{address} until Ctrl-C", flush=True)
                address = ""
            time.sleep(0.1)
    finally:
        _end(server)
    if not endings:
        raise ValueError(f"MLflow's server ended by itself with exit code {server.returncode}: see {log}")


def _command(port: int) -> list[str]:
    """MLflow's server with one worker."""
    arguments = ["--host", HOST, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *arguments]


def _environment(uri: str) -> dict[str, str]:
    """The store's address, which may hold a password that a list of processes would show; and no job runner.

    That is a dozen processes, which only MLflow's evaluation of language models needs.
    """
    ours = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**os.environ, **ours, "MLFLOW_BACKEND_STORE_URI": uri}


def _answers(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((HOST, port)) == 0


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and its workers, the patient way first."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, kind)
        except ProcessLookupError:
            return
        try:
            server.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    from pipeline.cli import run

    run("ui")
