"""Events a second into a stream of NATS JetStream, and out of it, against nats-py alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial

from benchmarks import peers, shapes, stream_peers
from benchmarks.harness import (
    Child,
    Plan,
    Report,
    Table,
    alternate,
    cpu_s,
    ratios,
    run,
    share_imports,
    shared_counts,
    spread,
    wait_for,
)
from benchmarks.replay import Journal
from benchmarks.stream import Stream
from benchmarks.stream_peers import Event
from phase_bus.core.wire import encode_event, topic_of
from phase_bus.events import EventBase

QUESTION = "How many events a second go into a stream of NATS, and out of it, against nats-py alone?"
_LIMIT_S = 60.0
_LOOK_S = 0.005
_INTO, _OUT = "nats-py, many under way", "nats-py, pushed"  # what the others are held against


def main() -> Report:
    """Measure, print, return."""
    return run("forwarding", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    share_imports("benchmarks.peers", "benchmarks.stream_peers")  # each turn has a process of its own
    into, out = [], []
    for label, event, full in _loads():
        with ExitStack() as stack:
            load = _Load(stack, label, event, plan.count(full))
            into.extend(_forward(plan, report, load))
            out.extend(_consume(plan, report, load))
    note = "CPU: of the process, of the bus, of the server; µs an event."
    header = ["size", "what", "events/s", "of nats-py", "CPU"]
    report.tables.append(Table("Into a stream, from one process", header, into, note))
    report.tables.append(Table("Out of a stream, to one process", header, out, note))
    report.notes.extend(_NOTES)


def _loads() -> list[tuple[str, EventBase, int]]:
    """Return what is sent: its name, an event of it, and how many in the full form."""
    return [("200 B", shapes.event_of_size(200), 40_000), ("256 records", shapes.batch(256), 2000)]


class _Load:
    """What is sent, with a server to send it to and a bus that has it in its journal."""

    def __init__(self, stack: ExitStack, label: str, event: EventBase, count: int) -> None:
        self.event = Event(topic_of(event), encode_event(event))
        self.label = f"{label} ({len(self.event.payload):,} B)"
        self.key = label.replace(" ", "")
        self.count = count
        self.stream = Stream(stack)
        self.journal = Journal(stack, event, count)
        self.turns = 0

    def cpu_s(self) -> tuple[float, float]:
        """Return the CPU time of the bus and of the server so far."""
        return self.journal.bus.cpu_s(), self.stream.servers.cpu_s()


class _Side:
    """One side: a process for each turn.

    Args:
        make: makes the process.
        done: waits until it has done its part; by default it says so.
        anew: whether each turn begins with an empty stream.
        count: of its events.
    """

    def __init__(
        self,
        load: _Load,
        make: Callable[[], Child],
        done: Callable[[Child], None] | None = None,
        *,
        anew: bool = False,
        count: int = 0,
    ) -> None:
        self._load, self._make, self._done = load, make, done or _told
        self._anew, self._count = anew, count or load.count
        self._cpu_us: list[list[float]] = []

    def turn(self) -> float:
        """Take a turn; return events/s."""
        if self._anew:
            self._load.stream.make()
        with self._make() as child:
            child.ready()
            before = (cpu_s(child.pid), *self._load.cpu_s())
            started_s = time.monotonic()
            child.connection.send("go")
            self._done(child)
            took_s = time.monotonic() - started_s
            after = (cpu_s(child.pid), *self._load.cpu_s())
        used = [(b - a) / self._count * 1e6 for a, b in zip(before, after, strict=True)]
        self._cpu_us.append(used)
        return self._count / took_s

    def cpu(self) -> str:
        """Return the CPU an event costs the process, the bus and the server."""
        return " / ".join(f"{spread(column).median:.1f}" for column in zip(*self._cpu_us[1:], strict=True))


def _told(child: Child) -> None:
    if not child.connection.poll(_LIMIT_S):
        raise RuntimeError(f"it took longer than {_LIMIT_S:g} s")
    child.connection.recv()


def _forward(plan: Plan, report: Report, load: _Load) -> list[list[str]]:
    few = max(load.count // 10, 1)

    def forwarder() -> Child:
        load.turns += 1  # a new name, since the bus knows how far the others have come
        name = f"forward{load.turns}"
        return Child(stream_peers.forwarder, name, load.journal.address, load.stream.url)

    def appender(how: str, count: int = load.count) -> Callable[[], Child]:
        return partial(Child, stream_peers.appender, how, load.stream.url, load.event, count)

    def appended(_child: Child) -> None:
        if not wait_for(lambda: load.stream.last() >= load.count, _LIMIT_S, _LOOK_S):
            raise RuntimeError(f"{load.count - load.stream.last()} events were not forwarded")

    sides = {
        _INTO: _Side(load, appender("many under way"), anew=True),
        "nats-py, one by one": _Side(load, appender("one by one", few), anew=True, count=few),
        "nats-py, in batches": _Side(load, appender("in batches"), anew=True),
        "phase-bus": _Side(load, forwarder, appended, anew=True),
    }
    return _compare(plan, report, "forward", load, sides, _INTO)


def _consume(plan: Plan, report: Report, load: _Load) -> list[list[str]]:
    load.stream.make()
    messages = load.event.as_messages(load.count)
    asyncio.run(stream_peers.append_in_batches(load.stream.url, messages))

    def reader(how: str) -> Callable[[], Child]:
        return partial(Child, stream_peers.reader, how, load.stream.url, load.count)

    counts = shared_counts(1)

    def consumer(part: Callable[..., None], address: str) -> Callable[[], Child]:
        def make() -> Child:
            counts[0] = 0
            return Child(part, peers.Counting, address, counts, 0)

        return make

    def counted(_child: Child) -> None:
        if not wait_for(lambda: bool(counts[0] >= load.count), _LIMIT_S):
            raise RuntimeError(f"{load.count - counts[0]} events did not come")

    sides = {
        _OUT: _Side(load, reader("pushed")),
        "nats-py, pulled": _Side(load, reader("pulled")),
        "a cursor of phase-bus": _Side(load, reader("by a cursor")),
        "phase-bus, typed handlers": _Side(load, consumer(stream_peers.consumer, load.stream.url), counted),
        "the same, from the bus's journal": _Side(
            load, consumer(peers.late_consumer, load.journal.address), counted
        ),
    }
    return _compare(plan, report, "consume", load, sides, _OUT)


def _compare(
    plan: Plan, report: Report, key: str, load: _Load, sides: Mapping[str, _Side], base: str
) -> list[list[str]]:
    values = alternate({name: side.turn for name, side in sides.items()}, plan)
    rows = []
    for name, some in values.items():
        ratio = ratios(some, values[base])
        if name.startswith("phase-bus"):
            report.figures[f"{key}_{load.key}_per_s"] = spread(some)
            report.figures[f"{key}_{load.key}_ratio"] = ratio
        rows.append([load.label, name, spread(some).show(), ratio.show(), sides[name].cpu()])
    return rows


_NOTES = (
    "Into: from when a process is let go to when the stream has the last event; all have the same bytes. "
    "nats-py has them in its memory, and does not ask where its bus stands. phase-bus is a forwarder that "
    "has never been here: it reads them from the bus's journal, and each append is on a condition.",
    "Out: from when a process is let go to its last event. nats-py and the cursor count messages; "
    "phase-bus decodes them for a handler.",
)


if __name__ == "__main__":
    main()
