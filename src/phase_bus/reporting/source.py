"""The sources of a report: the journal's records, or a summary that a consumer published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct

from phase_bus.aggregation.log_bins import SCALE
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.state import RunState
from phase_bus.aggregation.summary import RunResult
from phase_bus.core.wire import decode_event
from phase_bus.errors import ConfigError, suggest
from phase_bus.events import (
    BEGIN_NO_RUN,
    PhasePlan,
    PhasesConfigured,
    RunComplete,
    RunStart,
    Summary,
    Verdict,
)
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.receipts import last_end
from phase_bus.reporting.verdicts import ended_because, last_verdicts


class PastRun(Struct, frozen=True, kw_only=True):
    """A run that is, or was, on a bus.

    Attributes:
        summary: its result, as :func:`~phase_bus.aggregation.summary.summarize` makes it.
        start: its start, None if that is not in the journal.
        end: its end, None while it goes on.
        plans: what its phases were to do, as far as that was told.
        phases: the states of its phases, in their order; None if a consumer made the summary.
        by: the consumer that made the summary, None if it was made from the journal's records.
        verdicts: all verdicts on its thresholds, in the order of the journal.
        ended_because: why it ended early, in words, if a threshold that ends it had failed; else empty.
        damage: what of it is damaged in the journal, and therefore left out, in words; empty for nothing.
    """

    summary: dict[str, Any]
    start: RunStart | None = None
    end: RunComplete | None = None
    plans: tuple[PhasePlan, ...] = ()
    phases: list[PhaseState] | None = None
    by: str | None = None
    verdicts: tuple[Verdict, ...] = ()
    ended_because: str = ""
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

    @property
    def last_verdicts(self) -> list[Verdict]:
        """The last verdict of each consumer on each threshold."""
        return last_verdicts(self.verdicts, over=self.end is not None)


def compute(journal: Path, run_id: str, *, fine: bool = False) -> PastRun:
    """Return a run with the result computed from its events in the journal.

    The last end of the run counts: one that was taken for lost, and came back, went on.

    Args:
        fine: for plots: the percentiles over time are as fine as those of whole phases.

    Raises:
        JournalError, WireError: if the journal cannot be read.
    """
    result = RunResult(RunState(run_id, Options(window_scale=SCALE) if fine else Options()))
    start = None
    plans: tuple[PhasePlan, ...] = ()
    verdicts = []
    with JournalReader(journal) as reader:
        missing = sum(stream.events for stream in reader.streams(run_id))
        for entry in reader.entries(run_id):
            missing -= 1
            event = decode_event(entry.topic, entry.payload)
            if isinstance(event, Verdict):
                verdicts.append(event)
            if event is None or event.kind in BEGIN_NO_RUN:
                continue
            result.end = None
            if isinstance(event, RunStart):
                start = start or event
            elif isinstance(event, PhasesConfigured):
                plans = event.phases
            else:
                result.take(event)
        because = ended_because(reader, run_id)
        damage = reader.damage(missing)
    phases = result.state.phases()
    return PastRun(
        summary=result.summary(),
        start=start,
        end=result.end,
        plans=plans,
        phases=phases,
        verdicts=tuple(verdicts),
        ended_because=because,
        damage=damage,
    )


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
        configured = reader.events(run_id, PhasesConfigured)
        ends = reader.events(run_id, RunComplete)
        verdicts = reader.events(run_id, Verdict)
        because = ended_because(reader, run_id)
        damage = reader.damage()
    return PastRun(
        summary=last[consumer].result,
        start=start,
        end=last_end(ends),
        plans=configured[-1].phases if configured else (),
        by=consumer,
        verdicts=tuple(verdicts),
        ended_because=because,
        damage=damage,
    )
