"""How long an event takes from its making in the benchmark to the handler, at a given rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from itertools import count as counter
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import zmq

from benchmarks import peers, shapes
from benchmarks.harness import (
    Child,
    Plan,
    Report,
    Table,
    alternate,
    directory,
    run,
    shared_counts,
    spread,
    wait_for,
)
from phase_bus.core.wire import Header, encode_event, topic_of
from phase_bus.events import Event, PhaseProgress, PhaseRef, PhaseStats, RunStart
from phase_bus.publisher.publisher import Publisher

QUESTION = "How long from publish to the handler in another process?"
RATES = (1000, 10_000, 50_000)
BUSY_RATES = RATES[:2]
PERCENTILES = (50.0, 99.0, 99.9)
_MOST = 60_000  # events of a round at most
_LOST_S = 10.0
_BEHIND_S = 0.1  # by which what goes on beside may be late; later than that it is left out
_BESIDE, _COPIED = "bus beside 4,000 records/s", "bus while its log is copied"
_KEYS = {_BESIDE: "_beside", _COPIED: "_checkpointed"}


class Way:
    """A way for one event, and the latencies of a round, which the receiver writes to shared memory.

    Attributes:
        busy: whether a round is on, for who makes work for the bus beside it.
    """

    def __init__(self, send: Callable[[], None]) -> None:
        self.latencies_ns = shared_counts(_MOST)
        self.counts = shared_counts(1)
        self.busy = shared_counts(1)
        self.send = send
        self.lost = 0
        self.sent_per_s = 0.0
        self.handled_per_s = 0.0

    def measure(self, rate: int, duration_s: float) -> dict[float, float]:
        """Send at a rate for a while; return the percentiles in µs."""
        self.counts[0] = 0
        self.busy[0] = 1
        total = min(int(rate * duration_s), _MOST)
        started_s = time.monotonic()
        for number in range(total):
            due_s = started_s + number / rate
            if (ahead_s := due_s - time.monotonic()) > 0:
                time.sleep(ahead_s)
            self.send()
        self.sent_per_s = total / (time.monotonic() - started_s)
        wait_for(lambda: self.counts[0] >= total, _LOST_S, 0.001)
        self.busy[0] = 0
        self.handled_per_s = self.counts[0] / (time.monotonic() - started_s)
        arrived = self.counts[0]
        self.lost += total - arrived
        values = np.frombuffer(self.latencies_ns, dtype=np.int64)[:arrived] / 1e3
        return dict(zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True))


def main() -> Report:
    """Measure, print, return."""
    return run("latency", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    duration_s = max(3.0 * plan.scale, 0.5)
    rows = []
    with ExitStack() as stack:
        plain = {"bare zmq.proxy": _bare(stack), "bus": bus_way(stack), "direct": _direct(stack)}
        busy = {_BESIDE: _busy(stack, _records), _COPIED: _busy(stack, _batches)}
        for rate in RATES:
            ways = {**plain, **busy} if rate in BUSY_RATES else plain
            found: dict[str, list[dict[float, float]]] = {name: [] for name in ways}
            for way in ways.values():
                way.lost = 0
            alternate({name: _side(way, rate, duration_s, found[name]) for name, way in ways.items()}, plan)
            for name, way in ways.items():
                rounds = found[name][1:]  # the first is to warm up
                cells = [spread(r[p] for r in rounds) for p in PERCENTILES]
                for p, cell in zip(PERCENTILES, cells, strict=True):
                    report.figures[f"{name.split()[0]}_{rate}{_KEYS.get(name, '')}_p{p:g}_us"] = cell
                reached = f"{way.sent_per_s:,.0f} / {way.handled_per_s:,.0f}"
                rows.append([f"{rate:,}/s", name, reached, *(cell.show() for cell in cells), str(way.lost)])
    header = ["rate", "what", "sent / handled a s", *(f"p{p:g} µs" for p in PERCENTILES), "lost"]
    report.tables.append(Table("Publish to handler, a phase_progress event", header, rows))
    report.notes.append(
        "Percentiles are of one round each, then the median of the rounds (least..largest). The bare side "
        "sends the same bytes, finished beforehand but for the time, and decodes nothing. A sender that "
        "sleeps between events is late by some 60 µs, on all sides; latency is counted from the making."
    )
    report.notes.append(
        "Beside: another publisher sends 4,000 records/s of AIPerf's shape to the same bus; or 256 batches "
        "of 64 KiB a second, by which the journal's log is copied into its file four times a second."
    )
    report.notes.append(
        "Where less is handled a second than was to be sent, events queue, and the latency is how long the "
        "queue became in the round (sent and handled: of the last round)."
    )


def _busy(stack: ExitStack, work: Callable[[Publisher], float]) -> Way:
    """Return a way through a bus that has something else to do during a round."""
    address, busy = f"ipc://{stack.enter_context(directory())}", shared_counts(1)
    stack.enter_context(Child(peers.bus, address)).ready()
    way = published(stack, address, Publisher(address))
    way.busy = busy
    stack.enter_context(Child(_beside, address, busy, work)).ready()
    return way


def _beside(ready: Connection, address: str, busy: Any, work: Callable[[Publisher], float]) -> None:
    """Publish something else while it is told to; ``work`` does a little and says how long to rest."""
    with Publisher(address, name="beside", buffer_bytes=1 << 30) as publisher:
        publisher.publish(RunStart(run_id=shapes.RUN_ID))
        publisher.flush(_LOST_S)
        ready.send(address)
        due_s = 0.0
        while True:
            due_s = max(due_s, time.monotonic() - _BEHIND_S)
            due_s += work(publisher) if busy[0] else _BEHIND_S
            time.sleep(max(due_s - time.monotonic(), 0.0))


def _records(publisher: Publisher) -> float:
    for record in _some_records():
        publisher.record(shapes.RUN_ID, shapes.PHASE, *record)
    return len(_some_records()) / 4000


@cache
def _some_records() -> list[shapes.Record]:
    return shapes.records(40)


def _batches(publisher: Publisher) -> float:
    publisher.publish(_batch())
    return 1 / 256


@cache
def _batch() -> Event:
    return shapes.event_of_size(64 << 10)


def _side(way: Way, rate: int, duration_s: float, found: list[dict[float, float]]) -> Callable[[], float]:
    def side() -> float:
        found.append(way.measure(rate, duration_s))
        return found[-1][50.0]

    return side


def _event() -> PhaseProgress:
    return PhaseProgress(run_id="3f2a5c7e9b1d", phase=PhaseRef("profiling"), stats=PhaseStats(sent=1))


def _bare(stack: ExitStack) -> Way:
    where = stack.enter_context(directory())
    front, back = f"ipc://{where}/front", f"ipc://{where}/back"
    stack.enter_context(Child(peers.proxy, front, back)).ready()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stack.callback(context.destroy, linger=0)
    pub = context.socket(zmq.PUB)
    pub.set_hwm(peers.HIGH_WATER_MARK)
    pub.connect(front)
    sequence: Iterator[int] = counter(1)
    event = _event()
    topic, payload = topic_of(event), encode_event(event)[8:]

    def send() -> None:
        stamp = time.time_ns().to_bytes(8, "little")
        seq = next(sequence)
        pub.send_multipart((topic, Header(bytes(16), seq, seq).pack(), stamp + payload))

    way = Way(send)
    child = stack.enter_context(Child(peers.bare_timing, back, way.latencies_ns, way.counts, 0))
    child.ready()

    def heard() -> bool:
        pub.send(peers.NOTHING)
        return bool(way.counts[0] == -1)

    if not wait_for(heard, 10.0, 0.01):
        raise RuntimeError("the bare consumer hears nothing")
    time.sleep(0.2)
    return way


def bus_way(stack: ExitStack) -> Way:
    """Return a way through a bus, until the stack is closed."""
    address = f"ipc://{stack.enter_context(directory())}"
    stack.enter_context(Child(peers.bus, address)).ready()
    return published(stack, address, Publisher(address))


def _direct(stack: ExitStack) -> Way:
    where = stack.enter_context(directory())
    way = published(stack, f"direct+ipc://{where}", Publisher(bind=f"ipc://{where}"))
    time.sleep(1.0)  # in direct mode nobody is told when a subscription is in force
    return way


def published(stack: ExitStack, address: str, publisher: Publisher) -> Way:
    """Return the way from a publisher to a consumer at an address, until the stack is closed."""
    stack.callback(publisher.close)
    way = Way(lambda: publisher.publish(_event()))
    arguments: tuple[Any, ...] = (way.latencies_ns, way.counts, 0)
    stack.enter_context(Child(peers.consumer, peers.Timing, address, *arguments)).ready()
    return way


if __name__ == "__main__":
    main()
