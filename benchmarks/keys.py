"""A bus that asks for keys, so that all is encrypted, against one that does not, over tcp."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import peers
from benchmarks.acknowledged import LIMIT_S, compare, publish
from benchmarks.harness import Child, Plan, Report, directory, run, shared_counts, wait_for
from phase_bus.core.keys import write_new_key
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher

QUESTION = "What does it cost that a bus asks for keys, and encrypts?"


class _Side(NamedTuple):
    publisher: Publisher
    received: Callable[[], int]


def main() -> Report:
    """Measure, print, return."""
    return run("keys", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    with ExitStack() as stack:
        sides = {
            "ipc": partial(_publish, _side(stack, key=False, tcp=False)),
            "tcp": partial(_publish, _side(stack, key=False)),
            "tcp with keys": partial(_publish, _side(stack, key=True)),
        }
        title = "Published and received by one consumer"
        compare(plan, report, title, sides, ("tcp with keys", "tcp", "with of without"))
    report.notes.append(
        "One publisher with 200 events at a time, or one, each time until all are acknowledged, and one "
        "consumer. The last column is over tcp in both cases."
    )


def _side(stack: ExitStack, *, key: bool, tcp: bool = True) -> _Side:
    place = stack.enter_context(directory())
    key_file = str(write_new_key(Path(place) / "key.yaml").path) if key else ""
    os.environ["PHASE_BUS_KEY_FILE"] = key_file  # for the consumer's process
    address = "tcp://127.0.0.1:0" if tcp else f"ipc://{place}"
    address = stack.enter_context(Child(peers.bus, address, data=place, key_file=key_file)).ready()
    counts = shared_counts(1)
    stack.enter_context(Child(peers.consumer, peers.Counting, address, counts, 0)).ready()
    publisher = Publisher(address, buffer_bytes=1 << 30, key_file=key_file)
    return _Side(stack.enter_context(publisher), lambda: int(counts[0]))


def _publish(side: _Side, event: EventBase, count: int, chunk: int) -> float:
    """Publish events until all are acknowledged, and received; return events/s."""
    wanted = side.received() + count
    started_s = time.monotonic()
    publish(side.publisher, event, count, chunk)
    if not wait_for(lambda: side.received() >= wanted, LIMIT_S):
        raise RuntimeError("the consumer did not get all events")
    return count / (time.monotonic() - started_s)


if __name__ == "__main__":
    main()
