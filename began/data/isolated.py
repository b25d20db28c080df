"""Calls into C code that a damaged file can crash, hang or bloat, made in a process of their own.

The first call starts a small server, which loads the function's module and then forks for every call: a call costs
some milliseconds and finds nothing of what an earlier one may have spoilt. The server is no child of `multiprocessing`,
whose children run the user's script again. It leaves when it is idle, and when its parent ends however it ends.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn

MOST_MEMORY = 2 * 2**30  # address space of a call
MOST_BYTES = 2**30  # of an answer
IDLE_SECONDS = 5.0
START_SECONDS = 60.0

_HEADER = struct.Struct("<iQ")  # how the call ended, as subprocess.Popen.returncode has it; bytes that follow
_SERVE = "import sys; sys.path[:] = sys.argv[3:]; from began.data.isolated import serve; serve(*sys.argv[1:3])"


class CallFailed(Exception):  # noqa: N818
    """What became of a call that did not return: "crashed (SIGSEGV)", "took longer than 30 s"."""


class Isolated:
    """`function`, a module's own, called in another process. It gets a text and returns bytes, which are data only.

    Safe to use from several threads, and after a fork; calls are made one at a time.
    """

    def __init__(self, function: Callable[[str], bytes]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._idle: threading.Timer | None = None
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self, argument: str, seconds: float) -> bytes:
        """Raises CallFailed when the function crashes, raises, takes too long, too much memory or returns too much."""
        with self._lock:
            if self._idle is not None:
                self._idle.cancel()
            if self._server is None:
                self._server = self._start()
            try:
                answer = _ask(self._server, argument, seconds)
            except BaseException:
                self._stop()
                raise
            self._idle = threading.Timer(IDLE_SECONDS, self._stop_idle)
            self._idle.daemon = True
            self._idle.start()
            return answer

    def _start(self) -> subprocess.Popen[bytes]:
        # Where this process finds its modules; "" is the current folder.
        places = [str(Path(place).absolute()) for place in sys.path]
        server = subprocess.Popen(
            [sys.executable, "-c", _SERVE, self._function.__module__, self._function.__name__, *places],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # One core is enough; and no code that a file asks for.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"},
            cwd="/",  # holds no folder that may be removed or unmounted
            process_group=0,  # Ctrl-C is for the parent
        )
        assert server.stdout is not None
        with _ended_after(server, START_SECONDS):
            ready = server.stdout.read(1)
        if not ready:
            _end(server)
            raise OSError(f"{sys.executable}: could not be started once more, to read files in a process of their own")
        return server

    def _stop_idle(self) -> None:
        with self._lock:
            # A call may have come in between and set another timer.
            if threading.current_thread() is self._idle:
                self._stop()

    def _stop(self) -> None:
        if self._server is not None:
            _end(self._server)
        self._server = None

    def _forget(self) -> None:
        """The server is the parent's, and its pipes must not stay open here."""
        self._lock = threading.Lock()
        self._idle = None
        if self._server is not None:
            for pipe in (self._server.stdin, self._server.stdout):
                assert pipe is not None
                pipe.close()
            self._server.returncode = 0  # not a child of this process
            self._server = None


def _ask(server: subprocess.Popen[bytes], argument: str, seconds: float) -> bytes:
    assert server.stdin is not None and server.stdout is not None
    with _ended_after(server, seconds) as timer, suppress(OSError, ValueError):
        server.stdin.write(json.dumps(argument).encode() + b"\n")
        server.stdin.flush()
        header = server.stdout.read(_HEADER.size)
        if len(header) == _HEADER.size:
            code, num_bytes = _HEADER.unpack(header)
            answer = server.stdout.read(num_bytes)
            if code == 0 and len(answer) == num_bytes:
                return answer
            if code < 0:
                raise CallFailed(f"crashed ({_signal_name(-code)})")
            raise CallFailed("gave no answer, or needs more memory than it may take")
    if timer.has_ended:
        raise CallFailed(f"took longer than {seconds:g} s")
    raise CallFailed("crashed")


class _ended_after:  # noqa: N801  (reads as what it does)
    """Within, `server` is ended once `seconds` have passed: what is being read from it then ends too."""

    def __init__(self, server: subprocess.Popen[bytes], seconds: float) -> None:
        self._server = server
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.has_ended = False

    def __enter__(self) -> _ended_after:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.has_ended = True
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends `server` and its call, reaps it and closes its pipes."""
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    for pipe in (server.stdin, server.stdout):
        assert pipe is not None
        with suppress(OSError):
            pipe.close()
    server.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def serve(module: str, name: str) -> None:
    """The server: one line of JSON in is one call, `_HEADER` and its bytes out; ends with its input."""
    function: Callable[[str], bytes] = getattr(importlib.import_module(module), name)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    _write(answers, b"\n")
    for line in requests:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _call(function, line, writer)
        os.close(writer)
        answer = _collect(reader, pid)
        os.close(reader)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if answer is None:
            code, answer = 1, b""
        _write(answers, _HEADER.pack(code, len(answer)) + answer)


def _call(function: Callable[[str], bytes], line: bytes, writer: int) -> NoReturn:
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for inherited in (0, 1):  # the parent's pipes
            os.dup2(nothing, inherited)
        for limit, most in ((resource.RLIMIT_AS, MOST_MEMORY), (resource.RLIMIT_CORE, 0)):
            with suppress(ValueError, OSError):  # where the system knows no such limit, or has a lower one
                resource.setrlimit(limit, (most, most))
        with open(writer, "wb") as file:
            file.write(function(json.loads(line)))
        code = 0
    finally:
        os._exit(code)


def _collect(reader: int, pid: int) -> bytes | None:
    """What the call in process `pid` writes; None when it is too much. Call and server end when the parent ends."""
    parts: list[bytes] = []
    num_bytes = 0
    while True:
        ready, _, _ = select.select([reader, 0], [], [])
        if 0 in ready:  # nobody asks twice: it is the end
            os.kill(pid, signal.SIGKILL)
            os._exit(1)
        part = os.read(reader, 2**20)
        num_bytes += len(part)
        if num_bytes > MOST_BYTES:
            os.kill(pid, signal.SIGKILL)
            return None
        if not part:
            return b"".join(parts)
        parts.append(part)


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
