"""A file over HTTP that may be gigabytes from a server that may fail: resumed, checked, and named only when whole.

What has arrived lies in `NAME.part`, with `NAME.part.json` saying of which file it is a part; both outlive the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from filelock import FileLock, Timeout

from began.base.addresses import shown_url, without_secrets
from began.base.progress import Progress

CHUNK_BYTES = 2**20
MAX_BYTES = 500 * 10**9  # of a file whose size nobody knows beforehand
TIMEOUT_SECONDS = (15, 60)  # to connect; without a byte
MAX_REDIRECTS = 10
PAUSES = (0.5, 2.0, 8.0)  # seconds before each new attempt
NEW_START_BYTES = 2**20  # an attempt that brought as much is no failure: the pauses begin anew


class TransferError(ValueError):
    """A file did not come; one line that names its address."""


class _InterruptedError(Exception):
    """An attempt failed in a way that the next one may not."""


class _Session(requests.Session):
    """Redirects go to http and https only, never from https back to http, and not for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.max_redirects = MAX_REDIRECTS

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        target = super().get_redirect_target(resp)
        if target is not None:
            try:
                here, there = (urlsplit(url).scheme.lower() for url in (resp.url, urljoin(resp.url, target)))
            except ValueError:
                raise requests.exceptions.InvalidURL("the server redirects to a malformed address") from None
            if there not in ("http", "https") or (here, there) == ("https", "http"):
                raise requests.exceptions.InvalidSchema(f"the server redirects from {here} to {there}; refused")
        return target


class Lock:
    """Two queued experiments must neither write to the same part nor take the file from under each other.

    Example:
        with Lock(path) as lock:
            yield from lock.wait()
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(path.name + ".lock"))

    def __enter__(self) -> Lock:
        return self

    def wait(self) -> Generator[Progress, None, None]:
        """Waits for the other process, and shows that it does."""
        while not self._lock.is_locked:
            try:
                self._lock.acquire(timeout=1)
            except Timeout:
                yield Progress(0, None, "bytes", "waiting for another process that downloads the same file")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def transfer(
    url: str, path: Path, *, sha256: str | None, num_bytes: int | None = None, pauses: tuple[float, ...] = PAUSES
) -> Generator[Progress, None, None]:
    """Downloads `url` (http or https) to `path`, or finds it there with the right `sha256`.

    A dropped connection is taken up again where it ended, now or in a later call. Where `sha256` is None, only if the
    server says that the file is still the same one. The caller holds `Lock(path)` until it is done with the file.

    Raises TransferError; a part whose bytes are wrong is deleted, any other is kept.
    """
    if path.exists():
        if sha256 is not None and (yield from hashed(path, "checking")) == sha256:
            return
        path.unlink()
    partial = _Partial(path)
    with _Session() as session:
        while True:
            resumed = partial.num_bytes > 0
            yield from _fill(session, url, partial, sha256 is not None, num_bytes, pauses)
            if sha256 is None:
                break
            digest = yield from hashed(partial.path, "checking")
            if digest == sha256:
                break
            partial.discard()
            # Of a part from another day or mirror, who knows which half was wrong: once more, all of it.
            if not resumed:
                raise TransferError(f"{shown_url(url)}: its SHA-256 is {digest}, expected {sha256}")
    partial.finish()


def hashed(path: Path, note: str, copy: BinaryIO | None = None) -> Generator[Progress, None, str]:
    """SHA-256 of a file's content, which is written to `copy` on the way."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as file:
        while data := file.read(8 * CHUNK_BYTES):
            digest.update(data)
            if copy is not None:
                copy.write(data)
            yield Progress(file.tell(), total, "bytes", note)
    return digest.hexdigest()


def _fill(
    session: requests.Session,
    url: str,
    partial: _Partial,
    digest_known: bool,
    num_bytes: int | None,
    pauses: tuple[float, ...],
) -> Generator[Progress, None, None]:
    """Attempts until `partial` is whole."""
    attempt = 0
    while num_bytes is None or partial.num_bytes != num_bytes:
        before = partial.num_bytes
        try:
            yield from _attempt(session, url, partial, digest_known, num_bytes)
            return
        except (_InterruptedError, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            if partial.num_bytes - before >= NEW_START_BYTES:
                attempt = 0
            if attempt == len(pauses):
                kept = f"; {partial.num_bytes:,} bytes are kept, run it again to go on" if partial.num_bytes else ""
                raise TransferError(f"{shown_url(url)}: {_reason(error, url)}{kept}") from None
            yield Progress(partial.num_bytes, num_bytes, "bytes", f"{_reason(error, url)}, trying again")
            time.sleep(pauses[attempt])
            attempt += 1
        except requests.RequestException as error:
            raise TransferError(f"{shown_url(url)}: {_reason(error, url)}") from None


def _attempt(
    session: requests.Session, url: str, partial: _Partial, digest_known: bool, num_bytes: int | None
) -> Generator[Progress, None, None]:
    """One request, appended to `partial`."""
    validator = partial.validator(url)
    if partial.num_bytes and not (validator or digest_known):
        partial.discard()  # nothing would tell that the file has changed since
    headers = {"Accept-Encoding": "identity"}  # Content-Length and Range then count the file's own bytes
    if have := partial.num_bytes:
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        total = _total(response, have)
        # All that can be known is checked before a byte of an earlier part is given up.
        if response.status_code == 416 and total is not None:
            _check_size(url, total, num_bytes)
            if total == have:
                return
        _check_status(response, url, partial)
        have = have if response.status_code == 206 else 0
        chunks = response.raw.stream(CHUNK_BYTES, decode_content=False)
        first = next(chunks, b"")
        if "html" in response.headers.get("Content-Type", "").lower() or (not have and first.lstrip()[:1] == b"<"):
            raise TransferError(f"{shown_url(url)}: is a web page, not an archive (a quota, a warning or a login?)")
        if total is not None:
            _check_size(url, total, num_bytes)
        most = total or num_bytes or MAX_BYTES
        partial.describe(url, response)
        with partial.path.open("ab" if have else "wb") as file:
            chunk = first
            while chunk:
                if have + len(chunk) > most:
                    raise TransferError(f"{shown_url(url)}: sends more than {most:,} bytes")
                file.write(chunk)
                have += len(chunk)
                yield Progress(have, total or num_bytes, "bytes")
                chunk = next(chunks, b"")
    if total is not None and have < total:
        raise _InterruptedError(f"the connection ended at {have:,} of {total:,} bytes")
    _check_size(url, have, num_bytes)


def _check_size(url: str, size: int, num_bytes: int | None) -> None:
    if num_bytes is not None and size != num_bytes:
        raise TransferError(f"{shown_url(url)}: has {size:,} bytes, expected {num_bytes:,}")


def _check_status(response: requests.Response, url: str, partial: _Partial) -> None:
    """Passes 200, and 206 from where `partial` ends."""
    answer = f"the server answers {response.status_code} {response.reason}"
    match response.status_code:
        case 200:
            pass
        case 206:
            if not response.headers.get("Content-Range", "").startswith(f"bytes {partial.num_bytes}-"):
                partial.discard()
                raise _InterruptedError("the server sends another range than the one asked for")
        case 416:
            partial.discard()
            raise _InterruptedError(f"{answer}: the file is no longer as long as the part of it")
        case 408 | 425 | 429 | 500 | 502 | 503 | 504:
            raise _InterruptedError(answer)
        case _:
            raise TransferError(f"{shown_url(url)}: {answer}")


def _total(response: requests.Response, have: int) -> int | None:
    """Size of the whole file, where the server says it."""
    if found := re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", response.headers.get("Content-Range", "")):
        return int(found[1])
    length = response.headers.get("Content-Length", "")
    if response.status_code == 200 and length.isdecimal():
        return int(length)
    if response.status_code == 206 and length.isdecimal():
        return have + int(length)
    return None


def _reason(error: Exception, url: str) -> str:
    """The innermost cause on one line: requests wraps urllib3 wraps the socket's own words."""
    cause: object = error
    while isinstance(cause, Exception):
        inner = getattr(cause, "reason", None) or (cause.args[0] if cause.args else None)
        if not isinstance(inner, Exception):
            break
        cause = inner
    words: tuple[object, ...] = getattr(cause, "args", ())
    # urllib3 gives its words and then the exception that they repeat.
    text = " ".join(str(words[0] if len(words) > 1 and isinstance(words[0], str) else cause).split())
    # urllib3 puts its connection object before the words.
    text = without_secrets(text, [url])
    return re.sub(r"^.*<?urllib3\.\S+ object at 0x[0-9a-f]+>:? ?", "", text) or type(error).__name__


class _Partial:
    """The part of a file that has arrived."""

    def __init__(self, final: Path) -> None:
        self._final = final
        self.path = final.with_name(final.name + ".part")
        self._description = final.with_name(final.name + ".part.json")

    @property
    def num_bytes(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def describe(self, url: str, response: requests.Response) -> None:
        """Notes which file it is: by a strong ETag or the date, as If-Range takes them (RFC 9110, 13.1.5)."""
        etag = response.headers.get("ETag", "")
        validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        document = {"url_sha256": hashlib.sha256(url.encode()).hexdigest(), "validator": validator}
        self._description.write_text(json.dumps(document), encoding="utf-8")

    def validator(self, url: str) -> str:
        """What `describe` noted if it was of the same address, else ""."""
        try:
            document = json.loads(self._description.read_text(encoding="utf-8"))
            same = document["url_sha256"] == hashlib.sha256(url.encode()).hexdigest()
            return str(document["validator"]) if same else ""
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._description.unlink(missing_ok=True)

    def finish(self) -> None:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        self.path.replace(self._final)
        self._description.unlink(missing_ok=True)
