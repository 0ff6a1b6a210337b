"""``phase-bus runs``."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import msgspec
from rich.filesize import decimal

from phase_bus.cli.journals import DataOption, find_runs, make_table, print_json, run_starts, short_name
from phase_bus.cli.options import JsonOption, make_console
from phase_bus.events import RunStart


def runs(*, data: DataOption = None, json: JsonOption = False) -> None:
    """List the runs in your journals, the newest last.

    For example:

        phase-bus runs

        phase-bus runs --data /var/lib/my-bus --json
    """
    found = find_runs(data)
    starts = run_starts(found)
    if json:
        print_json(
            [
                {
                    **msgspec.to_builtins(row),
                    "sweep_id": start.sweep_id if start else None,
                    "trial": start.trial if start else None,
                    "journal": str(path),
                }
                for (path, row), start in zip(found, starts, strict=True)
            ]
        )
        return
    console = make_console()
    if not found:
        console.print("no runs yet")
        return
    table = make_table(
        "RUN", "STATUS", "STARTED", "DURATION", "EVENTS", "RECORDS", "SIZE", "PUBLISHER", "SWEEP", "JOURNAL"
    )
    # AIPerf makes a sweep of one for every single run: nothing to show.
    sizes = Counter(start.sweep_id for start in starts if start)
    for (path, row), start in zip(found, starts, strict=True):
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
            _sweep(start) if start and sizes[start.sweep_id] > 1 else "",
            short_name(path),
        )
    console.print(table)


def _sweep(start: RunStart) -> str:
    """Return the run's sweep and, after a ``#``, its trial."""
    if start.sweep_id is None:
        return ""
    return start.sweep_id if start.trial is None else f"{start.sweep_id} #{start.trial}"
