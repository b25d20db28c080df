"""Images of one's own: every picture in a folder and the folders in it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Generator
from pathlib import Path

from began.archives import MAX_MEMBER_BYTES, check_name, is_image_name, write_member
from began.card import Card
from began.files import sha256
from began.params import DownloadParams
from began.progress import Progress


def fetch(download: DownloadParams, archive: Path, downloads: Path, workers: int) -> Generator[Progress, None, Card]:
    """Packs the images below `download.folder`, sorted by their names in it.

    Links to folders, and links to files elsewhere, are left out. Raises ValueError naming `download.folder` when it is
    no folder or holds no image, and naming a file that cannot be read.
    """
    if not download.folder:
        raise ValueError("download.folder: '', expected the name of a folder (download.source is folder)")
    folder = Path(download.folder)
    names, num_links = _image_names(folder)
    note = f"{num_links} links not followed" if num_links else ""
    if not names:
        links = f"; {note}" if note else ""
        raise ValueError(f"download.folder: {folder}: holds no image (.jpg, .png, …){links}{_advice(folder)}")
    with zipfile.ZipFile(archive, "w") as file:
        for done, name in enumerate(names):
            yield Progress(done, len(names), note=note)
            write_member(file, name, _read(folder / name))
    yield Progress(len(names), len(names), note=note)
    return Card(
        source="folder",
        count=len(names),
        licence="as its owner says",
        credit="the owner of the pictures",
        digest=sha256(archive),
    )


def _advice(folder: Path) -> str:
    """Where a relative folder was looked for, or the way out of a temporary experiment."""
    if folder.is_absolute():
        return ""
    if "/.dvc/tmp/exps/" in folder.absolute().as_posix():
        # A copy of the main repository's files would be wrong: DVC could not see when they change.
        return "; a temporary experiment has only what git or DVC tracks, so give an absolute path"
    return f"; looked in {folder.absolute()}"


def _image_names(folder: Path) -> tuple[list[str], int]:
    """Relative names, sorted; and how many links lead elsewhere."""
    try:
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "no such folder"
            raise ValueError(f"download.folder: {folder}: {problem}{_advice(folder)}")
    except OSError as error:  # a name that is too long
        raise ValueError(f"download.folder: {folder}: cannot be read: {error.strerror}") from None
    root = folder.resolve()
    names, num_links = [], 0

    def refuse(error: OSError) -> None:
        raise ValueError(f"download.folder: {error.filename}: cannot be read: {error.strerror}") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        num_links += sum((Path(parent) / name).is_symlink() for name in folders)
        for file in files:
            path = Path(parent) / file
            name = path.relative_to(folder).as_posix()
            if not is_image_name(name):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                num_links += 1
            elif path.is_file():
                names.append(name)
    return sorted(names), num_links


def _read(path: Path) -> bytes:
    try:
        check_name(path.name, path.parent)
        path.name.encode()
        with path.open("rb") as file:
            data = file.read(MAX_MEMBER_BYTES + 1)
    except UnicodeEncodeError:
        raise ValueError(f"download.folder: {str(path)!a}: its name is not UTF-8; rename it") from None
    except OSError as error:
        raise ValueError(f"download.folder: {path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_MEMBER_BYTES:
        raise ValueError(f"download.folder: {path}: has more than {MAX_MEMBER_BYTES:,} bytes; too large for an image")
    return data
