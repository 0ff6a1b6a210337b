"""``phase-bus status``."""

from __future__ import annotations

from datetime import datetime
from itertools import groupby

import msgspec
from rich.console import Console
from rich.table import Table

from phase_bus.cli.options import AddressOption, JsonOption, make_console, parse_address
from phase_bus.core.client import BusClient
from phase_bus.core.control import EVENTS, ClientInfo, Status


def status(*, address: AddressOption = None, json: JsonOption = False) -> None:
    """Show who is on the bus, and how the runs are.

    For example:

        phase-bus status

        phase-bus status --address tcp://127.0.0.1:5670 --json
    """
    with BusClient(parse_address(address)) as client:
        reply = client.status()
    if json:
        print(msgspec.json.format(msgspec.json.encode(reply), indent=2).decode())
        return
    show_status(reply, make_console())


def show_status(status: Status, console: Console) -> None:
    """Print a bus's status as tables."""
    console.print(
        f"bus {status.bus_id[:8]} (pid {status.pid}) at {' and '.join(status.addresses)}, "
        f"up {status.uptime_s:.0f} s, {status.events} events taken in, {status.dropped} set aside"
    )
    grouped = any(client.group for client in status.clients)
    shares = ("SHARES",) if grouped else ()
    clients = _table("ROLE", "NAME", "STATE", "PID", "HOST", "EVENTS", "FAILED", *shares, "LAST HEARD")
    for c in sorted(status.clients, key=lambda c: (c.role, c.name)):
        style = {"ready": "green", "silent": "red", "failed": "red", "stopped": "dim"}.get(c.state, "")
        clients.add_row(
            c.role,
            c.name,
            f"[{style}]{c.state}[/]" if style else c.state,
            str(c.pid),
            c.host,
            str(c.received),
            str(c.failed),
            *((_shares(c),) if grouped else ()),
            f"{c.age_s:.1f} s ago",
        )
    console.print(clients if status.clients else "no publishers or consumers")
    runs = _table("RUN", "STATUS", "STARTED", "DURATION", "EVENTS", "PUBLISHER", "HANDLED BY")
    for run in status.runs:
        started = datetime.fromtimestamp(run.started_ns / 1e9).astimezone()
        duration = f"{(run.ended_ns - run.started_ns) / 1e9:.1f} s" if run.ended_ns else ""
        handled = [
            c.name + ("" if run.run_id not in c.incomplete_runs else " (incomplete)")
            for c in status.clients
            if run.run_id in c.handled_runs and not c.group
        ] + [
            f"{g.name} ({'incomplete, ' if run.run_id in g.incomplete_runs else ''}group)"
            for g in status.groups
            if run.run_id in g.handled_runs
        ]
        runs.add_row(
            run.run_id,
            run.status,
            f"{started:%H:%M:%S}",
            duration,
            str(run.events),
            run.publisher,
            ", ".join(handled),
        )
    console.print(runs if status.runs else "no runs yet")


def _shares(client: ClientInfo) -> str:
    """Return what a member of a group works on: ``leads, 0-3 7``."""
    if not client.group:
        return ""
    parts = ["leads,"] if EVENTS in client.shares else []
    numbers = sorted(share for share in client.shares if share != EVENTS)
    for _, members in groupby(enumerate(numbers), lambda item: item[1] - item[0]):
        run = [number for _, number in members]
        parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return " ".join(parts).rstrip(",") or "none"


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
