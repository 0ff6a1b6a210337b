"""The ``metrics`` consumer: events, counts and durations of each phase, in a JSON file.

The file is replaced as a whole after each event, so it can be read at any time while runs go on.
:class:`ExampleMetricsCollectorHook` writes the same file from inside a load generator, without a bus.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from phase_bus import (
    ConfigError,
    Consumer,
    EventBase,
    EventHook,
    OutputFile,
    PhaseComplete,
    PhaseEvent,
    PhaseProgress,
    PhaseSendingComplete,
    PhaseStats,
    PhaseTimeout,
    RunComplete,
    RunStart,
    printable_json,
)

logger = logging.getLogger(__name__)

_COUNTS = [field.name for field in msgspec.structs.fields(PhaseStats) if type(field.default) is int]
_KEPT_RUNS = 500  # the whole file is written each time, so it must stay small on a bus that never stops


class Moment(Struct, frozen=True):
    """The kind of an event, and when it happened: Unix time in ns."""

    kind: str
    ts_ns: int


class Phase(Struct, kw_only=True):
    """A phase so far; ``requests_cut`` counts the requests cut off at the end of the grace period."""

    kind: str
    state: Literal["sending", "waiting", "complete"] = "sending"
    timed_out: bool = False
    requests_cut: int = 0
    counts: dict[str, int] = {}
    expected_requests: int | None = None
    start_ns: int | None = None
    sending_duration_s: float | None = None
    duration_s: float | None = None
    events: list[Moment] = []

    def take(self, event: PhaseEvent) -> None:
        """Update the phase."""
        stats = event.stats
        self.counts = {name: getattr(stats, name) for name in _COUNTS}
        self.expected_requests = stats.expected_requests
        self.start_ns = stats.start_ns
        self.sending_duration_s = stats.sending_duration_s
        self.duration_s = stats.duration_s
        match event:
            case PhaseProgress():
                return  # too many to list
            case PhaseSendingComplete():
                self.state = "waiting"
            case PhaseTimeout():
                self.timed_out, self.requests_cut = True, event.requests_cut
            case PhaseComplete():
                self.state = "complete"
        self.events.append(Moment(event.kind, event.ts_ns))


class Run(Struct, kw_only=True):
    """A run so far: its status is ``running`` until it is over."""

    status: str = "running"
    reason: str = ""
    producer: str = ""
    models: tuple[str, ...] = ()
    start_ns: int | None = None
    end_ns: int | None = None
    records: int | None = None
    phases: dict[str, Phase] = {}

    def take(self, event: EventBase) -> None:
        """Update the run."""
        match event:
            case PhaseEvent():
                name = event.phase.name
                self.phases.setdefault(name, Phase(kind=event.phase.kind)).take(event)
            case RunStart():
                self.start_ns, self.producer, self.models = event.ts_ns, event.producer, event.models
            case RunComplete():
                self.end_ns, self.records = event.ts_ns, event.records
                self.status, self.reason = event.status, event.reason


class _File(Struct):
    runs: dict[str, Run]


class PhaseMetrics(Consumer):
    """Keep events, counts and durations of each phase in a JSON file, while the run goes on.

    Args:
        output: the file: ``{"runs": {run_id: {"status": ..., "phases": {name: ...}}}}``. Runs that are
            already in it stay.
    """

    def __init__(self, output: Path = Path("phase-bus-metrics.json")) -> None:
        self.output = output
        self._runs: dict[str, Run] = {}
        self._file: OutputFile | None = None

    async def start(self) -> None:
        self._file = self.open_output(self.output, "output")
        self._runs = _read_runs(self.output)
        if self._runs:
            self.log.info("earlier runs stay in the file", output=str(self.output), runs=len(self._runs))
        self._write()

    async def flush(self) -> None:
        self._write()  # again, in case the last write failed

    async def _take(self, event: EventBase) -> None:
        self._runs.setdefault(event.run_id, Run()).take(event)
        if len(self._runs) > _KEPT_RUNS:
            del self._runs[next(iter(self._runs))]
        self._write()

    # One method under several names: the names decide what is subscribed to.
    on_run_start = on_run_complete = _take
    on_phase_start = on_phase_sending_complete = on_phase_timeout = on_phase_complete = _take
    on_phase_progress = _take

    def _write(self) -> None:
        assert self._file is not None, "not started"
        self._file.replace(_json({"runs": self._runs}))


class ExampleMetricsCollectorHook(EventHook):
    """Keep events, counts and durations of each phase in a JSON file.

    Args:
        output_file: the file: ``{"phases": {name: ...}}``. One that cannot be written is logged, and raised
            only in a process of its own: a hook must not disturb the load generator that calls it.
    """

    def __init__(self, output_file: str | Path = "/tmp/phase_metrics.json") -> None:
        self.output_file = Path(output_file)
        self.phases: dict[str, Phase] = {}

    def take(self, event: PhaseEvent) -> None:
        self.phases.setdefault(event.phase.name, Phase(kind=event.phase.kind)).take(event)
        try:
            file = OutputFile.of_process(self.output_file, "output_file")
            file.replace(_json({"phases": self.phases}))
        except (OSError, ConfigError) as error:
            if self.alone:
                raise
            logger.error("output_file %s cannot be written: %s", self.output_file, error)


def _read_runs(path: Path) -> dict[str, Run]:
    if not path.is_file() or not (content := path.read_bytes().strip()):
        return {}
    try:
        return msgspec.json.decode(content, type=_File).runs
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"output: {str(path)!r} holds something other than metrics of runs and is left unchanged; "
            "give another file with output=..."
        ) from error


def _json(document: dict[str, dict[str, Run]] | dict[str, dict[str, Phase]]) -> str:
    return printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()) + "\n"
