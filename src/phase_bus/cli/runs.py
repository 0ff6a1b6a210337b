"""``phase-bus runs``."""

from __future__ import annotations

from datetime import datetime

import msgspec
from rich.filesize import decimal

from phase_bus.cli.journals import DataOption, find_runs, make_table, print_json, short_name
from phase_bus.cli.options import JsonOption, make_console


def runs(*, data: DataOption = None, json: JsonOption = False) -> None:
    """List the runs in your journals, the newest last.

    For example:

        phase-bus runs

        phase-bus runs --data /var/lib/my-bus --json
    """
    found = find_runs(data)
    if json:
        print_json([{**msgspec.to_builtins(row), "journal": str(path)} for path, row in found])
        return
    console = make_console()
    if not found:
        console.print("no runs yet")
        return
    table = make_table(
        "RUN", "STATUS", "STARTED", "DURATION", "EVENTS", "RECORDS", "SIZE", "PUBLISHER", "JOURNAL"
    )
    for path, row in found:
        started = datetime.fromtimestamp(row.started_ns / 1e9).astimezone()
        table.add_row(
            row.run_id,
            row.status,
            f"{started:%Y-%m-%d %H:%M:%S}",
            "" if row.ended_ns is None else f"{(row.ended_ns - row.started_ns) / 1e9:.1f} s",
            str(row.events),
            str(row.records),
            decimal(row.size_bytes),
            row.publisher,
            short_name(path),
        )
    console.print(table)
