"""What the SQL sink writes: its tables, and events and records as their rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any, TypeAlias

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from phase_bus import (
    Column,
    EventBase,
    PhaseEvent,
    PhaseRef,
    PhasesConfigured,
    PhaseStats,
    PhaseTimeout,
    Position,
    RecordBatch,
    Records,
    RunComplete,
    RunStart,
    Summary,
)

Row: TypeAlias = tuple[Any, ...]  # the values of all columns of a table, in their order

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
# These have a column of their own in `records`; the rest is JSON, and so are values of another kind.
_FIELDS: dict[str, Any] = {
    "x_request_id": sa.Text,
    "conversation_id": sa.Text,
    "worker_id": sa.Text,
    "session_num": sa.BigInteger,
    "turn_index": sa.BigInteger,
    "credit_issued_ns": sa.BigInteger,
    "request_start_ns": sa.BigInteger,
    "request_end_ns": sa.BigInteger,
    "was_cancelled": sa.Boolean,
}
_METRICS: dict[str, Any] = {
    "request_latency": sa.Double,
    "time_to_first_token": sa.Double,
    "time_to_second_token": sa.Double,
    "inter_token_latency": sa.Double,
    "input_sequence_length": sa.Double,
    "output_sequence_length": sa.Double,
    "output_token_count": sa.Double,
    "output_token_throughput_per_user": sa.Double,
}
_TAKES = {sa.Text: ("s",), sa.BigInteger: ("i",), sa.Double: ("i", "f"), sa.Boolean: ("b",)}
_STATS: dict[Any, Any] = {
    int: sa.BigInteger,
    int | None: sa.BigInteger,
    float | None: sa.Double,
    bool: sa.Boolean,
}
_KNOWN_AT_START = ("producer", "models", "urls", "sweep_id", "trial", "label", "variation")
_KNOWN_AT_END = ("status", "reason", "published", "records", "dropped", "dropped_records")
_STATES = {
    "phase_start": "sending",
    "phase_sending_complete": "waiting",
    "phase_timeout": "timeout",
    "phase_complete": "complete",
}


class Tables:
    """The tables.

    ``(stream, stream_offset)`` identifies the event that a row comes from, ``record_row`` the record in it.
    ``positions`` says up to which offset each stream is here, and which journal it is in; ``sources`` up to
    which of its own numbers each publisher is here, wherever its events came from. ``runs``, ``phases`` and
    ``summaries`` hold what is known last; what is not known is NULL.
    """

    def __init__(self, prefix: str) -> None:
        self.metadata = sa.MetaData()
        self._prefix = prefix
        self.positions = self._table(
            "positions",
            _keys("stream"),
            _columns("journal_id", "consumer"),
            _columns("position", kind=sa.BigInteger),
        )
        self.sources = self._table("sources", _keys("source"), _columns("sequence", kind=sa.BigInteger))
        self.runs = self._table(
            "runs",
            _keys("journal_id", "run_id"),
            _columns("producer", "status", "reason", "sweep_id", "label"),
            _columns("trial", "started_ns", "ended_ns", "records", "dropped_records", kind=sa.BigInteger),
            _columns("models", "urls", "variation", "published", "dropped", kind=_JSON),
        )
        self.phases = self._table(
            "phases",
            _keys("journal_id", "run_id", "phase"),
            _columns("kind", "state"),
            _columns("phase_index", "concurrency", "requests_cut", kind=sa.BigInteger),
            _columns("request_rate", kind=sa.Double),
            [
                sa.Column(f.name, _STATS.get(f.type, sa.BigInteger))
                for f in msgspec.structs.fields(PhaseStats)
            ],
        )
        self.summaries = self._table(
            "summaries",
            _keys("journal_id", "run_id", "producer"),
            _columns("ts_ns", kind=sa.BigInteger),
            _columns("final", kind=sa.Boolean),
            _columns("result", kind=_JSON),
        )
        self.events = self._table(
            "events",
            [*_keys("stream"), *_keys("stream_offset", kind=sa.BigInteger)],
            _columns("run_id", "kind"),
            _columns("ts_ns", kind=sa.BigInteger),
            _columns("phase"),
            _columns("event", kind=_JSON),
        )
        self.records = self._table(
            "records",
            [*_keys("stream"), *_keys("stream_offset", kind=sa.BigInteger)],
            _keys("record_row", kind=sa.Integer),
            _columns("run_id", "phase"),
            _columns("phase_index", kind=sa.BigInteger),
            [sa.Column(name, kind) for name, kind in _FIELDS.items()],
            _columns("error_type"),
            _columns("error_code", kind=sa.BigInteger),
            _columns("error_message"),
            [sa.Column(name, kind) for name, kind in _METRICS.items()],
            _columns("metrics", "fields", kind=_JSON),
        )
        for table in (self.events, self.records):
            sa.Index(f"{table.name}_run", table.c.run_id, table.c.phase)

    def _table(self, name: str, *columns: list[sa.Column[Any]]) -> sa.Table:
        return sa.Table(self._prefix + name, self.metadata, *chain.from_iterable(columns))


def _columns(*names: str, kind: Any = sa.Text) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind) for name in names]


def _keys(*names: str, kind: Any = sa.Text) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, primary_key=True, autoincrement=False) for name in names]


class Batch:
    """The rows of one transaction: everything after the position ``base`` up to ``last``.

    Attributes:
        reached: the last offset of each stream, and the base's own.
        sequences: the last number of each source.
    """

    def __init__(self, journal_id: str, base: Position) -> None:
        self.journal_id = journal_id
        self.base = self.last = base
        self.reached = {base.stream: base.offset}
        self.sequences: dict[str, int] = {}
        self.events: list[Row] = []
        self.records: list[Row] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.phases: dict[tuple[str, str], dict[str, Any]] = {}
        self.summaries: dict[tuple[str, str], dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.events) + len(self.records)

    def add(self, at: Position, event: EventBase) -> None:
        """Add an event, or a batch of records, and what it says about its run and phases.

        Raises:
            WireError: if the batch is damaged; nothing of it is added.
        """
        if isinstance(event, Records):
            self.records += _record_rows(at, event)
        else:
            phase = event.phase.name if isinstance(event, PhaseEvent) else None
            row = (at.stream, at.offset, event.run_id, event.kind, event.ts_ns, phase)
            self.events.append((*map(fit, row), json_text(event)))
        self.last = at
        self.reached[at.stream] = at.offset
        self._note(event)

    def _note(self, event: EventBase) -> None:
        """Keep what an event says about its run and phases, to replace what was known."""
        run_id = event.run_id
        plain = msgspec.structs.asdict(event)
        run = self._run(run_id)
        match event:
            case Records():
                self._phase(run_id, event.phase)
            case RunStart():
                run.update({name: plain[name] for name in _KNOWN_AT_START}, started_ns=event.ts_ns)
            case RunComplete():
                run.update({name: plain[name] for name in _KNOWN_AT_END}, ended_ns=event.ts_ns)
            case PhasesConfigured():
                for plan in event.phases:
                    limits = msgspec.structs.asdict(plan)
                    self._phase(run_id, limits.pop("phase"), **limits)
            case PhaseEvent():
                known = msgspec.structs.asdict(event.stats)
                if isinstance(event, PhaseTimeout):
                    known["requests_cut"] = event.requests_cut
                self._phase(run_id, event.phase, state=_STATES.get(event.kind), **known)
            case Summary():
                row = {name: plain[name] for name in ("run_id", "producer", "ts_ns", "final", "result")}
                self.summaries[run_id, event.producer] = {"journal_id": self.journal_id, **row}

    def _run(self, run_id: str) -> dict[str, Any]:
        return self.runs.setdefault(run_id, {"journal_id": self.journal_id, "run_id": run_id})

    def _phase(self, run_id: str, ref: PhaseRef, **known: Any) -> None:
        key = {"journal_id": self.journal_id, "run_id": run_id, "phase": ref.name}
        row = self.phases.setdefault((run_id, ref.name), key)
        row.update(kind=ref.kind, phase_index=ref.index)
        row.update({name: value for name, value in known.items() if value is not None})


def _record_rows(at: Position, event: Records) -> list[Row]:
    """Return a batch of records as rows of the ``records`` table."""
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
    return list(zip(repeat(at.stream), repeat(at.offset), range(count), *same, *columns, strict=False))


def _split(
    count: int, columns: Mapping[str, Column], wanted: Mapping[str, Any]
) -> tuple[list[list[Any]], list[str | None]]:
    """Return the wanted columns, with None where a record has no value, and the rest as JSON."""
    own: dict[str, list[Any]] = {}
    rest: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, column in columns.items():
        values = (
            ((row, fit(value)) for row, value in column.items()) if column.type == "s" else column.items()
        )
        if name in wanted and column.type in _TAKES[wanted[name]]:
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
    """Return a value that a column can hold: PostgreSQL's texts have no NUL, and integers have 64 bits."""
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
