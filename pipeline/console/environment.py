"""The process's environment and streams, put right before any library is loaded that reads them."""

from __future__ import annotations

import io
import os
import sys

_DEFAULTS = {
    # Threads that wait for one another spin for milliseconds by default. With anything else on the machine, a second
    # experiment say, that made training ten times slower; so short a spin costs nothing.
    "GOMP_SPINCOUNT": "10000",
}
# Clusters set these. Torch, as it is loaded, then binds the main thread to one core, and the two threads that share a
# batch inherit it: both run on that core.
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def prepare() -> None:
    """Call it first: what is set here counts when torch is loaded."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in _BINDING:
        os.environ.pop(name, None)
    _prepare_streams()


def _prepare_streams() -> None:
    """A standard stream that is closed leads nowhere; a character that one cannot write is written as its escape.

    The number of a closed stream would go to the next file that is opened, and a library's warning into that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            _occupy(number)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _occupy(number: int) -> None:
    """Opens the null device under that number, if nothing is open there."""
    try:
        os.fstat(number)
    except OSError:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        os.set_inheritable(number, True)
