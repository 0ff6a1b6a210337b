"""What runs came to, for the terminal of ``exec`` and ``up``: their results and ledgers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from rich.text import Text

from phase_bus.cli.output import text_width
from phase_bus.reporting.receipts import held_against, ledger_in_brief, ledger_table, print_losses

if TYPE_CHECKING:
    from rich.console import Console

    from phase_bus.harness.rig import Rig

_SHOWN_RUNS = 10  # whose results and ledgers are shown
_LOOK_S = 0.2


def show_results(rig: Rig, console: Console) -> None:
    """Show the results of the last runs, then their ledgers."""
    rig.progress.lines.begin_line()
    for run_id in list(rig.progress.results)[-_SHOWN_RUNS:]:
        _show_result(rig, console, run_id)
    shown = list(rig.progress.ended)[-_SHOWN_RUNS:]
    earlier = len(rig.progress.ended) - len(shown) + rig.progress.left_out
    if earlier and rig.config.consumers:
        rig.note(
            f"these are the last {len(shown)} runs; 'phase-bus runs' lists the {earlier} before them, and "
            "'phase-bus report' and 'phase-bus receipts' show each"
        )
    for run_id in shown:
        _show_ledger(rig, console, run_id)


async def show_each(rig: Rig, console: Console) -> None:
    """Show the result and the ledger of each run, once every consumer has given a receipt for it."""
    shown: set[str] = set()
    ended_s: dict[str, float] = {}
    while True:
        await asyncio.sleep(_LOOK_S)
        ended = [run_id for run_id, end in rig.progress.ended.items() if not end.running]
        shown.intersection_update(ended)
        ended_s = {run_id: ended_s.get(run_id, time.monotonic()) for run_id in ended if run_id not in shown}
        for run_id, since_s in ended_s.items():
            patience_s = rig.config.drain_timeout_s
            if not _silent(rig, run_id) or time.monotonic() - since_s > patience_s:
                shown.add(run_id)
                _show_result(rig, console, run_id)
                _show_ledger(rig, console, run_id)
                console.print()


def _show_result(rig: Rig, console: Console, run_id: str) -> None:
    from phase_bus.aggregation.text import render_text

    if (result := rig.progress.results.get(run_id)) is not None:
        console.print()
        text = render_text(result, brief=True, width=text_width(console))
        console.print(Text(text.rstrip("\n")), soft_wrap=True)


def _show_ledger(rig: Rig, console: Console, run_id: str) -> None:
    """Show what became of a run's events at each consumer."""
    if not rig.config.consumers:
        return
    said = [receipt for (run, _), receipt in rig.progress.receipts.items() if run == run_id]
    said = held_against(said, rig.progress.ended[run_id])
    console.print()
    console.print(f"Ledger of run {run_id}, in events:", soft_wrap=True)
    console.print(ledger_table(ledger_in_brief(said)))
    print_losses(said, console)
    for name in _silent(rig, run_id):
        console.print(f"{name} gave no receipt", style="red", soft_wrap=True)


def _silent(rig: Rig, run_id: str) -> list[str]:
    """Return the consumers that gave no receipt for a run."""
    return sorted(c.title for c in rig.config.consumers if (run_id, c.title) not in rig.progress.receipts)
