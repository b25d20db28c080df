"""Nothing from a stranger is executed, nothing of a person's leaves, and nobody is let in."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import pickle
import platform
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
import torch
import yaml

from began.base import transfer
from began.data.images import png_bytes
from tests import REPOSITORY, hide_mlflow
from tests.data.http_server import Served, Server
from tests.faults.inputs import PNG, Canary, make_good_files, noise, picture, run, tiny_settings, zip_bytes
from tests.pipeline.test_ui import free_port, processes_at, started

# What runs code that a file holds, or text as code. Names as they stand in the code, from where they are imported.
EXECUTING = {
    *("eval", "exec", "compile", "__import__", "runpy", "code", "pickle", "cPickle", "_pickle", "dill", "cloudpickle"),
    *("joblib", "marshal", "shelve", "torch.load", "torch.jit.load", "torch.hub", "torch.package", "os.system"),
    *("os.popen", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all", "yaml.unsafe_load"),
    *("yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader", "yaml.CLoader", "yaml.unsafe_load_all"),
    *("numpy.load", "mlflow.pyfunc", "mlflow.pytorch", "pandas.read_pickle"),
}


WORDS = {"extractall", "shell", "allow_pickle"}


def executing(source: str) -> list[str]:
    """Lines of `source` that use one of EXECUTING, extractall, shell= or allow_pickle=."""
    tree = ast.parse(source)
    names = {name: name for name in ("eval", "exec", "compile", "__import__")}  # name here → full name
    found: list[tuple[int, set[str]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                full = origin + alias.name
                names[alias.asname or alias.name] = full
                found.append((node.lineno, {full, full.split(".")[0]}))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = _dotted(node).split(".")
            if first in names:
                found.append((node.lineno, {".".join([names[first], *rest])}))
        if isinstance(node, ast.Attribute):
            found.append((node.lineno, {node.attr} & {"extractall"}))
        if isinstance(node, ast.keyword):
            found.append((node.value.lineno, {node.arg or ""} & {"shell", "allow_pickle"}))
    return [f"line {line}: {word}" for line, words in found for word in words & (EXECUTING | WORDS)]


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = _dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


MODULES = [
    path.relative_to(REPOSITORY).as_posix()
    for folder in ("began", "pipeline")
    for path in (REPOSITORY / folder).rglob("*.py")
]


def test_no_module_executes_what_a_file_holds() -> None:
    found = {module: executing((REPOSITORY / module).read_text(encoding="utf-8")) for module in MODULES}
    assert {module: lines for module, lines in found.items() if lines} == {}


def test_such_a_line_would_be_found() -> None:
    for source in (
        "from pickle import loads",
        "import torch as t\nt.load('a.pt')",
        "from torch import load\nload('a.pt')",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "from yaml import UnsafeLoader",
        "eval('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "archive.extractall()",
    ):
        assert executing(source), source


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_good_files(folder)
    return folder


def pickles() -> Iterator[bytes]:
    """As pickle and torch write them; unpickled, each makes a file."""
    yield pickle.dumps(Canary())
    stream = io.BytesIO()
    torch.save(Canary(), stream)
    yield stream.getvalue()


def test_the_canary_sings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(next(pickles())).close()
    assert Path("EXECUTED").exists()


def test_a_state_that_is_a_pickle_is_passed_over_not_executed(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(good, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    hide_mlflow(monkeypatch)
    states = sorted(folder.glob(".began/runs/*/*.safetensors"))
    assert states
    for i, content in enumerate(pickles()):
        named = f"{i + 1:09d}-{hashlib.sha256(content).hexdigest()}.safetensors"
        (states[0].parent / named).write_bytes(content)
    for state in states:
        state.unlink()
    shutil.rmtree("model")
    assert run("train", "images.h5", "model", "--device", "cpu") == 0
    err = capfd.readouterr().err
    assert "Traceback" not in err and "safetensors" in err
    assert Path("model/model.json").exists()
    assert not list(tmp_path.rglob("EXECUTED"))


# What leaves

CANARY, HOST = "canary7391", "host-5127"


def test_nothing_of_a_person_gets_into_mlflow_the_model_or_the_output(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither environment, names and home, nor password and key of download.url, nor a path of pictures, on the way."""
    folder, home = tmp_path / "repository", tmp_path / f"home-of-{CANARY}"
    home.mkdir()
    folder.mkdir()
    make_settings(folder)
    for name in ("USER", "LOGNAME", "USERNAME", "LNAME", "SECRET_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOSTNAME", "EMAIL"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    monkeypatch.setattr(platform, "node", lambda: HOST)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.chdir(folder)
    server = Server()
    try:
        server.files["/a.zip"] = Served(zip_bytes({f"{i}.png": png_bytes(picture(i)) for i in range(10)}))
        text = Path("params.yaml").read_text(encoding="utf-8")
        secret = server.address.replace("//", f"//me:{CANARY}@") + f"/a.zip?key={CANARY}"
        Path("params.yaml").write_text(text.replace("THE_URL", secret), encoding="utf-8")
        stages = [
            ("download", "images.zip", "--workers", "1"),
            ("preprocess", "images.zip", "images.h5", "--workers", "1"),
            ("train", "images.h5", "model", "--device", "cpu"),
            ("log", "model"),
        ]
        if whole:
            stages.insert(3, ("evaluate", "images.h5", "model", "report", "--device", "cpu"))
        for stage in stages:
            if not whole:
                assert run(*stage) == 0
                continue
            subprocess.run(
                [sys.executable, "-m", "pipeline", *stage],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                check=True,
                timeout=240,
            )
    finally:
        server.close()
    out, err = capfd.readouterr()
    assert CANARY not in out + err
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "params.yaml"]
    assert {"mlflow.db", "model.json", "images.h5", "card.json"} <= {path.name for path in files}
    assert any("mlartifacts" in path.parts for path in files)
    real = {socket.gethostname(), platform.node(), pwd.getpwuid(os.getuid()).pw_name}
    names = [CANARY, str(home), *(name for name in real if len(name) >= 8)]  # shorter ones stand there by chance
    for path in files:
        if path.name == "holder":  # of a lock: says which process of which machine has it, and stays here
            continue
        content = path.read_bytes()
        assert [name for name in names if name.encode() in content or name in path.name] == [], path


def make_settings(folder: Path) -> None:
    document = tiny_settings()
    pictures = f"/home-of-{CANARY}/pictures"
    document["download"] |= {"source": "url", "url": "THE_URL", "folder": pictures, "celeba_zip": pictures}
    (folder / "params.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")


def redirect(here: str, there: str) -> requests.Response:
    response = requests.Response()
    response.status_code, response.url = 302, here
    response.headers["Location"] = there
    return response


def test_redirects_to_the_web_are_followed() -> None:
    for here, there in (("http://a/x", "https://b/y"), ("https://a/x", "https://b/y"), ("https://a/x", "//b/y")):
        assert transfer._Session().get_redirect_target(redirect(here, there)) == there


def test_redirects_elsewhere_are_refused() -> None:
    refused = pytest.raises(
        requests.exceptions.InvalidSchema, match=r"the server redirects from https? to \w+; refused"
    )
    for here, there in (
        ("https://a/x", "HTTP://b/y"),
        ("http://a/x", "file:///etc/passwd"),
        ("http://a/x", "ftp://a/x"),
        ("https://a/x", "data:,x"),
    ):
        with refused:
            transfer._Session().get_redirect_target(redirect(here, there))


# Who is let in


def test_the_pages_are_for_this_machine_only(whole: bool, tmp_path: Path) -> None:
    if not whole:
        pytest.skip("make faults")
    port = free_port()
    with started(tmp_path, port) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.stdout.readline() == f"http://127.0.0.1:{port} until Ctrl-C\n"
        members = [
            psutil.Process(process.pid),
            *psutil.Process(process.pid).children(recursive=True),
            *processes_at(port),
        ]
        listening = {
            connection.laddr
            for member in members
            for connection in member.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        assert ("127.0.0.1", port) in listening
        assert {address.ip for address in listening} == {"127.0.0.1"}
        for address in {
            address.address
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family == socket.AF_INET and not address.address.startswith("127.")
        }:
            with socket.socket() as client:
                client.settimeout(2)
                assert client.connect_ex((address, port)) != 0


def test_an_image_is_never_more_than_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program, in a member's name and behind an image's end, is nobody's to run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    make_settings(tmp_path)
    names = ["$(touch EXECUTED).png", "; touch EXECUTED;.png", "`touch EXECUTED`.png", "%(x)s{0}.png", "<script>.png"]
    Path("a.zip").write_bytes(zip_bytes({name: PNG + noise(99) + pickle.dumps(Canary()) for name in names}))
    assert run("preprocess", "a.zip", "a.h5", "--workers", "1") == 0
    assert not list(tmp_path.rglob("EXECUTED"))
