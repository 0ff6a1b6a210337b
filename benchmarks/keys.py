"""A bus that asks for keys, so that all is encrypted, against one that does not, over tcp."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    wait_for,
)
from phase_bus.core.keys import write_new_key
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher

QUESTION = "What does it cost that a bus asks for keys, and encrypts?"
_LIMIT_S = 30.0
_CHUNK = 200  # events between two flushes: what the publisher has waiting


class _Side(NamedTuple):
    publisher: Publisher
    received: Callable[[], int]


def main() -> Report:
    """Measure, print, return."""
    return run("keys", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    loads: list[tuple[str, EventBase, int, int]] = [
        ("200 B, events/s", shapes.event_of_size(200), 20_000, _CHUNK),
        ("batches of 256 records, batches/s", shapes.batch(256), 2000, _CHUNK),
        ("200 B, one after another, acknowledged/s", shapes.event_of_size(200), 1000, 1),
    ]
    rows = []
    with ExitStack() as stack:
        made = {
            "ipc": _side(stack, key=False, tcp=False),
            "tcp": _side(stack, key=False),
            "tcp with keys": _side(stack, key=True),
        }
        for label, event, full, chunk in loads:
            count = plan.count(full)
            sides: dict[str, Callable[[], float]] = {
                name: partial(_publish, side, event, count, chunk) for name, side in made.items()
            }
            values = alternate(sides, plan)
            share = ratios(values["tcp with keys"], values["tcp"])
            key = f"{'batch' if 'batches' in label else 'event'}_{chunk}"
            report.figures[f"keys_{key}_with_of_without"] = share
            rows.append(
                [label, f"{count:,}", *(spread(values[each]).show() for each in made), share.show()]
            )
    report.tables.append(
        Table("Published and received by one consumer", ["what", "events", *made, "with of without"], rows)
    )
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
    for number in range(1, count + 1):
        side.publisher.publish(event)
        if (number % chunk == 0 or number == count) and not side.publisher.flush(_LIMIT_S):
            raise RuntimeError("the bus did not take all events")
    if not wait_for(lambda: side.received() >= wanted, _LIMIT_S):
        raise RuntimeError("the consumer did not get all events")
    return count / (time.monotonic() - started_s)


if __name__ == "__main__":
    main()
