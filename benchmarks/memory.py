"""Anonymous memory (RssAnon), file handles and threads of some work and all the processes it starts. Linux only.

Mapped rows are the page cache's and count for RSS but not here: findings of the first measurements, see README.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_SAMPLES = 0.02

if not Path("/proc/self/status").is_file():
    sys.exit("benchmarks: memory and cold reads are measured the way of Linux, and this system is another")


def peak_rss_anon(function: Callable[..., Any], *arguments: Any) -> int:
    """Runs `function(*arguments)` in a new process; returns the largest sum, in bytes, over it and its descendants.

    Both must be picklable. Raises RuntimeError when the process fails.
    """
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    assert process.pid is not None
    peak = 0
    while process.is_alive():
        peak = max(peak, sum(map(rss_anon, process_tree(process.pid))))
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")
    return peak


def process_tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += map(int, children.read_text().split())
            except OSError:  # has ended meanwhile
                continue
    return found


def rss_anon(pid: int) -> int:
    """In bytes; 0 when the process has ended."""
    return 1024 * _status(pid, "RssAnon")


def num_threads(pid: int) -> int:
    """0 when the process has ended."""
    return _status(pid, "Threads")


def num_open_files(pid: int) -> int:
    """0 when the process has ended."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


def _status(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
