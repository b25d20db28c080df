"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

KINDS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(BaseException):
    """A signal ends the command. No KeyboardInterrupt: Typer has its own way with that."""

    def __init__(self, kind: int, words: str = "") -> None:
        super().__init__(words or ("interrupted" if kind == signal.SIGINT else "terminated"))
        self.exit_code = 128 + kind


class Stop:
    """Whether somebody has asked for an end, and by which signal."""

    kind: int | None = None


@contextmanager
def unwinding() -> Iterator[None]:
    """SIGINT and SIGTERM raise StoppedError inside, so that half-written outputs are removed."""

    def handle(kind: int, frame: FrameType | None) -> None:
        _leave_the_next()
        raise StoppedError(kind)

    with _handler(handle):
        yield


@contextmanager
def stopping() -> Iterator[Stop]:
    """The first SIGINT or SIGTERM is noted, for whoever looks; a second one ends the process at once."""
    stop = Stop()

    def handle(kind: int, frame: FrameType | None) -> None:
        stop.kind = kind
        _leave_the_next()

    with _handler(handle):
        yield stop


def _leave_the_next() -> None:
    """A second signal ends the process at once: a handler of ours would wait until a library's call returns."""
    for kind in KINDS:
        signal.signal(kind, signal.SIG_DFL)


@contextmanager
def _handler(handle: signal._HANDLER) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others cannot set handlers
        yield
        return
    older = {kind: signal.signal(kind, handle) for kind in KINDS}
    try:
        yield
    finally:
        for kind, handler in older.items():
            signal.signal(kind, handler)
