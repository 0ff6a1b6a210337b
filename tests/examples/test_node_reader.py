"""The reader in Node.js, which shares no code with ours, prints what `phase-bus tail --json` prints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phase_bus.events import Drop, PhaseProgress, PhaseStart, PhaseTimeout, Summary
from phase_bus.harness.simulation import Simulation
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing import (
    PROFILING,
    LiveBus,
    make_event,
    make_run,
)
from tests.examples.commands import ROOT
from tests.support.workplace import Workplace, wait_for

PROBE, LAST = "probe", "last"  # runs
READER = ROOT / "examples" / "node_reader"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its packages, in a directory of its own."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    directory = tmp_path_factory.mktemp("node")
    shutil.copytree(READER, directory / "reader", ignore=shutil.ignore_patterns("node_modules"))
    options = ("--no-audit", "--no-fund", "--no-package-lock", "--cache", str(directory / "cache"))
    done = subprocess.run(
        ["npm", "install", *options], cwd=directory / "reader", capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return directory / "reader" / "reader.mjs"


@contextmanager
def two_readers(
    place: Workplace, reader: Path, address: str, *topics: str, probe: Publisher | None = None
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Let both read; at the end, fill two lists with what each printed, once both have as much.

    Where nothing tells whether subscriptions are in force, as without a bus, a probe finds out.
    """
    mine = place.phase_bus("tail", "--json", "--address", address, *(f"--topic={t}" for t in topics))
    its = place.start("node", str(reader), *topics, PHASE_BUS_ADDRESS=address)
    for process in (mine, its):
        wait_for(lambda p=process: "listening at" in place.stderr(p), "a reader")  # type: ignore[misc]
    if probe is not None:
        wait_for(lambda: probed(probe) and printed(place, mine) and printed(place, its), "the probe")
    lines: tuple[list[Any], list[Any]] = ([], [])
    yield lines
    for process in (mine, its):
        wait_for(lambda p=process: ended(place, p), "a reader's last line")  # type: ignore[misc]
    for process, found in zip((mine, its), lines, strict=True):
        process.send_signal(signal.SIGTERM)
        assert place.finish(process).returncode == 0, place.stderr(process)
        events = [json.loads(line) for line in place.stdout(process).splitlines()]
        found += [event for event in events if event["run_id"] != PROBE]


def ended(place: Workplace, process: subprocess.Popen[str]) -> bool:
    """Return whether a process has printed the last event that is published."""
    lines = place.stdout(process).splitlines()
    return any('"run_complete"' in line and f'"{LAST}"' in line for line in lines)


def probed(publisher: Publisher) -> bool:
    """Publish one event more."""
    publisher.publish(make_event(PhaseStart, run_id=PROBE))
    return publisher.flush(5)


def printed(place: Workplace, process: subprocess.Popen[str]) -> int:
    """Return how many lines a process has printed."""
    return place.stdout(process).count("\n")


def publish_everything(publisher: Publisher) -> None:
    """Publish runs with every kind of event, and records of every type, some of them odd."""
    for event in make_run(records=40, error_rate=0.2)[:-1]:
        publisher.publish(event)
    for event in (
        make_event(PhaseTimeout),
        make_event(Summary, result={"mean": 0.1, "many": [1, None]}),
        make_event(Drop),
    ):
        publisher.publish(event)
    for number in range(600):  # most of them travel in bundles
        publisher.publish(make_event(PhaseProgress, ts_ns=number))
    odd: list[dict[str, Any]] = [
        {"n": 1, "list": [1, 2], "flag": True},
        {"n": 2.5, "list": [], "text": 'ä\n"€', "only": float("inf")},
        {"n": 2**62 + 1, "list": [0.1], "flag": False},
        {},
        {"flag": 3, "text": 4, "n": False, "only": float("nan")},
    ]
    for number, metrics in enumerate(odd):
        error = ("Timeout", "läte", 504 if number else None) if number % 2 else None
        publisher.record("run-1", PROFILING, metrics, {"request_start_ns": 2**60 + number}, error)
    publisher.publish(make_event(PhaseTimeout, ts_ns=2**61 + 1))
    publisher.complete_run("run-1", "completed")
    Simulation(publisher, run_id=LAST, requests=3000, rate=0, warmup=10, error_rate=0.1).run()
    publisher.flush(20)


def test_it_prints_what_tail_prints(workplace: Workplace, reader: Path) -> None:
    """Line by line equal, all kinds, all types of records, down to the last digit."""
    with LiveBus() as bus:
        reading = two_readers(workplace, reader, bus.address)
        with reading as (ours, theirs), bus.publisher(lists="full") as publisher:
            publish_everything(publisher)
        published = bus.events()
    assert len(ours) > 30
    kinds = {event["kind"] for event in ours}
    assert kinds >= {"run_start", "records", "phase_timeout", "drop", "summary", "run_complete"}
    assert len(theirs) == len(ours) <= len(published)
    for mine, its in zip(ours, theirs, strict=True):
        assert its == mine


@pytest.mark.parametrize("scheme", ["tcp", "direct"])
def test_by_other_ways(workplace: Workplace, reader: Path, scheme: str) -> None:
    """By TCP, with topics to choose from; and from a publisher without a bus."""
    if scheme == "tcp":
        bus = workplace.phase_bus("bus", "--address", "tcp://127.0.0.1:0")
        wait_for(lambda: "bus ready at" in workplace.stderr(bus) + workplace.stdout(bus), "the bus")
        said = workplace.stderr(bus) + workplace.stdout(bus)
        address = said.partition("bus ready at ")[2].split(";")[0]
        publisher = Publisher(address)
    else:
        publisher = Publisher(bind="tcp://127.0.0.1:0")
        address = publisher.address
    probe = publisher if scheme == "direct" else None
    reading = two_readers(workplace, reader, address, "phase_", "run_complete.", probe=probe)
    with publisher, reading as (ours, theirs):
        Simulation(publisher, run_id=LAST, requests=100, rate=0).run()
        publisher.flush(20)
    assert theirs == ours
    assert {event["kind"] for event in theirs} == {
        "phase_start",
        "phase_sending_complete",
        "phase_complete",
        "run_complete",
    } | ({"phase_progress"} & {event["kind"] for event in ours})
    if scheme == "tcp":
        bus.send_signal(signal.SIGTERM)
        assert workplace.finish(bus).returncode == 0


def test_without_an_address(reader: Path) -> None:
    """One line says what is missing."""
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["node", str(reader)], capture_output=True, text=True, timeout=30, env=environment
    )
    assert (done.returncode, done.stderr) == (2, "set PHASE_BUS_ADDRESS to the address of a bus\n")
