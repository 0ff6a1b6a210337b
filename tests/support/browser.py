"""A headless Chromium, and a look at what it made of a page."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest

from phase_bus.testing.waiting import DEADLINE_S, wait_until

_OPTIONS = ("--headless", "--disable-gpu", "--no-first-run")
# So that a page that does fetch something is seen to try, and gets nothing.
_NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
_TIMEOUT_S = 60.0
_DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@dataclass
class Seen:
    """What came of a page.

    Attributes:
        dom: the document after its scripts have run.
        complaints: what was said on the console, exceptions, and refusals by the page's policy.
        requests: the URLs that were asked for, that of the page left out.
        width: how many pixels wide the page came out.
    """

    dom: str = ""
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    width: int = 0

    def plot(self, key: str) -> str:
        """Return the part of the document that a plot takes."""
        (start,) = re.finditer(rf'data-figure="{key}"', self.dom)
        return self.dom[start.start() :].partition("<figcaption")[0]


class Tab:
    """A page that is open, to be looked at and worked with."""

    def __init__(self, chromium: _Chromium) -> None:
        self._chromium = chromium

    def go(self, address: str) -> None:
        """Open another page, or the same anew, and let its scripts run."""
        self._chromium.forget("Page.loadEventFired")
        self._chromium.ask("Page.navigate", url=address)
        self._loaded()

    def reload(self) -> None:
        """Load it again, as the user's button does."""
        self._chromium.forget("Page.loadEventFired")
        self._chromium.ask("Page.reload")
        self._loaded()

    def value(self, expression: str) -> Any:
        """Return what an expression in the page comes to."""
        return self._chromium.value(expression)

    def until(self, expression: str, timeout_s: float = DEADLINE_S) -> Any:
        """Wait until an expression in the page comes to something true, and return that."""
        try:
            return wait_until(lambda: self.value(expression), timeout_s)
        except AssertionError:
            shown = self.value("document.body.innerText")
            raise AssertionError(f"{expression} does not become true; the page has:\n{shown}") from None

    def press(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self._chromium.ask("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def size(self, width: int, height: int = 2000) -> None:
        """Give the window a size in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._chromium.ask("Emulation.setDeviceMetricsOverride", **size)

    def prefer(self, scheme: str) -> None:
        """Let the system be ``light`` or ``dark``."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self._chromium.ask("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path: Path) -> None:
        """Save what is to be seen, as PNG."""
        self._chromium.ask("Runtime.evaluate", expression=_DRAWN, awaitPromise=True)
        path.write_bytes(base64.b64decode(self._chromium.ask("Page.captureScreenshot")["data"]))

    def keep_downloads(self, directory: Path) -> None:
        """Let what is saved from the page go to a directory."""
        where = {"behavior": "allow", "downloadPath": str(directory)}
        self._chromium.ask("Browser.setDownloadBehavior", **where)

    def _loaded(self) -> None:
        self._chromium.wait_for("Page.loadEventFired")
        self._chromium.ask("Runtime.evaluate", expression=_DRAWN, awaitPromise=True)


@contextmanager
def opened(address: str, profile: Path, seen: Seen, width: int = 1400) -> Iterator[Tab]:
    """Have a page open in a window while inside; what comes of it is noted in ``seen``."""
    with _Chromium(profile, seen) as chromium:
        target = chromium.ask("Target.createTarget", url="about:blank")["targetId"]
        chromium.ask("Target.attachToTarget", targetId=target, flatten=True)
        for domain in ("Runtime", "Log", "Network", "Page"):
            chromium.ask(f"{domain}.enable")
        tab = Tab(chromium)
        tab.size(width)
        tab.go(address)
        yield tab


def browse(page: Path, profile: Path, width: int = 1400, query: str = "", until: str = "true") -> Seen:
    """Open a page in a window, let its scripts run, and return what came of it.

    Args:
        page: the file.
        profile: a directory for the browser.
        width: the window's width in pixels.
        query: what comes after the page's address and a question mark.
        until: an expression in the page to wait for.
    """
    address = page.as_uri() + (f"?{query}" if query else "")
    seen = Seen()
    with opened(address, profile, seen, width) as tab:
        tab.until(until)
        seen.dom = tab.value("document.documentElement.outerHTML")
        seen.width = tab.value("document.documentElement.scrollWidth")
    seen.requests.remove(address)
    return seen


def _program() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no Chromium here to open the page with; on Debian: apt-get install chromium")


class _Chromium:
    """A browser that is spoken to by the Chrome DevTools Protocol over two pipes, its fds 3 and 4."""

    def __init__(self, profile: Path, seen: Seen) -> None:
        self._seen = seen
        self._session: str | None = None
        self._asked = 0
        self._unread = b""
        self._events: set[str] = set()
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        # Numbers that do not get in the way of 3 and 4.
        given = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (read, write)]
        program = _program()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        self._pid = os.posix_spawn(
            program,
            [
                program,
                *_OPTIONS,
                *sandbox,
                _NO_NETWORK,
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, given[0], 3),
                (os.POSIX_SPAWN_DUP2, given[1], 4),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setpgroup=0,
        )
        for fd in (read, write, *given):
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        try:
            self._send("Browser.close", {})
            wait_until(lambda: os.waitpid(self._pid, os.WNOHANG)[0])
        except BaseException:
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            raise
        finally:
            os.close(self._write)
            os.close(self._read)

    def ask(self, method: str, **parameters: Any) -> Any:
        """Call a method, and return its result."""
        number = self._send(method, parameters)
        while (message := self._receive()).get("id") != number:
            pass
        assert "error" not in message, message
        self._session = message["result"].get("sessionId", self._session)
        return message["result"]

    def value(self, expression: str) -> Any:
        """Return what an expression in the page comes to."""
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get(
            "value"
        )

    def forget(self, event: str) -> None:
        """Let an event that has come be waited for again."""
        self._events.discard(event)

    def wait_for(self, event: str) -> None:
        """Return when an event has come."""
        while event not in self._events:
            self._receive()

    def _send(self, method: str, parameters: dict[str, Any]) -> int:
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        if self._session is not None and method != "Browser.close":
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._asked

    def _receive(self) -> dict[str, Any]:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while b"\0" not in self._unread:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, "the browser does not answer"
            if select.select([self._read], [], [], left_s)[0]:
                piece = os.read(self._read, 1 << 20)
                assert piece, "the browser has ended"
                self._unread += piece
        text, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._take(message.get("method", ""), message.get("params", {}))
        return message

    def _take(self, event: str, said: dict[str, Any]) -> None:
        self._events.add(event)
        if event == "Network.requestWillBeSent":
            if not (url := said["request"]["url"]).startswith("data:"):  # what is inside the page
                self._seen.requests.append(url)
        elif event in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self._seen.complaints.append(json.dumps(said))
