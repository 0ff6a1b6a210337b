"""``phase-bus status``."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby

from rich.text import Text

from phase_bus.cli.options import AddressOption, JsonOption, check_nats, parse_address
from phase_bus.cli.output import counted, duration, local_time, make_console, print_json, print_table
from phase_bus.core.address import ADDRESS_VARIABLE, StreamAddress
from phase_bus.core.client import BusClient
from phase_bus.core.control import EVENTS, TAKES_ALL, ClientInfo, GroupInfo, RunInfo, Status
from phase_bus.errors import PhaseBusError
from phase_bus.journal.running import RunningBus, running_buses

_STYLES = {"ready": "green", "silent": "red", "failed": "red", "stopped": "dim"}


def status(*, address: AddressOption = None, json: JsonOption = False) -> None:
    """Show who is on a bus, and how its runs are.

    Without an address, also without $PHASE_BUS_ADDRESS, it lists the buses of yours that run on this
    machine, that of an 'exec' among them, or shows the only one; --json then prints a list of them all.
    If no bus answers, the exit code is 2.

    The role 'client' is that of those who only look on: 'tail', 'watch', or the progress that 'exec' shows.

    Of a stream in NATS, nats://HOST, it shows the buses that forward to it, how durable it is kept, and who
    reads it, and how many of its messages these are behind.

    For example:

        phase-bus status
        phase-bus status --address tcp://127.0.0.1:5670 --json
        phase-bus status --address nats://nats.example.org
    """
    named = address or os.environ.get(ADDRESS_VARIABLE)
    if named and StreamAddress.is_meant(named):
        _stream_status(StreamAddress.parse(named), json=json)
        return
    if not named and (buses := running_buses()):
        _show_all(buses, json=json)
        return
    with BusClient(parse_address(address)) as client:
        reply = client.status()
    if not json:
        _show(reply)
    else:
        print_json(reply if named else [reply])


def _stream_status(address: StreamAddress, *, json: bool) -> None:
    """Show a stream in NATS: its buses, and its consumers."""
    check_nats()
    from phase_bus.jetstream.standing import standing_at

    standing = asyncio.run(standing_at(address))
    if json:
        print_json(standing)
        return
    kept = f"{counted(standing.replicas, 'replica')} {'in memory' if standing.memory else 'in files'}"
    make_console().print(
        f"stream {standing.stream} ({standing.stream_id[:8]}) at {standing.address}, offsets "
        f"{standing.first_offset} to {standing.last_offset}, {kept}",
        soft_wrap=True,
    )
    for weakness in standing.weaknesses:
        make_console().print(f"less durable than it can be: {weakness}", style="yellow", soft_wrap=True)
    buses = (
        (it.bus[:8], it.host, it.runs, it.offset, it.stream_offset, it.run_id, _ago(it.age_s))
        for it in standing.buses
    )
    print_table(_FORWARDING, buses, "no buses", whole=("BUS", "LAST RUN"), spare=("IN STREAM", "OFFSET"))
    behind, grouped = standing.behind, bool(standing.groups)
    clients = sorted(standing.consumers, key=lambda client: (client.name, client.shares))
    rows = (_reader_row(client, behind, grouped) for client in clients)
    shares = _shares_column(grouped)
    columns = ("CONSUMER", "STATE", "PID", "HOST", "EVENTS", "FAILED", *shares, "BEHIND", "LAST HEARD")
    print_table(columns, rows, "no consumers", whole=("CONSUMER",), spare=("HOST", "PID", "EVENTS"))
    if grouped:
        groups = (
            (it.name, it.members, it.generation, it.refused, behind.get(it.name, ""))
            for it in standing.groups
        )
        print_table(("GROUP", "MEMBERS", "GENERATION", "REFUSED", "BEHIND"), groups, whole=("GROUP",))


_FORWARDING = ("BUS", "HOST", "RUNS", "OFFSET", "IN STREAM", "LAST RUN", "LAST HEARD")


def _reader_row(client: ClientInfo, behind: Mapping[str, int], grouped: bool) -> tuple[object, ...]:
    is_here = bool(client.client_id)
    return (
        client.name,
        Text(client.state, _STYLES.get(client.state, "")),
        client.pid if is_here else "",
        client.host,
        client.received if is_here else "",
        client.failed if is_here else "",
        *((_shares(client),) if grouped else ()),
        "" if client.group else behind.get(client.name, ""),
        _ago(client.age_s) if is_here else "",
    )


def _shares_column(grouped: bool) -> tuple[str, ...]:
    return ("SHARES",) if grouped else ()


def _ago(age_s: float) -> str:
    return f"{age_s:.1f} s ago" if age_s < 100 else f"{timedelta(seconds=round(age_s))} ago"


def _show_all(buses: Sequence[RunningBus], *, json: bool) -> None:
    """Show one bus, or list several with who is there."""
    statuses = {}
    for bus in buses:
        try:
            with BusClient(bus.address) as client:
                statuses[bus.address] = client.status(3.0 if len(buses) == 1 else 1.0)
        except PhaseBusError:
            if len(buses) == 1:
                raise
    if json:
        print_json(list(statuses.values()))
    elif len(buses) == 1:
        _show(statuses[buses[0].address])
    else:
        rows = (_bus_row(bus, statuses.get(bus.address)) for bus in buses)
        spare = ("PID", "STARTED", "CONSUMERS")
        print_table(_BUS_COLUMNS, rows, whole=("ADDRESS", "RUN"), spare=spare)
        make_console().print("'phase-bus status --address ADDRESS' shows one of them", soft_wrap=True)


_BUS_COLUMNS = ("ADDRESS", "PID", "STARTED", "CONSUMERS", "RUN", "STATUS")


def _bus_row(bus: RunningBus, status: Status | None) -> tuple[object, ...]:
    beginning = (bus.address, bus.pid, _time_of_day(bus.started_ns))
    if status is None:
        return (*beginning, "", "", Text("does not answer", "red"))
    here = (c for c in status.clients if c.role == "consumer" and c.state in ("starting", "ready"))
    names = {client.name for client in here}
    run = max(status.runs, key=lambda run: run.started_ns, default=None)
    last = ("", "no runs yet") if run is None else (run.run_id, run.status)
    return (*beginning, ", ".join(sorted(names)), *last)


def _show(status: Status) -> None:
    make_console().print(
        f"bus {status.bus_id[:8]} (pid {status.pid}) at {' and '.join(status.addresses)}, "
        f"up {status.uptime_s:.0f} s, {status.connections} connections, {status.events} events taken in, "
        f"{status.dropped} messages malformed and skipped",
        soft_wrap=True,
    )
    grouped = any(client.group for client in status.clients)
    shares = _shares_column(grouped)
    behind = {client.client_id: _behind(client, status) for client in status.clients}
    lag = ("BEHIND",) if any(behind.values()) else ()
    columns = ("ROLE", "NAME", "STATE", "PID", "HOST", "EVENTS", "FAILED", *lag, *shares, "LAST HEARD")
    clients = sorted(status.clients, key=lambda client: (client.role, client.name))
    rows = (_client_row(client, grouped, (behind[client.client_id],) if lag else ()) for client in clients)
    spare = ("HOST", "LAST HEARD", "PID", "EVENTS")
    print_table(columns, rows, "no publishers or consumers", whole=("NAME",), spare=spare)
    if status.unread:
        columns = ("LOST BY", "RUN", "EVENTS", "RECORDS", "WHY")
        why = "pruned before it was read"
        lost = ((u.consumer, u.run_id, u.events, u.records, why) for u in status.unread)
        print_table(columns, lost, whole=("LOST BY", "RUN"), spare=("WHY",))
    if status.rejected:
        columns = ("REFUSED", "TIMES", "LAST FROM", "LAST AT")
        refused = ((r.reason, r.count, r.last_from, _time_of_day(r.last_ns)) for r in status.rejected)
        print_table(columns, refused, whole=("REFUSED",), spare=("LAST AT",))
    for client in clients:
        for loss in client.journal_losses:
            make_console().print(f"{client.role} {client.name}: {loss}", style="red", soft_wrap=True)
    columns = ("RUN", "STATUS", "STARTED", "DURATION", "EVENTS", "PUBLISHER", "HANDLED BY")
    runs = (_run_row(run, status) for run in status.runs)
    spare = ("PUBLISHER", "STARTED", "EVENTS", "DURATION")
    print_table(columns, runs, "no runs yet", whole=("RUN",), spare=spare)


def _behind(client: ClientInfo, status: Status) -> str:
    """Return how many events a consumer that takes all of them has not finished with; of others nothing."""
    if client.role != "consumer" or TAKES_ALL not in client.subscriptions:
        return ""
    return f"{status.offset - (client.position.offset if client.position else 0):,}"


def _client_row(client: ClientInfo, grouped: bool, behind: tuple[str, ...]) -> tuple[object, ...]:
    return (
        client.role,
        client.name,
        Text(client.state, _STYLES.get(client.state, "")),
        client.pid,
        client.host,
        client.received,
        client.failed,
        *behind,
        *((_shares(client),) if grouped else ()),
        f"{client.age_s:.1f} s ago",
    )


def _run_row(run: RunInfo, status: Status) -> tuple[object, ...]:
    def who(info: ClientInfo | GroupInfo) -> str:
        remarks = ["incomplete"] if run.run_id in info.incomplete_runs else []
        if isinstance(info, GroupInfo):
            remarks.append("group")
        return info.name + (f" ({', '.join(remarks)})" if remarks else "")

    infos: list[ClientInfo | GroupInfo] = [client for client in status.clients if not client.group]
    infos += status.groups
    return (
        run.run_id,
        run.status,
        _time_of_day(run.started_ns),
        duration(run.started_ns, run.ended_ns),
        run.events,
        run.publisher,
        ", ".join(who(info) for info in infos if run.run_id in info.handled_runs),
    )


def _time_of_day(ts_ns: int) -> str:
    """Return a time of today without its date: a run that was replayed is of another day."""
    day, time_of_day = local_time(ts_ns).split()
    return time_of_day if day == local_time(time.time_ns()).split()[0] else f"{day} {time_of_day}"


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
