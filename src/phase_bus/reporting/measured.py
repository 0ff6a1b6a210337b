"""The figures of a past run for a comparison, from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phase_bus.comparison.blocks import Blocks, Span
from phase_bus.comparison.measure import Measure
from phase_bus.comparison.run import (
    Aspect,
    MeasuredRun,
    figures_of,
    inexact_of,
    is_measured,
    traits_of,
    values_of,
)
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event
from phase_bus.events import PhasesConfigured, Receipt, Records
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.receipts import held_against
from phase_bus.reporting.source import PastRun, compute
from phase_bus.reporting.sweep import why_left_out


def measure_run(
    journal: Path, run_id: str, measures: Sequence[Measure], *, blocks: bool = False
) -> MeasuredRun:
    """Return what is to be compared of a run.

    Args:
        blocks: whether also by blocks of its time, for which its records are read once more.

    Raises:
        JournalError, WireError: if the journal cannot be read.
    """
    past = compute(journal, run_id)
    assert past.phases is not None
    figures = figures_of(past.summary, past.phases)
    with JournalReader(journal) as reader:
        configured = reader.events(run_id, PhasesConfigured)
        receipts = held_against(reader.events(run_id, Receipt), past.end)
        in_blocks = _in_blocks(reader, past, measures) if blocks else {}
    faults: dict[Aspect, str] = {}
    if not past.is_complete:
        faults["incomplete"] = why_left_out(past)
    if short := [receipt.consumer for receipt in receipts if not receipt.complete]:
        faults["receipts"] = f"{', '.join(short)} did not handle everything"
    return MeasuredRun(
        run_id=run_id,
        journal=str(journal),
        started_ns=None if past.start is None else past.start.ts_ns,
        traits=traits_of(past.start, configured[-1].phases if configured else ()),
        faults=faults,
        requests=figures.requests,
        values=values_of(figures, measures),
        inexact=inexact_of(figures, measures),
        blocks=in_blocks,
    )


def _in_blocks(reader: JournalReader, past: PastRun, measures: Sequence[Measure]) -> dict[str, list[float]]:
    assert past.phases is not None
    spans = []
    for told, state in zip(past.summary["phases"], past.phases, strict=True):
        start_ns = told["start_ns"] or told["first_request_ns"]
        end_ns = told["end_ns"] or told["last_request_ns"]
        if is_measured(told["kind"]) and start_ns is not None and end_ns is not None:
            spans.append(Span(state.phase, start_ns, end_ns))
    blocks = Blocks(spans, measures)
    for entry in reader.entries(past.summary["run_id"]):
        if entry.kind == Records.kind and isinstance(
            event := decode_event(entry.topic, entry.payload), Records
        ):
            blocks.update(RecordBatch(event))
    return blocks.values()
