"""Outputs that appear under their final name only when they are whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed to `path`, on error removed.

    Never opens an existing `path`: it may be a hard link into DVC's cache. Missing parent folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields a new empty folder beside `path`; on success it takes the place of `path`, on error it is removed.

    The older folder is renamed aside first, so that at no moment half of it lies under `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, expected a folder")
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    older = path.with_name(f".{path.name}.{os.getpid()}.older.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        if path.exists():
            path.rename(older)
        try:
            temporary.rename(path)
        except BaseException:
            if older.exists() and not path.exists():
                older.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_leftovers(path: Path) -> None:
    """Removes what processes that were killed left beside `path`; never what a living one is writing."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d{{1,9}})(\.older)?\.part")
    for left in path.parent.iterdir():
        match = name.fullmatch(left.name)
        if match is None or _is_alive(int(match[1])):
            continue
        with suppress(OSError):  # another process may be faster
            if match[2] and not path.exists():
                left.rename(path)  # killed between the two renames of replace_folder
            elif left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
