"""Publishes a run of AIPerf from inside its RecordsManager.

Whatever happens here, AIPerf's results, duration and exit code do not change: every method is fenced, and
nothing waits except :meth:`RunExporter.stop`, for less than AIPerf waits there anyway.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from phase_bus.aiperf.ending import RunEnd
from phase_bus.aiperf.listener import BusListener, Fence
from phase_bus.aiperf.mapping import (
    RECORD_FIELDS,
    Outcome,
    outcome_of,
    plans_of_run,
    record_error,
    record_fields,
    run_start,
)
from phase_bus.aiperf.options import Options, module_of_aiperf, refused
from phase_bus.aiperf.phase_log import PhaseLog
from phase_bus.errors import PhaseBusError
from phase_bus.events import Drop, PhasePlan, PhasesConfigured
from phase_bus.publisher.publisher import Publisher

logger = logging.getLogger("phase_bus.aiperf")

# AIPerf kills its services 0.5 s after telling them to stop, and logs a warning for each that is still
# alive then. These two together stay well below. With a spool_dir, SPOOL_S of DELIVER_S is for the
# file: if it is begun later, it may not be finished when the process is killed.
SETTLE_S = 0.15
DELIVER_S = 0.15
SPOOL_S = 0.07
_STEP_S = 0.01
_MIB = 1 << 20


class RunExporter:
    """Publishes one run of AIPerf: its start, its phases, its records, its end.

    Phases come from the stats that AIPerf hands over in process, which are not lost to a slow
    subscription; only the two messages that say how the run ended come from its event bus
    (:class:`~phase_bus.aiperf.ending.RunEnd`). ``run`` is AIPerf's ``BenchmarkRun``.

    Raises:
        Exception: if the options are wrong; AIPerf goes on without the plugin.
    """

    is_best_effort = True

    def __init__(self, run: Any, options: Options) -> None:
        self._fence = Fence()
        self._run_id = str(run.benchmark_id)
        self._start = run_start(run, _aiperf_version())
        self._plans = _plans(run)
        self._log = PhaseLog(self._run_id)
        self._end = RunEnd()
        self._finalized = False
        self._publisher = _publisher(options)
        self._deliver_s = DELIVER_S - SPOOL_S if options.spool_dir else DELIVER_S
        self._record = self._publisher.record
        self._listener = _listener(run, self._on_message, self._on_tick)

    async def initialize(self) -> None:
        """Publish the run's start and the phases to come."""
        with self._fence.around("initialize"):
            if self._listener is not None:
                self._listener.start()
            self._publisher.publish(self._start)
            if self._plans:
                self._publisher.publish(PhasesConfigured(run_id=self._run_id, phases=self._plans))

    async def start(self) -> None:
        """Do nothing: :meth:`initialize` has done everything."""

    async def process_record(self, record: Any) -> None:
        """Publish a request's record, or the events that follow from a phase's stats."""
        # Not Fence.around: this runs for every request, and that would cost as much as the work.
        try:
            if record.record_type != "metric_records":
                for event in self._log.update(record):
                    self._publisher.publish(event)
            elif not self._finalized or self._end.record(time.monotonic()):
                metadata, error = record.metadata, record.error
                self._record(
                    self._run_id,
                    self._log.ref(metadata),
                    record.metrics,
                    record_fields(metadata),
                    None if error is None else record_error(error),
                )
        except Exception as error:
            self._fence.catch("process_record", error)

    async def finalize(self) -> None:
        """Note that records are late from now on, without waiting for anything."""
        self._finalized = True

    async def stop(self) -> None:
        """End the run with what is known, and deliver what the bus takes within ``DELIVER_S``."""
        with self._fence.around("stop"):
            try:
                await self._settle()
                self._complete(self._end.take(time.monotonic(), self._best_guess()))
                self._report_late()
            finally:
                if self._listener is not None:
                    self._listener.stop()
                self._fence.report()
                await self._close()

    # ---- the end; from the listener's thread as well ----

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic == "all_records_received":
            self._end.all_records_in()
            return
        self._end.results(outcome_of(payload), time.monotonic())

    async def _settle(self) -> None:
        """Wait a moment for late records and AIPerf's results, so that the end comes last and is right."""
        deadline_s = time.monotonic() + SETTLE_S
        while not self._end.over and time.monotonic() < deadline_s:
            self._on_tick()
            await asyncio.sleep(_STEP_S)

    def _on_tick(self) -> None:
        self._complete(self._end.take(time.monotonic()))

    def _complete(self, how: Outcome | None) -> None:
        if how is not None:
            self._publisher.complete_run(self._run_id, how.status, how.reason)

    def _best_guess(self) -> Outcome:
        """Return how the run ended as far as that can be said without AIPerf's results."""
        if not self._finalized:
            return Outcome("failed", "AIPerf stopped before it had results")
        ended = self._log.ended(len(self._plans))
        return Outcome("completed" if ended else "cancelled", "AIPerf's results were not seen")

    def _report_late(self) -> None:
        if late := self._end.late:
            reason = "records came after the run's end had been published"
            logger.warning("phase-bus: %d %s", late, reason)
            self._publisher.publish(Drop(run_id=self._run_id, source="aiperf", reason=reason, records=late))

    async def _close(self) -> None:
        """Close the publisher without blocking AIPerf's event loop; do not wait for an absent bus."""
        timeout_s = self._deliver_s if self._publisher.connected else 0.0
        # Not asyncio.to_thread: its threads keep a process alive, this one does not.
        closing = threading.Thread(
            target=self._publisher.close, args=(timeout_s,), name="phase-bus-close", daemon=True
        )
        closing.start()
        for _ in range(int(DELIVER_S / _STEP_S)):
            if not closing.is_alive():
                break
            await asyncio.sleep(_STEP_S)


def _publisher(options: Options) -> Publisher:
    try:
        return Publisher(
            options.address,
            name="aiperf",
            buffer_bytes=int(options.buffer_mib * _MIB),
            lists=options.lists,
            field_names=RECORD_FIELDS,
            spool_dir=options.spool_dir or None,
            key_file=options.key_file,
        )
    except PhaseBusError as error:
        raise refused(str(error)) from None


def _plans(run: Any) -> tuple[PhasePlan, ...]:
    try:
        return plans_of_run(run)
    except Exception as error:
        logger.warning("phase-bus: the plan of phases could not be read: %r", error)
        return ()


def _listener(
    run: Any, on_message: Callable[[str, bytes], None], on_tick: Callable[[], None]
) -> BusListener | None:
    try:
        backend = module_of_aiperf("common.enums").CommAddress.EVENT_BUS_PROXY_BACKEND
        address = run.comm_config.get_address(backend)
        topics = ("all_records_received", "process_records_result")
        return BusListener(str(address), topics, on_message, on_tick)
    except Exception as error:
        logger.warning("phase-bus: AIPerf's event bus could not be found: %r", error)
        return None


def _aiperf_version() -> str:
    try:
        return importlib.metadata.version("aiperf")
    except importlib.metadata.PackageNotFoundError:
        return ""
