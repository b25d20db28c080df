"""Rows of settings → runs: each row is a DVC experiment of this repository, one after the other or several at once.

DVC's run cache knows what was trained before, so a sweep that was killed goes on where it stopped, and one that is
called again only reads its results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from began.base.files import replace_file
from began.base.parallel import num_cores
from began.runs.curve import History
from pipeline.report.find_runs import Run, read_runs

FOLDER = Path("experiments")  # of the records, in the repository's root
RATIO, LEAST_K_T, MOST_K_T = "L_fake/L_real", "k_t_min", "k_t_max"
FRECHET = "frechet_face/real"
WARNED = "warned_of_collapse"

SOURCES = ("params.yaml", "dvc.yaml", "began", "pipeline")  # what a run depends on

# Of a record: name, settings, comment, the commit of SOURCES, and either versions, cores and numbers or an error.
Entry = dict[str, Any]
Value = float | int | bool | str | None


@dataclass(frozen=True)
class Row:
    """One experiment. settings: dotted names of params.yaml → values that differ from those there."""

    name: str
    settings: Mapping[str, Value]
    comment: str = ""


@dataclass(frozen=True)
class Finished:
    """A row that ran. numbers: those of its report, and what was made of them and of its curve (`numbers_of`)."""

    row: Row
    run: Run
    numbers: Mapping[str, float | None]


def run_rows(rows: Sequence[Row], record: Path, earlier: Iterable[Entry] = (), jobs: int = 1) -> list[Finished]:
    """Runs each row as `dvc exp run --temp`, in the current folder's repository; those that finished, in order.

    `jobs` rows run at once, each with an equal share of the cores (on Linux; elsewhere they share all). An older
    experiment of the same name is replaced. A row that fails is told in one line on standard error, and the others go
    on. After each row `record` is written: a JSON list with a line for each entry of `earlier` and for each row so far,
    with its settings and either its numbers or its error. ValueError outside a git repository, and for a number of
    `jobs` that the cores cannot be divided by.
    """
    work = _Work(rows, record, list(earlier), jobs)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in as_completed([pool.submit(work.run, row) for row in rows]):
                done.result()
        except BaseException:
            work.is_stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [work.finished[row.name] for row in rows if row.name in work.finished]


def run_named(named: Mapping[str, Sequence[Row]], record: Path, jobs: int) -> tuple[dict[str, list[Finished]], bool]:
    """Runs all rows as `run_rows` does; what finished, by the names that it was asked for by, and whether all did.

    ValueError when none did.
    """
    rows = [row for of_name in named.values() for row in of_name]
    finished = {one.row.name: one for one in run_rows(rows, record, (), jobs)}
    if not finished:
        raise ValueError(f"none of the {len(rows)} runs finished")
    by_name = {name: [finished[row.name] for row in of_name if row.name in finished] for name, of_name in named.items()}
    return {name: runs for name, runs in by_name.items() if runs}, len(finished) == len(rows)


class _Work:
    """Rows that run at once.

    They take turns with the repository. While DVC takes a row from the workspace it stashes what is not committed and
    resets the files; whatever is written meanwhile would be lost. It also takes the first experiment that waits in its
    stash, whoever put it there, so that a row that ends may take one that begins: that row is then run again.
    """

    def __init__(self, rows: Sequence[Row], record: Path, earlier: Sequence[Entry], jobs: int) -> None:
        self.finished: dict[str, Finished] = {}
        self.is_stopped = False
        self._rows, self._record, self._earlier = rows, record, earlier
        self._prefixed = jobs > 1
        self._entries: dict[str, Entry] = {}
        self._number = itertools.count(1)
        self._shares = _shares_of_cores(jobs)
        self._repository = threading.Lock()
        _commit()  # fails where there is no repository

    def run(self, row: Row) -> None:
        entry: Entry = {"name": row.name, "settings": dict(row.settings), "comment": row.comment}
        share = self._shares.get()
        try:
            self._start(row, share, entry)
            its_run = self._result(row)
            if its_run is None:
                self._start(row, share, entry)
                its_run = self._result(row)
            if its_run is None:
                raise ValueError("DVC ended well but left no experiment of this name")
        except ValueError as error:
            if self.is_stopped:
                return
            print(f"{row.name} failed: {error}", file=sys.stderr, flush=True)
            entry["error"] = str(error)
        else:
            numbers = numbers_of(its_run)
            self.finished[row.name] = Finished(row, its_run, numbers)
            entry |= {"versions": its_run.versions, "cores": len(share) or None, "numbers": numbers}
        finally:
            self._shares.put(share)
        with self._repository:
            self._entries[row.name] = entry
            known = [self._entries[row.name] for row in self._rows if row.name in self._entries]
            _write(self._record, [*self._earlier, *known])

    def _start(self, row: Row, cores: set[int], entry: Entry) -> None:
        """Runs the row to its end; the repository is its own until DVC has taken it."""
        with ExitStack() as until_taken:
            until_taken.enter_context(self._repository)
            print(f"{next(self._number)} of {len(self._rows)}: {row.name}", file=sys.stderr, flush=True)
            entry["commit"] = _commit()
            _forget(row.name)
            _run(row, cores, f"{row.name}: " if self._prefixed else "", until_taken.close)

    def _result(self, row: Row) -> Run | None:
        with self._repository:
            if not _references(row.name):
                return None
            [its_run] = read_runs([row.name])
            return its_run


def read_record(record: Path) -> list[Entry]:
    """The entries that `run_rows` wrote; none where there is no such file."""
    if not record.is_file():
        return []
    entries: list[Entry] = json.loads(record.read_text(encoding="utf-8"))
    return entries


def numbers_of(run: Run) -> dict[str, float | None]:
    """Those of its report, the balance of its curve, the Fréchet distance over that of real images, and 1 where the
    training warned of a collapse, else 0.
    """
    distance, real = (run.numbers.get(name) for name in ("frechet_face", "frechet_face_baseline"))
    ratio = distance / real if distance is not None and real else None
    warned = any("the generator draws nearly one image" in remark for remark in run.remarks)
    balance = curve_numbers(run.history) if run.history else {}
    return {**run.numbers, FRECHET: ratio, WARNED: float(warned), **balance}


def curve_numbers(history: History) -> dict[str, float | None]:
    """The balance of a run: L(G(z)) / L(x), and the least and the largest k_t.

    The first is a ratio of means over the last third of the steps, and should be γ. k_t is that of the second half;
    where it reaches 0 or 1 there is no balance.
    """
    step = history["step"]
    late, later = step > step[-1] / 2, step > step[-1] * 2 / 3
    num_steps = np.diff(step, prepend=0)[later]  # a record's losses are means over the steps since the one before
    L_fake, L_real = (float(np.average(history[name][later], weights=num_steps)) for name in ("L_fake", "L_real"))
    k_t = history["k_t"][late]
    return {RATIO: L_fake / L_real if L_real else None, LEAST_K_T: float(k_t.min()), MOST_K_T: float(k_t.max())}


def with_seeds(rows: Iterable[Row], seeds: Sequence[int]) -> list[Row]:
    """Each row with each seed, named NAME-seed-SEED."""
    return [
        Row(f"{row.name}-seed-{seed}", {**row.settings, "seed": seed}, row.comment) for row in rows for seed in seeds
    ]


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The option --jobs of every program that calls run_rows."""
    parser.add_argument(
        "--jobs", type=int, default=1, help="rows to run at once, each with its share of the cores; the default is 1"
    )


def call(program: Callable[[], bool]) -> None:
    """Ends with exit code 0 when `program` says that all went well, else with 1.

    A user's mistake, a ValueError, ends with one line and exit code 2.
    """
    try:
        sys.exit(0 if program() else 1)
    except ValueError as error:
        print(f"experiments: {error}", file=sys.stderr)
        sys.exit(2)


def _commit() -> str:
    """The last commit that changed SOURCES, with a + where there are changes since. ValueError outside a repository."""
    last = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", *SOURCES], capture_output=True, text=True, check=False
    )
    if last.returncode != 0:
        raise ValueError(f"the current folder is not a git clone: {last.stderr.splitlines()[0]}")
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *SOURCES], check=False).returncode != 0
    return last.stdout.strip() + ("+" if changed else "")


def _shares_of_cores(jobs: int) -> SimpleQueue[set[int]]:
    """For each of `jobs` its cores, by their numbers; an empty set where processes cannot be bound to cores."""
    if jobs < 1 or num_cores() % jobs:
        raise ValueError(f"--jobs: {jobs}, expected a divisor of {num_cores()}, the number of cores")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares: SimpleQueue[set[int]] = SimpleQueue()
    for i in range(jobs):
        shares.put(set(cores[i::jobs]))
    return shares


def _run(row: Row, cores: set[int], prefix: str, on_taken: Callable[[], None]) -> None:
    """ValueError saying in one line why the experiment failed. What its stages print goes on to standard error.

    on_taken: called when DVC has copied the workspace and has begun to reproduce the row there, perhaps more than once.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "exp", "run", "--temp", "--name", row.name]
    for key, value in row.settings.items():
        command += ["-S", f"{key}={json.dumps(value)}"]
    # The stages run whatever `python` comes first.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    reason = ""
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    ) as process:
        if cores:
            os.sched_setaffinity(process.pid, cores)  # before it has started any thread or process of its own
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(prefix + line)
            if line.startswith("Reproducing experiment "):
                on_taken()
            # A stage's own line says more than that of DVC, which comes after it.
            if line.startswith("began: ") or (line.startswith("ERROR: ") and not reason):
                reason = line.strip()
    if process.returncode != 0:
        raise ValueError(reason or f"dvc exp run ended with exit code {process.returncode}")


def _references(name: str) -> list[str]:
    """Git's references to experiments of this name, of any commit."""
    found = subprocess.run(
        ["git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def _forget(name: str) -> None:
    """Removes experiments of this name, of any commit: DVC refuses to replace one, and a name should mean one run.

    Their results stay in DVC's cache.
    """
    commands = "".join(f"delete {reference}\n" for reference in _references(name))
    subprocess.run(["git", "update-ref", "--stdin"], input=commands, text=True, check=True)


def _write(record: Path, entries: Iterable[Entry]) -> None:
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    with replace_file(record) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
