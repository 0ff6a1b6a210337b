"""``phase-bus runs`` and ``phase-bus receipts``: what there is to know of past runs."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import msgspec
from rich.filesize import decimal

from phase_bus.cli.journals import (
    DataOption,
    Found,
    PastAddressOption,
    exit_code,
    find_run,
    find_runs,
    looking,
    run_starts,
    short_name,
)
from phase_bus.cli.options import JsonOption
from phase_bus.cli.output import (
    EXIT_NOT_WHOLE,
    duration,
    local_time,
    make_console,
    print_json,
    print_line,
    print_table,
)
from phase_bus.errors import ConfigError
from phase_bus.events import Receipt, RunComplete, RunStart, Verdict
from phase_bus.journal.files import is_held
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
    "LABEL",
    "SWEEP",
    "JOURNAL",
)
# What a narrow terminal has no room for, the first one first.
_SPARE = ("JOURNAL", "SIZE", "EVENTS", "PUBLISHER", "SWEEP", "RECORDS", "LABEL", "DURATION", "STARTED")


def runs(*, data: DataOption = None, address: PastAddressOption = None, json: JsonOption = False) -> None:
    """List the runs in your journals, the newest last.

    A run is 'unfinished' if its end is missing and no bus has its journal: the bus was killed.

    For example:

        phase-bus runs
        phase-bus runs --data /var/lib/my-bus --json
        phase-bus runs --address tcp://bus.example.org:5670
    """
    with looking(data, address) as past:
        found = find_runs(past)
        starts = run_starts(found)
        reasons = _reasons(found)
    if json:
        print_json(
            [
                {
                    **msgspec.to_builtins(each.row),
                    "size_bytes": each.row.size_bytes or None,
                    "status": _status(each),
                    "sweep_id": start.sweep_id if start else None,
                    "trial": start.trial if start else None,
                    "label": start.label if start else None,
                    "journal": each.where,
                    "ended_because": reasons.get((each.journal, each.row.run_id), ""),
                }
                for each, start in zip(found, starts, strict=True)
            ]
        )
        return
    # AIPerf makes a sweep of one for every single run: nothing to show.
    sizes = Counter(start.sweep_id for start in starts if start)
    rows = (
        (
            row.run_id,
            _status(each),
            local_time(row.started_ns),
            duration(row.started_ns, row.ended_ns),
            f"{row.events:,}",
            f"{row.records:,}",
            decimal(row.size_bytes) if row.size_bytes else "",  # of a run in a stream that is unknown
            row.publisher,
            (start.label if start else None) or "",
            _sweep(start) if start and sizes[start.sweep_id] > 1 else "",
            each.address or short_name(each.journal),
        )
        for each, start in zip(found, starts, strict=True)
        for row in [each.row]
    )
    print_table(_COLUMNS, rows, "no runs yet", whole=("RUN",), spare=_SPARE)
    for (_, run_id), reason in reasons.items():
        print_line(f"run {run_id} {reason}")


def _status(found: Found) -> str:
    """Return how a run stands: in a journal that no bus has, it does not go on."""
    left = found.row.status == "running" and not found.address and not is_held(found.journal)
    return "unfinished" if left else found.row.status


def _reasons(found: list[Found]) -> dict[tuple[Path, str], str]:
    """Return why those runs were cancelled that a threshold ended, by journal and run."""
    from phase_bus.reporting.verdicts import ended_because

    reasons = {}
    for path, of_journal in groupby(sorted(found, key=_journal), key=_journal):
        cut = [each for each in of_journal if each.row.status in ("cancelled", "failed", "lost")]
        if not cut:
            continue
        with JournalReader(path) as reader:
            for each in cut:
                if reason := ended_because(reader, each.row.run_id):
                    reasons[path, each.row.run_id] = reason
    return reasons


def _journal(found: Found) -> Path:
    return found.journal


def _sweep(start: RunStart) -> str:
    """Return the run's sweep and, after a ``#``, its trial."""
    if start.sweep_id is None:
        return ""
    return start.sweep_id if start.trial is None else f"{start.sweep_id} #{start.trial}"


def receipts(
    run: str | None = None,
    *,
    data: DataOption = None,
    address: PastAddressOption = None,
    json: JsonOption = False,
) -> int:
    """Show what each consumer received and handled of a past run; exit with 3 if one did not handle all.

    Also shows the verdicts on its thresholds, if it had any; they do not affect the exit code.

    For example:

        phase-bus receipts latest
        phase-bus receipts 3f2a9c01d4e5 --json

    Args:
        run: Its id or at least its first 4 letters, a label, or 'latest'.
    """
    from phase_bus.reporting.verdicts import (
        ended_because,
        last_verdicts,
        verdict_table,
        verdicts_in_brief,
    )

    with ExitStack() as stack:
        found = find_run(run, stack.enter_context(looking(data, address)), records=False)
        reader = stack.enter_context(JournalReader(found.journal))
        end = last_end(reader.events(found.row.run_id, RunComplete))
        said = held_against(reader.events(found.row.run_id, Receipt), end)
        verdicts = reader.events(found.row.run_id, Verdict)
        because = ended_because(reader, found.row.run_id)
        code = exit_code(reader, found.where)
    if not said:
        raise ConfigError(
            f"there are no receipts for run {found.row.run_id!r} in {found.where!r}: no consumer "
            "has handled its end yet; 'phase-bus runs' shows whether it has ended"
        )
    rows, whole = ledger(said), is_whole(said)
    last = last_verdicts(verdicts, over=end is not None)
    if json:
        lost = {consumer: told for consumer, told in losses(said).items() if told}
        print_json(
            {
                "run_id": found.row.run_id,
                "whole": whole,
                "ledger": rows,
                "lost": lost,
                "verdicts": last,
                "ended_because": because,
            }
        )
    else:
        console = make_console()
        console.print(ledger_table(rows))
        print_losses(said, console)
        if not whole:
            console.print("not every consumer handled everything that was published for it", style="red")
        if last:
            console.print()
            console.print(verdict_table(last))
            console.print(verdicts_in_brief(last), soft_wrap=True)
        if because:
            console.print(f"the run {because}", soft_wrap=True)
    return code if whole else EXIT_NOT_WHOLE
