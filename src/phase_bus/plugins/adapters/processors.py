"""Post-processors in a process of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from operator import attrgetter
from typing import Any

import msgspec

from phase_bus.consumer.consumer import Consumer
from phase_bus.errors import PhaseBusError
from phase_bus.events import EventBase, PhaseComplete, PhaseRef, Records, RunComplete, Summary
from phase_bus.plugins.adapters.parts import Part, awaited
from phase_bus.plugins.adapters.results import PhaseResults

_KEPT_ENDS = 1000  # of runs that are over, so that what comes late is known to be
_OPEN_RUNS = 100  # more than this go on at once only if their ends were lost
_SHOWN = 400  # characters of a result's metrics in the log

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[str]).decode


class TooLateError(PhaseBusError):
    """Something came after the processors had its phase or run."""


@dataclass
class _Phase:
    """A phase whose run goes on; ``requests`` is None until it is over."""

    ref: PhaseRef
    results: PhaseResults = field(default_factory=PhaseResults)
    requests: int | None = None
    processed: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is over and each of its requests has its record."""
        return self.requests is not None and 0 < self.requests <= len(self.results)


class _Run:
    """A run that goes on, its processors, and the journal in which it was last heard of."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.processors = [(part.name, part.make()) for part in parts]
        self.journal_id = ""
        self._phases: dict[str, _Phase] = {}

    def phase(self, ref: PhaseRef) -> _Phase:
        """Return a phase."""
        return self._phases.setdefault(ref.name, _Phase(ref))

    def phases(self) -> list[_Phase]:
        """Return the phases, first to last."""
        return sorted(self._phases.values(), key=lambda phase: phase.ref.index)

    def close(self) -> None:
        """Let go of the records."""
        for phase in self._phases.values():
            phase.results.close()


class ProcessorConsumer(Consumer):
    """Calls post-processors with the results of each phase, in the order of their priority.

    A phase is processed as soon as it and those before it are over and each of its requests has its
    record, at the latest when the run ends: requests that were cut off bring none. While a run goes on, the
    checkpoint stays where it is, so that a process that takes over reads the run's records again.

    Each run has processors of its own. One that raises is not called again for that phase, and does not
    keep it from the others; the event becomes a dead letter.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._runs: dict[str, _Run] = {}
        self._ended: dict[str, None] = {}
        self._failed: tuple[EventBase, list[Exception]] | None = None

    async def flush(self) -> None:
        """Hold the checkpoint while a run goes on, unless that run's records are in another journal."""
        self.holds_checkpoint = any(run.journal_id == self.journal_id for run in self._runs.values())

    async def stop(self) -> None:
        """Let go of the records of runs that go on: the journal has them."""
        for run in self._runs.values():
            run.close()

    def state(self) -> bytes:
        """Return which runs are over."""
        return _encode(list(self._ended))

    def restore(self, state: bytes) -> None:
        """Go on from a state."""
        self._ended = dict.fromkeys(_decode(state))

    async def on_records(self, event: Records) -> None:
        """Keep the records; process their phase if they are the last."""
        run = self._run(event)
        phase = run.phase(event.phase)
        if phase.processed:
            raise TooLateError(f"{event.count} records came after phase {event.phase} was processed")
        phase.results.add(event)
        await self._process_whole_ones(event, run)

    async def on_phase_complete(self, event: PhaseComplete) -> None:
        """Process the phase, if all its records are there: no more can come than requests were sent."""
        run, stats = self._run(event), event.stats
        run.phase(event.phase).requests = max(stats.sent, stats.completed + stats.cancelled)
        await self._process_whole_ones(event, run)

    async def on_run_complete(self, event: RunComplete) -> None:
        """Process what is left, and let go of the run."""
        run = self._run(event)
        left = [phase for phase in run.phases() if not phase.processed]
        records = sum(len(phase.results) for phase in run.phases())
        whole = records == event.records
        if left and not whole:
            self.log.warning(
                "not all records came", run_id=event.run_id, records=records, expected=event.records
            )
        failures: list[Exception] = []
        for phase in left:
            failures += await self._process(event.run_id, run, phase, final=whole or phase.whole)
        self._runs.pop(event.run_id).close()
        self._ended[event.run_id] = None
        while len(self._ended) > _KEPT_ENDS:
            del self._ended[next(iter(self._ended))]
        self._tell(event, failures)

    def _run(self, event: EventBase) -> _Run:
        """Return an event's run unless that is over; raise again what processors raised on the event."""
        if self._failed is not None and self._failed[0] is event:
            self._tell(*self._failed)
        if event.run_id in self._ended:
            raise TooLateError(
                f"run {event.run_id} is over, and its records are no longer kept here; "
                "to process it again, take them from the journal with --from start"
            )
        run = self._runs.get(event.run_id)
        if run is None:
            run = self._runs[event.run_id] = _Run(self._parts)
            if len(self._runs) > _OPEN_RUNS:
                lost = next(iter(self._runs))
                self._runs.pop(lost).close()
                self.log.error("run given up: its end never came", run_id=lost)
        run.journal_id = self.journal_id
        return run

    async def _process_whole_ones(self, event: EventBase, run: _Run) -> None:
        failures: list[Exception] = []
        left = (phase for phase in run.phases() if not phase.processed)
        for phase in takewhile(attrgetter("whole"), left):
            failures += await self._process(event.run_id, run, phase, final=True)
        self._tell(event, failures)

    async def _process(self, run_id: str, run: _Run, phase: _Phase, *, final: bool) -> list[Exception]:
        """Have a phase processed; return what the processors raised."""
        phase.processed = True
        failures: list[Exception] = []
        for name, processor in run.processors:
            try:
                result = _document(await awaited(processor.process(phase.results)), len(phase.results))
            except Exception as error:
                error.add_note(f"in processor {name!r}, phase {phase.ref.name!r} of run {run_id}")
                failures.append(error)
                result = {"success": False, "record_count": len(phase.results), "error": repr(error)}
            result = {"processor": name, "phase": phase.ref.name, **result}
            self.publish(Summary(run_id=run_id, producer=self.name, final=final, result=result))
            self._log(run_id, result)
        return failures

    def _log(self, run_id: str, result: dict[str, Any]) -> None:
        metrics = str(result.get("metrics"))
        shown = {k: v for k, v in result.items() if v is not None and k not in ("success", "metrics")}
        if result["success"]:
            short = metrics if len(metrics) <= _SHOWN else metrics[:_SHOWN] + " ..."
            self.log.info("phase processed", run_id=run_id, **shown, metrics=short)
        else:
            self.log.error("phase not processed", run_id=run_id, **shown)

    def _tell(self, event: EventBase, failures: list[Exception]) -> None:
        """Raise what processors raised, so that the event becomes a dead letter and the receipt says so."""
        if failures:
            self._failed = event, failures
            raise ExceptionGroup("a processor failed", failures)


def _document(outcome: Any, count: int) -> dict[str, Any]:
    """Return a processor's result as the plain dict of a ``summary`` event.

    A ``ProcessingResult`` is anything with ``success``, as an attribute or key; a dict without it is
    taken for the metrics, and anything else is a TypeError.
    """
    if isinstance(outcome, Mapping):
        fields = outcome if "success" in outcome else {"success": True, "metrics": outcome}
    elif hasattr(outcome, "success"):
        fields = {name: getattr(outcome, name, None) for name in _FIELDS}
    else:
        raise TypeError(f"process() returned {outcome!r:.80}, which is not a ProcessingResult")
    document = {name: fields.get(name) for name in _FIELDS}
    document["success"] = bool(document["success"])
    if document["record_count"] is None:
        document["record_count"] = count
    plain: dict[str, Any] = msgspec.to_builtins(document, enc_hook=_plain, str_keys=True)
    return plain


_FIELDS = ("success", "record_count", "metrics", "error", "output_file")


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays as plain ones, and anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
