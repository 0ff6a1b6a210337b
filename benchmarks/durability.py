"""A bus that acknowledges after the write, against one that acknowledges after an fsync."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from typing import get_args

from benchmarks import peers
from benchmarks.acknowledged import compare, publish
from benchmarks.harness import Child, Plan, Report, directory, run
from phase_bus.events import EventBase
from phase_bus.journal.rows import Durability
from phase_bus.publisher.publisher import Publisher

QUESTION = "What does it cost to acknowledge events only when they are on the disk?"


def main() -> Report:
    """Measure, print, return."""
    return run("durability", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    with ExitStack() as stack:
        sides = {each: partial(_publish, _publisher(stack, each)) for each in get_args(Durability)}
        compare(plan, report, "Acknowledged by the bus", sides, ("fsync", "write", "fsync of write"))
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
    publish(publisher, event, count, chunk)
    return count / (time.monotonic() - started_s)


if __name__ == "__main__":
    main()
