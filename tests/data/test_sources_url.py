"""The sources `url` and `celeba` against a real HTTP server on loopback."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from began.base import transfer
from began.data import archives
from began.data.archives import ImageArchive
from began.data.card import Card
from began.data.sources import celeba, url
from tests import REPOSITORY
from tests.data.test_sources import finish, image_members, settings

NO_PAUSES = (0.0, 0.0, 0.0)


@dataclass
class Served:
    """One file, and how its server treats it."""

    data: bytes
    status: int = 200
    content_type: str = "application/octet-stream"
    etag: str | None = '"1"'
    ranges: bool = True
    length: bool = True
    drops: list[int] = field(default_factory=list)  # bytes after which the next answers are cut off
    redirect: str | None = None
    asked: list[str | None] = field(default_factory=list)  # the Range of each request


class Server:
    def __init__(self) -> None:
        files = self.files = dict[str, Served]()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                served = files.get(self.path.split("?")[0], Served(b"nothing here", status=404))
                served.asked.append(self.headers["Range"])
                if served.redirect is not None:
                    self.send_response(302)
                    self.send_header("Location", served.redirect)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start, status = 0, served.status
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
                if_range = self.headers["If-Range"]
                if wanted and served.ranges and status == 200 and if_range in (None, served.etag):
                    start, status = int(wanted[1]), 206
                total = len(served.data)
                body = served.data[start:]
                if status == 206 and start >= total:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{total}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(status)
                self.send_header("Content-Type", served.content_type)
                if served.etag:
                    self.send_header("ETag", served.etag)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                if served.length:
                    self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                self.wfile.write(body[: served.drops.pop(0)] if served.drops else body)

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server()
    yield running
    running.close()


def zip_bytes(num_images: int = 3, image_bytes: int = 30_000) -> bytes:
    generator = random.Random(num_images)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for i in range(num_images):
            file.writestr(zipfile.ZipInfo(f"img/{i}.jpg"), generator.randbytes(image_bytes))
    return stream.getvalue()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


PAGE = Served(b"<!DOCTYPE html><html>Quota exceeded</html>", content_type="text/html; charset=utf-8", ranges=False)


class Place:
    """An archive to be written and a downloads folder, in the test's own folder."""

    def __init__(self, folder: Path) -> None:
        self.archive = folder / "images.zip"
        self.downloads = folder / "downloads"

    def fetch_url(self, address: str, sha256: str | None = None) -> Card:
        download = settings(source="url", url=address, sha256=sha256)
        return finish(url.fetch(download, self.archive, self.downloads, 1, pauses=NO_PAUSES))

    def fetch_celeba(self, data: bytes, *mirrors: str, **changes: Any) -> Card:
        download = settings(**({"source": "celeba", "accept_celeba_licence": True} | changes))
        expected = {"num_bytes": len(data), "sha256": digest_of(data)}
        return finish(
            celeba.fetch(download, self.archive, self.downloads, 1, mirrors=mirrors, pauses=NO_PAUSES, **expected)
        )

    @property
    def kept(self) -> set[str]:
        """Files in downloads; locks aside."""
        return {path.name for path in self.downloads.iterdir() if path.suffix != ".lock"}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# A whole file


def test_a_zip_arrives_as_it_is(server: Server, place: Place) -> None:
    data = zip_bytes()
    server.files["/a.zip"] = Served(data)
    card = place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert (card.count, card.digest) == (3, digest_of(data))
    assert place.kept == set()


def test_a_file_with_a_digest_is_kept_and_not_asked_for_again(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    for _ in range(2):
        place.fetch_url(f"{server.address}/a.zip", digest_of(data))
        place.archive.unlink()  # as DVC does before a rerun
    assert served.asked == [None]
    assert place.kept == {digest_of(data)}


def test_a_kept_file_that_was_damaged_is_fetched_again(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / digest_of(data)).write_bytes(data[:-1] + b"?")
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [None]


def test_a_file_url_is_copied_never_linked(tmp_path: Path, place: Place) -> None:
    source = tmp_path / "my faces.zip"
    source.write_bytes(zip_bytes())
    place.fetch_url(source.as_uri(), digest_of(zip_bytes()))
    assert place.archive.read_bytes() == zip_bytes()
    assert source.stat().st_nlink == 1
    with pytest.raises(ValueError, match=r"my faces.zip: its SHA-256 is .*, expected 0000"):
        place.fetch_url(source.as_uri(), "0" * 64)


def test_a_file_without_a_length_arrives(server: Server, place: Place) -> None:
    server.files["/a.zip"] = Served(zip_bytes(), length=False)
    assert place.fetch_url(f"{server.address}/a.zip").count == 3


# Resuming


def test_a_dropped_connection_is_taken_up_where_it_ended(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000, 20_000])
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked == [None, "bytes=40000-", "bytes=60000-"]


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000], ranges=False)
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked == [None, "bytes=40000-"]


def test_a_later_run_goes_on_with_the_part(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000, 0, 0, 0])
    with pytest.raises(ValueError, match=r"/a\.zip: .*; 40,000 bytes are kept, run it again to go on"):
        place.fetch_url(f"{server.address}/a.zip")
    assert not place.archive.exists()
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked[-1] == "bytes=40000-"


def test_a_changed_file_is_not_glued_to_the_old_part(server: Server, place: Place) -> None:
    old, new = zip_bytes(3), zip_bytes(4)
    server.files["/a.zip"] = Served(old, drops=[40_000, 0, 0, 0])
    with pytest.raises(ValueError, match="are kept"):
        place.fetch_url(f"{server.address}/a.zip")
    served = server.files["/a.zip"] = Served(new, etag='"2"')
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == new
    assert served.asked == ["bytes=40000-"]


def test_without_digest_and_etag_a_part_is_not_trusted(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data, drops=[40_000], etag=None)
    place.fetch_url(f"{server.address}/a.zip")
    assert place.archive.read_bytes() == data
    assert served.asked == [None, None]


def test_a_whole_part_is_only_checked(server: Server, place: Place) -> None:
    """Killed between the last byte and the renaming: the server answers 416."""
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / f"{digest_of(data)}.part").write_bytes(data)
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [f"bytes={len(data)}-"]


def test_a_part_longer_than_the_file_starts_anew(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / f"{digest_of(data)}.part").write_bytes(data + b"more")
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [f"bytes={len(data) + 4}-", None]


def test_a_part_with_wrong_bytes_costs_one_more_download_not_the_address(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    place.downloads.mkdir()
    (place.downloads / f"{digest_of(data)}.part").write_bytes(b"?" * 1000)
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == ["bytes=1000-", None]


def test_a_part_survives_the_process(server: Server, place: Place) -> None:
    """SIGKILL in the pause after a dropped connection; the next run asks only for the rest."""
    data = zip_bytes(image_bytes=2_000_000)
    served = server.files["/a.zip"] = Served(data, drops=[4_000_000])
    program = (
        "import sys; from pathlib import Path\n"
        "from began.base.transfer import transfer\n"
        "Path(sys.argv[2]).parent.mkdir()\n"
        "for progress in transfer(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], pauses=(60,)):\n"
        "    if 'trying again' in progress.note: print(progress.done, flush=True)\n"
    )
    kept = place.downloads / digest_of(data)
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"{server.address}/a.zip", str(kept), digest_of(data)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"4000000\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert place.archive.read_bytes() == data
    assert served.asked == [None, "bytes=4000000-"]


# What is refused


def test_a_wrong_digest_leaves_nothing(server: Server, place: Place) -> None:
    server.files["/a.zip"] = Served(zip_bytes())
    with pytest.raises(ValueError, match=r"/a\.zip: its SHA-256 is [0-9a-f]{64}, expected 0000"):
        place.fetch_url(f"{server.address}/a.zip", "0" * 64)
    assert place.kept == set()
    assert not place.archive.exists()


@pytest.mark.parametrize("content_type", ["text/html", "application/zip"])
def test_a_page_is_recognised_and_costs_no_part(server: Server, place: Place, content_type: str) -> None:
    data = zip_bytes()
    server.files["/a.zip"] = Served(PAGE.data, content_type=content_type, etag=None, ranges=False)
    place.downloads.mkdir()
    part = place.downloads / f"{digest_of(data)}.part"
    part.write_bytes(data[:1000])
    with pytest.raises(ValueError, match=r"/a\.zip: is a web page, not an archive"):
        place.fetch_url(f"{server.address}/a.zip", digest_of(data))
    assert part.read_bytes() == data[:1000]


def test_an_answer_of_failure_is_named(server: Server, place: Place) -> None:
    with pytest.raises(ValueError, match=r"/nowhere\.zip: the server answers 404 Not Found"):
        place.fetch_url(f"{server.address}/nowhere.zip")
    busy = server.files["/a.zip"] = Served(b"later", status=503)
    with pytest.raises(ValueError, match=r"/a\.zip: the server answers 503"):
        place.fetch_url(f"{server.address}/a.zip")
    assert len(busy.asked) == 1 + len(NO_PAUSES)


def test_a_server_that_is_not_there_is_named_on_one_short_line(server: Server, place: Place) -> None:
    server.close()
    with pytest.raises(ValueError, match=r"/a\.zip: .*Connection refused$") as raised:
        place.fetch_url(f"{server.address}/a.zip")
    assert len(str(raised.value)) < 150 and "\n" not in str(raised.value)


def test_redirects_are_followed_but_not_for_ever_and_not_to_files(server: Server, place: Place, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes())
    server.files["/a.zip"] = Served(zip_bytes())
    server.files["/there"] = Served(b"", redirect="/a.zip")
    server.files["/round"] = Served(b"", redirect="/round")
    server.files["/file"] = Served(b"", redirect=(tmp_path / "a.zip").as_uri())
    assert place.fetch_url(f"{server.address}/there").count == 3
    with pytest.raises(ValueError, match=r"/round: .*redirects"):
        place.fetch_url(f"{server.address}/round")
    assert len(server.files["/round"].asked) <= transfer.MAX_REDIRECTS + 1
    with pytest.raises(ValueError, match="/file: "):
        place.fetch_url(f"{server.address}/file")


@pytest.mark.parametrize(
    "address",
    ["ftp://host/a.zip", "a.zip", "/tmp/a.zip", "http:///a.zip", "file://host/a.zip", "file:///nowhere/a.zip", ""],
)
def test_other_addresses_are_refused(place: Place, address: str) -> None:
    with pytest.raises(ValueError, match=r"^download\.url: "):
        place.fetch_url(address)


def test_no_address_is_refused(place: Place) -> None:
    with pytest.raises(ValueError, match=r"^download\.url: is null"):
        finish(url.fetch(settings(source="url"), place.archive, place.downloads, 1))


def test_passwords_and_keys_stay_out_of_messages_and_cards(server: Server, place: Place) -> None:
    server.files["/a.zip"] = Served(zip_bytes())
    secret = server.address.replace("http://", "http://me:secret@") + "/a.zip?key=secret"
    assert "secret" not in place.fetch_url(secret).credit
    server.files["/a.zip"] = Served(b"not an archive")
    with pytest.raises(ValueError) as raised:
        place.fetch_url(secret)
    assert "secret" not in str(raised.value)
    shown: list[str] = []
    with socket.socket() as silent, pytest.raises(ValueError) as raised:
        silent.bind(("127.0.0.1", 0))
        gone = settings(source="url", url=f"http://me:secret@127.0.0.1:{silent.getsockname()[1]}/a.zip?key=secret")
        for progress in url.fetch(gone, place.archive, place.downloads, 1, (0,)):
            shown.append(progress.note)
    assert "secret" not in str([raised.value, *shown])


def test_an_archive_without_images_is_refused(server: Server, place: Place) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("readme.txt", "x")
    server.files["/a.zip"] = Served(stream.getvalue())
    with pytest.raises(ValueError, match=r"/a\.zip: the archive holds no image"):
        place.fetch_url(f"{server.address}/a.zip")


# Tars


def tar_bytes(members: dict[str, bytes], compress: Callable[[bytes], bytes] = bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return compress(stream.getvalue())


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


def test_a_tar_arrives_over_http(server: Server, place: Place) -> None:
    server.files["/a.tar.gz"] = Served(tar_bytes({"a.png": b"a"}, gzip.compress), content_type="application/x-gzip")
    assert place.fetch_url(f"{server.address}/a.tar.gz").count == 1
    assert image_members(place.archive) == ["a.png"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a/../../b.png", "C:/a.png"])
def test_a_member_that_escapes_condemns_a_tar(place: Place, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"a\.tar: member .* leaves the archive's folder"):
        fetch_tar(place, tmp_path, tar_bytes({name: b"x"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_condemn_a_tar(place: Place, tmp_path: Path, kind: bytes) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"member 'a\.png' is a link or no regular file"):
        fetch_tar(place, tmp_path, stream.getvalue())


def test_a_tar_that_is_a_bomb_is_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 10**6)
    with pytest.raises(ValueError, match="refused as a bomb"):
        fetch_tar(place, tmp_path, tar_bytes({f"{i}.png": bytes(600_000) for i in range(4)}, gzip.compress))


def test_a_tar_with_too_many_members_is_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 100)
    with pytest.raises(ValueError, match="more than 100 members"):
        fetch_tar(place, tmp_path, tar_bytes({f"{i}.txt": b"" for i in range(101)}))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
@pytest.mark.parametrize("size", [-(2**40), -512, 2**40])
def test_a_header_that_lies_about_its_size_ends_in_a_value_error(
    place: Place, tmp_path: Path, kind: bytes, size: int
) -> None:
    info = tarfile.TarInfo("a.png")
    info.type, info.size = kind, size
    with pytest.raises(ValueError, match=r"a\.tar: "):
        fetch_tar(place, tmp_path, info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


@pytest.mark.parametrize(
    "data", [b"", b"what is this" * 100, gzip.compress(b"x" * 1000, mtime=0), b"BZh9" + bytes(99), b"\xfd7zXZ\x00??"]
)
def test_what_is_no_archive_is_named(place: Place, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.tar: "):
        fetch_tar(place, tmp_path, data)


def test_any_damage_of_a_tar_ends_in_a_value_error(place: Place, tmp_path: Path) -> None:
    generator = random.Random(0)
    whole = tar_bytes({f"{i}.png": generator.randbytes(700) for i in range(4)} | {"y" * 200 + ".png": b"y"})
    for compress in (bytes, gzip.compress):
        for _ in range(100):
            data = bytearray(compress(whole))
            for _ in range(4):
                data[generator.randrange(len(data))] = generator.randrange(256)
            try:
                fetch_tar(place, tmp_path, bytes(data[: generator.randrange(len(data))]))
            except ValueError as error:
                assert "a.tar" in str(error)


# CelebA


def test_celeba_needs_the_licence_to_be_accepted(server: Server, place: Place) -> None:
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    with pytest.raises(ValueError, match=r"^download\.accept_celeba_licence: false, expected true.*non-commercial"):
        place.fetch_celeba(data, f"{server.address}/a.zip", accept_celeba_licence=False)
    with pytest.raises(ValueError, match=r"^download\.accept_celeba_licence"):
        place.fetch_celeba(data, celeba_zip="any.zip", accept_celeba_licence=False)
    assert served.asked == []


def test_celeba_tries_each_mirror_and_goes_on_with_what_it_has(server: Server, place: Place) -> None:
    data = zip_bytes()
    server.files["/quota"] = PAGE
    server.files["/small"] = Served(data[:-1])
    server.files["/wrong"] = Served(bytes(reversed(data)))
    server.files["/dies"] = Served(data, drops=[50_000, 0, 0, 0], etag=None)
    server.files["/good"] = Served(data, etag='"other"')
    names = ("quota", "small", "wrong", "dies", "good")
    card = place.fetch_celeba(data, *(f"{server.address}/{name}" for name in names))
    assert place.archive.read_bytes() == data
    assert (card.source, card.count, card.digest) == ("celeba", 3, digest_of(data))
    assert server.files["/good"].asked == ["bytes=50000-"]
    assert place.kept == {celeba.FILE_NAME}
    # Verified once, linked into place, and found again.
    assert place.archive.stat().st_ino == (place.downloads / celeba.FILE_NAME).stat().st_ino
    place.archive.unlink()
    place.fetch_celeba(data, f"{server.address}/nowhere")
    assert place.archive.read_bytes() == data


def test_celeba_names_what_went_wrong_at_every_mirror_on_one_line(server: Server, place: Place) -> None:
    data = zip_bytes()
    server.files["/quota"] = PAGE
    server.files["/small"] = Served(data[:-1])
    server.files["/wrong"] = Served(bytes(reversed(data)))
    with pytest.raises(ValueError) as raised:
        place.fetch_celeba(data, *(f"{server.address}/{name}" for name in ("quota", "small", "wrong", "gone")))
    message = str(raised.value)
    assert "\n" not in message
    problems = ("/quota: is a web page", "/small: has 90,", "/wrong: its SHA-256 is", "/gone: the server answers 404")
    found = [message.index(words) for words in problems]
    assert found == sorted(found)
    assert "download.celeba_zip" in message
    assert place.kept == set()
    assert not place.archive.exists()


def test_celeba_on_disk_is_checked_and_copied(place: Place, tmp_path: Path) -> None:
    data = zip_bytes()
    mine = tmp_path / "mine.zip"
    mine.write_bytes(data)
    assert place.fetch_celeba(data, celeba_zip=str(mine)).count == 3
    assert place.archive.read_bytes() == data
    assert mine.stat().st_nlink == 1
    for wrong, problem in ((data[:-1], "has 90,"), (bytes(reversed(data)), "its SHA-256 is")):
        mine.write_bytes(wrong)
        with pytest.raises(ValueError, match=rf"^download\.celeba_zip: .*mine\.zip: {problem}"):
            place.fetch_celeba(data, celeba_zip=str(mine))
    with pytest.raises(ValueError, match=r"^download\.celeba_zip: .*no such file"):
        place.fetch_celeba(data, celeba_zip=str(tmp_path / "nowhere.zip"))


def test_two_processes_download_once(server: Server, place: Place) -> None:
    """Two queued experiments start at the same time: the second waits, then finds the file."""
    data = zip_bytes()
    served = server.files["/a.zip"] = Served(data)
    program = (
        "import sys; from pathlib import Path\n"
        "from began.base.transfer import Lock, transfer\n"
        "with Lock(Path(sys.argv[2])) as lock:\n"
        "    list(lock.wait())\n"
        "    list(transfer(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3]))\n"
    )
    arguments = [f"{server.address}/a.zip", str(place.downloads / "a"), digest_of(data)]
    root = REPOSITORY
    processes = [subprocess.Popen([sys.executable, "-c", program, *arguments], cwd=root) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert served.asked == [None]
    assert (place.downloads / "a").read_bytes() == data


def test_a_file_without_a_digest_is_not_taken_from_under_another_run(server: Server, tmp_path: Path) -> None:
    served = server.files["/a.tar"] = Served(tar_bytes({f"{i}.png": b"x" for i in range(3)}))
    download = settings(source="url", url=f"{server.address}/a.tar", sha256=None)
    first, second = (url.fetch(download, tmp_path / name, tmp_path / "downloads", 1) for name in ("1.zip", "2.zip"))
    while next(first).note != "tar to zip":
        pass
    assert next(second).note.startswith("waiting for another process")
    assert finish(first).digest == finish(second).digest
    assert image_members(tmp_path / "1.zip") == image_members(tmp_path / "2.zip") == ["0.png", "1.png", "2.png"]
    assert served.asked == [None, None]


def test_a_mirror_whose_part_is_short_keeps_the_part_of_another(server: Server, place: Place) -> None:
    """A page of 40 bytes on a server with ranges answers 416 to bytes=50000-: no reason to give up 50,000 bytes."""
    data = zip_bytes()
    server.files["/dies"] = Served(data, drops=[50_000, 0, 0, 0])
    server.files["/page"] = Served(PAGE.data)
    server.files["/good"] = Served(data)
    place.fetch_celeba(data, *(f"{server.address}/{name}" for name in ("dies", "page", "good")))
    assert server.files["/good"].asked == ["bytes=50000-"]


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07\1\0", "a rar archive"),
        (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (b"PK\x07\x08PK\x03\x04", "the first piece of a split zip"),
    ],
)
def test_an_archive_of_another_kind_is_named(place: Place, tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "a.zip").write_bytes(start + bytes(1000))
    with pytest.raises(ValueError, match=rf"a\.zip: is {kind}, expected a zip or a tar"):
        place.fetch_url((tmp_path / "a.zip").as_uri())


@pytest.mark.parametrize(
    "name", ["a b.zip", "a%20b.zip", "a%2Fb.zip", "a#b.zip", "a?b.zip", "Ü, (1)&x=y.zip", "100%.zip"]
)
def test_any_name_in_a_file_address_is_one_encoded_or_as_written(place: Place, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(zip_bytes())
    assert place.fetch_url((tmp_path / name).as_uri()).count == 3
    assert place.fetch_url(f"file://{tmp_path}/{name}").count == 3
    assert place.fetch_url(f"file://localhost{tmp_path}/{name}").count == 3


def test_another_zip_of_celeba_has_its_way_named(place: Place, tmp_path: Path) -> None:
    data = zip_bytes()
    for other in (data[:-1], bytes(reversed(data))):
        (tmp_path / "mine.zip").write_bytes(other)
        with pytest.raises(ValueError, match=r"download\.source: url with .*preprocess\.crop: face$"):
            place.fetch_celeba(data, celeba_zip=str(tmp_path / "mine.zip"))
