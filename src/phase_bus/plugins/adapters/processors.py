"""Post-processors in a process of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus.consumer.consumer import Consumer
from phase_bus.errors import PhaseBusError
from phase_bus.events import EventBase, PhaseComplete, Records, RunComplete, Summary
from phase_bus.plugins.adapters.parts import Part, awaited
from phase_bus.plugins.adapters.runs import Phase, Run, SavedPhase, Store
from phase_bus.plugins.adapters.spill import PhaseResults

_KEPT_ENDS = 1000  # of runs that are over, so that what comes late is known to be
_SHOWN = 400  # characters of a result's metrics in the log


class TooLateError(PhaseBusError):
    """Something came after the processors had its phase or run."""


class _Saved(Struct):
    directory: str
    runs: dict[str, list[SavedPhase]]
    ended: list[str]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Saved).decode


class ProcessorConsumer(Consumer):
    """Calls post-processors with the results of each phase, in the order of their priority.

    A phase is processed as soon as it and those before it are over and each of its requests has its
    record, at the latest when the run ends: requests that were cut off bring none. Until the run ends
    the records wait in a file, so that a process that takes over has them all.

    Each run has processors of its own. One that raises is not called again for that phase, and does not
    keep it from the others; the event is set aside.

    Args:
        parts: the processors, in order.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._store = Store()
        self._runs: dict[str, Run] = {}
        self._ended: dict[str, None] = {}
        self._failed: tuple[EventBase, list[Exception]] | None = None

    async def flush(self) -> None:
        """See that the records outlive this process: the position is about to move beyond them."""
        for phase in self._phases():
            if phase.spill is not None:
                phase.spill.sync()
        self._store.tidy()

    async def stop(self) -> None:
        """Leave the records of runs that go on to the next process."""
        for phase in self._phases():
            if phase.spill is not None:
                phase.spill.close()
        self._store.close(empty=not self._runs)

    def state(self) -> bytes:
        """Return which records wait where."""
        runs = {run_id: [_saved(p) for p in run.phases.values()] for run_id, run in self._runs.items()}
        return _encode(_Saved(str(self._store.directory or ""), runs, list(self._ended)))

    def restore(self, state: bytes) -> None:
        """Go on from a state.

        Raises:
            ConfigError: the records are gone.
        """
        saved = _decode(state)
        self._ended = dict.fromkeys(saved.ended)
        self._runs = self._store.open(saved.directory, saved.runs)

    async def on_records(self, event: Records) -> None:
        """Keep the records; process their phase if they are the last."""
        run = self._run(event)
        if run.over:
            return
        phase = run.phase(event.phase)
        if phase.processed:
            raise TooLateError(f"{event.count} records came after phase {event.phase} was processed")
        self._store.append(phase, event, self.journal_id, self.name)
        await self._process_whole_ones(event, run)

    async def on_phase_complete(self, event: PhaseComplete) -> None:
        """Process the phase, if all its records are there."""
        run = self._run(event)
        if run.over:
            return
        run.phase(event.phase).complete(event.stats)
        await self._process_whole_ones(event, run)

    async def on_run_complete(self, event: RunComplete) -> None:
        """Process what is left, and let go of the run."""
        run = self._run(event)
        left = [] if run.over else [phase for phase in run.in_order() if not phase.processed]
        records = sum(phase.count for phase in run.phases.values())
        whole = records == event.records
        if left and not whole:
            self.log.warning(
                "not all records came", run_id=event.run_id, records=records, expected=event.records
            )
        failures: list[Exception] = []
        for phase in left:
            failures += await self._process(event.run_id, run, phase, final=whole or phase.whole)
        self._store.finish(run)
        del self._runs[event.run_id]
        self._ended[event.run_id] = None
        while len(self._ended) > _KEPT_ENDS:
            del self._ended[next(iter(self._ended))]
        self._tell(event, failures)

    def _run(self, event: EventBase) -> Run:
        """Return an event's run; raise again what the processors raised on this event.

        Raises:
            TooLateError: the run is over.
        """
        if self._failed is not None and self._failed[0] is event:
            self._tell(*self._failed)
        if event.run_id in self._ended:
            raise TooLateError(
                f"run {event.run_id} is over, and its records are no longer kept here; "
                "to process it again, take them from the journal with --from start"
            )
        run = self._runs.get(event.run_id, Run())
        if run.processors is None:
            run.processors = [(part.name, part.make()) for part in self._parts]
        self._runs[event.run_id] = run
        return run

    async def _process_whole_ones(self, event: EventBase, run: Run) -> None:
        failures: list[Exception] = []
        for phase in run.in_order():
            if not phase.processed:
                if not phase.whole:
                    break
                failures += await self._process(event.run_id, run, phase, final=True)
        self._tell(event, failures)

    async def _process(self, run_id: str, run: Run, phase: Phase, *, final: bool) -> list[Exception]:
        """Have a phase processed; return what the processors raised."""
        phase.processed = True
        failures: list[Exception] = []
        for name, processor in run.processors or ():
            try:
                results = PhaseResults(phase.spill)
                result = _document(await awaited(processor.process(results)), len(results))
            except Exception as error:
                error.add_note(f"in processor {name!r}, phase {phase.ref.name!r} of run {run_id}")
                failures.append(error)
                result = {"success": False, "record_count": phase.count, "error": repr(error)}
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
        """Raise what processors raised, so that the event is set aside and the receipt says so."""
        if failures:
            self._failed = event, failures
            raise ExceptionGroup("a processor failed", failures)

    def _phases(self) -> list[Phase]:
        return [phase for run in self._runs.values() for phase in run.phases.values()]


def _saved(phase: Phase) -> SavedPhase:
    spill = phase.spill
    return SavedPhase(
        phase.ref, phase.requests, spill.path.name if spill else "", spill.size if spill else 0
    )


def _document(outcome: Any, count: int) -> dict[str, Any]:
    """Return a processor's result as the plain dict of a ``summary`` event.

    A ``ProcessingResult`` is anything with ``success``, as an attribute or key; a dict without it is
    taken for the metrics.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(outcome, Mapping):
        fields = outcome if "success" in outcome else {"success": True, "metrics": outcome}
    elif hasattr(outcome, "success"):
        fields = {name: getattr(outcome, name, None) for name in _FIELDS}
    else:
        raise TypeError(f"process() returned {outcome!r:.80}, which is no ProcessingResult")
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
