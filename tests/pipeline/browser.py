"""A real headless browser, asked over its debugging pipe how a page from disk came out."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = (400, 1400)  # a phone's and a screen's, in CSS pixels
HEIGHT = 900
SECONDS_TO_ANSWER = 90.0

_LOADED = """
Promise.all(Array.from(document.images, image => image.decode().catch(() => null))).then(() => ({
  pictures: document.images.length,
  broken: Array.from(document.images).filter(image => !(image.complete && image.naturalWidth > 0)).map(i => i.alt),
  width: document.documentElement.scrollWidth,
  window: document.documentElement.clientWidth,
  height: document.documentElement.scrollHeight,
  ink: getComputedStyle(document.documentElement).color,
}))
"""


@dataclass(frozen=True)
class Look:
    """What one visit to a page showed."""

    width: int  # of the window
    is_dark: bool
    errors: list[str]  # of the console: scripts, blocked requests, whatever the browser complains of
    requests: list[str]  # for anything but the page itself and data: addresses
    num_pictures: int
    broken: list[str]  # alternative text of the pictures that did not load
    document_width: int
    document_height: int
    ink: str  # computed colour of the text

    @property
    def is_wider_than_window(self) -> bool:
        return self.document_width > self.width


class Browser:
    """One process of the browser; every look is a tab of its own."""

    def __init__(self, write_to: int, read_from: int) -> None:
        self._write_to, self._read_from = write_to, read_from
        self._unread = b""
        self._last_id = 0
        self._events: list[dict[str, Any]] = []

    def look(self, page: Path, width: int, dark: bool = False, screenshot: Path | None = None) -> Look:
        """Opens `page` in a window of this width; `screenshot`: where to leave the whole page as PNG."""
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        self._events.clear()
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable", {}, session)
        window = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self._ask("Emulation.setDeviceMetricsOverride", window, session)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", {"features": [scheme]}, session)
        address = page.resolve().as_uri()
        answer = self._ask("Page.navigate", {"url": address}, session)
        assert "errorText" not in answer, f"{address}: {answer['errorText']}"
        self._wait_for("Page.loadEventFired")
        evaluation = {"expression": _LOADED, "awaitPromise": True, "returnByValue": True}
        state = self._ask("Runtime.evaluate", evaluation, session)["result"]["value"]
        if screenshot is not None:
            clip = {"x": 0, "y": 0, "width": width, "height": state["height"], "scale": 1}
            picture = self._ask("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}, session)
            screenshot.write_bytes(base64.b64decode(picture["data"]))
        self._ask("Target.closeTarget", {"targetId": target})
        return Look(
            width=width,
            is_dark=dark,
            errors=[complaint for event in self._events if (complaint := _complaint(event))],
            requests=[
                url
                for event in self._events
                if event["method"] == "Network.requestWillBeSent"
                and not (url := event["params"]["request"]["url"]).startswith("data:")
                and url != address
            ],
            num_pictures=state["pictures"],
            broken=state["broken"],
            document_width=state["width"],
            document_height=state["height"],
            ink=state["ink"],
        )

    def _ask(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params}
        text = json.dumps(message | ({"sessionId": session} if session else {}))
        waiting = text.encode() + b"\0"
        while waiting:
            waiting = waiting[os.write(self._write_to, waiting) :]
        end = time.monotonic() + SECONDS_TO_ANSWER
        while True:
            answer = self._read(end)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def _wait_for(self, method: str) -> None:
        end = time.monotonic() + SECONDS_TO_ANSWER
        while not any(event.get("method") == method for event in self._events):
            self._events.append(self._read(end))

    def _read(self, end: float) -> dict[str, Any]:
        """The next message: they end with a zero byte."""
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read_from], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            piece = os.read(self._read_from, 1 << 16)
            assert piece, "the browser ended"
            self._unread += piece
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Starts the installed browser; skips the test with a reason where there is none."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(PROGRAMS)}")
    to_browser, from_browser = os.pipe(), os.pipe()
    # It reads from 3 and writes to 4, numbers that the pipes' own ends must not have.
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_browser[0], from_browser[1])]
    os.close(to_browser[0])
    os.close(from_browser[1])
    with tempfile.TemporaryDirectory(prefix="browser", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                "/bin/bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "browser",
                program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--hide-scrollbars", f"--user-data-dir={profile}", "--remote-debugging-pipe",
            ],
            pass_fds=high,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in high:
            os.close(end)
        try:
            yield Browser(to_browser[1], from_browser[0])
        finally:
            os.close(to_browser[1])  # at which it ends by itself
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_browser[0])


def looks(page: Path) -> list[Look]:
    """The page on a phone and on a screen, light and dark."""
    with open_browser() as browser:
        return [browser.look(page, width, dark) for width in WIDTHS for dark in (False, True)]


def check(page: Path) -> None:
    """Asserts that the page, wherever it is read, shows all its pictures, complains of nothing and asks nobody."""
    light, dark = set(), set()
    for look in looks(page):
        where = f"{page}, {look.width} pixels wide, {'dark' if look.is_dark else 'light'}"
        assert look.errors == [], where
        assert look.requests == [], where
        assert look.num_pictures > 0 and look.broken == [], where
        assert not look.is_wider_than_window, f"{where}: {look.document_width} pixels"
        (dark if look.is_dark else light).add(look.ink)
    assert not light & dark, f"{page}: the same colour of text on a dark and a light screen"


def _complaint(event: dict[str, Any]) -> str | None:
    params = event.get("params", {})
    if event["method"] == "Runtime.exceptionThrown":
        return str(params["exceptionDetails"].get("text"))
    if event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
        return " ".join(str(argument.get("value", argument.get("description"))) for argument in params["args"])
    if event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
        return str(params["entry"]["text"])
    return None
