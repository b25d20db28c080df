from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from began.base.parallel import num_cores, ordered_map
from tests import REPOSITORY


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02 * (number % 3))
    if number == 1000:
        raise ValueError("not this one")
    if number == 2000:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number, os.getpid()


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    results = list(ordered_map(square, range(20), workers))
    assert [result for result, _ in results] == [number * number for number in range(20)]
    assert len({process for _, process in results}) <= workers
    assert (os.getpid() in {process for _, process in results}) == (workers == 1)


def test_items_are_taken_only_as_results_are() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken = number + 1
            yield number

    results = ordered_map(square, items(), 2)
    for done in range(1, 11):
        next(results)
        assert taken <= done + 6
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_worker_is_the_caller_s(workers: int) -> None:
    with pytest.raises(ValueError, match="not this one"):
        list(ordered_map(square, [1, 1000, 2], workers))


def test_a_worker_that_dies_ends_in_an_error_not_in_waiting() -> None:
    with pytest.raises(OSError, match="a worker process died"):
        list(ordered_map(square, [1, 2000, 2], 2))


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import time\n"
        "from began.base.parallel import ordered_map\n"
        "from test_parallel import square\n"
        "if __name__ == '__main__':\n"
        "    results = ordered_map(square, range(1000), 2)\n"
        "    print(*{next(results)[1] for _ in range(20)}, flush=True)\n"
        "    time.sleep(60)\n"
    )
    here = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{here}"}
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    children = [int(number) for number in parent.stdout.readline().split()]
    assert children
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.05)


def is_running(process: int) -> bool:
    """Not gone, and no zombie that waits for a parent to ask."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_there_is_a_core() -> None:
    assert num_cores() >= 1
