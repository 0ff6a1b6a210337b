"""How much later live events come while another consumer reads a long journal, again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import peers, shapes
from benchmarks.harness import (
    Child,
    Plan,
    Report,
    Table,
    alternate,
    directory,
    ratios,
    run,
    shared_counts,
    spread,
)
from benchmarks.latency import PERCENTILES, Way, published
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher

QUESTION = "How much later do live events come while another consumer catches up?"
RATE = 1000
_EVENTS = 200_000  # in the journal
_CHUNK = 5000
_LIMIT_S = 30.0
_REST_S = 0.01
# What a process beside is to do, in memory shared with the parent, and how much it did.
_REST, _WORK = 0, 1


class Past(Consumer):
    """Count what is in the journal; go at its end, or when it is told to rest."""

    def __init__(self, told: Any, events: int) -> None:
        self._told = told
        self._left = events
        self.leave: Callable[[], None] = lambda: None

    async def on_event(self, event: EventBase) -> None:  # noqa: ARG002 - decoded, and that is all
        self._told[1] += 1
        self._left -= 1
        if self._left == 0 or self._told[0] == _REST:
            self.leave()


def reader(ready: Connection, address: str, told: Any, events: int) -> None:
    """Read the journal from its start while it is told to, each time as a consumer that is new."""

    async def read() -> None:
        past = named(Past(told, events), "past")
        runner = ConsumerRunner(past, Address.parse(address), origin="start", receipts=False)
        past.leave = runner.stop
        await runner.run()

    ready.send(address)
    while True:
        if told[0] == _WORK:
            asyncio.run(read())
        else:
            time.sleep(_REST_S)


def spinner(ready: Connection, told: Any) -> None:
    """Take a processor while it is told to, and do nothing with it."""
    ready.send(None)
    while True:
        if told[0] == _REST:
            time.sleep(_REST_S)


def main() -> Report:
    """Measure, print, return."""
    return run("catching_up", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    duration_s = max(3.0 * plan.scale, 0.5)
    with ExitStack() as stack:
        address = f"ipc://{stack.enter_context(directory())}"
        stack.enter_context(Child(peers.bus, address)).ready()
        publisher = Publisher(address, buffer_bytes=1 << 30)
        way = published(stack, address, publisher)
        events = plan.count(_EVENTS)
        _fill(publisher, events)
        reads, spins = shared_counts(2), shared_counts(2)
        stack.enter_context(Child(reader, address, reads, events)).ready()
        stack.enter_context(Child(spinner, spins)).ready()
        found: dict[str, list[dict[float, float]]] = {}
        sides = {
            "alone": _side(way, duration_s, None, found.setdefault("alone", [])),
            "beside one that catches up": _side(way, duration_s, reads, found.setdefault("reader", [])),
            "beside one that only takes a processor": _side(
                way, duration_s, spins, found.setdefault("spinner", [])
            ),
        }
        values = alternate(sides, plan)
    rows = []
    for name, rounds in zip(values, found.values(), strict=True):
        cells = [spread(each[p] for each in rounds[1:]).show() for p in PERCENTILES]
        rows.append([name, *cells])
    report.tables.append(
        Table(
            f"Publish to handler, {RATE:,} events/s",
            ["the live consumer is", *(f"p{p:g} µs" for p in PERCENTILES)],
            rows,
            f"Read beside: {reads[1]:,} events, {events:,} at most from the journal's start on.",
        )
    )
    alone, beside, spun = values.values()
    report.figures["live_catching_up_ratio"] = ratios(beside, alone)
    report.figures["live_beside_spinner_ratio"] = ratios(spun, alone)
    by_reader, by_spinner = (
        report.figures[f"live_{name}_ratio"].show() for name in ("catching_up", "beside_spinner")
    )
    report.notes.append(
        f"The medians are {by_reader} times those of one alone; {by_spinner} beside a process that has "
        "nothing to do with the bus: that is what the processors of the machine do to it."
    )
    if reads[1] < events:
        report.notes.append("The reader did not get through the journal once: the machine was too busy.")


def _side(
    way: Way, duration_s: float, told: Any | None, found: list[dict[float, float]]
) -> Callable[[], float]:
    def side() -> float:
        if told is not None:
            told[0] = _WORK
        try:
            found.append(way.measure(RATE, duration_s))
        finally:
            if told is not None:
                told[0] = _REST
        return found[-1][50.0]

    return side


def _fill(publisher: Publisher, events: int) -> None:
    event = shapes.event_of_size(200)
    for number in range(1, events + 1):
        publisher.publish(event)
        if (number % _CHUNK == 0 or number == events) and not publisher.flush(_LIMIT_S):
            raise RuntimeError("the bus did not take all events")


if __name__ == "__main__":
    main()
