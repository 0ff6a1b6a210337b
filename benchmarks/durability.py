"""A bus that acknowledges after the write, against one that acknowledges after an fsync."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import get_args

from benchmarks import peers, shapes
from benchmarks.harness import Child, Plan, Report, Table, alternate, directory, ratios, run, spread
from phase_bus.events import EventBase
from phase_bus.journal.rows import Durability
from phase_bus.publisher.publisher import Publisher

QUESTION = "What does it cost to acknowledge events only when they are on the disk?"
_LIMIT_S = 30.0
_CHUNK = 200  # events between two flushes: what the publisher has waiting


def main() -> Report:
    """Measure, print, return."""
    return run("durability", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    loads: list[tuple[str, EventBase, int, int]] = [
        ("200 B, events/s", shapes.event_of_size(200), 20_000, _CHUNK),
        ("batches of 256 records, batches/s", shapes.batch(256), 2000, _CHUNK),
        ("200 B, one after another, acknowledged/s", shapes.event_of_size(200), 1000, 1),
    ]
    rows = []
    with ExitStack() as stack:
        publishers = {each: _publisher(stack, each) for each in get_args(Durability)}
        for label, event, full, chunk in loads:
            count = plan.count(full)
            sides: dict[str, Callable[[], float]] = {
                name: partial(_publish, publisher, event, count, chunk)
                for name, publisher in publishers.items()
            }
            values = alternate(sides, plan)
            share = ratios(values["fsync"], values["write"])
            key = f"{'batch' if 'batches' in label else 'event'}_{chunk}"
            report.figures[f"durability_{key}_fsync_of_write"] = share
            rows.append(
                [label, f"{count:,}", *(spread(values[side]).show() for side in sides), share.show()]
            )
    report.tables.append(
        Table("Acknowledged by the bus", ["what", "events", "write", "fsync", "of write"], rows)
    )
    report.notes.append(
        "One publisher with 200 events at a time, or one, each time until all are acknowledged. What waits "
        "in one turn of the bus's loop shares an fsync. It is a property of the disk: on one whose fsync "
        "takes longer, the last row is that long."
    )


def _publisher(stack: ExitStack, durability: Durability) -> Publisher:
    address = f"ipc://{stack.enter_context(directory())}"
    stack.enter_context(Child(peers.bus, address, durability)).ready()
    return stack.enter_context(Publisher(address, buffer_bytes=1 << 30))


def _publish(publisher: Publisher, event: EventBase, count: int, chunk: int) -> float:
    """Publish events until all are acknowledged; return events/s."""
    started_s = time.monotonic()
    for number in range(1, count + 1):
        publisher.publish(event)
        if (number % chunk == 0 or number == count) and not publisher.flush(_LIMIT_S):
            raise RuntimeError("the bus did not take all events")
    return count / (time.monotonic() - started_s)


if __name__ == "__main__":
    main()
