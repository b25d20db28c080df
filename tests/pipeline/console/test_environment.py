"""Commands work with the streams, the locale and the settings of threads that they find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from began.data.rows import open_images
from pipeline.console.environment import prepare
from tests import REPOSITORY
from tests.pipeline.test_preprocess import archive_of, encoded

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

# What a child of a cluster's job sees: which cores each of the two threads that share a batch may use.
WHICH_CORES = """
import os, threading
import torch
from began.device.threads import thread_pool
with thread_pool(2) as pool:
    print(list(pool.map(lambda _: sorted(os.sched_getaffinity(threading.get_native_id())), range(2))))
"""


@pytest.fixture
def work(tmp_path: Path, repository: Path) -> Path:
    """A folder with params.yaml and an archive of four images."""
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    archive_of(tmp_path / "images.zip", {f"{i}.png": encoded(i) for i in range(4)})
    return tmp_path


def preprocess(work: Path, redirections: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'exec "$0" -m pipeline preprocess images.zip images.h5 --workers 1 {redirections}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("redirections", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_a_stage_needs_no_standard_streams(redirections: str, work: Path) -> None:
    assert preprocess(work, redirections).returncode == 0
    assert len(open_images(work / "images.h5").rows) == 4


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_stage_ends_well_where_the_locale_lacks_its_characters(encoding: str, work: Path) -> None:
    done = preprocess(work, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"\\u2192 images.h5" in done.stdout  # the arrow


def test_a_closed_stream_keeps_its_number(tmp_path: Path) -> None:
    """A library that writes to number 2 must not write into the file that was opened next."""
    script = f"""
from pipeline.console.environment import prepare
prepare()
import os
with open({str(tmp_path / "file")!r}, "wb") as file:
    os.write(2, b"a warning")
    file.write(b"content")
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, script]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("ours", [True, False], ids=["a command", "a program"])
@pytest.mark.parametrize(
    "settings",
    [
        {"OMP_PROC_BIND": "true"},
        {"OMP_PLACES": ",".join(f"{{{core}}}" for core in CORES)},
        {"GOMP_CPU_AFFINITY": " ".join(map(str, CORES))},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_both_threads_of_a_batch_may_use_every_core(settings: dict[str, str], ours: bool) -> None:
    """In our commands, and in a program that loaded torch before it came to us."""
    first = "from pipeline.console.environment import prepare; prepare()" if ours else ""
    without_openmp = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", f"{first}\n{WHICH_CORES}"],
        cwd=REPOSITORY,
        env={**without_openmp, "OMP_NUM_THREADS": "2", **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([CORES] * 2)


def test_what_a_person_set_of_the_spinning_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    prepare()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
