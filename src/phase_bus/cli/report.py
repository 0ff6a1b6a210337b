"""``phase-bus report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phase_bus.bus.journal_reader import JournalReader
from phase_bus.cli.journals import DataOption, find_run, print_json
from phase_bus.cli.options import JsonOption
from phase_bus.past import read_entries
from phase_bus.wire import decode_event

if TYPE_CHECKING:
    from phase_bus.aggregation.result import RunResult


def report(run: str, *, data: DataOption = None, json: JsonOption = False) -> None:
    """Show the result of a past run, computed from the journal alone.

    The numbers are those of the consumer 'aggregator' with its default options, whether or not one was
    running.

    For example:

        phase-bus report latest

        phase-bus report 3f2a9c01d4e5 --json

    Args:
        run: The run's id, as 'phase-bus runs' lists it, or 'latest'.
    """
    from phase_bus.aggregation.summary import render_text

    found = find_run(run, data)
    summary = _result(found.journal, found.row.run_id).summary()
    if json:
        print_json(summary)
    else:
        print(render_text(summary), end="")


def _result(journal: Path, run_id: str) -> RunResult:
    from phase_bus.aggregation.result import RunResult
    from phase_bus.aggregation.state import RunState

    result = RunResult(RunState(run_id))
    with JournalReader(journal) as reader:
        for entry in read_entries(reader, run_id):
            event = decode_event(entry.topic, entry.payload)
            if event is not None:
                result.take(event)
            if result.final:  # nothing changes it any more, in the aggregator neither
                break
    return result
