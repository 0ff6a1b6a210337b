"""The ``alerting`` consumer: what it warns of, and how it reports it."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
import sys
import threading
from collections.abc import Iterator, MutableMapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from structlog.testing import capture_logs

from phase_bus.consumer.consumer import handlers_of
from phase_bus.consumer.options import build_consumer
from phase_bus.errors import ConfigError, OptionError
from phase_bus.events import (
    Drop,
    EventBase,
    PhaseComplete,
    PhaseProgress,
    PhaseStats,
    PhaseTimeout,
    RunComplete,
    RunStart,
)
from phase_bus.testing import PROFILING, MemoryBus, until
from phase_bus_consumers import alerting_delivery
from phase_bus_consumers.alerting import PhaseAlerts

SLOW = PhaseComplete(
    run_id="r1", phase=PROFILING, stats=PhaseStats(completed=10, errors=2, start_ns=0, end_ns=61 * 10**9)
)


class Webhook:
    """A real HTTP server: it keeps what it is sent, and answers with the given codes, the last repeated."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.codes = [200]
        self.release = threading.Event()
        self.release.set()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.bodies.append(json.loads(body))
                webhook.release.wait(10)
                self.send_response(webhook.codes.pop(0) if len(webhook.codes) > 1 else webhook.codes[0])
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook/secret"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Webhook()
    yield server
    server.close()


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


def python(code: str) -> str:
    """Return a command line that runs Python code."""
    return shlex.join([sys.executable, "-c", code])


async def give(consumer: PhaseAlerts, *events: EventBase) -> None:
    """Start a consumer and let it handle events, as its process would."""
    await consumer.start()
    for event in events:
        await handlers_of(consumer)[event.kind](event)


def ended(process: psutil.Process) -> bool:
    """Tell whether a process is gone; its new parent may not have collected it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def alerts(logs: list[MutableMapping[str, Any]]) -> list[tuple[str, str]]:
    return [(line["alert"], line["event"]) for line in logs if "alert" in line]


async def test_a_slow_phase(logs: list[MutableMapping[str, Any]]) -> None:
    """A phase over the threshold is warned of, one below is not."""
    await give(PhaseAlerts(), SLOW)
    assert alerts(logs) == [("slow_phase", "phase profiling took 61.0 s, more than 60 s")]
    logs.clear()
    await give(PhaseAlerts(threshold_s=61.0), SLOW)
    assert alerts(logs) == []


async def test_a_phase_without_times_is_no_alert(logs: list[MutableMapping[str, Any]]) -> None:
    """A phase of unknown duration and without answers gives no reason to warn."""
    await give(PhaseAlerts(max_error_rate=0.0), PhaseComplete(run_id="r1", phase=PROFILING))
    assert alerts(logs) == []


async def test_a_phase_that_reached_its_duration_is_no_alert(logs: list[MutableMapping[str, Any]]) -> None:
    """Only the end of the grace period is a time-out."""
    stats = PhaseStats(start_ns=0, end_ns=1, timeout_triggered=True)
    await give(PhaseAlerts(), PhaseComplete(run_id="r1", phase=PROFILING, stats=stats))
    assert alerts(logs) == []


async def test_a_time_out(logs: list[MutableMapping[str, Any]]) -> None:
    """A time-out names the number of requests that were cut."""
    stats = PhaseStats(grace_period_s=30.0)
    await give(PhaseAlerts(), PhaseTimeout(run_id="r1", phase=PROFILING, stats=stats, requests_cut=4))
    text = "phase profiling timed out: 4 requests cut at the end of its grace period of 30 s"
    assert alerts(logs) == [("phase_timeout", text)]


async def test_an_error_rate_over_the_limit(logs: list[MutableMapping[str, Any]]) -> None:
    """Errors are warned of above the limit only, and not at all without one."""
    await give(PhaseAlerts(threshold_s=100, max_error_rate=0.1), SLOW)
    text = "phase profiling: 2 of 10 requests failed (20.0%, more than 10.0%)"
    assert alerts(logs) == [("error_rate", text)]
    logs.clear()
    await give(PhaseAlerts(threshold_s=100, max_error_rate=0.2), SLOW)
    assert alerts(logs) == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("completed", []),
        ("cancelled", []),
        ("failed", [("run_failed", "run r1 failed: why")]),
        ("lost", [("run_lost", "run r1 was lost: why")]),
    ],
)
async def test_how_a_run_ended(
    status: Any, expected: list[tuple[str, str]], logs: list[MutableMapping[str, Any]]
) -> None:
    """Runs that failed or were lost are warned of; one that somebody cancelled is not."""
    await give(PhaseAlerts(), RunComplete(run_id="r1", status=status, reason="why"))
    assert alerts(logs) == expected


async def test_drops_are_told_once_and_not_twice(
    tmp_path: Path, logs: list[MutableMapping[str, Any]]
) -> None:
    """What the publisher reports twice counts once, what the bus dropped is added, other runs are not."""
    file = tmp_path / "alert.json"
    command = python(f"import sys; open({str(file)!r}, 'w').write(sys.stdin.read())")
    consumer = PhaseAlerts(command=command)
    await give(
        consumer,
        Drop(run_id="r1", source="aiperf", reason="full", events={"records.00.r1$": 2}),
        Drop(run_id="r1", source="aiperf", reason="full", events={"records.00.r1$": 3}),
        Drop(run_id="r1", source="bus", reason="full", events={"phase_progress.r1$": 1}),
        Drop(run_id="r2", source="aiperf", reason="full", events={"records.00.r2$": 9}),
        RunComplete(run_id="r1", status="completed", dropped={"records.00.r1$": 5}),
    )
    await consumer.flush()
    assert [kind for kind, _ in alerts(logs)] == ["events_dropped"]
    assert "6 events dropped" in logs[0]["event"]
    details = json.loads(file.read_text())["details"]
    assert details == {"events": {"records.00.r1$": 5, "phase_progress.r1$": 1}}


async def test_drops_known_to_the_publisher_alone(logs: list[MutableMapping[str, Any]]) -> None:
    """The run's end is enough: a drop event may itself have been lost."""
    await give(PhaseAlerts(), RunComplete(run_id="r1", status="completed", dropped={"records.00.r1$": 5}))
    assert "5 events dropped" in logs[0]["event"]


async def test_a_command_gets_the_alert_twice(tmp_path: Path) -> None:
    """The command finds the alert on standard input and in its environment, once flush returned."""
    file = tmp_path / "it's here.json"
    code = (
        "import json, os, sys;"
        "pair = [json.load(sys.stdin), json.loads(os.environ['PHASE_BUS_ALERT'])];"
        f"json.dump(pair, open({str(file)!r}, 'w'))"
    )
    consumer = PhaseAlerts(command=python(code))
    await give(consumer, SLOW)
    await consumer.flush()
    from_stdin, from_environment = json.loads(file.read_text())
    assert from_stdin == from_environment
    assert from_stdin["kind"] == "slow_phase"
    assert (from_stdin["run_id"], from_stdin["phase"]) == ("r1", "profiling")
    assert from_stdin["details"] == {"duration_s": 61.0, "threshold_s": 60.0}
    assert from_stdin["ts_ns"] == SLOW.ts_ns
    await consumer.stop()


async def test_a_command_that_fails_is_run_again(
    tmp_path: Path, logs: list[MutableMapping[str, Any]]
) -> None:
    """A command that fails once has delivered nothing; it is run until it succeeds."""
    file = tmp_path / "there"
    code = (
        f"from pathlib import Path; file = Path({str(file)!r});"
        "first = not file.exists(); file.touch(); raise SystemExit(first)"
    )
    consumer = PhaseAlerts(command=python(code))
    await give(consumer, SLOW)
    await until(lambda: file.exists() and not consumer._deliveries)
    await consumer.flush()
    assert "exit code 1" in next(line["error"] for line in logs if "error" in line)


async def test_a_command_that_hangs_is_ended(tmp_path: Path, logs: list[MutableMapping[str, Any]]) -> None:
    """A command over its time is killed with its children, and holds nothing up meanwhile."""
    file = tmp_path / "pid"
    code = (
        "import subprocess, sys;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(file)!r}, 'w').write(str(child.pid));"
        "child.wait()"
    )
    consumer = PhaseAlerts(command=python(code), timeout_s=2.0)
    await give(consumer, SLOW)
    assert consumer._deliveries  # the handler did not wait for it
    await until(lambda: file.exists() and file.read_text() != "")
    child = psutil.Process(int(file.read_text()))
    await until(lambda: any("took longer than 2 s" in str(line.get("error")) for line in logs))
    await until(lambda: ended(child))
    await consumer.stop()


async def test_stop_ends_what_still_runs() -> None:
    """A consumer that is stopped without a flush leaves no process behind."""
    consumer = PhaseAlerts(command=python("import time; time.sleep(60)"), timeout_s=60.0)
    others = psutil.Process().children()  # such as servers of other tests
    await give(consumer, SLOW)
    await until(lambda: psutil.Process().children() != others)
    await consumer.stop()
    assert psutil.Process().children() == others


async def test_a_command_that_vanished_is_logged(
    tmp_path: Path, logs: list[MutableMapping[str, Any]]
) -> None:
    """A program that is removed while the consumer runs does not end it."""
    script = tmp_path / "alert"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    consumer = PhaseAlerts(command=str(script), retry_s=0.0)
    await consumer.start()
    script.unlink()
    await consumer.on_phase_complete(SLOW)
    await consumer.flush()
    assert "could not be run" in next(line["error"] for line in logs if "error" in line)


async def test_a_webhook_gets_the_alert(webhook: Webhook) -> None:
    """The alert is posted as JSON."""
    consumer = PhaseAlerts(webhook=webhook.url)
    await give(consumer, SLOW)
    await consumer.flush()
    assert [body["kind"] for body in webhook.bodies] == ["slow_phase"]


async def test_a_webhook_does_not_hold_up_events(webhook: Webhook) -> None:
    """Handlers return while the server still thinks; flush waits for it."""
    webhook.release.clear()
    consumer = PhaseAlerts(webhook=webhook.url, timeout_s=10.0)
    await give(consumer, SLOW, msgspec.structs.replace(SLOW, run_id="r2"))
    flushing = asyncio.create_task(consumer.flush())
    await until(lambda: len(webhook.bodies) == 2)
    assert not flushing.done()
    webhook.release.set()
    await flushing


async def test_a_webhook_is_tried_again(webhook: Webhook, logs: list[MutableMapping[str, Any]]) -> None:
    """After two failures, told once and without the address's secret, the third attempt succeeds."""
    webhook.codes = [503, 503, 200]
    consumer = PhaseAlerts(webhook=webhook.url)
    await give(consumer, SLOW)
    await until(lambda: not consumer._deliveries)
    await consumer.flush()
    assert len(webhook.bodies) == 3
    errors = [line["error"] for line in logs if "error" in line]
    assert errors == ["webhook at 127.0.0.1: HTTP Error 503: Service Unavailable"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush waits but a moment."""
    monkeypatch.setattr(alerting_delivery, "_PATIENCE_S", 0.1)


@pytest.mark.usefixtures("impatient")
async def test_an_alert_is_written_once_it_is_delivered(webhook: Webhook) -> None:
    """Until then flush fails, the receipt is not given and the checkpoint stays; events are handled on."""
    webhook.codes = [500]
    bus = MemoryBus()
    bus.publish(RunStart(run_id="r1"), SLOW)
    async with bus.consumer(PhaseAlerts, name="alerting", webhook=webhook.url) as run:
        await run.catch_up()
        assert not await run.flush()
        bus.complete_run("r1", "failed", "why")
        await run.catch_up()
        assert not run.receipts
        webhook.codes = [200]
        await until(lambda: not run.consumer._deliveries)
        assert await run.flush()
    assert run.receipt.complete
    assert {"slow_phase", "run_failed"} == {body["kind"] for body in webhook.bodies}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["phase", "run"])
async def test_an_alert_that_reached_nobody_is_not_written(kind: str) -> None:
    """A consumer that is ended before it could deliver says so in its receipt."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        bus = MemoryBus()
        if kind == "phase":
            bus.publish(RunStart(run_id="r1"), SLOW)
        bus.complete_run("r1", "completed" if kind == "phase" else "failed")
        run = await bus.run_consumer(PhaseAlerts, name="alerting", webhook=url)
    assert not run.receipt.complete
    assert sum(topic.written for topic in run.receipt.topics.values()) == 0


async def test_an_alert_that_is_given_up_is_a_dead_letter() -> None:
    """Its event counts as failed, once, and can be retried."""
    bus = MemoryBus()
    bus.publish(RunStart(run_id="r1"), SLOW)
    bus.complete_run("r1")
    command = python("raise SystemExit(3)")
    consumer = PhaseAlerts(command=command, webhook="http://127.0.0.1:9/", retry_s=0.0)
    async with bus.consumer(consumer, name="alerting") as run:
        await run.catch_up()
        assert await run.flush()
    assert run.receipt.topics["phase_complete.r1$"].failed == 1
    assert run.receipt.topics["phase_complete.r1$"].handled == 0
    assert not run.receipt.complete
    (letter,) = run.dead_letters
    assert letter.kind == "phase_complete"


async def test_errors_are_warned_of_while_the_phase_runs(logs: list[MutableMapping[str, Any]]) -> None:
    """Once there are enough answers, and once for a phase."""

    def progress(completed: int, errors: int) -> PhaseProgress:
        stats = PhaseStats(completed=completed, errors=errors, start_ns=0)
        return PhaseProgress(run_id="r1", phase=PROFILING, stats=stats, ts_ns=10**9)

    consumer = PhaseAlerts(max_error_rate=0.1)
    await give(consumer, progress(19, 19), progress(100, 10))
    assert alerts(logs) == []
    text = "phase profiling: so far 50 of 100 requests failed (50.0%, more than 10.0%)"
    await give(consumer, progress(100, 50), progress(200, 150), SLOW)
    assert alerts(logs) == [
        ("error_rate", text),
        ("slow_phase", "phase profiling took 61.0 s, more than 60 s"),
    ]


async def test_a_slow_phase_is_warned_of_while_it_runs(logs: list[MutableMapping[str, Any]]) -> None:
    stats = PhaseStats(start_ns=0)
    slow = PhaseProgress(run_id="r1", phase=PROFILING, stats=stats, ts_ns=61 * 10**9)
    await give(PhaseAlerts(), slow, slow, SLOW)
    text = "phase profiling has been running for 61.0 s, more than 60 s"
    assert alerts(logs) == [("slow_phase", text)]


async def test_a_command_that_is_not_there_is_told_at_start() -> None:
    """One line names the option and the command."""
    with pytest.raises(ConfigError, match="command: 'no-such-program --loud'"):
        await PhaseAlerts(command="no-such-program --loud").start()
    with pytest.raises(ConfigError, match="command: ''"):
        await PhaseAlerts(command="").start()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_error_rate", "5"),
        ("timeout_s", "0"),
        ("webhook", "file:///etc/passwd"),
        ("webhook", "http://"),
        ("command", "say 'it"),
        ("threshold_s", "long"),
    ],
)
def test_wrong_options_are_refused(option: str, value: str) -> None:
    """A value that makes no sense is reported before anything runs."""
    with pytest.raises(OptionError, match=option):
        build_consumer(PhaseAlerts, "alerting", {option: value})
