"""Buses that forward into a stream, and consumers of it, as processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from phase_bus.testing.waiting import wait_until
from tests.support.processes import JournaledBus, Killable


@contextmanager
def forwarding_bus(directory: Path, address: str, url: str, *options: str) -> Iterator[JournaledBus]:
    """A bus with a journal that forwards to a stream; it is killed at the end."""
    directory.mkdir(parents=True, exist_ok=True)
    bus = JournaledBus(directory, address, options=("--forward", url, *options))
    try:
        yield bus
    finally:
        bus.kill()


def forwarder_of(bus: JournaledBus) -> psutil.Process:
    """Return the process that forwards, as soon as there is one."""

    def look() -> psutil.Process | None:
        found = [child for child in psutil.Process(bus.pid).children(True) if _forwards(child)]
        return found[0] if len(found) == 1 else None

    return wait_until(lambda: look() or False, 30)


def _forwards(process: psutil.Process) -> bool:
    try:
        return "forward" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def worker(directory: Path, number: int, url: str) -> Killable:
    """Return a member of the group ``team``, which aggregates, not started yet."""
    return Killable(
        directory / f"team-{number}.log", "-m", "phase_bus", "consume", "aggregator", "--group", "team",
        "--address", url, "--set", f"output={directory / 'team.json'}",
    )  # fmt: skip


def results(path: Path) -> dict[str, Any]:
    """Return an aggregator's result of each run, empty before there is any."""
    try:
        return dict(json.loads(path.read_text())["runs"])
    except FileNotFoundError:
        return {}


def await_results(path: Path, runs: dict[str, int], *processes: Killable, timeout_s: float = 60.0) -> None:
    """Wait until an aggregator's result has all records of each run, and says that this is all.

    Raises:
        AssertionError: it has not in time, or a process has ended; their output is the message.
    """

    def whole() -> bool:
        for process in processes:
            assert process.runs, process.tail()
        found = results(path)
        return all(
            run_id in found
            and found[run_id]["complete"]
            and sum(phase["requests"] for phase in found[run_id]["phases"]) == records
            for run_id, records in runs.items()
        )

    try:
        wait_until(whole, timeout_s)
    except AssertionError as error:
        logs = "\n".join(process.tail() for process in processes)
        raise AssertionError(f"{error}: {path.name} has {results(path)}, of {runs}\n{logs}") from None
