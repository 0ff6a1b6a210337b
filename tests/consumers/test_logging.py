"""The ``logging`` consumer and ExampleLoggingHook."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO
from unittest.mock import MagicMock

import pytest

from phase_bus.consumer.consumer import handlers_of
from phase_bus.consumer.options import build_consumer
from phase_bus.errors import ConfigError, OptionError
from phase_bus.events import (
    Drop,
    PhaseComplete,
    PhaseProgress,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    RunComplete,
    RunStart,
    TopicReceipt,
)
from phase_bus.publisher.hooks import PhaseLifecycleHook
from phase_bus.testing import PROFILING, run_consumer
from phase_bus_consumers import ExampleLoggingHook
from phase_bus_consumers.headline import headline
from phase_bus_consumers.logging import PhaseLogger, clock

T0_NS = 1_769_860_810_250_000_000
STATS = PhaseStats(
    sent=100,
    completed=97,
    cancelled=3,
    errors=2,
    sent_sessions=10,
    completed_sessions=9,
    cancelled_sessions=1,
    start_ns=T0_NS,
    sent_end_ns=T0_NS + 8_000_000_000,
    end_ns=T0_NS + 9_810_000_000,
    expected_requests=100,
)
RUN = [
    RunStart(run_id="r1", ts_ns=T0_NS, producer="aiperf 0.13.0", models=("m",)),
    PhaseStart(
        run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=PhaseStats(start_ns=T0_NS, expected_requests=100)
    ),
    PhaseProgress(
        run_id="r1",
        ts_ns=T0_NS,
        phase=PROFILING,
        stats=PhaseStats(sent=60, completed=50, in_flight=10, expected_requests=100),
    ),
    PhaseSendingComplete(run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=STATS),
    PhaseTimeout(run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=STATS, requests_cut=3),
    PhaseComplete(run_id="r1", ts_ns=T0_NS, phase=PROFILING, stats=STATS),
    Drop(run_id="r1", ts_ns=T0_NS, source="aiperf", reason="buffer full", events={"records.00.r1$": 2}),
    RunComplete(run_id="r1", ts_ns=T0_NS, status="failed", reason="first\nsecond", records=97),
    Receipt(
        run_id="r1",
        ts_ns=T0_NS,
        consumer="metrics",
        topics={"phase_start.r1$": TopicReceipt(published=2, received=2, handled=2, written=2)},
    ),
]


async def test_writes_the_lines_of_the_guide(tmp_path: Path) -> None:
    """Each event is one line: time, kind, phase, and the numbers that matter."""
    path = tmp_path / "new" / "phases.log"
    await run_consumer(PhaseLogger, *RUN, log_file=path)
    at = f"[{clock(T0_NS)}] "
    assert path.read_text().splitlines() == [
        at + "RUN_START: r1 | Producer: aiperf 0.13.0, Models: m",
        at + "PHASE_START: PROFILING | Expected: 100 requests",
        at + "PHASE_SENDING_COMPLETE: PROFILING | Sent: 100, Sending: 8.00s",
        at + "PHASE_TIMEOUT: PROFILING | Completed: 97, Cut: 3",
        at + "PHASE_COMPLETE: PROFILING | Completed: 97, Cancelled: 3, Duration: 9.81s",
        at + "DROP: aiperf | Events: 2, Records: 0, Reason: buffer full",
        at + "RUN_COMPLETE: r1 | Status: failed, Reason: first second, Records: 97",
    ]


async def test_verbose_adds_details_progress_and_receipts(tmp_path: Path) -> None:
    """With ``verbose`` lines carry all counts and the run, and there are more of them."""
    path = tmp_path / "phases.log"
    await run_consumer(PhaseLogger, *RUN, log_file=path, verbose=True)
    lines = {line.split("] ")[1].split(":")[0]: line for line in path.read_text().splitlines()}
    assert len(lines) == len(RUN)
    assert "Progress: 50%, Completed: 50, In flight: 10" in lines["PHASE_PROGRESS"]
    receipt = "RECEIPT: metrics | Complete: yes, Handled: 2, Failed: 0, Missed: 0, Run: r1"
    assert receipt in path.read_text()
    assert "Errors: 2" in lines["PHASE_COMPLETE"]
    assert "Sessions: 10/9/1" in lines["PHASE_COMPLETE"]
    assert "Run: r1" in lines["PHASE_COMPLETE"]


async def test_json_lines_hold_all_stats(tmp_path: Path) -> None:
    """With ``json`` each event is an object with everything it holds."""
    path = tmp_path / "phases.jsonl"
    await run_consumer(PhaseLogger, *RUN, log_file=path, json=True)
    objects = [json.loads(line) for line in path.read_text().splitlines()]
    complete = next(o for o in objects if o["event"] == "phase_complete")
    assert complete["run_id"] == "r1"
    assert complete["phase"] == {"name": "profiling", "kind": "profiling", "index": 1}
    assert complete["stats"]["completed"] == 97
    assert set(complete["stats"]) == set(PhaseStats.__struct_fields__)
    assert complete["timestamp"] == clock(T0_NS)
    assert "phase_progress" not in [o["event"] for o in objects]


async def test_ecs_lines_have_the_names_of_the_schema(tmp_path: Path) -> None:
    """With ``format=ecs`` each event is an object that a log shipper need not be told about."""
    path = tmp_path / "phases.json"
    await run_consumer(PhaseLogger, *RUN, log_file=path, format="ecs", service="llm")
    text = path.read_text()
    documents = [json.loads(line) for line in text.splitlines()]
    assert len({document["event"]["id"] for document in documents}) == len(documents) == 7
    complete = next(each for each in documents if each["event"]["action"] == "phase_complete")
    assert complete["@timestamp"] == "2026-01-31T12:00:10.250000000Z"
    assert complete["log"]["level"] == "info"
    assert complete["message"] == "PHASE_COMPLETE: PROFILING | Completed: 97, Cancelled: 3, Duration: 9.81s"
    assert complete["event"]["duration"] == 9_810_000_000
    assert complete["labels"] == {"run_id": "r1", "phase": "profiling", "phase_kind": "profiling"}
    assert complete["phase_bus"]["stats"]["completed"] == 97
    assert complete["service"]["name"] == "llm"
    failed = documents[-1]
    assert failed["log"]["level"] == "error"
    assert failed["event"]["outcome"] == "failure"
    assert failed["error"]["message"] == "first\nsecond"
    assert json.loads(failed["event"]["original"])["records"] == 97


async def test_ecs_lines_are_lines_whatever_is_in_them(tmp_path: Path) -> None:
    path = tmp_path / "phases.json"
    odd = RunStart(run_id="r1", producer="a\nb\u2028c\x85\0\x1b[1m\u202e", label="x" * 100_000)
    await run_consumer(PhaseLogger, odd, log_file=path, format="ecs")
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["phase_bus"]["producer"] == odd.producer


@pytest.mark.parametrize("form", ["text", "json", "ecs"])
async def test_the_file_is_renamed_before_it_is_too_large(tmp_path: Path, form: str) -> None:
    """Each line is in one of the files, whole; those together are in order."""
    path = tmp_path / "phases.log"
    await run_consumer(PhaseLogger, *RUN * 8, log_file=tmp_path / "whole", format=form)
    whole = (tmp_path / "whole").read_text()
    await run_consumer(PhaseLogger, *RUN * 8, log_file=path, format=form, max_bytes=3000, keep_files=50)
    files = sorted(tmp_path.glob("phases.log*"), key=lambda each: -int(each.name.partition("g.")[2] or 0))
    assert len(files) > 1
    assert all(each.stat().st_size <= 3000 and each.read_text().endswith("\n") for each in files)
    lines = "".join(each.read_text() for each in files).splitlines()
    assert len(lines) == len(whole.splitlines()) == 7 * 8
    if form == "text":
        assert lines == whole.splitlines()


async def test_a_file_that_cannot_be_renamed_grows_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "phases.log"
    monkeypatch.setattr("phase_bus.core.output_file.OutputFile.rotate", refuse)
    await run_consumer(PhaseLogger, *RUN * 4, log_file=path, max_bytes=100)
    assert len(path.read_text().splitlines()) == 7 * 4
    assert capsys.readouterr().out.count("the log file cannot be renamed") == 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"format": "xml"}, "format"),
        ({"format": "ecs", "json": "true"}, "give one of json and format"),
        ({"max_bytes": "1000"}, "give log_file, too"),
        ({"log_file": "x", "max_bytes": "-1"}, "must not be negative"),
        ({"log_file": "x", "keep_files": "0"}, "at least 1"),
    ],
)
def test_options_that_do_not_fit(values: dict[str, str], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        build_consumer(PhaseLogger, "logging", values)


async def test_lines_can_be_followed_and_are_added(tmp_path: Path) -> None:
    """A line is in the file when its handler returns, behind what was there before."""
    path = tmp_path / "phases.log"
    path.write_text("before\n")
    consumer = PhaseLogger(log_file=path)
    await consumer.start()
    await handlers_of(consumer)["phase_complete"](RUN[5])
    before, line = path.read_text().splitlines()
    assert before == "before"
    assert "PHASE_COMPLETE" in line
    await consumer.stop()


async def test_without_a_file_lines_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output is the default, and is left open at the end."""
    await run_consumer(PhaseLogger, *RUN)
    print("still open")
    out = capsys.readouterr().out
    assert "PHASE_COMPLETE: PROFILING" in out
    assert out.endswith("still open\n")


async def test_a_file_that_cannot_be_written_is_told_at_start(tmp_path: Path) -> None:
    """One line names the option and the file."""
    consumer = PhaseLogger(log_file=tmp_path)
    with pytest.raises(ConfigError, match=r"log_file.*cannot be written"):
        await consumer.start()
    await consumer.stop()


def test_options_come_as_text() -> None:
    """The options can be given on the command line."""
    values = {"log_file": "x.log", "verbose": "true", "json": "false"}
    consumer = build_consumer(PhaseLogger, "logging", values)
    assert isinstance(consumer, PhaseLogger)
    assert (consumer.log_file, consumer.verbose, consumer.json) == (Path("x.log"), True, False)
    assert "records" not in handlers_of(consumer)


async def test_hook_takes_a_mock_tracker(tmp_path: Path) -> None:
    """The hook writes what a tracker reports, and copes with one that reports little."""
    path = tmp_path / "deep" / "test.log"
    hook = ExampleLoggingHook(log_file=str(path), verbose=True)
    assert isinstance(hook, PhaseLifecycleHook)
    tracker = MagicMock()
    tracker.create_stats.return_value = MagicMock(sent=100)
    await hook.on_phase_start("warmup", tracker)
    await hook.on_phase_sending_complete("warmup", tracker)
    await hook.on_phase_timeout("warmup", tracker)
    await hook.on_phase_complete("warmup", tracker)
    lines = path.read_text().splitlines()
    assert len(lines) == 4
    assert all("WARMUP" in line and "Sent: 100" in line for line in lines)


async def test_hook_writes_the_consumers_line(tmp_path: Path) -> None:
    """Hook and consumer write the same line for the same counts."""
    path = tmp_path / "test.log"
    tracker = MagicMock()
    tracker.create_stats.return_value = STATS
    await ExampleLoggingHook(log_file=path).on_phase_complete(PROFILING, tracker)
    line = path.read_text()
    assert line.endswith("] PHASE_COMPLETE: PROFILING | Completed: 97, Cancelled: 3, Duration: 9.81s\n")


async def test_hook_survives_a_file_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook must not disturb the load generator: the error is logged."""
    with caplog.at_level(logging.ERROR):
        await ExampleLoggingHook(log_file=tmp_path).on_phase_start(PROFILING, MagicMock())
    assert "cannot be written" in caplog.text


class Follower:
    """Reads a file's lines as log shippers do: a renamed one to its end, then the new one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._half = b""
        self.lines: list[bytes] = []

    def read(self) -> None:
        """Read what there is by now."""
        while True:
            if self._file is None:
                with suppress(FileNotFoundError):
                    self._file = self._path.open("rb")
            if self._file is None:
                return
            inode = os.fstat(self._file.fileno()).st_ino
            is_renamed = not self._path.exists() or self._path.stat().st_ino != inode
            *whole, self._half = (self._half + self._file.read()).split(b"\n")
            self.lines += whole
            if not is_renamed:
                return
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


WRITE = """
import asyncio, sys
from pathlib import Path
from phase_bus import RunStart
from phase_bus.consumer.consumer import handlers_of, named
from phase_bus_consumers.logging import PhaseLogger

async def main():
    options = {"log_file": Path(sys.argv[1]), "format": "ecs", "max_bytes": 100_000, "keep_files": 3}
    consumer = named(PhaseLogger(**options), "logging")
    await consumer.start()
    for number in range(int(sys.argv[2]), 10**9):
        sys.stdin.readline()
        event = RunStart(run_id=str(number), label="x" * (number * 37 % 9000))
        await handlers_of(consumer)["run_start"](event)
        print(number, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_who_follows_gets_every_line_once_and_whole_through_kills(tmp_path: Path, no_leaks: None) -> None:
    """The file is renamed again and again, and its writer killed in the middle."""
    path = tmp_path / "phases.json"
    follower = Follower(path)
    written = 0
    for _ in range(6):
        command = [sys.executable, "-c", WRITE, str(path), str(written + 1)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for _ in range(100):
                process.stdin.write(b"\n")
                written = int(process.stdout.readline())
                follower.read()
            process.stdin.write(b"\n")
            process.kill()
    follower.read()
    follower.close()
    assert path.with_name("phases.json.1").exists()
    numbers: list[int] = []
    halves = 0
    for line in follower.lines:
        try:
            numbers.append(int(json.loads(line)["labels"]["run_id"]))
        except ValueError:
            halves += 1
    assert halves <= 6
    assert {*range(1, written + 1)} <= {*numbers}
    assert len(numbers) - len({*numbers}) <= 6  # what was written, and not said before the kill


def test_large_numbers_are_readable() -> None:
    """As everywhere else in what people read."""
    start = PhaseStart(run_id="r1", phase=PROFILING, stats=PhaseStats(expected_requests=1_000_000))
    assert headline(start).endswith("Expected: 1,000,000 requests")
    end = RunComplete(run_id="r1", status="completed", records=1234)
    assert headline(end).endswith("Records: 1,234")
