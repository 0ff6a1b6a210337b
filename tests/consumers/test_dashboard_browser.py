"""The ``dashboard`` page, driven in a real browser: what a person sees, and what survives."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from phase_bus.events import (
    PhaseComplete,
    PhasePlan,
    PhaseProgress,
    PhaseRef,
    PhasesConfigured,
    PhaseStart,
    PhaseStats,
    RunStart,
)
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import wait_until
from tests.support.browser import Seen, Tab, opened
from tests.support.journals import HOSTILE, T0, Made, Phase
from tests.support.processes import JournaledBus, Killable, consumer

pytestmark = pytest.mark.slow  # each starts a browser

PROFILING = PhaseRef("profiling", "profiling", 0)
SECOND = 1_000_000_000
THRESHOLD = "profiling request_latency p99 < 100 ms"
# Notes how many ms each drawing takes.
TIMED = """
var took = [];
const ask = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = (draw) => ask((now) => {
  const began = performance.now();
  draw(now);
  took.push(performance.now() - began);
});
"""
TEXT = "document.getElementById('{}').innerText"


class Load:
    """A run that a test makes, request by request, in a time of its own."""

    def __init__(self, publisher: Publisher, run_id: str, expected: int) -> None:
        self._publisher, self._run_id = publisher, run_id
        self._now_ns, self._sent, self._failed = time.time_ns(), 0, 0
        self._start_ns, self._expected = self._now_ns, expected
        self._publish(RunStart, producer="a test", models=("a-model",))
        self._publish(PhasesConfigured, phases=(PhasePlan(phase=PROFILING, expected_requests=expected),))
        self._publish(PhaseStart, phase=PROFILING, stats=self._stats())

    def send(self, requests: int, latency_ms: int, failed: int = 0) -> None:
        """Add ten requests for each second, and say how far it is."""
        for number in range(requests):
            self._now_ns += SECOND // 10
            fields = {
                "request_start_ns": self._now_ns - latency_ms * 1_000_000,
                "request_end_ns": self._now_ns,
            }
            if number < failed:
                error = ("TimeoutError", "too late", 504)
                self._publisher.record(self._run_id, PROFILING, {}, fields, error)
            else:
                metrics = {"request_latency": latency_ms * 1_000_000, "output_sequence_length": 10}
                self._publisher.record(self._run_id, PROFILING, metrics, fields)
        self._sent, self._failed = self._sent + requests, self._failed + failed
        self._publisher.flush(10)
        self._now_ns += SECOND
        self._publish(PhaseProgress, phase=PROFILING, stats=self._stats())
        self._publisher.flush(10)

    def end(self) -> None:
        """End it."""
        self._publish(PhaseComplete, phase=PROFILING, stats=self._stats(self._now_ns))
        self._publisher.complete_run(self._run_id, "completed")
        self._publisher.flush(10)

    def _stats(self, end_ns: int | None = None) -> PhaseStats:
        return PhaseStats(
            sent=self._sent,
            completed=self._sent,
            errors=self._failed,
            start_ns=self._start_ns,
            sent_end_ns=end_ns,
            end_ns=end_ns,
            expected_requests=self._expected,
        )

    def _publish(self, kind: Any, **values: Any) -> None:
        self._publisher.publish(kind(run_id=self._run_id, ts_ns=self._now_ns, **values))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Place:
    """A bus with a dashboard, which keeps its address."""

    def __init__(
        self, directory: Path, ipc_dir: Path, stack: ExitStack, *settings: str, **environment: str
    ) -> None:
        self.bus = JournaledBus(directory, f"ipc://{ipc_dir}")
        stack.callback(self.bus.kill)
        self._directory, self._stack = directory, stack
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        self.dashboard = self._consumer("dashboard", f"port={port}", *settings, **environment)
        wait_until(lambda: self.url in self.dashboard.log.read_text())

    def thresholds(self, *texts: str) -> None:
        """Let runs be judged."""
        self._consumer("thresholds", f"thresholds={json.dumps(texts)}")

    def publish(self, *runs: Made) -> None:
        """Publish runs that are made up."""
        with self.publisher() as publisher:
            for run in runs:
                for event in run.events():
                    publisher.publish(event)
            assert publisher.flush(30)

    @contextmanager
    def publisher(self) -> Iterator[Publisher]:
        publisher = Publisher(self.bus.address)
        try:
            yield publisher
        finally:
            publisher.close()

    def _consumer(self, kind: str, *settings: str, **environment: str) -> Killable:
        made = consumer(self._directory, kind, self.bus.address, *settings)
        made.environment = environment
        return self._stack.enter_context(made)


@contextmanager
def place(directory: Path, ipc_dir: Path, *settings: str, **environment: str) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(directory, ipc_dir, stack, *settings, **environment)


def shows(tab: Tab, part: str, *words: str) -> None:
    """See that a part of the page comes to have these words."""
    for word in words:
        tab.until(f"{TEXT.format(part)}.includes({json.dumps(word)})")


def drawn(tab: Tab, key: str) -> int:
    """Return how many points a chart has; 0 if it is not there."""
    chart = f"document.querySelector('[data-chart={key}]')"
    return int(tab.value(f"{chart}.hidden ? 0 : Number(/(\\d+) points/.exec({chart}.ariaLabel)?.[1])") or 0)


def test_a_run_from_its_start_to_its_end(tmp_path: Path, ipc_dir: Path) -> None:
    """A threshold turns red; page, bus and browser's page begin anew in between; a report is saved."""
    seen = Seen()
    with place(tmp_path, ipc_dir) as there, opened(there.url, tmp_path / "profile", seen) as tab:
        there.thresholds(THRESHOLD)
        shows(tab, "main", "No runs yet")
        shows(tab, "consumers", "dashboard", "thresholds", "ready")
        with there.publisher() as publisher:
            load = Load(publisher, "run-a", 400)
            shows(tab, "heads", "run-a", "running", "a-model")
            load.send(100, 20)
            shows(tab, "heads", "25 %", "20 ms")
            shows(tab, "thresholds", "✓ passed", THRESHOLD)
            wait_until(lambda: drawn(tab, "request_latency") >= 9)
            assert tab.value("document.querySelector('[data-chart=time_to_first_token]').hidden")

            load.send(100, 300, failed=5)  # it gets slow
            shows(tab, "thresholds", "✗ failed", "300.00 ms", "100.00 ms")
            red = "getComputedStyle(document.querySelector('#thresholds .badge')).color"
            assert re.findall(r"\d+", tab.value(red)) == ["180", "35", "24"]
            shows(tab, "runs", "✗ 1 failed")
            shows(tab, "errors", "TimeoutError", "504", "5")
            assert tab.value("document.title").startswith("✗")

            points = drawn(tab, "request_latency")
            tab.reload()
            shows(tab, "heads", "50 %")
            shows(tab, "thresholds", "✗ failed")
            wait_until(lambda: drawn(tab, "request_latency") == points)

            there.bus.kill()
            shows(tab, "state", "the bus does not answer")
            there.bus.start()
            shows(tab, "state", "1 run going on")
            load.send(100, 20)
            shows(tab, "heads", "75 %")
            wait_until(lambda: drawn(tab, "request_latency") > points)

            there.dashboard.kill()
            shows(tab, "state", "no connection")
            load.send(100, 20)
            there.dashboard.start()
            shows(tab, "heads", "100 %")
            load.end()
            shows(tab, "heads", "completed", "400")
            shows(tab, "thresholds", "final")
            shows(tab, "receipts", "dashboard", "thresholds", "✓ all")
            assert "✗" not in tab.value(TEXT.format("receipts"))
        tab.keep_downloads(tmp_path / "saved")
        tab.press("s")
        saved = tmp_path / "saved" / "phase-bus-run-a.html"
        wait_until(lambda: saved.exists() and "</html>" in saved.read_text("utf-8"))
        assert "Made by phase-bus" in saved.read_text("utf-8")
        shows(tab, "main", "run-a")
        assert tab.value("document.getElementById('notice').hidden")
    # Only what was cut on purpose is complained about.
    assert [said for said in seen.complaints if "ERR_" not in said] == []
    assert {url.split(":")[0] for url in seen.requests} <= {"http", "blob"}
    assert all(url.removeprefix("blob:").startswith(there.url) for url in seen.requests)


def hour(number: int) -> int:
    return T0 + number * 3600 * SECOND


def test_fifty_runs_and_ten_hours(tmp_path: Path, ipc_dir: Path) -> None:
    """The page is there in a moment, fits every window, and what comes costs it little."""
    seen = Seen()
    with place(tmp_path, ipc_dir) as there, opened(there.url, tmp_path / "profile", seen) as tab:
        phase = Phase("profiling", 60, 40)
        there.publish(*(Made(f"run-{number}", [phase], start_ns=hour(number)) for number in range(49)))
        long = [Phase("profiling", 36_000, 36_000)]
        there.publish(Made("ten-hours", long, status=None, start_ns=hour(50)))
        tab.until("document.querySelectorAll('#runs li').length == 50", 60)
        shows(tab, "heads", "ten-hours")
        wait_until(lambda: 500 < drawn(tab, "request_latency") <= 600)
        began_s = time.monotonic()
        tab.reload()
        tab.until("document.querySelectorAll('#runs li').length == 50")
        wait_until(lambda: drawn(tab, "request_latency") > 500)
        assert time.monotonic() - began_s < 5
        for width in (400, 1280, 2560):
            for scheme in ("light", "dark"):
                tab.size(width)
                tab.prefer(scheme)
                tab.until(f"document.documentElement.dataset.theme == '{scheme}'")
                assert tab.value("document.documentElement.scrollWidth") <= width
        tab.size(1280)
        tab.value(TIMED)
        tab.press("f")  # stay with the long run
        with there.publisher() as publisher:
            load = Load(publisher, "another", 1000)
            for number in range(1, 6):
                load.send(20, 30)
                shows(tab, "runs", f"{number * 20} requests")
        shows(tab, "heads", "ten-hours")
        took_ms = sorted(tab.value("took"))
        assert len(took_ms) >= 5
        assert took_ms[len(took_ms) // 2] < 100

        # Several, by mouse and by keys; the address keeps them.
        tab.value("document.querySelectorAll('#runs input')[2].click()")
        tab.value("document.querySelectorAll('#runs input')[5].click()")
        tab.until("document.querySelectorAll('#heads .head').length == 3")
        assert "#runs=" in tab.value("location.href")
        tab.reload()
        tab.until("document.querySelectorAll('#heads dl').length == 3")
        tab.press("j")
        tab.until("document.querySelectorAll('#heads .head').length == 1")
        assert tab.value("document.activeElement.closest('li').classList.contains('shown')")
        tab.press("?")
        assert not tab.value("document.getElementById('key-list').hidden")
        tab.press("t")
        assert tab.value("document.getElementById('theme').innerText") == "Theme: light"
    assert seen.complaints == []


def test_hostile_names_are_text(tmp_path: Path, ipc_dir: Path) -> None:
    """No name becomes an element, nothing of them runs, nothing is fetched; also read from the journal."""
    seen = Seen()
    with place(tmp_path, ipc_dir) as there:
        there.publish(HOSTILE)
        where = f"{there.url}#runs={quote(HOSTILE.run_id, safe='')}"
        with opened(where, tmp_path / "profile", seen) as tab:
            only_text(tab)
            there.dashboard.terminate()  # the next one knows it from its checkpoint, and the journal
            there.dashboard.start()
            wait_until(lambda: there.dashboard.log.read_text().count(there.url) == 2)
            tab.reload()
            only_text(tab)
    assert [said for said in seen.complaints if "ERR_" not in said] == []
    assert all(url.startswith(there.url) for url in seen.requests)


def only_text(tab: Tab) -> None:
    """See that the hostile run is there, in words."""
    shows(tab, "heads", HOSTILE.run_id, HOSTILE.reason, "lost")
    shows(tab, "phases", HOSTILE.phases[0].name)
    inside = "#content script, #content img, #content svg, #content b > script, #content a"
    assert tab.value(f"document.querySelectorAll('{inside}').length") == 0


def test_a_token_lets_a_browser_in(tmp_path: Path, ipc_dir: Path) -> None:
    """By the page's address, which forgets it; or by the form; and it is let in after that."""
    token, seen = "a-token-of-some-length", Seen()
    with place(tmp_path, ipc_dir, "token=env:DASH", DASH=token) as there:
        with opened(there.url, tmp_path / "profile", seen) as tab:
            tab.until("!document.getElementById('login').hidden")
            assert tab.value("document.getElementById('content').hidden")
            for given in ("wrong", token):
                tab.value(f"document.getElementById('token').value = '{given}'")
                tab.value("document.querySelector('#login button').click()")
                if given != token:
                    shows(tab, "login", "That is not the token")
            shows(tab, "main", "No runs yet")
            tab.reload()
            shows(tab, "main", "No runs yet")
        with opened(f"{there.url}#token={token}", tmp_path / "other", seen) as tab:
            shows(tab, "main", "No runs yet")
            assert tab.value("location.href") == there.url
        assert token not in there.dashboard.log.read_text()
    assert [said for said in seen.complaints if "401" not in said] == []
    assert all(token not in url for url in seen.requests if "#" not in url)
