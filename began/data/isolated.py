"""Calls into C code that a damaged file can crash, hang or bloat, each made in a process of its own.

A call costs a quarter of a second, to start Python and to load the function's module. The process is no child of
`multiprocessing`, whose children run the user's script again.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MAX_MEMORY_BYTES = 2 * 2**30  # address space of a call, its answer included

_CALL = "import sys; sys.path[:] = sys.argv[4:]; from began.data.isolated import answer; answer(*sys.argv[1:4])"


class CallFailed(Exception):  # noqa: N818
    """Says how a call ended that did not return: "crashed (SIGSEGV)", "took longer than 30 s"."""


def call_isolated(function: Callable[[str], bytes], argument: str, seconds: float) -> bytes:
    """Calls a module's own `function` in another process. It gets a text and returns bytes, which are data only.

    Raises CallFailed when the function crashes, raises, or takes too long or too much memory. The process ends when
    this one ends, however it ends.
    """
    # Where this process finds its modules; "" is the current folder.
    places = [str(Path(place).absolute()) for place in sys.path]
    ends_with_this_process, kept_open = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CALL, function.__module__, function.__name__, argument, *places],
            stdin=ends_with_this_process,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
            # One core is enough; and no code that a file asks for.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HDF5_PLUGIN_PRELOAD": "::"},
            cwd="/",  # holds no folder that may be removed or unmounted
            process_group=0,  # Ctrl-C is for the parent
        )
    except subprocess.TimeoutExpired:
        raise CallFailed(f"took longer than {seconds:g} s") from None
    finally:
        os.close(ends_with_this_process)
        os.close(kept_open)
    if done.returncode < 0:
        raise CallFailed(f"crashed ({signal.Signals(-done.returncode).name})")
    if done.returncode > 0:
        raise CallFailed("gave no answer, or needs more memory than it may take")
    return done.stdout


def answer(module: str, name: str, argument: str) -> None:
    """The other process: writes to standard output what the function returns."""
    function: Callable[[str], bytes] = getattr(importlib.import_module(module), name)
    # When the pipe's other end is closed, the system sends SIGIO, which ends a process whatever it does.
    with suppress(AttributeError, OSError):  # a system without it: the time limit is the parent's alone
        fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(0, fcntl.F_SETFL, fcntl.FASYNC)
    for limit, largest in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_CORE, 0)):
        with suppress(ValueError, OSError):  # where the system knows no such limit, or has a lower one
            resource.setrlimit(limit, (largest, largest))
    with os.fdopen(os.dup(1), "wb") as file:
        os.dup2(2, 1)  # what a library prints is no part of the answer
        file.write(function(argument))
    os._exit(0)  # a library that a damaged file has spoilt may crash as it is unloaded
