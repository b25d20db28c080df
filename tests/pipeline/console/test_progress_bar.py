from __future__ import annotations

import contextlib
import os
import pty
import re
import sys
from collections.abc import Generator

import pytest

from began.base.progress import Progress
from pipeline.console import progress_bar as progress
from pipeline.console.progress_bar import follow


def work(total: int | None) -> Generator[Progress, None, str]:
    for done in (0, 50, 100):
        yield Progress(done, total, "steps", f"note {done}")
    return "result"


def test_follow_returns_what_the_work_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(work(100), "train") == "result"


def test_without_a_terminal_the_last_state_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    follow(work(100), "train")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("train: 100 of 100 steps · ")
    assert err.endswith("note 100\n")
    assert "\x1b" not in err


def test_without_a_terminal_lines_come_every_few_seconds_with_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    follow(work(200), "train")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert "steps/s" in lines[-1]
    assert "left" in lines[-1]


def test_the_time_left_is_that_of_the_work_at_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Towards the second total ten steps a tick, where the first had a hundred: what came before does not count."""

    def in_two_paces() -> Generator[Progress, None, None]:
        yield from (Progress(done, 1000) for done in range(0, 1001, 100))
        yield from (Progress(done, 1400) for done in range(1000, 1201, 10))

    now = -10.0

    def clock() -> float:
        return now

    monkeypatch.setattr(progress.time, "monotonic", clock)
    with progress.ProgressBar("train") as bar:
        for step in in_two_paces():
            now += 10
            bar.update(step)
    lines = capsys.readouterr().err.splitlines()
    assert "train: 500 of 1,000 images · 10 images/s · 0:50 left" in lines
    assert "train: 1,100 of 1,400 images · 1 images/s · 5:00 left" in lines


def test_brief_work_leaves_no_line_unless_it_took_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(work(200), "check", brief=True)
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    follow(work(200), "check", brief=True)
    assert "check: 50 of 200 steps" in capsys.readouterr().err


def test_an_unknown_total_shows_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    follow(work(None), "download")
    err = capsys.readouterr().err
    assert "left" not in err
    assert " of " not in err


def test_bytes_have_units(capsys: pytest.CaptureFixture[str]) -> None:
    def download() -> Generator[Progress, None, None]:
        yield Progress(0, 2_500_000, "bytes")
        yield Progress(1_500_000, 2_500_000, "bytes")

    follow(download(), "download")
    assert "1.5 MB of 2.5 MB" in capsys.readouterr().err


def test_an_error_in_the_work_goes_through(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Generator[Progress, None, None]:
        yield Progress(1, 2)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        follow(broken(), "train")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        follow(work(100), "train")
        monkeypatch.undo()
    shown = b""
    with contextlib.suppress(OSError):  # Linux says so at the end
        while piece := os.read(master, 4096):
            shown += piece
    os.close(master)
    assert re.search(r"━{12}.* 100% · [\d,]+ steps/s · 0:00 · note 100", shown.decode())
    assert "━" in shown.decode()
