"""An archive of images at any address: zip, or tar (plain, gzip, bzip2, xz), over http, https or from a file."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from began.addresses import shown_url
from began.archives import ImageArchive
from began.card import Card
from began.files import sha256
from began.params import DownloadParams
from began.progress import Progress
from began.sources.tar import zip_from_tar
from began.sources.transfer import PAUSES, Lock, hashed, transfer


def fetch(
    download: DownloadParams,
    archive: Path,
    downloads: Path,
    workers: int,
    pauses: tuple[float, ...] = PAUSES,
) -> Generator[Progress, None, Card]:
    """Brings `download.url`, compares it with `download.sha256` where that is given, and packs its images.

    A zip is taken as it is. With a digest the file stays in `downloads`; without one it does not, since the address
    may hold another file tomorrow. Raises ValueError naming the key or the address.
    """
    url = download.url
    if url is None:
        raise ValueError("download.url: is null, expected the address of a zip or tar (download.source is url)")
    parts = urlsplit(url)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"download.url: {shown_url(url)}: expected file:///PATH of this machine")
        source = Path(url2pathname(parts.path))
        if not source.is_file():
            raise ValueError(f"download.url: {source}: no such file")
        if download.sha256 is not None and (digest := (yield from hashed(source, "checking"))) != download.sha256:
            raise ValueError(f"{source}: its SHA-256 is {digest}, expected {download.sha256} (download.sha256)")
        count = yield from _pack(source, archive, own=False)
    elif parts.scheme in ("http", "https") and parts.hostname:
        kept = downloads / (download.sha256 or "url-" + hashlib.sha256(url.encode()).hexdigest()[:16])
        with Lock(kept) as lock:
            yield from lock.wait()
            yield from transfer(url, kept, sha256=download.sha256, pauses=pauses)
            try:
                count = yield from _pack(kept, archive, own=True)
            except ValueError as error:
                raise ValueError(str(error).replace(str(kept), shown_url(url))) from None
            finally:
                if download.sha256 is None:
                    kept.unlink()
    else:
        raise ValueError(f"download.url: {shown_url(url)!r}, expected http://, https:// or file:///")
    if count == 0:
        raise ValueError(f"download.url: {shown_url(url)}: the archive holds no image (.jpg, .png, …)")
    return Card(
        source="url",
        count=count,
        licence="as its source says",
        # A file's name is nobody else's business; the digest tells it from others.
        credit=f"the makers of {'the archive' if parts.scheme == 'file' else shown_url(url)}",
        digest=sha256(archive),
    )


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


def _pack(source: Path, archive: Path, own: bool) -> Generator[Progress, None, int]:
    with source.open("rb") as file:
        is_zip = file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    if not is_zip:
        return (yield from zip_from_tar(source, archive))
    with ImageArchive(source) as images:
        count = len(images.entries())
    place(source, archive, own)
    return count
