"""What happens in the other process stays there; and it never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from began.data import isolated
from began.data.isolated import CallFailed, call_isolated
from tests import REPOSITORY


def work(what: str) -> bytes:
    """What a call can come to."""
    match what.split():
        case ["crash"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["hang", *pid_file]:
            if pid_file:
                Path(pid_file[0]).write_text(str(os.getpid()))
            while True:
                pass
        case ["raise"]:
            raise RuntimeError
        case ["swell"]:
            return bytes(2 * isolated.MAX_MEMORY_BYTES)
        case ["print"]:
            print("noise", flush=True)
            os.write(2, b"noise")
    return what.encode()


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_answer_comes_back() -> None:
    assert call_isolated(work, "ä\n", 30) == "ä\n".encode()
    assert call_isolated(work, "print", 30) == b"print"


@pytest.mark.parametrize(
    ("what", "seconds", "expected"),
    [
        ("crash", 30.0, r"^crashed \(SIGSEGV\)$"),
        ("raise", 30.0, "no answer"),
        ("swell", 30.0, "more memory than it may take"),
        ("hang", 1.0, r"^took longer than 1 s$"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_nothing_open(what: str, seconds: float, expected: str) -> None:
    before = handles()
    with pytest.raises(CallFailed, match=expected):
        call_isolated(work, what, seconds)
    assert handles() == before


PARENT = "import sys; from tests.data.test_isolated import call_isolated, work; call_isolated(work, sys.argv[1], 300)"


def test_nothing_is_left_when_the_parent_is_killed_in_the_middle_of_a_call(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, f"hang {pid_file}"], cwd=REPOSITORY)
    end = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    pid = int(pid_file.read_text())
    assert is_running(pid)
    parent.kill()
    parent.wait()
    while is_running(pid):
        assert time.monotonic() < end, "a process was left behind"
        time.sleep(0.01)


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
