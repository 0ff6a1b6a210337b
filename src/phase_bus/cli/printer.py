"""Printing events, for people and as JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from phase_bus.aggregation.units import readable
from phase_bus.cli.output import print_line
from phase_bus.consumer.consumer import Consumer
from phase_bus.core.printable import printable_json
from phase_bus.core.records import RecordBatch, to_plain
from phase_bus.events import EventBase, PhaseEvent, Records, Verdict

_A_TIME_NS = 10**18  # in 2001: less is a duration


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
    return f"{_time(event.ts_ns)}  {event.kind:<22} {event.run_id:<14} {_details(event)}"


def _time(ts_ns: int) -> str:
    """Return a time of day, to the millisecond."""
    return f"{datetime.fromtimestamp(ts_ns / 1e9).astimezone():%H:%M:%S.%f}"[:-3]


def _details(event: EventBase) -> str:
    if isinstance(event, Records):
        return f"{event.phase}  {_records(event)}"
    plain: dict[str, Any] = msgspec.to_builtins(event)
    for name in ("kind", "run_id", "ts_ns", "phase"):
        plain.pop(name, None)
    if isinstance(event, PhaseEvent):
        plain |= plain.pop("stats")
        return f"{event.phase}  {_pairs(plain)}"
    if isinstance(event, Verdict):
        plain |= {name: readable(getattr(event, name), event.unit) for name in ("value", "limit")}
        del plain["unit"]
        return f"{plain.pop('threshold')}  {plain.pop('state')} {_pairs(plain)}"
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
    shown = _shown(values).items()
    text = " ".join(f"{name}={_text(value)}" for name, value in shown)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _shown(value: Any) -> Any:
    """Return what is shown of a value: no fields that are empty, few digits, times of day."""
    if isinstance(value, dict):
        pairs = (_field(str(name), each) for name, each in value.items())
        return {name: each for name, each in pairs if each not in (None, "", {}, [], False)}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _field(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith("_ns") and isinstance(value, int) and value > _A_TIME_NS:
        return name.removesuffix("_ns"), _time(value)
    return name, _shown(value)


def _text(value: Any) -> str:
    """Return a value as JSON, a word without quotes."""
    if isinstance(value, str) and not re.search(r'[\s"]', value):
        return value
    return msgspec.json.encode(value).decode()
