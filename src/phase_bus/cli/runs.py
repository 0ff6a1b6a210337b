"""``phase-bus runs`` and ``phase-bus receipts``: what there is to know of past runs."""

from __future__ import annotations

from collections import Counter

import msgspec
from rich.filesize import decimal

from phase_bus.cli.journals import DataOption, exit_code, find_run, find_runs, run_starts, short_name
from phase_bus.cli.options import JsonOption
from phase_bus.cli.output import EXIT_NOT_WHOLE, duration, local_time, make_console, print_json, print_table
from phase_bus.errors import ConfigError
from phase_bus.events import Receipt, RunComplete, RunStart
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.receipts import (
    held_against,
    is_whole,
    last_end,
    ledger,
    ledger_table,
    losses,
    print_losses,
)

_COLUMNS = (
    "RUN",
    "STATUS",
    "STARTED",
    "DURATION",
    "EVENTS",
    "RECORDS",
    "SIZE",
    "PUBLISHER",
    "SWEEP",
    "JOURNAL",
)
# What a narrow terminal has no room for, the first one first.
_SPARE = ("JOURNAL", "SIZE", "SWEEP", "PUBLISHER", "RECORDS", "EVENTS", "DURATION", "STARTED")


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
    # AIPerf makes a sweep of one for every single run: nothing to show.
    sizes = Counter(start.sweep_id for start in starts if start)
    rows = (
        (
            row.run_id,
            row.status,
            local_time(row.started_ns),
            duration(row.started_ns, row.ended_ns),
            row.events,
            row.records,
            decimal(row.size_bytes),
            row.publisher,
            _sweep(start) if start and sizes[start.sweep_id] > 1 else "",
            short_name(path),
        )
        for (path, row), start in zip(found, starts, strict=True)
    )
    print_table(_COLUMNS, rows, "no runs yet", whole=("RUN",), spare=_SPARE)


def _sweep(start: RunStart) -> str:
    """Return the run's sweep and, after a ``#``, its trial."""
    if start.sweep_id is None:
        return ""
    return start.sweep_id if start.trial is None else f"{start.sweep_id} #{start.trial}"


def receipts(run: str, *, data: DataOption = None, json: JsonOption = False) -> int:
    """Show what each consumer got and handled of a past run; exit with 3 if one did not handle all.

    For example:

        phase-bus receipts latest
        phase-bus receipts 3f2a9c01d4e5 --json

    Args:
        run: The run's id, as 'phase-bus runs' lists it, or 'latest'.
    """
    found = find_run(run, data)
    with JournalReader(found.journal) as reader:
        end = last_end(reader.events(found.row.run_id, RunComplete))
        said = held_against(reader.events(found.row.run_id, Receipt), end)
        code = exit_code(reader)
    if not said:
        raise ConfigError(
            f"there are no receipts for run {found.row.run_id!r} in {str(found.journal)!r}: no consumer "
            "has handled its end yet; 'phase-bus runs' shows whether it has ended"
        )
    rows, whole = ledger(said), is_whole(said)
    if json:
        lost = {consumer: told for consumer, told in losses(said).items() if told}
        print_json({"run_id": found.row.run_id, "whole": whole, "ledger": rows, "lost": lost})
    else:
        console = make_console()
        console.print(ledger_table(rows))
        print_losses(said, console)
        if not whole:
            console.print("not every consumer handled everything that was published for it", style="red")
    return code if whole else EXIT_NOT_WHOLE
