"""What happens in the other process stays there; and it never stays behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from began.data import isolated
from began.data.isolated import CallFailed, Isolated
from tests import REPOSITORY

isolated.MOST_BYTES = 2**20  # here and in the server, which loads this module too


def work(what: str) -> bytes:
    """What a call can come to."""
    match what.split():
        case ["crash"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["hang"]:
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
            while True:
                time.sleep(1)
        case ["raise"]:
            raise RuntimeError
        case ["swell"]:
            return bytes(2 * isolated.MOST_MEMORY)
        case ["flood"]:
            return bytes(isolated.MOST_BYTES + 1)
        case ["pids"]:
            return f"{os.getppid()} {os.getpid()}".encode()
        case ["print"]:
            print("noise", flush=True)
            os.write(2, b"noise")
    return what.encode()


@pytest.fixture
def call() -> Iterator[Isolated]:
    call = Isolated(work)
    yield call
    with call._lock:
        call._stop()


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(*pids: int) -> None:
    end = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.01)


def test_the_answer_comes_back(call: Isolated) -> None:
    assert call("ä\n", 30) == "ä\n".encode()
    assert call("print", 30) == b"print"


@pytest.mark.parametrize(
    ("what", "seconds", "expected"),
    [
        ("crash", 30.0, r"^crashed \(SIGSEGV\)$"),
        ("raise", 30.0, "no answer"),
        ("swell", 30.0, "more memory than it may take"),
        ("flood", 30.0, "more memory than it may take"),
        ("hang", 0.2, r"^took longer than 0\.2 s$"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_call_is_fine(
    call: Isolated, what: str, seconds: float, expected: str
) -> None:
    with pytest.raises(CallFailed, match=expected):
        call(what, seconds)
    assert call("fine", 30) == b"fine"


def test_handles_stay_flat_over_many_calls(call: Isolated) -> None:
    call("first", 30)
    gc.collect()
    before = handles()
    for i in range(150):
        if i % 100 == 50:
            with pytest.raises(CallFailed):
                call("crash", 30)
        call("fine", 30)
    assert handles() == before


def test_calls_from_several_threads_get_their_own_answers(call: Isolated) -> None:
    answers: dict[str, bytes] = {}
    threads = [
        threading.Thread(target=lambda text: answers.update({text: call(text, 30)}), args=(str(i),)) for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {str(i): str(i).encode() for i in range(20)}


def test_an_idle_server_leaves_and_another_comes(call: Isolated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "IDLE_SECONDS", 0.05)
    server = int(call("pids", 30).split()[0])
    wait_until_gone(server)
    assert int(call("pids", 30).split()[0]) != server


def test_a_forked_process_has_a_server_of_its_own(call: Isolated) -> None:
    server = call("pids", 30).split()[0]
    pid = os.fork()
    if pid == 0:
        try:
            other = call("pids", 30).split()[0]
            with call._lock:
                call._stop()
            os._exit(0 if other != server else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0
    assert call("pids", 30).split()[0] == server


PARENT = """
import sys, threading
from tests.data.test_isolated import Isolated, work
call = Isolated(work)
print(call("pids", 30).split()[0].decode(), flush=True)
threading.Timer(0.3, lambda: print("waiting", flush=True)).start()
call("hang", 300)
"""


def test_nothing_is_left_when_the_parent_is_killed_in_the_middle_of_a_call() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = int(parent.stdout.readline())
    assert parent.stdout.readline() == "waiting\n"
    hanging = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    assert len(hanging) == 1
    parent.kill()
    parent.communicate()
    wait_until_gone(server, int(hanging[0]))


SCRIPT = """
import sys
sys.path.insert(0, {repository!r})
print("started", flush=True)
from pathlib import Path
from began.data.rows import open_images
print(open_images(Path(sys.argv[1])).names, flush=True)
"""


def test_a_script_without_a_main_guard_runs_once_from_any_folder(tmp_path: Path) -> None:
    from tests.data.test_rows import NAMES, write

    images = write(tmp_path / "images.h5")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(repository=str(REPOSITORY)))
    done = subprocess.run(
        [sys.executable, "-I", script, images], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == f"started\n{NAMES}\n" and done.stderr == ""
