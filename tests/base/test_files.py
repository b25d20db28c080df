from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from began.base.files import DiskFullError, explained_disk, replace_file, replace_folder, sha256
from tests import REPOSITORY


def write(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.txt").write_text("new")


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "missing" / "a.txt"
    with replace_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), replace_file(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_a_hard_link_leaves_the_other_name_alone(tmp_path: Path) -> None:
    """DVC's outputs may be hard links into its cache."""
    cached, target = tmp_path / "cached", tmp_path / "a.txt"
    cached.write_text("old")
    target.hardlink_to(cached)
    with replace_file(target) as temporary:
        temporary.write_text("new")
    assert (cached.read_text(), target.read_text()) == ("old", "new")


def test_a_folder_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").touch()
    with replace_folder(target) as temporary:
        write(temporary)
        assert (target / "stale").exists()
    assert [path.relative_to(target).as_posix() for path in sorted(target.rglob("*"))] == ["inner", "inner/a.txt"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(error), replace_folder(target) as temporary:
        write(temporary)
        raise error
    assert (target / "old").exists()
    assert list(tmp_path.iterdir()) == [target]


WRITER = """
import sys, time
from pathlib import Path
from began.base.files import replace_file, replace_folder

with replace_folder(Path(sys.argv[1])) as folder, replace_file(Path(sys.argv[2])) as file:
    (folder / "half").touch()
    file.touch()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "a.txt"
    command = [sys.executable, "-c", WRITER, str(folder), str(file)]
    writers = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) for _ in range(2)]
    killed, living = writers
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        killed.kill()
        killed.wait()
        others = tmp_path / f".model.{killed.pid}.part.{killed.pid}.part"  # of a target of another name
        others.touch()
        with replace_folder(folder) as temporary, replace_file(file) as half:
            assert {path.name for path in tmp_path.iterdir() if path.name != others.name} == {
                *(temporary.name, f".model.{living.pid}.part", f".a.txt.{living.pid}.part")
            }
            half.touch()
        assert others.exists()
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_an_older_folder_that_a_killed_process_renamed_aside_is_not_lost(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    aside = tmp_path / f".model.{ended.pid}.older.part"
    aside.mkdir()
    (aside / "old").touch()
    with pytest.raises(ValueError, match="failed"), replace_folder(tmp_path / "model"):
        raise ValueError("failed")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]


def test_a_file_does_not_replace_a_folder_nor_a_folder_a_file(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.touch()
    with pytest.raises(ValueError, match="folder: is a folder, expected a file"), replace_file(folder):
        pass
    with pytest.raises(ValueError, match="file: is a file, expected a folder"), replace_folder(file):
        pass


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


class LibraryError(Exception):
    """Of a library in C or Rust."""


def from_a_handler() -> Exception:
    """As an object that is closed again while a full disk's error passes raises it."""
    error = RuntimeError("cannot close")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "quota exceeded"),
        (OSError(errno.EFBIG, "File too large"), "File too large"),
        (LibraryError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (
            RuntimeError("unable to close file, errno = 28, error message = 'No space left on device', buf = 0"),
            "No space left on device",
        ),
        (from_a_handler(), "No space left on device"),
    ],
)
def test_a_full_disk_is_named_with_the_file_whoever_raises_it(tmp_path: Path, error: Exception, reason: str) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "model"
    for replace, target in ((replace_file, file), (replace_folder, folder)):
        with pytest.raises(DiskFullError, match=f"{target}: cannot be written: .*{reason}") as raised, replace(target):
            raise error
        assert "\n" not in str(raised.value) and list(tmp_path.iterdir()) == []


def write_png(path: Path) -> None:
    with replace_file(path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_that_a_full_disk_stopped_is_called_by_the_name_it_was_to_have(tmp_path: Path) -> None:
    model, elsewhere = tmp_path / "model", tmp_path / "state"
    with pytest.raises(DiskFullError, match=r"model/samples/1\.png: cannot"), replace_folder(model) as folder:
        write_png(folder / "samples" / "1.png")
    with pytest.raises(DiskFullError, match=r"model/history\.csv: cannot"), replace_folder(model) as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "history.csv"))
    with pytest.raises(DiskFullError, match="state: cannot"), replace_folder(model), replace_file(elsewhere):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("error", [ValueError("a.txt: wrong"), OSError(errno.EACCES, "Permission denied"), KeyError(1)])
def test_other_errors_pass_as_they_are(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained_disk(tmp_path):
        raise error
    assert raised.value is error


def test_content_is_flushed_before_the_name_and_so_are_new_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with replace_folder(tmp_path / "new" / "model") as folder:
        write(folder)
        assert flushed == [tmp_path]
    inside = {folder, folder / "inner", folder / "inner" / "a.txt"}
    assert set(flushed[1:4]) == inside and flushed[4:] == [tmp_path / "new"]
    flushed.clear()
    with replace_file(tmp_path / "a.txt") as file:
        file.touch()
    assert flushed == [file, tmp_path]
