"""A tar becomes a zip, or is refused in one line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from began.data import archives
from began.data.archives import ImageArchive
from began.data.card import Card
from tests.data.http_server import Place


def tar_bytes(members: dict[str, bytes], compress: Callable[[bytes], bytes] = bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return compress(stream.getvalue())


def header(kind: bytes, num_bytes: int) -> bytes:
    """A tar of one header that says what it likes."""
    info = tarfile.TarInfo("a.png")
    info.type, info.size, info.linkname = kind, num_bytes, "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def fetch_tar(place: Place, tmp_path: Path, data: bytes) -> Card:
    (tmp_path / "a.tar").write_bytes(data)
    return place.fetch_url((tmp_path / "a.tar").as_uri())


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_becomes_a_zip(place: Place, tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    members = {
        "./d/b.png": bytes(70_000),
        "a.jpg": b"a" * 512,
        "readme.txt": b"x",
        "x" * 150 + "/c.png": b"long",
        "d.png": b"",
    }
    card = fetch_tar(place, tmp_path, tar_bytes(members, compress))
    with ImageArchive(place.archive) as images:
        found = {images.name(entry): images.read(entry) for entry in images.entries()}
    assert found == {name.removeprefix("./"): data for name, data in members.items() if name != "readme.txt"}
    assert card.count == 4
    assert {stat.S_IFMT(info.external_attr >> 16) for info in zipfile.ZipFile(place.archive).infolist()} == {
        stat.S_IFREG
    }


def test_a_member_that_escapes_condemns_a_tar(place: Place, tmp_path: Path) -> None:
    for name in ("../a.png", "/etc/a.png", "a/../../b.png", "C:/a.png"):
        with pytest.raises(ValueError, match=r"a\.tar: member .* leaves the archive's folder"):
            fetch_tar(place, tmp_path, tar_bytes({name: b"x"}))


def test_links_and_devices_condemn_a_tar(place: Place, tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE):
        with pytest.raises(ValueError, match=r"member 'a\.png' is a link or no regular file"):
            fetch_tar(place, tmp_path, header(kind, 0))


def test_a_tar_that_is_a_bomb_is_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 10**6)
    with pytest.raises(ValueError, match="refused as a bomb"):
        fetch_tar(place, tmp_path, tar_bytes({f"{i}.png": bytes(600_000) for i in range(4)}, gzip.compress))


def test_a_header_that_lies_about_its_size_ends_in_a_value_error(place: Place, tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE):
        for size in (-512, 2**40):
            with pytest.raises(ValueError, match=r"a\.tar: "):
                fetch_tar(place, tmp_path, header(kind, size))


def test_what_is_no_tar_or_cut_short_is_named(place: Place, tmp_path: Path) -> None:
    whole = tar_bytes({f"{i}.png": bytes(700) for i in range(3)})
    for data in (b"", b"what is this" * 100, b"BZh9" + bytes(99), whole[:1900], gzip.compress(whole)[:-9]):
        with pytest.raises(ValueError, match=r"a\.tar: is not a tar archive, or a damaged one"):
            fetch_tar(place, tmp_path, data)
