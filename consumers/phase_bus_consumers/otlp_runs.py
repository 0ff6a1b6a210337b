"""What the ``otlp`` sink knows of a run: what was counted so far, by phase, and when it is to be sent."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Struct, convert, to_builtins

from phase_bus import EventBase, PhaseEvent, PhaseRef, RecordBatch, RunStart, Verdict
from phase_bus.aggregation import MetricState, Options, describe

Temporality: TypeAlias = Literal["cumulative", "delta"]

# The columns of records that are sent as histograms. A failed request has no latency of its own, so its
# duration is counted by its times, under the type of its error.
LATENCY = "request_latency"
COLUMNS = (
    LATENCY,
    "time_to_first_token",
    "input_sequence_length",
    "output_sequence_length",
    "inter_token_latency",
)

_OPTIONS = Options(exact_limit=0, window_metrics=())  # no values are kept, only histograms
_MAX_PHASES = 100
_OTHER_PHASES = PhaseRef("other phases", "profiling", (1 << 63) - 1)
_MAX_THRESHOLDS = 100
_MAX_ERROR_TYPES = 100  # in a phase
_OTHER_ERRORS = "_OTHER"
_LONGEST_TYPE = 200
_TIMES = ("request_start_ns", "request_end_ns")
_NO_TIMES: Mapping[str, Any] = dict.fromkeys(_TIMES)


class Mark(Struct, frozen=True):
    """Something that happened in a phase, at a Unix time in ns."""

    ts_ns: int
    name: str


class Counts(Struct, frozen=True):
    """What a batch of records adds to its phase.

    Attributes:
        requests: how many records it has.
        values: those of each column, as far as there are any.
        durations_ns: how long failed requests took, None if it is not known, by the type of error.
    """

    requests: int
    values: dict[str, npt.NDArray[Any]]
    durations_ns: dict[str, list[float | None]]

    @classmethod
    def of(cls, batch: RecordBatch) -> Counts:
        """Read them.

        Raises:
            WireError: if the batch is damaged.
        """
        columns = {name: numbers(batch, name) for name in COLUMNS}
        values = {name: column for name, column in columns.items() if len(column)}
        durations_ns: dict[str, list[float | None]] = {}
        rows = [error.row for error in batch.errors if 0 <= error.row < len(batch)]
        times = cells(batch, _TIMES, rows)
        for error in batch.errors:
            start_ns, end_ns = map(number, times.get(error.row, _NO_TIMES).values())
            span_ns = None if start_ns is None or end_ns is None else end_ns - start_ns
            if span_ns is not None and span_ns <= 0:  # AIPerf's, for one without an answer
                span_ns = None
            durations_ns.setdefault(error.type[:_LONGEST_TYPE] or _OTHER_ERRORS, []).append(span_ns)
        return cls(len(batch), values, durations_ns)


class Phase:
    """What is known of a phase.

    Attributes:
        ref: which phase.
        start_ns: when it began: the beginning of its series.
        since_ns: what ``requests``, ``errors`` and ``values`` count from: the same, or with delta
            temporality the time of the last points.
        requests: how many requests ended.
        errors: how many of them failed, by the type of error.
        values: histograms by column and, of failed requests, type of error.
        changed: whether it has something that was not sent.
        marks: what happened in it, for its span.
        sent: whether its span was sent.
    """

    def __init__(self, ref: PhaseRef, start_ns: int) -> None:
        self.ref = ref
        self.start_ns = self.since_ns = start_ns
        self.requests = 0
        self.errors: Counter[str] = Counter()
        self.values: dict[tuple[str, str], MetricState] = {}
        self.changed = False
        self.marks: list[Mark] = []
        self.sent = False

    def count(self, counts: Counts) -> None:
        """Count records."""
        self.changed = True
        self.requests += counts.requests
        for name, values in counts.values.items():
            self._state(name, "").update(values)
        for kind, durations_ns in counts.durations_ns.items():
            if kind not in self.errors and len(self.errors) >= _MAX_ERROR_TYPES:
                kind = _OTHER_ERRORS
            self.errors[kind] += len(durations_ns)
            known = [value for value in durations_ns if value is not None]
            if known:
                self._state(LATENCY, kind).update(np.array(known, dtype=np.float64))

    def clear(self, now_ns: int) -> None:
        """Begin to count anew."""
        self.since_ns = now_ns
        self.requests, self.errors, self.values = 0, Counter(), {}

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack."""
        return {
            "ref": to_builtins(self.ref),
            "times": [self.start_ns, self.since_ns],
            "requests": self.requests,
            "errors": dict(self.errors),
            "values": [[*key, state.to_dict()] for key, state in self.values.items()],
            "changed": self.changed,
            "marks": to_builtins(self.marks),
            "sent": self.sent,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Phase:
        """Return what :meth:`to_dict` wrote as ``data``."""
        phase = cls(convert(data["ref"], PhaseRef), 0)
        phase.start_ns, phase.since_ns = data["times"]
        phase.requests, phase.errors = data["requests"], Counter(data["errors"])
        for column, kind, state in data["values"]:
            unit = describe(column).unit
            phase.values[column, kind] = MetricState.from_dict(state, _OPTIONS, unit)
        phase.changed, phase.sent = data["changed"], data["sent"]
        phase.marks = convert(data["marks"], list[Mark])
        return phase

    def _state(self, column: str, kind: str) -> MetricState:
        state = self.values.get((column, kind))
        if state is None:
            state = self.values[column, kind] = MetricState(_OPTIONS, describe(column).unit)
        return state


class Run:
    """What is known of a run.

    Attributes:
        start: its start, None before it.
        first_ns: when it began.
        cut_ns: the time of the last points, or of a phase's start.
        end_ns: when it ended; None while it goes on.
        phases: its phases.
        verdicts: the last verdict on each threshold, by phase and threshold.
    """

    def __init__(self, run_id: str, first_ns: int) -> None:
        self.run_id = run_id
        self.start: RunStart | None = None
        self.first_ns = self.cut_ns = first_ns
        self.end_ns: int | None = None
        self.phases: dict[PhaseRef, Phase] = {}
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self._counted: dict[str, int] = {}  # the last event of each source

    def is_new(self, source: str, sequence: int) -> bool:
        """Return whether an event was not counted yet.

        It was if it is a dead letter that is tried again, or comes twice after the journal lost its end.
        """
        return not sequence or sequence > self._counted.get(source, 0)

    def note(self, source: str, sequence: int) -> None:
        """Note that an event is counted."""
        if sequence:
            self._counted[source] = sequence

    def judge(self, verdict: Verdict) -> None:
        """Note how a threshold stands."""
        key = (verdict.phase, verdict.threshold)
        if key in self.verdicts or len(self.verdicts) < _MAX_THRESHOLDS:
            self.verdicts[key] = verdict

    def phase(self, ref: PhaseRef, event: EventBase) -> Phase:
        """Return a phase that an event is about."""
        if ref not in self.phases and len(self.phases) >= _MAX_PHASES:
            ref = _OTHER_PHASES
        phase = self.phases.get(ref)
        if phase is None:
            start_ns = event.stats.start_ns if isinstance(event, PhaseEvent) else None
            start_ns = event.ts_ns if start_ns is None else min(max(start_ns, 0), event.ts_ns)
            phase = self.phases[ref] = Phase(ref, start_ns)
            self.cut_ns = max(self.cut_ns, start_ns)  # all points come later, whatever clocks say
        return phase

    def cut_before(self, ts_ns: int, interval_ns: int) -> int | None:
        """Return the time of the points to be sent before an event of this time, None if there are none.

        These times depend on the events alone, whoever reads them and when.
        """
        cut_ns = ts_ns - (ts_ns - self.first_ns) % interval_ns
        return cut_ns if cut_ns > self.cut_ns else None

    def cut_now(self, ts_ns: int) -> int:
        """Return the time of points that are sent after an event of this time, and after all before."""
        return max(ts_ns, self.cut_ns + 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the content for msgpack."""
        return {
            "run_id": self.run_id,
            "start": None if self.start is None else to_builtins(self.start),
            "times": [self.first_ns, self.cut_ns, self.end_ns],
            "phases": [phase.to_dict() for phase in self.phases.values()],
            "counted": self._counted,
            "verdicts": to_builtins(list(self.verdicts.values())),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Run:
        """Return what :meth:`to_dict` wrote as ``data``."""
        run = cls(data["run_id"], 0)
        run.start = None if data["start"] is None else convert(data["start"], RunStart)
        run.first_ns, run.cut_ns, run.end_ns = data["times"]
        for each in data["phases"]:
            phase = Phase.from_dict(each)
            run.phases[phase.ref] = phase
        run._counted = data["counted"]
        for verdict in convert(data.get("verdicts", []), list[Verdict]):
            run.judge(verdict)
        return run


def numbers(batch: RecordBatch, name: str) -> npt.NDArray[Any]:
    """Return a column of numbers, empty if there is none."""
    try:
        column = batch.column(name)
    except KeyError:
        return np.empty(0)
    return column.values if column.type in "if" else np.empty(0)


def number(value: Any) -> float | None:
    """Return a value that is a finite number, None for any other."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def cells(batch: RecordBatch, names: tuple[str, ...], rows: list[int]) -> dict[int, dict[str, Any]]:
    """Return the values of some columns in some rows, by row and name; None where there is none."""
    found: dict[int, dict[str, Any]] = {row: dict.fromkeys(names) for row in rows}
    if found:
        for name in names:
            for row, value in _cells_of(batch, name, np.array(sorted(found), dtype=np.int64)):
                found[row][name] = value
    return found


def _cells_of(batch: RecordBatch, name: str, rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, Any]]:
    try:
        column = batch.column(name)
    except KeyError:
        return
    if column.lengths is not None or not len(column.values):
        return
    places = rows
    if column.rows is not None:
        places = np.minimum(np.searchsorted(column.rows, rows), len(column.rows) - 1)
        having = column.rows[places] == rows
        places, rows = places[having], rows[having]
    yield from zip(rows.tolist(), column.values[places].tolist(), strict=True)
