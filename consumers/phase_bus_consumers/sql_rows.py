"""What the SQL sink writes: its tables, and events and records as their rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from msgspec import Struct
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
    Verdict,
    join_records,
)

_JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
_TEXT_JSON = sa.JSON(none_as_null=True)  # which PostgreSQL stores faster: it does not take it apart
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
APPENDED = "appended"  # marks a table whose rows are never changed
_PIECE_ROWS = 5000
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
    ``summaries`` hold what is known last; what is not known is NULL. ``verdicts`` has verdicts taken apart.
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
        self.verdicts = self._table(
            "verdicts",
            [*_keys("stream"), *_keys("stream_offset", kind=sa.BigInteger)],
            _columns("run_id", "phase", "producer", "threshold", "state"),
            _columns("final", kind=sa.Boolean),
            _columns("ts_ns", kind=sa.BigInteger),
            _columns("value", "limit_value", kind=sa.Double),
            _columns("unit"),
            _columns("samples", "judged_offset", kind=sa.BigInteger),
            _columns("reason"),
            _columns("abort", kind=sa.Boolean),
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
            _columns("metrics", "fields", kind=_TEXT_JSON),
        )
        for table in (self.events, self.verdicts, self.records):
            table.info[APPENDED] = True
            # A run's rows lie together: it is enough, and costs nearly nothing, to know in which blocks.
            # DuckDB knows that by itself.
            index = sa.Index(f"{table.name}_run", table.c.run_id, table.c.phase, postgresql_using="brin")
            index.ddl_if(callable_=_has_indexes)

    def _table(self, name: str, *columns: list[sa.Column[Any]]) -> sa.Table:
        return sa.Table(self._prefix + name, self.metadata, *chain.from_iterable(columns))


def _has_indexes(*_: Any, dialect: Any, **__: Any) -> bool:
    return bool(dialect.name != "duckdb")


def _columns(*names: str, kind: Any = sa.Text) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind) for name in names]


def _keys(*names: str, kind: Any = sa.Text) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, primary_key=True, autoincrement=False) for name in names]


class News(Struct, frozen=True):
    """An event to be written.

    Attributes:
        at: its place.
        journal_id: the journal that it is in.
        source: who published it.
        sequence: its number among all that the source published.
    """

    event: EventBase
    at: Position
    journal_id: str
    source: str
    sequence: int


class Batch:
    """What is written in one transaction.

    Attributes:
        positions: the last offset of each stream.
        sources: the last number of each source.
    """

    def __init__(self, positions: Mapping[str, int], sources: Mapping[str, int]) -> None:
        self.positions = dict(positions)
        self.sources = dict(sources)
        self._journals: dict[str, str] = {}  # those of the streams that get on
        self._got_on: set[str] = set()  # sources
        self._events: list[News] = []
        self._records: list[News] = []
        self.runs: dict[tuple[str, str], dict[str, Any]] = {}
        self.phases: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.summaries: dict[tuple[str, str, str], dict[str, Any]] = {}

    def add(self, news: News) -> None:
        """Add an event, unless it is in the tables already, at its place or another one."""
        stream, offset = news.at.stream, news.at.offset
        if offset <= self.positions.get(stream, 0):
            return
        self.positions[stream], self._journals[stream] = offset, news.journal_id
        if news.sequence:
            if news.sequence <= self.sources.get(news.source, 0):
                return
            self.sources[news.source] = news.sequence
            self._got_on.add(news.source)
        (self._records if isinstance(news.event, Records) else self._events).append(news)
        self._note(news.journal_id, news.event)

    def new_positions(self, consumer: str) -> list[dict[str, Any]]:
        """Return rows of ``positions``."""
        return [
            {
                "stream": stream,
                "journal_id": journal,
                "consumer": consumer,
                "position": self.positions[stream],
            }
            for stream, journal in self._journals.items()
        ]

    def new_sources(self) -> list[dict[str, Any]]:
        """Return rows of ``sources``."""
        return [{"source": source, "sequence": self.sources[source]} for source in self._got_on]

    def events(self) -> Iterator[pa.Table]:
        """Yield the rows of ``events``."""
        if self._events:
            yield _table_of([_event_row(news.at, news.event) for news in self._events], _EVENTS)

    def verdicts(self) -> Iterator[pa.Table]:
        """Yield the rows of ``verdicts``."""
        rows = [
            _verdict_row(news.at, news.event) for news in self._events if isinstance(news.event, Verdict)
        ]
        if rows:
            yield _table_of(rows, _VERDICTS)

    def records(self) -> Iterator[pa.Table]:
        """Yield the rows of ``records``, some thousands at a time: more are made while they are stored."""
        for some in _pieces(self._records):
            for event, places in join_records([cast(Records, news.event) for news in some]):
                yield _record_rows(event, [some[place] for place in places])

    def _note(self, journal_id: str, event: EventBase) -> None:
        """Keep what an event says about its run and phases, to replace what was known."""
        which = {"journal_id": journal_id, "run_id": event.run_id}
        plain = msgspec.structs.asdict(event)
        run = self.runs.setdefault((journal_id, event.run_id), which)
        match event:
            case Records():
                self._phase(which, event.phase)
            case RunStart():
                run.update({name: plain[name] for name in _KNOWN_AT_START}, started_ns=event.ts_ns)
            case RunComplete():
                run.update({name: plain[name] for name in _KNOWN_AT_END}, ended_ns=event.ts_ns)
            case PhasesConfigured():
                for plan in event.phases:
                    limits = msgspec.structs.asdict(plan)
                    self._phase(which, limits.pop("phase"), **limits)
            case PhaseEvent():
                known = msgspec.structs.asdict(event.stats)
                if isinstance(event, PhaseTimeout):
                    known["requests_cut"] = event.requests_cut
                self._phase(which, event.phase, state=_STATES.get(event.kind), **known)
            case Summary():
                row = {name: plain[name] for name in ("producer", "ts_ns", "final", "result")}
                self.summaries[journal_id, event.run_id, event.producer] = {**which, **row}

    def _phase(self, which: dict[str, Any], ref: PhaseRef, **known: Any) -> None:
        key = {"journal_id": which["journal_id"], "run_id": which["run_id"], "phase": ref.name}
        row = self.phases.setdefault((key["journal_id"], key["run_id"], ref.name), key)
        row.update(kind=ref.kind, phase_index=ref.index)
        row.update({name: value for name, value in known.items() if value is not None})


def _schema(table: sa.Table) -> pa.Schema:
    """Return a table's columns as Arrow has them; JSON is text there."""
    return pa.schema([(column.name, _ARROW.get(type(column.type), pa.string())) for column in table.c])


_ARROW = {
    sa.BigInteger: pa.int64(),
    sa.Integer: pa.int32(),
    sa.Boolean: pa.bool_(),
    sa.Double: pa.float64(),
}
_EVENTS, _VERDICTS, _RECORDS = (
    _schema(table) for table in (Tables("").events, Tables("").verdicts, Tables("").records)
)


def _table_of(rows: Sequence[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(schema, zip(*rows, strict=True), strict=True)
    return pa.table([pa.array(values, field.type) for field, values in columns], schema=schema)


def _event_row(at: Position, event: EventBase) -> tuple[Any, ...]:
    phase = event.phase.name if isinstance(event, PhaseEvent) else None
    row = (at.stream, at.offset, event.run_id, event.kind, event.ts_ns, phase)
    return (*map(fit, row), json_text(event))


def _verdict_row(at: Position, event: Verdict) -> tuple[Any, ...]:
    row = (
        at.stream, at.offset, event.run_id, event.phase, event.producer, event.threshold, event.state,
        event.final, event.ts_ns, event.value, event.limit, event.unit, event.samples, event.offset,
        event.reason, event.abort,
    )  # fmt: skip
    return tuple(value if isinstance(value, bool) else fit(value) for value in row)


def _pieces(records: Sequence[News]) -> Iterator[list[News]]:
    some: list[News] = []
    count = 0
    for news in records:
        some.append(news)
        count += cast(Records, news.event).count
        if count >= _PIECE_ROWS:
            yield some
            some, count = [], 0
    if some:
        yield some


def _record_rows(event: Records, pieces: Sequence[News]) -> pa.Table:
    """Return a batch of records, joined of several events, as rows of the ``records`` table."""
    count, batch = event.count, RecordBatch(event)
    counts = [cast(Records, news.event).count for news in pieces]
    fields, other_fields = _split(count, batch.field_columns(), _FIELDS)
    metrics, other_metrics = _split(count, batch.metric_columns(), _METRICS)
    errors: dict[str, list[Any]] = {name: [None] * count for name in ("type", "code", "message")}
    for error in event.errors:
        for name, values in errors.items():
            values[error.row] = fit(getattr(error, name))
    arrays: dict[str, Any] = {
        "stream": _repeated([news.at.stream for news in pieces], counts),
        "stream_offset": np.repeat([news.at.offset for news in pieces], counts),
        "record_row": np.concatenate([np.arange(each, dtype=np.int32) for each in counts]),
        "run_id": _repeated([fit(event.run_id)], [count]),
        "phase": _repeated([fit(event.phase.name)], [count]),
        "phase_index": np.full(count, fit(event.phase.index), np.int64),
        **fields,
        **{f"error_{name}": values for name, values in errors.items()},
        **metrics,
        "metrics": other_metrics,
        "fields": other_fields,
    }
    return pa.table({name: pa.array(values, _RECORDS.field(name).type) for name, values in arrays.items()})


def _repeated(texts: Sequence[str], counts: Sequence[int]) -> pa.Array:
    return pa.array(texts, pa.string()).take(pa.array(np.repeat(np.arange(len(texts)), counts)))


def _split(
    count: int, columns: Mapping[str, Column], wanted: Mapping[str, Any]
) -> tuple[dict[str, pa.Array], pa.Array]:
    """Return the wanted columns, with null where a record has no value, and the rest as JSON."""
    found = {}
    for name in wanted:
        kind = _RECORDS.field(name).type
        column = columns.get(name)
        if column is None or column.type not in _TAKES[wanted[name]]:
            found[name] = pa.nulls(count, kind)
            continue
        array = column.to_arrow(count)
        found[name] = (
            pc.replace_substring(array, "\0", "\ufffd")
            if column.type == "s"
            else array.cast(kind, safe=False)
        )
    others = {n: c for n, c in columns.items() if n not in wanted or c.type not in _TAKES[wanted[n]]}
    return found, _objects(others, count)


def _objects(columns: Mapping[str, Column], count: int) -> pa.Array:
    """Return an object of names and values for each record, as JSON; null for one that has none."""
    if not columns:
        return pa.nulls(count, pa.string())
    members = [
        pc.binary_join_element_wise(f"{json_text(name)}:", _json_values(column, count), "")
        for name, column in columns.items()
    ]
    together = pc.binary_join_element_wise(*members, ",", null_handling="skip")
    whole = pc.binary_join_element_wise("{", together, "}", "")
    return pc.if_else(pc.equal(together, ""), pa.scalar(None, pa.string()), whole)


def _json_values(column: Column, count: int) -> pa.Array:
    """Return a column's values as JSON texts."""
    if column.type in "sl":
        texts: list[str | None] = [None] * count
        for row, value in column.items():
            texts[row] = json_text(value)
        return pa.array(texts, pa.string())
    array = column.to_arrow(count)
    texts = array.cast(pa.string())
    return pc.if_else(pc.is_finite(array), texts, "null") if column.type == "f" else texts


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
    return _without_nul(msgspec.json.encode(value)).decode()


def _without_nul(data: bytes) -> bytes:
    return _NUL.sub(rb"\1\\ufffd", data) if b"\\u0000" in data else data
