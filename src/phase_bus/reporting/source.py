"""The sources of a report: the journal's records, or a summary that a consumer published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.state import RunState
from phase_bus.aggregation.summary import RunResult
from phase_bus.core.wire import decode_event
from phase_bus.errors import ConfigError, suggest
from phase_bus.events import BEGIN_NO_RUN, RunComplete, RunStart, Summary
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.receipts import last_end


class PastRun(Struct, frozen=True, kw_only=True):
    """A run that is, or was, on a bus.

    Attributes:
        summary: its result, as :func:`~phase_bus.aggregation.summary.summarize` makes it.
        start: its start, None if that is not in the journal.
        end: its end, None while it goes on.
        phases: the states of its phases, in their order; None if a consumer made the summary.
        by: the consumer that made the summary, None if it was made from the journal's records.
        damage: what of it is damaged in the journal, and therefore left out, in words; empty for nothing.
    """

    summary: dict[str, Any]
    start: RunStart | None = None
    end: RunComplete | None = None
    phases: list[PhaseState] | None = None
    by: str | None = None
    damage: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether the run completed and everything it published is in the summary."""
        whole = self.summary["status"] == "completed" and self.summary["complete"]
        return bool(whole and not self.damage)

    @property
    def is_whole(self) -> bool:
        """Whether the run goes on, or everything that there ever was of it is in the summary."""
        return not self.damage and (self.end is None or bool(self.summary.get("complete", True)))


def compute(journal: Path, run_id: str) -> PastRun:
    """Return a run with the result computed from its events in the journal.

    The last end of the run counts: one that was taken for lost, and came back, went on.

    Raises:
        JournalError, WireError: if the journal cannot be read.
    """
    result = RunResult(RunState(run_id))
    start = None
    with JournalReader(journal) as reader:
        missing = sum(stream.events for stream in reader.streams(run_id))
        for entry in reader.entries(run_id):
            missing -= 1
            event = decode_event(entry.topic, entry.payload)
            if event is None or event.kind in BEGIN_NO_RUN:
                continue
            result.end = None
            if isinstance(event, RunStart):
                start = start or event
            else:
                result.take(event)
        damage = reader.damage(missing)
    phases = result.state.phases()
    return PastRun(summary=result.summary(), start=start, end=result.end, phases=phases, damage=damage)


def published(journal: Path, run_id: str, consumer: str) -> PastRun:
    """Return a run with the last summary of it that a consumer published.

    Raises:
        ConfigError: if the consumer published no summary of the run.
        JournalError, WireError: if the journal cannot be read.
    """
    with JournalReader(journal) as reader:
        last = {event.producer: event for event in reader.events(run_id, Summary)}
        if consumer not in last:
            known = suggest(consumer, last) or "; no consumer did"
            raise ConfigError(
                f"--by {consumer!r}: no consumer of this name published a summary of run {run_id!r}{known}"
            )
        start = next(iter(reader.events(run_id, RunStart)), None)
        ends = reader.events(run_id, RunComplete)
        damage = reader.damage()
    return PastRun(
        summary=last[consumer].result,
        start=start,
        end=last_end(ends),
        by=consumer,
        damage=damage,
    )
