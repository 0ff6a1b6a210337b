"""Printing events, for people and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from phase_bus.cli.output import print_line
from phase_bus.consumer.consumer import Consumer
from phase_bus.core.printable import printable_json
from phase_bus.core.records import RecordBatch, to_plain
from phase_bus.events import EventBase, PhaseEvent, Records


class Printer(Consumer):
    """Prints every event, as a line for people or of JSON; calls ``done`` after ``count``, if not 0."""

    def __init__(self, json: bool, count: int) -> None:
        self.json = json
        self.left = count
        self.done: Callable[[], None] = lambda: None

    async def on_event(self, event: EventBase) -> None:
        """Print one event."""
        if self.json:
            print(printable_json(msgspec.json.encode(to_plain(event)).decode()), flush=True)
        else:
            print_line(describe(event))
        self.left -= 1
        if self.left == 0:
            self.done()

    on_heartbeat = on_event


def describe(event: EventBase) -> str:
    """Return an event as a line for people."""
    when = datetime.fromtimestamp(event.ts_ns / 1e9).astimezone()
    return f"{when:%H:%M:%S.%f}"[:-3] + f"  {event.kind:<22} {event.run_id:<14} {_details(event)}"


def _details(event: EventBase) -> str:
    if isinstance(event, Records):
        return f"{event.phase}  {_records(event)}"
    plain: dict[str, Any] = msgspec.to_builtins(event)
    for name in ("kind", "run_id", "ts_ns", "phase"):
        plain.pop(name, None)
    if isinstance(event, PhaseEvent):
        plain |= plain.pop("stats")
        return f"{event.phase}  {_pairs(plain)}"
    return _pairs(plain)


def _records(event: Records) -> str:
    parts = [f"{event.count} records"]
    if event.errors:
        parts.append(f"{len(event.errors)} errors")
    batch = RecordBatch(event)
    if "request_latency" in batch:
        mean_ms = batch.values("request_latency").mean() / 1e6
        parts.append(f"mean latency {mean_ms:.2f} ms")
    return ", ".join(parts)


def _pairs(values: dict[str, Any]) -> str:
    shown = ((k, v) for k, v in values.items() if v not in (None, "", {}, [], (), False))
    text = " ".join(f"{k}={v}" for k, v in shown)
    return text if len(text) <= 300 else f"{text[:300]} ..."
