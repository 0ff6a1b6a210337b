"""What the SQL sink writes: its tables, and events and records as their rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from phase_bus import (
    Column,
    EventBase,
    PhaseEvent,
    PhasesConfigured,
    PhaseStats,
    PhaseTimeout,
    RecordBatch,
    Records,
    RunComplete,
    RunStart,
    Summary,
)

Row: TypeAlias = tuple[Any, ...]  # the values of all columns of a table, in their order

# What has a column of its own in `records`, with the kinds of values it takes; the rest is JSON.
_TEXT, _INT, _NUMBER, _FLAG = ("s",), ("i",), ("i", "f"), ("b",)
_FIELDS = {
    "x_request_id": _TEXT,
    "conversation_id": _TEXT,
    "worker_id": _TEXT,
    "session_num": _INT,
    "turn_index": _INT,
    "credit_issued_ns": _INT,
    "request_start_ns": _INT,
    "request_end_ns": _INT,
    "was_cancelled": _FLAG,
}
_METRICS = {
    "request_latency": _NUMBER,
    "time_to_first_token": _NUMBER,
    "time_to_second_token": _NUMBER,
    "inter_token_latency": _NUMBER,
    "input_sequence_length": _NUMBER,
    "output_sequence_length": _NUMBER,
    "output_token_count": _NUMBER,
    "output_token_throughput_per_user": _NUMBER,
}
_TOLD_AT_START = ("producer", "models", "urls", "sweep_id", "trial", "label", "variation")
_TOLD_AT_END = ("status", "reason", "published", "records", "dropped")
_STATES = {
    "phase_start": "sending",
    "phase_sending_complete": "waiting",
    "phase_timeout": "timeout",
    "phase_complete": "complete",
}


class Tables:
    """The tables.

    Rows come from events; ``(journal_id, journal_offset)`` names an event, ``record_row`` the row in it.
    ``runs``, ``phases`` and ``summaries`` hold what was last known; what was never told is NULL.
    """

    def __init__(self, prefix: str) -> None:
        self.metadata = sa.MetaData()
        self._prefix = prefix
        self.positions = self._table(
            "positions", _key("journal_id", sa.Text), _text("consumer"), _big("position")
        )
        self.runs = self._table(
            "runs",
            *_keys("journal_id", "run_id"),
            *map(_text, ("producer", "status", "reason", "sweep_id", "label")),
            *map(_big, ("trial", "started_ns", "ended_ns", "records")),
            *map(_json_column, ("models", "urls", "variation", "published", "dropped")),
        )
        self.phases = self._table(
            "phases",
            *_keys("journal_id", "run_id", "phase"),
            *map(_text, ("kind", "state")),
            *map(_big, ("phase_index", "concurrency", "requests_cut")),
            _double("request_rate"),
            *(_STATS_COLUMN[f.type](f.name) for f in _STATS),
        )
        self.summaries = self._table(
            "summaries",
            *_keys("journal_id", "run_id", "producer"),
            _big("ts_ns"),
            sa.Column("final", sa.Boolean),
            _json_column("result"),
        )
        self.events = self._table(
            "events",
            *_keys("journal_id"),
            _key("journal_offset", sa.BigInteger),
            *map(_text, ("run_id", "kind")),
            _big("ts_ns"),
            _text("phase"),
            _json_column("event"),
        )
        self.records = self._table(
            "records",
            *_keys("journal_id"),
            _key("journal_offset", sa.BigInteger),
            _key("record_row", sa.Integer),
            *map(_text, ("run_id", "phase")),
            _big("phase_index"),
            *(_RECORD_COLUMN[takes](name) for name, takes in _FIELDS.items()),
            _text("error_type"),
            _big("error_code"),
            _text("error_message"),
            *(_double(name) for name in _METRICS),
            *map(_json_column, ("metrics", "fields")),
        )
        for table in (self.events, self.records):
            sa.Index(f"{table.name}_run", table.c.run_id, table.c.phase)

    def _table(self, name: str, *columns: sa.Column[Any]) -> sa.Table:
        return sa.Table(self._prefix + name, self.metadata, *columns)


def _key(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=True, autoincrement=False)


def _keys(*names: str) -> list[sa.Column[Any]]:
    return [_key(name, sa.Text) for name in names]


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text)


def _big(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger)


def _double(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Double)


def _flag(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Boolean)


def _json_column(name: str) -> sa.Column[Any]:
    kind = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
    return sa.Column(name, kind)


_ColumnMaker: TypeAlias = Callable[[str], "sa.Column[Any]"]
_STATS = msgspec.structs.fields(PhaseStats)
_STATS_COLUMN: dict[Any, _ColumnMaker] = {
    int: _big,
    int | None: _big,
    float | None: _double,
    bool: _flag,
}
_RECORD_COLUMN: dict[tuple[str, ...], _ColumnMaker] = {_TEXT: _text, _INT: _big, _FLAG: _flag}


class Batch:
    """The rows of one transaction: everything after ``base`` up to ``last``, both offsets."""

    def __init__(self, journal_id: str, base: int) -> None:
        self.journal_id = journal_id
        self.base = self.last = base
        self.events: list[Row] = []
        self.records: list[Row] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.phases: dict[tuple[str, str], dict[str, Any]] = {}
        self.summaries: dict[tuple[str, str], dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.events) + len(self.records)

    def add_records(self, offset: int, event: Records, rows: list[Row]) -> None:
        """Take a batch of records, as ``record_rows`` made it, and what it says about its run and phase."""
        self._run(event.run_id)
        self._phase(event.run_id, event.phase.name, kind=event.phase.kind, phase_index=event.phase.index)
        self.records += rows
        self.last = offset

    def add(self, offset: int, event: EventBase) -> None:
        """Take any other event, and what it says about its run and phases."""
        phase = event.phase.name if isinstance(event, PhaseEvent) else None
        row = (self.journal_id, offset, event.run_id, event.kind, event.ts_ns, phase)
        self.events.append((*map(fit, row), json_text(event)))
        self.last = offset
        self._note(event)

    def _note(self, event: EventBase) -> None:
        """Keep what an event says about its run and phases, to be written over what was known."""
        run_id = event.run_id
        plain = msgspec.structs.asdict(event)
        run = self._run(run_id)
        match event:
            case RunStart():
                run.update({name: plain[name] for name in _TOLD_AT_START}, started_ns=event.ts_ns)
            case RunComplete():
                run.update({name: plain[name] for name in _TOLD_AT_END}, ended_ns=event.ts_ns)
            case PhasesConfigured():
                for plan in event.phases:
                    limits = msgspec.structs.asdict(plan)
                    ref = limits.pop("phase")
                    self._phase(run_id, ref.name, kind=ref.kind, phase_index=ref.index, **limits)
            case PhaseEvent():
                told = msgspec.structs.asdict(event.stats)
                if isinstance(event, PhaseTimeout):
                    told["requests_cut"] = event.requests_cut
                told.update(kind=event.phase.kind, phase_index=event.phase.index)
                self._phase(run_id, event.phase.name, state=_STATES.get(event.kind), **told)
            case Summary():
                row = {name: plain[name] for name in ("run_id", "producer", "ts_ns", "final", "result")}
                self.summaries[run_id, event.producer] = {"journal_id": self.journal_id, **row}

    def _run(self, run_id: str) -> dict[str, Any]:
        return self.runs.setdefault(run_id, {"journal_id": self.journal_id, "run_id": run_id})

    def _phase(self, run_id: str, name: str, **told: Any) -> None:
        row = self.phases.setdefault(
            (run_id, name), {"journal_id": self.journal_id, "run_id": run_id, "phase": name}
        )
        row.update({key: value for key, value in told.items() if value is not None})


def record_rows(journal_id: str, offset: int, event: Records) -> list[Row]:
    """Return a batch of records as rows of the ``records`` table.

    Raises:
        WireError: it is damaged.
    """
    count, ref, batch = event.count, event.phase, RecordBatch(event)
    fields, other_fields = _split(count, batch.field_columns(), _FIELDS)
    metrics, other_metrics = _split(count, batch.metric_columns(), _METRICS)
    types: list[str | None] = [None] * count
    codes: list[int | None] = [None] * count
    messages: list[str | None] = [None] * count
    for error in event.errors:
        types[error.row], messages[error.row] = fit(error.type), fit(error.message)
        codes[error.row] = fit(error.code)
    same = [repeat(fit(value)) for value in (event.run_id, ref.name, ref.index)]
    columns = (*fields, types, codes, messages, *metrics, other_metrics, other_fields)
    return list(zip(repeat(journal_id), repeat(offset), range(count), *same, *columns, strict=False))


def _split(
    count: int, columns: Mapping[str, Column], wanted: Mapping[str, tuple[str, ...]]
) -> tuple[list[list[Any]], list[str | None]]:
    """Return the wanted columns, with None where a record has no value, and the rest as JSON."""
    own: dict[str, list[Any]] = {}
    rest: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, column in columns.items():
        values = (
            column.items() if column.type != "s" else ((row, fit(text)) for row, text in column.items())
        )
        if column.type in wanted.get(name, ()):
            full: list[Any] = [None] * count
            for row, value in values:
                full[row] = value
            own[name] = full
        else:
            for row, value in values:
                rest[row][name] = value
    found = [own.get(name) or [None] * count for name in wanted]
    return found, [json_text(values) if values else None for values in rest]


def fit(value: Any) -> Any:
    """Return what a column can hold: PostgreSQL's texts have no NUL, and integers have 64 bits."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, int):
        return max(-(2**63), min(value, 2**63 - 1))
    return value


_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")


def json_text(value: Any) -> str:
    """Return a value as JSON, without the NUL that PostgreSQL refuses in it too."""
    data = msgspec.json.encode(value)
    if b"\\u0000" in data:
        data = _NUL.sub(rb"\1\\ufffd", data)
    return data.decode()
