"""Publishing until all is acknowledged: the loads, and how two ways of it are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from benchmarks import shapes
from benchmarks.harness import Plan, Report, Table, alternate, ratios, spread
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher

LIMIT_S = 30.0
_CHUNK = 200  # events between two flushes: what the publisher has waiting
Rate: TypeAlias = Callable[[EventBase, int, int], float]
"""Publishes an event so many times, so many between two flushes; returns events/s."""


def compare(
    plan: Plan, report: Report, title: str, sides: Mapping[str, Rate], ratio: tuple[str, str, str]
) -> None:
    """Let all sides publish each load, and add a table and figures to the report.

    Args:
        ratio: which side is divided by which, and what to call that.
    """
    loads: list[tuple[str, EventBase, int, int]] = [
        ("200 B, events/s", shapes.event_of_size(200), 20_000, _CHUNK),
        ("batches of 256 records, batches/s", shapes.batch(256), 2000, _CHUNK),
        ("200 B, one after another, acknowledged/s", shapes.event_of_size(200), 1000, 1),
    ]
    above, below, name = ratio
    rows = []
    for label, event, full, chunk in loads:
        count = plan.count(full)
        values = alternate({side: partial(rate, event, count, chunk) for side, rate in sides.items()}, plan)
        share = ratios(values[above], values[below])
        kind = f"{'batch' if 'batches' in label else 'event'}_{chunk}"
        report.figures[f"{report.name}_{kind}_{name.replace(' ', '_')}"] = share
        rows.append([label, f"{count:,}", *(spread(values[side]).show() for side in sides), share.show()])
    report.tables.append(Table(title, ["what", "events", *sides, name], rows))


def publish(publisher: Publisher, event: EventBase, count: int, chunk: int) -> None:
    """Publish an event so many times, and wait until all are acknowledged."""
    for number in range(1, count + 1):
        publisher.publish(event)
        if (number % chunk == 0 or number == count) and not publisher.flush(LIMIT_S):
            raise RuntimeError("the bus did not take all events")
