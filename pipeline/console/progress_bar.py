"""Progress on a terminal (a bar) and elsewhere (a line every few seconds)."""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress

from began.base.progress import Progress

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 5.0


class ProgressBar:
    """A bar with rate and time left on a terminal; `title: done/total unit, rate, time left, note` lines elsewhere."""

    def __init__(self, title: str, brief: bool = False) -> None:
        """brief: no line of what ends before the first one is due."""
        self._title = title
        self._brief = brief
        self._start = self._pace_start = time.monotonic()
        self._first_done = 0
        self._last_line = self._start
        self._latest: Progress | None = None
        self._printed: Progress | None = None
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        if sys.stderr.isatty():
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=12),
                TextColumn("{task.fields[state]}", markup=False),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=None, state="")

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._latest is not None and self._latest is not self._printed and kind is None:
            short = self._brief and self._printed is None
            if not short:
                self._print(self._latest)

    def update(self, progress: Progress) -> None:
        """Shows `progress`. Work that was done before the first call (a resumed download) does not count as speed.

        Nor does work towards another total: it may have another pace.
        """
        if self._latest is None or self._latest.total != progress.total:
            self._pace_start, self._first_done = time.monotonic(), progress.done
        self._latest = progress
        if self._bar is not None and self._task is not None:
            # Short, so that 80 columns hold bar, rate, time left and note.
            how_far = f"{progress.done / progress.total:.0%}" if progress.total else self._count(progress)
            state = self._describe(progress, how_far)
            self._bar.update(self._task, completed=progress.done, total=progress.total, state=state)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print(progress)

    def _print(self, progress: Progress) -> None:
        self._last_line = time.monotonic()
        self._printed = progress
        print(f"{self._title}: {self._describe(progress, self._count(progress))}", file=sys.stderr, flush=True)

    def _count(self, progress: Progress) -> str:
        if progress.total is None:
            return _amount(progress.done, progress.unit)
        done = _amount(progress.done, progress.unit).removesuffix(f" {progress.unit}")
        return f"{done} of {_amount(progress.total, progress.unit)}"

    def _describe(self, progress: Progress, how_far: str) -> str:
        now = time.monotonic()
        rate = (progress.done - self._first_done) / max(now - self._pace_start, 1e-9)
        parts = [how_far, f"{_amount(rate, progress.unit)}/s"]
        if progress.total is not None and rate > 0 and progress.done < progress.total:
            parts.append(f"{_duration((progress.total - progress.done) / rate)} left")
        else:
            parts.append(f"{_duration(now - self._start)}")
        if progress.note:
            parts.append(progress.note)
        return " · ".join(parts)


def follow(work: Generator[Progress, None, T], title: str, brief: bool = False) -> T:
    """Runs `work` to its end while showing what it yields; returns what it returns. `brief` as for ProgressBar."""
    with ProgressBar(title, brief) as bar:
        while True:
            try:
                bar.update(next(work))
            except StopIteration as stop:
                result: T = stop.value
                return result


def _amount(amount: float, unit: str) -> str:
    if unit == "bytes":
        for prefix in ("B", "kB", "MB", "GB"):
            if amount < 1000 or prefix == "GB":
                return f"{amount:.0f} {prefix}" if prefix == "B" else f"{amount:.1f} {prefix}"
            amount /= 1000
    return f"{amount:,.0f} {unit}" if amount >= 10 or amount == int(amount) else f"{amount:.1f} {unit}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    minutes = f"{whole // 60 % 60}" if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02}"
    return f"{minutes}:{whole % 60:02}"
