"""Images of one's own: every picture in a folder and the folders in it."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Generator
from functools import partial
from itertools import islice
from pathlib import Path

from began.base.files import sha256
from began.base.progress import Progress
from began.data.archives import MAX_MEMBER_BYTES, name_problem, write_member
from began.data.card import Card
from began.data.kinds import BROKEN_LINK, HEAD_BYTES, LINKED, NO_FILE, LeftOut, is_image_name, left_out_words
from began.params import DownloadParams

MAX_COUNTED = 10_000  # files of a linked folder, which may be a whole disk


def fetch(download: DownloadParams, archive: Path, downloads: Path, workers: int) -> Generator[Progress, None, Card]:
    """Packs the images below `download.folder`, sorted by their names in it.

    What links lead to elsewhere is left out, and counted; only links into a cache of DVC are followed, since there DVC
    keeps the folder's own files. Raises ValueError naming `download.folder` when it is no folder, holds no image or
    more that is left out than images, and naming a file that cannot be read or packed.
    """
    if not download.folder:
        raise ValueError("download.folder: '', expected the name of a folder (download.source is folder)")
    try:
        folder = Path(download.folder).expanduser()
    except RuntimeError:  # nobody of that name has a home
        folder = Path(download.folder)
    names, left_out = _image_names(folder)
    if not names:
        others = f"; left out: {left_out_words(left_out.counts)}" if left_out.counts else ""
        raise ValueError(f"download.folder: {folder}: holds no image (.jpg, .png, …){others}{_advice(folder)}")
    left_out.check(f"download.folder: {folder}", len(names))
    with zipfile.ZipFile(archive, "w") as file:
        for done, name in enumerate(names):
            yield Progress(done, len(names))
            write_member(file, name, _read(folder / name))
    yield Progress(len(names), len(names))
    return Card(
        source="folder",
        count=len(names),
        licence="as its owner says",
        credit="the owner of the pictures",
        digest=sha256(archive),
        left_out=dict(left_out.counts) or None,
    )


def _advice(folder: Path) -> str:
    """Where a relative folder was looked for, or the way out of a temporary experiment."""
    if folder.is_absolute():
        return ""
    if "/.dvc/tmp/exps/" in folder.absolute().as_posix():
        # A copy of the main repository's files would be wrong: DVC could not see when they change.
        return "; a temporary experiment has only what git or DVC tracks, so give an absolute path"
    return f"; looked in {folder.absolute()}"


def _image_names(folder: Path) -> tuple[list[str], LeftOut]:
    """Relative names, sorted; and what is left out."""
    try:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "no such folder"
            raise ValueError(f"download.folder: {folder}: {problem}{_advice(folder)}")
    except OSError as error:  # a name that is too long
        raise ValueError(f"download.folder: {folder}: cannot be read: {error.strerror}") from None
    root = folder.resolve()
    names, left_out = [], LeftOut()

    def refuse(error: OSError) -> None:
        raise ValueError(f"download.folder: {error.filename}: cannot be read: {error.strerror}") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in folders:
            path = Path(parent) / name
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                inside = islice((file for *_, files in os.walk(path) for file in files), MAX_COUNTED)
                left_out.counts[LINKED] += sum(map(is_image_name, inside))
        for file in files:
            path = Path(parent) / file
            name = path.relative_to(folder).as_posix()
            if not is_image_name(name):
                left_out.add(name, partial(_head, path))
            elif not path.is_file():
                left_out.counts[BROKEN_LINK if path.is_symlink() else NO_FILE] += 1
            elif path.is_symlink() and not (target := path.resolve()).is_relative_to(root) and not _in_cache(target):
                left_out.counts[LINKED] += 1
            else:
                _check_name(name, folder)
                names.append(name)
    left_out.counts = +left_out.counts  # without zeros
    return sorted(names), left_out


def _in_cache(target: Path) -> bool:
    """Whether DVC keeps `target`: wherever its cache lies, a file's name there is its MD5, cut after two digits."""
    return re.fullmatch(r"[0-9a-f]{2}/[0-9a-f]{30}", "/".join(target.parts[-2:])) is not None


def _check_name(name: str, folder: Path) -> None:
    """Raises ValueError when no archive can hold a file of this name, folders included."""
    try:
        name.encode()
        problem = name_problem(name)
    except UnicodeEncodeError:
        problem = "its name is not UTF-8"
    if problem:
        raise ValueError(f"download.folder: {str(folder / name)!a}: {problem}; rename it")


def _head(path: Path) -> bytes:
    """The first bytes of a file, none where it cannot be read."""
    if not path.is_file():  # a pipe would wait for ever
        return b""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError:
        return b""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_MEMBER_BYTES + 1)
    except OSError as error:
        raise ValueError(f"download.folder: {path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"download.folder: {path}: has more than {MAX_MEMBER_BYTES:,} bytes; too large for an image")
    return data
