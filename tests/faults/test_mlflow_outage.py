"""Runs recorded by a real `mlflow server` that is killed, stopped, slow, away, or whose answers get lost.

What arrived is read from the server's database itself. The short form starts the server once, and cuts the line to it
by a proxy; the whole form kills the server as well.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from began.data.images import png_bytes
from pipeline.cli import main
from pipeline.tracking import write as tracking
from pipeline.tracking.write import Run, send_run, start_run
from tests import REPOSITORY
from tests.pipeline.test_log import make_noise

PARAMS = {"gamma": 0.7, "train.num_steps": 300}
DATA = {"source": "noise", "digest": "abc"}
NAMES = ("M_global", "L_real", "L_fake", "L_D", "L_G", "k_t", "learning_rate", "images_per_second")

Curve = dict[int, dict[str, float]]


class Server:
    """`mlflow server` on a port that it keeps over restarts."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "mlflow.db"
        self.artifacts = folder / "artifacts"
        self.port = free_port()
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        stores = ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self.artifacts)]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *arguments, *stores],
                env=os.environ | settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end, self._log.read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        """kill -9, the server and its worker."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def halt(self) -> None:
        """From here on it takes connections and answers nothing."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def runs(self, signature: str) -> list[tuple[str, str]]:
        """Id and status of each run with the tag."""
        rows = self._ask(
            "SELECT run_uuid, status FROM runs NATURAL JOIN tags WHERE tags.key = 'signature' AND tags.value = ?",
            signature,
        )
        return [(str(run_id), str(status)) for run_id, status in rows]

    def points(self, run_id: str) -> Counter[tuple[str, int, float]]:
        rows = self._ask("SELECT key, step, value FROM metrics WHERE run_uuid = ?", run_id)
        return Counter((str(name), int(step), float(value)) for name, step, value in rows)

    def tag(self, run_id: str, name: str) -> str | None:
        rows = self._ask("SELECT value FROM tags WHERE run_uuid = ? AND key = ?", run_id, name)
        return str(rows[0][0]) if rows else None

    def params(self, run_id: str) -> dict[str, str]:
        return dict(self._ask("SELECT key, value FROM params WHERE run_uuid = ?", run_id))

    def files(self, run_id: str) -> dict[str, bytes]:
        """All but what is there for the page of the run."""
        return {path: content for path, content in self._artifacts(run_id).items() if not path.startswith("images/")}

    def shown(self, run_id: str) -> Counter[tuple[str, int, bytes]]:
        """What the page of the run shows: key, step, PNG; there is a lighter file of each too."""
        images = {path: png for path, png in self._artifacts(run_id).items() if path.startswith("images/")}
        whole = {path.removesuffix(".png"): png for path, png in images.items() if path.endswith(".png")}
        assert images.keys() == {f"{path}{end}" for path in whole for end in (".png", "+compressed.webp")}
        parts = [(path.removeprefix("images/").split("+"), png) for path, png in whole.items()]
        return Counter((part[0], int(part[2]), png) for part, png in parts)

    def num_shown(self, run_id: str) -> int:
        """Files, two for each picture."""
        return sum(path.startswith("images/") for path in self._artifacts(run_id))

    def _artifacts(self, run_id: str) -> dict[str, bytes]:
        found = (path for path in self.artifacts.rglob("*") if path.is_file() and run_id in path.parts)
        return {path.as_posix().partition(f"{run_id}/artifacts/")[2]: path.read_bytes() for path in found}

    def _ask(self, question: str, *values: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database, timeout=30)) as database:
            return database.execute(question, values).fetchall()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Proxy:
    """A line to the server that can be cut, lose answers, and be slow.

    loses: kind of request (part of its path) → whether the answer to the n-th, from 0, is dropped after the server has
    given it; lost: how many were, of each kind; delay: seconds that each answer takes.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.delay = 0.0
        self.loses: dict[str, Callable[[int], bool]] = {}
        self.lost: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._target = target
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Breaks all connections and refuses new ones."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `_accept`
            self._listener.close()
            self._listener = None
        for connection in self._open.copy():
            hang_up(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request after the other, as MLflow's client asks them."""
        with client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._open |= {client, server}
            doomed: list[str] = []
            answers = threading.Thread(target=self._answer, args=(server, client, doomed), daemon=True)
            answers.start()
            with suppress(OSError):
                while request := client.recv(1 << 16):
                    for kind, loses in self.loses.items():
                        if kind.encode() in request:
                            if loses(self._asked[kind]):
                                doomed.append(kind)
                            self._asked[kind] += 1
                    server.sendall(request)
            hang_up(server)
            answers.join()
            self._open -= {client, server}

    def _answer(self, server: socket.socket, client: socket.socket, doomed: list[str]) -> None:
        with suppress(OSError):
            while answer := server.recv(1 << 16):
                if doomed:
                    self.lost.update(doomed)
                    break
                time.sleep(self.delay)
                client.sendall(answer)
        hang_up(client)


def hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # the other end was faster
        connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    proxy.connect()
    yield proxy
    proxy.cut()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_BATCHES", 0.1)
    monkeypatch.setattr(tracking, "SECONDS_BETWEEN_ATTEMPTS", 0.2)


@pytest.fixture(scope="module")
def tally(figure: Callable[[str, str], None]) -> Callable[[int, int], None]:
    """Adds up what all tests here have counted."""
    bad = total = 0

    def add(num_bad: int, num_points: int) -> None:
        nonlocal bad, total
        bad, total = bad + num_bad, total + num_points
        figure("curve points lost or doubled over an MLflow outage", f"{bad} of {total:,}")

    return add


@pytest.fixture
def signature(request: pytest.FixtureRequest) -> str:
    """One for each test, by which its runs are found."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def check(
    server: Server, signature: str, tally: Callable[[int, int], None]
) -> Callable[[Mapping[int, Mapping[str, float]]], str]:
    """The store has one run of this test, which is FINISHED and has the curve, each point once; returns its id."""

    def check(curve: Mapping[int, Mapping[str, float]]) -> str:
        (found,) = server.runs(signature)
        assert found[1] == "FINISHED"
        wanted = Counter((name, step, value) for step, values in curve.items() for name, value in values.items())
        points = server.points(found[0])
        num_bad = (points - wanted).total() + (wanted - points).total()
        tally(num_bad, wanted.total())
        assert num_bad == 0
        assert server.params(found[0]) == {name: str(value) for name, value in PARAMS.items()}
        return found[0]

    return check


Check = Callable[[Mapping[int, Mapping[str, float]]], str]


def png(seed: int) -> bytes:
    return png_bytes(np.random.default_rng(seed).integers(0, 256, (16 + seed, 16, 3), dtype=np.uint8))


def curve_of(steps: range) -> Curve:
    return {step: {name: step + i / 10 for i, name in enumerate(NAMES)} for step in steps}


def log(run: Run, steps: range, seconds: float = 0.005) -> None:
    """Takes `seconds` a step, as training does."""
    for step, values in curve_of(steps).items():
        run.log(step, values)
        time.sleep(seconds)


def wait_until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


ANSWERS: dict[str, dict[str, Callable[[int], bool]]] = {
    "some of each kind": {
        "runs/create": lambda n: n < 1,
        "runs/log-batch": lambda n: n % 3 == 0,
        "mlflow-artifacts/artifacts": lambda n: n % 2 == 0,
        "runs/update": lambda n: n < 1,
    },
    "new run": {"runs/create": lambda n: n < 3},
    "first batches": {"runs/log-batch": lambda n: n < 4},
    "two batches in three": {"runs/log-batch": lambda n: n % 3 > 0},
    "pictures": {"mlflow-artifacts/artifacts": lambda n: n % 3 > 0},
    "end": {"runs/update": lambda n: n < 1},
}


@pytest.mark.parametrize("case", ANSWERS)
def test_what_was_stored_but_never_acknowledged_is_not_doubled(
    case: str,
    proxy: Proxy,
    server: Server,
    signature: str,
    check: Check,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: bool,
) -> None:
    if not whole and case != "some of each kind":
        pytest.skip("make faults")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    pictures = {f"{i:07d}.png": png(i) for i in range(4)}
    proxy.loses = ANSWERS[case]
    with start_run(PARAMS, DATA, signature=signature) as run:
        for i, (name, content) in enumerate(pictures.items()):
            log(run, range(50 * i, 50 * i + 50))
            (tmp_path / name).write_bytes(content)
            run.log_picture(tmp_path / name, "samples")
        run.set_tag("warning.k_t", "k_t at a bound")
        wait_until(lambda: server.tag(run.run_id or "none", "warning.k_t") == "k_t at a bound")
        wait_until(lambda: server.files(run.run_id or "none").keys() == {f"samples/{name}" for name in pictures})
        wait_until(lambda: server.num_shown(run.run_id or "none") == 2 * len(pictures))
    assert proxy.lost.keys() == ANSWERS[case].keys()
    run_id = check(curve_of(range(200)))
    assert run.run_id == run_id
    assert server.files(run_id) == {f"samples/{name}": content for name, content in pictures.items()}
    assert server.shown(run_id) == {("samples", int(name[:7]), content): 1 for name, content in pictures.items()}


def test_a_server_that_comes_up_later_gets_the_whole_run(
    proxy: Proxy,
    server: Server,
    signature: str,
    check: Check,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    picture = tmp_path / "0000000.png"
    picture.write_bytes(png(0))
    proxy.cut()
    with start_run(PARAMS, DATA, signature=signature) as run:
        assert run.run_id is None
        run.log_picture(picture, "samples")
        run.set_tag("model_digest", "d1")
        log(run, range(100))
        proxy.connect()
        log(run, range(100, 150))
        wait_until(lambda: run.run_id)
        log(run, range(150, 200))
    run_id = check(curve_of(range(200)))
    assert run_id == run.run_id
    assert server.tag(run_id, "model_digest") == "d1"
    assert server.files(run_id) == {"samples/0000000.png": png(0)}
    assert server.shown(run_id) == {("samples", 0, png(0)): 1}
    away, back = capfd.readouterr().err.splitlines()
    assert away.startswith("MLflow does not take this run for now: ")
    assert back == "MLflow answers again and has all of this run so far"


def test_a_line_that_is_cut_again_and_again_costs_no_point(
    proxy: Proxy,
    signature: str,
    check: Check,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    whole: bool,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    num_cuts, num_steps = (30, 100) if whole else (3, 40)
    with start_run(PARAMS, DATA, signature=signature) as run:
        for i in range(num_cuts):
            log(run, range(num_steps * i, num_steps * i + num_steps // 2))
            proxy.cut()
            log(run, range(num_steps * i + num_steps // 2, num_steps * (i + 1)))
            proxy.connect()
    check(curve_of(range(num_steps * num_cuts)))
    assert capfd.readouterr().err.count("\n") <= 2


def test_a_server_that_hangs_holds_up_nobody_and_loses_nothing(
    server: Server, signature: str, check: Check, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with start_run(PARAMS, DATA, signature=signature) as run:
        log(run, range(50))
        server.halt()
        try:
            start = time.monotonic()
            log(run, range(50, 250), seconds=0)
            assert time.monotonic() - start < 0.5
            log(run, range(250, 300), seconds=0.03)  # while requests time out, which the server finds when it wakes
        finally:
            server.resume()
        wait_until(lambda: "answers again" in capfd.readouterr().err)
        log(run, range(300, 400))
    check(curve_of(range(400)))


def test_answers_that_come_too_late_double_nothing(
    proxy: Proxy, signature: str, check: Check, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    if not whole:
        pytest.skip("make faults")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with start_run(PARAMS, DATA, signature=signature) as run:
        log(run, range(50))
        proxy.delay = 1.2
        log(run, range(50, 150), seconds=0.02)
        proxy.delay = 0.0
        log(run, range(150, 200))
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    check(curve_of(range(200)))


def test_the_wait_for_a_server_that_hangs_is_bounded_and_the_run_is_completed_afterwards(
    server: Server,
    signature: str,
    check: Check,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tracking, "SECONDS_AT_START", 0.5)
    monkeypatch.setattr(tracking, "SECONDS_AT_END", 0.5)
    with start_run(PARAMS, DATA, signature=signature) as run:
        log(run, range(50))
        wait_until(lambda: len(server.points(run.run_id or "none")))
        server.halt()
        start = time.monotonic()
        log(run, range(50, 100), seconds=0)
        run.set_tag("model_digest", "d2")
    seconds_at_end = time.monotonic() - start
    try:
        with start_run(PARAMS, DATA, signature="never") as unborn:
            seconds_at_start = time.monotonic() - start - seconds_at_end
            log(unborn, range(50), seconds=0)
    finally:
        server.resume()
    for thread in threading.enumerate():  # these would be gone with their process
        if thread.name == "mlflow":
            thread.join()
    assert max(seconds_at_start, seconds_at_end) < 5  # of the 20 that a request may take
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("MLflow misses a part of this run: ")
    assert second == "MLflow: this run is not recorded: no answer within 0.5 s; `began log MODEL_DIR` sends it later"
    assert server.runs(signature)[0][1] == "RUNNING"
    sent = send_run(PARAMS, DATA, None, "d2", signature, curve_of(range(100)), tmp_path, [])
    assert (sent.run_id, sent.is_new) == (run.run_id, False)
    assert server.tag(check(curve_of(range(100))), "model_digest") == "d2"
    assert server.runs("never") == []


def test_a_server_that_is_killed_and_restarted_has_every_step_once(
    server: Server, signature: str, check: Check, whole: bool, tmp_path: Path
) -> None:
    if not whole:
        pytest.skip("make faults")
    pictures = {f"{i:07d}.png": png(i) for i in range(5)}

    def restart() -> None:
        server.kill()
        time.sleep(1)
        server.start()

    with start_run(PARAMS, DATA, signature=signature) as run:
        for i, (name, content) in enumerate(pictures.items()):
            log(run, range(200 * i, 200 * i + 100), seconds=0.002 * i)
            (tmp_path / name).write_bytes(content)
            run.log_picture(tmp_path / name, "samples")
            outage = threading.Thread(target=restart)
            outage.start()
            log(run, range(200 * i + 100, 200 * i + 200), seconds=0.03)
            outage.join()
    run_id = check(curve_of(range(200 * len(pictures))))
    assert server.files(run_id) == {f"samples/{name}": content for name, content in pictures.items()}
    assert server.shown(run_id) == {("samples", int(name[:7]), content): 1 for name, content in pictures.items()}


TRAINING = """
import sys, time
from pipeline.tracking import write as tracking
tracking.SECONDS_BETWEEN_BATCHES = tracking.SECONDS_BETWEEN_ATTEMPTS = 0.1
first, last, run_id, signature = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] or None, sys.argv[4]
names = sys.argv[5].split(",")
values = {step: {name: step + i / 10 for i, name in enumerate(names)} for step in range(last)}
past = {step: values[step] for step in range(first)}
with tracking.start_run(
    {"gamma": 0.7, "train.num_steps": 300}, {"source": "noise"}, signature=signature, run_id=run_id, curve=past
) as run:
    print(run.run_id, flush=True)
    for step in range(first, last):
        run.log(step, values[step])
        time.sleep(0.01)
"""


def test_training_that_is_killed_and_goes_on_has_every_step_once(
    server: Server, signature: str, check: Check, whole: bool
) -> None:
    """Each time from some steps before the kill, as from a state."""
    if not whole:
        pytest.skip("make faults")
    rng = np.random.default_rng(0)
    first, run_id = 0, ""
    for _ in range(6):
        arguments = [str(first), "100000", run_id, signature, ",".join(NAMES)]
        training = subprocess.Popen(
            [sys.executable, "-c", TRAINING, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE
        )
        assert training.stdout is not None
        known = training.stdout.readline().decode().strip()
        assert known == run_id or not run_id
        run_id = known
        time.sleep(rng.uniform(0.2, 2.0))
        training.kill()
        training.wait()
        training.stdout.close()
        last = max((step for _, step, _ in server.points(run_id)), default=0)
        first = max(0, last - int(rng.integers(-20, 60)))  # before what arrived, and beyond it
    arguments = [str(first), str(first + 100), run_id, signature, ",".join(NAMES)]
    subprocess.run([sys.executable, "-c", TRAINING, *arguments], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    assert check(curve_of(range(first + 100))) == run_id


TRAIN_STAGE = """
import sys
from pipeline.tracking import write as tracking
from pipeline.cli import main
tracking.SECONDS_BETWEEN_BATCHES, tracking.SECONDS_BETWEEN_ATTEMPTS = 0.2, 1.0
main(["train", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images.h5, with params.yaml beside it."""
    folder = tmp_path_factory.mktemp("images")
    make_noise(folder, batch_size=2, num_steps=800)
    return folder / "images.h5"


@pytest.mark.parametrize("comes_back", [True, False], ids=["is restarted", "stays away"])
def test_the_train_stage_leaves_a_whole_run_when_the_server_is_killed(
    comes_back: bool,
    request: pytest.FixtureRequest,
    server: Server,
    images: Path,
    tally: Callable[[int, int], None],
    whole: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not whole:
        pytest.skip("make faults")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    text = (images.parent / "params.yaml").read_text(encoding="utf-8")  # a model of its own for each case
    (tmp_path / "params.yaml").write_text(text.replace("seed: 0", f"seed: {int(comes_back)}"), encoding="utf-8")
    before = set(all_runs(server))
    training = subprocess.Popen(
        [sys.executable, "-c", TRAIN_STAGE, images, tmp_path / "model", "--params", tmp_path / "params.yaml"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    request.addfinalizer(training.kill)
    wait_until(lambda: any(server.points(run_id) for run_id in set(all_runs(server)) - before), 120)
    server.kill()
    try:
        if comes_back:
            time.sleep(2)
            assert training.poll() is None
            training.send_signal(signal.SIGSTOP)  # it could be done before the server is up
        else:
            assert training.wait(250) == 0
    finally:
        server.start()
        training.send_signal(signal.SIGCONT)
    err = training.communicate(timeout=300)[1]
    assert training.returncode == 0, err
    assert ("MLflow misses a part of this run: " in err) is not comes_back
    if not comes_back:
        with pytest.raises(SystemExit) as ended:
            main(["log", str(tmp_path / "model")])
        assert ended.value.code == 0
        assert " points of the curve and " in capfd.readouterr().out

    (run_id,) = set(all_runs(server)) - before
    wanted = {}
    for name in ("history.csv", "distances.csv"):
        with (tmp_path / "model" / name).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        wanted |= {(name, int(row["step"])): float(row[name]) for row in rows for name in row if name != "step"}
    points = server.points(run_id)
    found = Counter((name, step) for name, step, _ in points.elements())
    tally((found - Counter(wanted.keys())).total() + (Counter(wanted.keys()) - found).total(), len(wanted))
    assert found == Counter(wanted.keys())
    assert all(value == pytest.approx(wanted[name, step], rel=1e-6) for name, step, value in points)
    description = json.loads((tmp_path / "model" / "model.json").read_text(encoding="utf-8"))
    assert server.tag(run_id, "model_digest") == description["weights"]["generator.safetensors"]
    pictures = {path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*.png")}
    assert server.files(run_id).keys() == pictures | {"model.json"}
    shown = server.shown(run_id)
    assert {f"{key}/{step:07d}.png" for key, step, _ in shown} == pictures and shown.total() == len(pictures)
    with closing(sqlite3.connect(server.database)) as database:
        (status,) = database.execute("SELECT status FROM runs WHERE run_uuid = ?", [run_id]).fetchone()
    assert status == "FINISHED"


def all_runs(server: Server) -> list[str]:
    with closing(sqlite3.connect(server.database, timeout=30)) as database:
        return [run_id for (run_id,) in database.execute("SELECT run_uuid FROM runs")]
