"""``phase-bus receipts``."""

from __future__ import annotations

from phase_bus.cli.journals import DataOption, find_run
from phase_bus.cli.options import JsonOption
from phase_bus.cli.output import make_console, print_json
from phase_bus.errors import ConfigError
from phase_bus.events import Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.receipts import is_whole, ledger, ledger_table

NOT_WHOLE = 3


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
        said = reader.events(found.row.run_id, Receipt)
    if not said:
        raise ConfigError(
            f"there are no receipts for run {found.row.run_id!r} in {str(found.journal)!r}: no consumer "
            "has handled its end yet; 'phase-bus runs' shows whether it has ended"
        )
    rows, whole = ledger(said), is_whole(said)
    if json:
        print_json({"run_id": found.row.run_id, "whole": whole, "ledger": rows})
    else:
        console = make_console()
        console.print(ledger_table(rows))
        if not whole:
            console.print("not every consumer handled everything that was published for it", style="red")
    return 0 if whole else NOT_WHOLE
