"""An archive of images at any address: zip, or tar (plain, gzip, bzip2, xz), over http, https or from a file."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from began.base.addresses import shown_url
from began.base.files import sha256
from began.base.progress import Progress
from began.base.transfer import PAUSES, Lock, hashed, transfer
from began.data.archives import ImageArchive
from began.data.card import Card
from began.data.kinds import LeftOut, is_piece, left_out_words
from began.data.tar import zip_from_tar
from began.params import DownloadParams

_OTHER_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a rar archive",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x07\x08": "the first piece of a split zip",
}


def fetch(
    download: DownloadParams,
    archive: Path,
    downloads: Path,
    workers: int,
    pauses: tuple[float, ...] = PAUSES,
) -> Generator[Progress, None, Card]:
    """Brings `download.url`, compares it with `download.sha256` where that is given, and packs its images.

    A zip is taken as it is; what else it holds is counted. With a digest the file stays in `downloads`; without one it
    does not, since the address may hold another file tomorrow. Raises ValueError naming the key or the address, also
    when more is left out than images are taken.
    """
    url = download.url
    if url is None:
        raise ValueError("download.url: is null, expected the address of a zip or tar (download.source is url)")
    parts = urlsplit(url)
    if is_piece(parts.path):
        raise ValueError(
            f"download.url: {shown_url(url)}: is one piece of a split archive, expected a whole zip or tar; join the "
            "pieces on this machine and give the file:/// address of the whole"
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"download.url: {shown_url(url)}: expected file:///PATH of this machine")
        source = _path(url)
        if not source.is_file():
            raise ValueError(f"download.url: {source}: no such file")
        if download.sha256 is not None and (digest := (yield from hashed(source, "checking"))) != download.sha256:
            raise ValueError(f"{source}: its SHA-256 is {digest}, expected {download.sha256} (download.sha256)")
        count, left_out = yield from _pack(source, archive, own=False)
    elif parts.scheme in ("http", "https") and parts.hostname:
        kept = downloads / (download.sha256 or "url-" + hashlib.sha256(url.encode()).hexdigest()[:16])
        with Lock(kept) as lock:
            yield from lock.wait()
            yield from transfer(url, kept, sha256=download.sha256, pauses=pauses)
            try:
                count, left_out = yield from _pack(kept, archive, own=True)
            except ValueError as error:
                raise ValueError(str(error).replace(str(kept), shown_url(url))) from None
            finally:
                if download.sha256 is None:
                    kept.unlink()
    else:
        raise ValueError(f"download.url: {shown_url(url)!r}, expected http://, https:// or file:///")
    if count == 0:
        others = f"; left out: {left_out_words(left_out.counts)}" if left_out.counts else ""
        raise ValueError(f"download.url: {shown_url(url)}: the archive holds no image (.jpg, .png, …){others}")
    left_out.check(f"download.url: {shown_url(url)}", count)
    return Card(
        source="url",
        count=count,
        licence="as its source says",
        # A file's name is nobody else's business; the digest tells it from others.
        credit=f"the makers of {'the archive' if parts.scheme == 'file' else shown_url(url)}",
        digest=sha256(archive),
        left_out=dict(left_out.counts) or None,
    )


def _path(url: str) -> Path:
    """The file that a file URL names: as the standard reads it, or else as it is written, with its %, ? and #."""
    encoded = urlsplit(url).path
    path = Path(url2pathname(encoded))
    written = Path(url[url.index(encoded) :])
    return written if written.is_file() and not path.is_file() else path


def place(source: Path, archive: Path, own: bool) -> None:
    """Puts a checked zip in its place: a hard link if the file is our `own`, else a copy, so that no person's file
    becomes part of DVC's cache."""
    archive.unlink(missing_ok=True)
    if own:
        try:
            os.link(source, archive)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, archive)


def _pack(source: Path, archive: Path, own: bool) -> Generator[Progress, None, tuple[int, LeftOut]]:
    with source.open("rb") as file:
        start = file.read(6)
    for magic, kind in _OTHER_ARCHIVES.items():
        if start.startswith(magic):
            raise ValueError(f"{source}: is {kind}, expected a zip or a tar (plain, gzip, bzip2, xz); pack it anew")
    if not start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return (yield from zip_from_tar(source, archive))
    with ImageArchive(source) as images:
        count, left_out = len(images.entries()), images.left_out
    place(source, archive, own)
    return count, left_out
