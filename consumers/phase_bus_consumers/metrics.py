"""The ``metrics`` consumer: events, counts and durations of each phase, and verdicts, in a JSON file.

The file is replaced as a whole after each event, or a little later if there are many, so it can be read at
any time while runs go on.
:class:`ExampleMetricsCollectorHook` writes the same file from inside a load generator, without a bus.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
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
    Verdict,
    printable_json,
)
from phase_bus_consumers.run_files import KEPT_RUNS, Pace, Pieces

logger = logging.getLogger(__name__)

_COUNTS = [field.name for field in msgspec.structs.fields(PhaseStats) if type(field.default) is int]
# Of each phase and of each run: more come from a publisher that repeats itself.
_EVENTS, _PHASES, _THRESHOLDS = 100, 100, 100


class Moment(Struct, frozen=True):
    """The kind of an event, and when it happened: Unix time in ns."""

    kind: str
    ts_ns: int


class Phase(Struct, kw_only=True):
    """A phase so far; ``requests_cut`` counts the requests cut off at the end of the grace period.

    Of too many ``events`` the first ones are here, and ``events_left_out`` counts the others.
    """

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
    events_left_out: int = 0

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
        if len(self.events) < _EVENTS:
            self.events.append(Moment(event.kind, event.ts_ns))
        else:
            self.events_left_out += 1


class Threshold(Struct, frozen=True):
    """How a threshold stands, by the last verdict on it; ``value`` and ``limit`` are in ``unit``."""

    phase: str
    state: str
    final: bool
    value: float | None
    limit: float | None
    unit: str
    samples: int
    reason: str
    ts_ns: int

    @classmethod
    def of(cls, verdict: Verdict) -> Threshold:
        """Return what a verdict says."""
        return cls(*(getattr(verdict, name) for name in cls.__struct_fields__))


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
    phase_events_left_out: int = 0
    thresholds: dict[str, Threshold] = {}

    def take(self, event: EventBase) -> None:
        """Update the run."""
        match event:
            case PhaseEvent():
                name = event.phase.name
                if name in self.phases or len(self.phases) < _PHASES:
                    self.phases.setdefault(name, Phase(kind=event.phase.kind)).take(event)
                else:
                    self.phase_events_left_out += 1
            case RunStart():
                self.start_ns, self.producer, self.models = event.ts_ns, event.producer, event.models
            case RunComplete():
                self.end_ns, self.records = event.ts_ns, event.records
                self.status, self.reason = event.status, event.reason
            case Verdict():
                if event.threshold in self.thresholds or len(self.thresholds) < _THRESHOLDS:
                    self.thresholds[event.threshold] = Threshold.of(event)


class _File(Struct):
    runs: dict[str, Run]
    runs_left_out: int = 0


class PhaseMetrics(Consumer):
    """Keep events, counts and durations of each phase, and how thresholds stand, in a JSON file.

    Args:
        output: the file: ``{"runs": {run_id: {"status": ..., "phases": {...}}}, "runs_left_out": 0}``.
            Runs that are already in it stay.
        keep_runs: how many runs it holds, the latest ones; it says how many were left out.
    """

    def __init__(self, output: Path = Path("phase-bus-metrics.json"), keep_runs: int = KEPT_RUNS) -> None:
        if keep_runs < 1:
            raise ValueError(f"keep_runs must be at least 1, not {keep_runs}")
        self.output = output
        self.keep_runs = keep_runs
        self._runs: dict[str, Run] = {}
        self._left_out = 0
        self._pieces, self._pace = Pieces(), Pace()
        self._changed = True
        self._file: OutputFile | None = None

    async def start(self) -> None:
        self._file = self.open_output(self.output, "output")
        kept = _read_runs(self.output)
        self._runs, self._left_out = kept.runs, kept.runs_left_out
        if self._runs:
            self.log.info("earlier runs stay in the file", output=str(self.output), runs=len(self._runs))
        self._write()

    async def flush(self) -> None:
        if self._changed:
            self._write()

    async def _take(self, event: EventBase) -> None:
        run = self._runs.pop(event.run_id, None) or Run()
        self._runs[event.run_id] = run  # the latest one now
        run.take(event)
        self._changed = True
        self._pieces.changed(event.run_id)
        if self._pace.due:
            with suppress(OSError):  # flush says so: the event itself is handled
                self._write()

    # One method under several names: the names decide what is subscribed to.
    on_run_start = on_run_complete = _take
    on_phase_start = on_phase_sending_complete = on_phase_timeout = on_phase_complete = _take
    on_phase_progress = _take

    async def on_verdict(self, event: Verdict) -> None:
        if event.run_id in self._runs:  # a verdict alone makes no run
            await self._take(event)

    def _write(self) -> None:
        assert self._file is not None, "not started"
        while len(self._runs) > self.keep_runs:
            del self._runs[next(iter(self._runs))]
            self._left_out += 1
        began_s = time.monotonic()
        self._file.replace(self._pieces.file(self._runs, self._left_out))
        self._changed = False
        self._pace.wrote(began_s)


class ExampleMetricsCollectorHook(EventHook):
    """Keep events, counts and durations of each phase in a JSON file.

    Args:
        output_file: the file: ``{"phases": {name: ...}}``. One that cannot be written is logged, and raised
            only in a process of its own: a hook must not disturb the load generator that calls it.
    """

    # The default is that of AIPerf's example plugin, whose users find their numbers there.
    def __init__(self, output_file: str | Path = "/tmp/phase_metrics.json") -> None:  # noqa: S108
        self.output_file = Path(output_file)
        self.phases: dict[str, Phase] = {}

    def take(self, event: PhaseEvent) -> None:
        if event.phase.name in self.phases or len(self.phases) < _PHASES:
            self.phases.setdefault(event.phase.name, Phase(kind=event.phase.kind)).take(event)
        try:
            file = OutputFile.of_process(self.output_file, "output_file")
            file.replace(_json({"phases": self.phases}))
        except (OSError, ConfigError) as error:
            if self.alone:
                raise
            logger.error("output_file %s cannot be written: %s", self.output_file, error)


def _read_runs(path: Path) -> _File:
    if not path.is_file() or not (content := path.read_bytes().strip()):
        return _File({})
    try:
        return msgspec.json.decode(content, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"output: {str(path)!r} holds something other than metrics of runs and is left unchanged; "
            "give another file with output=..."
        ) from error


def _json(document: dict[str, dict[str, Phase]]) -> str:
    return printable_json(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()) + "\n"
