"""Outputs that appear under their final name only when they are whole and on disk."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """No space, quota or permitted size is left for `path`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: cannot be written: {reason}")
        self.path = path
        self.reason = reason


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed to `path`, on error removed.

    Never opens an existing `path`: it may be a hard link into DVC's cache. Missing parent folders are made. What a full
    disk raises inside becomes a DiskFullError that names `path`.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder, expected a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explained_disk(path, temporary):
        make_folder(path.parent)
        _remove_leftovers(path)
        try:
            yield temporary
            flush(temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields a new empty folder beside `path`; on success it takes the place of `path`, on error it is removed.

    The older folder is renamed aside first, so that at no moment half of it lies under `path`. What a full disk raises
    inside becomes a DiskFullError that names `path` or the file in it.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path}: is a file, expected a folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    older = path.with_name(f".{path.name}.{os.getpid()}.older.part")
    with explained_disk(path, temporary):
        make_folder(path.parent)
        _remove_leftovers(path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            for inner in (*temporary.rglob("*"), temporary):
                flush(inner)
            if path.exists():
                path.rename(older)
            try:
                temporary.rename(path)
            except BaseException:
                if older.exists() and not path.exists():
                    older.rename(path)
                raise
            flush(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(older, ignore_errors=True)


@contextmanager
def explained_disk(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Within, what a full disk raises, of whatever type, becomes a DiskFullError.

    It names the file that the error names, otherwise `path`; a file in `temporary` by the name it was to have.
    """
    try:
        yield
    except Exception as error:
        found = _full_disk(error)
        if found is None:
            raise
        where, reason = found
        where = path if where is None else where
        if temporary is not None and where.is_relative_to(temporary):
            where = path / where.relative_to(temporary)
        raise DiskFullError(where, reason) from None


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _full_disk(error: BaseException) -> tuple[Path | None, str] | None:
    """The file that `error` names and the reason, where a full disk is behind it."""
    if isinstance(error, DiskFullError):
        return error.path, error.reason
    for code in _FULL:
        reason = os.strerror(code)
        if isinstance(error, OSError) and error.errno == code:
            named = isinstance(error.filename, str | os.PathLike)
            return Path(error.filename) if named else None, reason
        # Libraries in C and Rust have types of their own, but the system's words.
        if reason in str(error):
            return None, reason
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None if before is None else _full_disk(before)


def make_folder(folder: Path) -> None:
    """Makes `folder` and its parents where they are missing, on disk too."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush(made.parent)


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
    if pid == os.getpid():  # left by another one, as in a container started again
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # a file system may have no such thing for folders
            raise
    finally:
        os.close(descriptor)
