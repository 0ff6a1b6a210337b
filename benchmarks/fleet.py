"""A fleet in small: many buses on this machine, each with a benchmark and a forwarder, into one stream."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import psutil

from benchmarks import peers, stream_peers
from benchmarks.harness import Child, Plan, Report, Table, cpu_s, directory, run, share_imports, spread
from benchmarks.stream import Stream
from benchmarks.stream_peers import ALL, STREAM
from phase_bus.core.address import StreamAddress
from phase_bus.core.wire import decode_event
from phase_bus.events import PhaseProgress, Records, RunComplete
from phase_bus.jetstream.connection import connected
from phase_bus.jetstream.cursor import Cursor, Taken

QUESTION = "What do a hundred buses take that forward to one stream, and does all of it come through?"
_HOSTS = 100  # in the full form
_RATE = 2  # records a second of each, so that two cores are enough for all of them
_LASTS_S = 20.0  # in the full form
_GROUPS = 4  # processes in which the benchmarks are
_AFTER_S = 60.0
_LOOK_S = 0.5


class _Host:
    """A bus and its forwarder, until the stack is closed."""

    def __init__(self, stack: ExitStack, url: str) -> None:
        self.address = f"ipc://{stack.enter_context(directory())}"
        self.bus = stack.enter_context(Child(peers.bus, self.address))
        self.forwarder = stack.enter_context(Child(stream_peers.forwarder, "forward", self.address, url))


class Seen:
    """What came to a reader of the stream.

    Attributes:
        ended: the runs of which the end has come.
        records: of each run.
        offsets: of each bus's journal, the last that came.
        torn: events that were not the next one of their bus.
        latencies_ms: from an event's making to this reader.
    """

    def __init__(self) -> None:
        self.ended: dict[str, int] = {}
        self.records: Counter[str] = Counter()
        self.offsets: Counter[str] = Counter()
        self.torn = self.messages = self.size_bytes = 0
        self.latencies_ms: list[float] = []


def main() -> Report:
    """Measure, print, return."""
    return run("fleet", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    # Two hundred processes: those of a fork server share what they have in common.
    share_imports("benchmarks.peers", "benchmarks.stream_peers")
    hosts, lasts_s = plan.count(_HOSTS), max(_LASTS_S * plan.scale, 4.0)
    with ExitStack() as stack:
        stream = Stream(stack)
        stream.make()
        fleet = [_Host(stack, stream.url) for _ in range(hosts)]
        for host in fleet:
            host.bus.ready()
            host.forwarder.ready()
            host.forwarder.connection.send("go")
        _run(report, stack, stream, fleet, lasts_s)


def _run(report: Report, stack: ExitStack, stream: Stream, fleet: Sequence[_Host], lasts_s: float) -> None:
    addresses = [host.address for host in fleet]
    loads = [
        stack.enter_context(
            Child(stream_peers.load_generators, addresses[group::_GROUPS], group, _RATE, lasts_s)
        )
        for group in range(_GROUPS)
    ]
    for load in loads:
        load.ready()
    pids = {
        "bus": [host.bus.pid for host in fleet],
        "forwarder": [host.forwarder.pid for host in fleet],
        "server": list(stream.servers.pids),
    }
    before = {name: _cpu_s(some) for name, some in pids.items()}
    for load in loads:
        load.connection.send("go")
    started_s = time.monotonic()
    seen = asyncio.run(watch(stream.url, len(fleet), lasts_s + _AFTER_S))
    took_s = time.monotonic() - started_s
    _tell(report, fleet, seen, took_s, pids, before)


async def watch(url: str, runs: int, limit_s: float) -> Seen:
    """Read all that comes to a stream until so many runs have ended; return what was seen.

    Raises:
        TimeoutError: they have not within the time.
    """
    seen, news = Seen(), asyncio.Event()
    async with connected(StreamAddress.parse(url), "watch") as connection, asyncio.timeout(limit_s):
        cursor = Cursor(connection, STREAM, [ALL], 0, news.set)
        while len(seen.ended) < runs:
            news.clear()
            for taken in await cursor.take():
                _take(seen, taken)
            if not cursor.has_more:
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), _LOOK_S)
        await cursor.close()
    return seen


def _take(seen: Seen, taken: Taken) -> None:
    message, bus = taken.message, taken.subject.split(".")[1]
    seen.messages += 1
    seen.size_bytes += len(message.payload)
    seen.torn += message.position.offset != seen.offsets[bus] + 1
    seen.offsets[bus] = message.position.offset
    event = decode_event(message.topic, message.payload)
    if isinstance(event, Records):
        seen.records[event.run_id] += event.count
    elif isinstance(event, PhaseProgress):
        seen.latencies_ms.append((time.time_ns() - event.ts_ns) / 1e6)
    elif isinstance(event, RunComplete):
        seen.ended[event.run_id] = event.records


def _cpu_s(pids: Sequence[int]) -> float:
    return sum(map(cpu_s, pids))


def _tell(
    report: Report,
    fleet: Sequence[_Host],
    seen: Seen,
    took_s: float,
    pids: dict[str, list[int]],
    before: dict[str, float],
) -> None:
    if seen.torn or dict(seen.records) != seen.ended:
        raise RuntimeError(f"not all came through: {seen.torn} torn, {seen.records} of {seen.ended}")
    rows = []
    for name, some in pids.items():
        used_s = _cpu_s(some) - before[name]
        own = [psutil.Process(pid).memory_full_info() for pid in some]
        rows.append(
            [
                name,
                f"{len(some)}",
                f"{used_s / took_s:.1%}",
                f"{used_s / seen.messages * 1e6:.0f}",
                spread(each.uss / 1e6 for each in own).show(),
                f"{sum(each.pss for each in own) / 1e6:,.0f}",
            ]
        )
    report.tables.append(
        Table(
            f"{len(fleet)} buses of {_RATE} records/s each, {seen.messages / took_s:,.0f} events/s in all",
            ["process", "how many", "CPU of one core", "µs an event", "own MB", "MB of all"],
            rows,
            f"{seen.messages:,} events with {sum(seen.records.values()):,} records came to a reader of the "
            "stream, all of them, each as the next one of its bus. From the benchmark to there, ms: p50 "
            f"{_percentile(seen, 50):.0f}, p99 {_percentile(seen, 99):.0f}.",
        )
    )
    report.figures["fleet_latency_p50_ms"] = spread([_percentile(seen, 50)])
    report.notes.append(
        "Each has a forwarder and a publisher, and processes of its own, as in a real fleet; what is small "
        "is the rate, so that two cores are enough. CPU an event is mostly that of waking up for it. Own: "
        "memory that a process shares with no other one."
    )


def _percentile(seen: Seen, percent: int) -> float:
    ordered = sorted(seen.latencies_ms)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else 0.0


if __name__ == "__main__":
    main()
