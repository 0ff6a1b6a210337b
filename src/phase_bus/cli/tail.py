"""``phase-bus tail``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from phase_bus.cli.options import (
    AddressOption,
    FromOption,
    JsonOption,
    configure_logging,
    parse_address,
    parse_origin,
)
from phase_bus.consumer import Consumer
from phase_bus.events import EventBase, PhaseEvent, Records
from phase_bus.records import RecordBatch, to_plain
from phase_bus.runner import ConsumerRunner
from phase_bus.stopping import stop_on_signals


class Printer(Consumer):
    """Prints every event, as a line for people or as a line of JSON.

    Args:
        json: whether as JSON.
        count: after how many events to call ``done``; 0 for never.
    """

    def __init__(self, json: bool, count: int) -> None:
        self.json = json
        self.left = count
        self.done: Callable[[], None] = lambda: None

    async def on_event(self, event: EventBase) -> None:
        """Print one event."""
        line = msgspec.json.encode(to_plain(event)).decode() if self.json else describe(event)
        print(line, flush=True)
        self.left -= 1
        if self.left == 0:
            self.done()

    on_heartbeat = on_event


def tail(
    *,
    address: AddressOption = None,
    topic: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Only topics that begin so: 'phase_', 'records.', 'summary.' ..."),
    ] = None,
    from_: FromOption = "now",
    json: JsonOption = False,
    count: int = 0,
) -> None:
    """Print events as they come, until Ctrl-C.

    A topic is 'KIND.RUN_ID$'; request records are on 'records.PARTITION.RUN_ID$'.

    For example:

        phase-bus tail

        phase-bus tail --topic phase_ --topic run_ --json

        phase-bus tail --from start --topic run_

    Args:
        from_: Where to begin: 'now', with what comes from now on; 'start', the first event in the bus's
            journal; or after an OFFSET.
        count: End after so many events; 0 for never.
    """
    configure_logging()
    printer = Printer(json, count)
    printer.name = "tail"
    where = parse_address(address)
    origin = parse_origin(from_, checkpoint=False)

    async def run() -> None:
        def ready() -> None:
            print(f"phase-bus: listening at {where}", file=sys.stderr, flush=True)

        runner = ConsumerRunner(
            printer,
            where,
            receipts=False,
            topics=tuple(topic) if topic else None,
            origin=origin,
            on_ready=ready,
        )
        printer.done = runner.stop
        stop_on_signals(runner.stop)
        await runner.run()

    asyncio.run(run())


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
