"""The cores of this process, and work spread over processes, with results in order and flat memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_IN_FLIGHT = 3  # items per worker that are handed out or wait to be taken


def num_cores() -> int:
    """Cores that this process may use."""
    return len(cores()) or os.cpu_count() or 1


def cores() -> set[int]:
    """Their numbers; none where the system does not tell them.

    Where OMP_PROC_BIND or the like is set, torch binds the main thread to one core as it is loaded, and new threads
    inherit that. OpenMP still knows all places that it had to choose from.
    """
    if not hasattr(os, "sched_getaffinity"):
        return set()
    with suppress(AttributeError, OSError):  # no OpenMP of GNU's is loaded
        openmp = ctypes.CDLL(None)
        places = set()
        for place in range(openmp.omp_get_num_places()):
            numbers = (ctypes.c_int * openmp.omp_get_place_num_procs(place))()
            openmp.omp_get_place_proc_ids(place, numbers)
            places.update(numbers)
        if places:
            return places
    return os.sched_getaffinity(0)


def ordered_map(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """`function(item)` for each item, in order; `function` is a module's own, so that it can be pickled.

    One worker is this process itself. An item should be worth some 10 ms or more. Raises what `function` raises, and
    OSError when a worker died.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Spawned, not forked: a fork copies the locks of other threads (torch's, resvg's) in whatever state they are.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _enter_worker)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            with _children_without_ctrl_c():  # it is here that they start
                pending.append(pool.submit(function, item))
            if len(pending) >= _IN_FLIGHT * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise OSError("a worker process died; is there enough memory? Try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _children_without_ctrl_c() -> Iterator[None]:
    """Processes that start inside never see SIGINT, not even while they import: it is the parent's to handle."""
    resource_tracker.ensure_running()  # when it starts, it lifts the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _enter_worker() -> None:
    """No worker outlives a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()
