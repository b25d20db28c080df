"""A real HTTP server on loopback, which fails as it is told, and a place to fetch its files to."""

from __future__ import annotations

import hashlib
import io
import random
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from began.data.card import Card
from began.data.sources import celeba, url
from tests.data.test_sources import finish, settings

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


PAGE = Served(b"<!DOCTYPE html><html>Quota exceeded</html>", content_type="text/html; charset=utf-8", ranges=False)


def zip_bytes(num_images: int = 3, image_bytes: int = 30_000) -> bytes:
    generator = random.Random(num_images)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for i in range(num_images):
            file.writestr(zipfile.ZipInfo(f"img/{i}.jpg"), generator.randbytes(image_bytes))
    return stream.getvalue()


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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
