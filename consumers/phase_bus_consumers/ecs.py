"""Events and request records as documents with the names of the Elastic Common Schema.

What the schema has no name for is under ``phase_bus``. A document's ``event`` comes first, so that whoever
writes it can put the event's id there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeGuard

import msgspec

from phase_bus import (
    Drop,
    EventBase,
    PhaseEvent,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    RecordBatch,
    RecordError,
    Records,
    RunComplete,
    Verdict,
)
from phase_bus_consumers.headline import headline
from phase_bus_consumers.verdicts import passed, severity

VERSION = "8.11.0"  # of the schema
_LATEST_NS = 2**62  # as events have it
_NOT_AGAIN = ("run_id", "ts_ns", "phase", "stats")  # they have names of their own
_OUTCOMES = {"completed": "success", "cancelled": "unknown", "failed": "failure", "lost": "failure"}
_OUTCOMES_OF_VERDICTS = {True: "success", False: "failure", None: "unknown"}


class Document(NamedTuple):
    """A document.

    Attributes:
        at_ns: its ``@timestamp``, as Unix time in ns.
        fields: its fields, ``event`` first.
    """

    at_ns: int
    fields: dict[str, Any]


def documents_of(event: EventBase, service: str) -> Iterator[Document]:
    """Yield the documents of an event: one for each record of a batch, or that of any other event.

    Args:
        service: what is being logged.

    Raises:
        WireError: if a batch is damaged.
    """
    if isinstance(event, Records):
        yield from record_documents(event, service)
    else:
        yield event_document(event, service)


def event_document(event: EventBase, service: str) -> Document:
    """Return the document of an event that is no batch of records.

    What is a single value has a field; the whole event, whatever is in it, is the text ``event.original``.
    """
    outcome = _outcome(event)
    facts: dict[str, Any] = {"kind": "event", "dataset": "phase_bus.events", "action": event.kind}
    if outcome:
        facts["outcome"] = outcome
    labels = {"run_id": event.run_id}
    own = {name: value for name, value in msgspec.structs.asdict(event).items() if _is_single(name, value)}
    if isinstance(event, PhaseEvent):
        labels |= {"phase": event.phase.name, "phase_kind": event.phase.kind}
        own["stats"] = {k: v for k, v in msgspec.structs.asdict(event.stats).items() if v is not None}
        facts |= _times(event.stats.start_ns, event.stats.end_ns)
    facts["original"] = msgspec.json.encode(event).decode()
    document = {
        "event": facts,
        "@timestamp": iso(event.ts_ns),
        "log": {"level": _level(event, outcome)},
        "message": headline(event),
        "ecs": {"version": VERSION},
        "service": {"name": service},
        "labels": labels,
        "phase_bus": own,
    }
    if isinstance(event, Verdict):
        labels["phase"] = event.phase
        document["rule"] = {"name": event.threshold}
    if outcome == "failure" and (reason := getattr(event, "reason", "")):
        document["error"] = {"message": reason}
    return Document(event.ts_ns, document)


def record_documents(event: Records, service: str) -> Iterator[Document]:
    """Yield the documents of a batch's records, in their order."""
    errors = {error.row: error for error in event.errors}
    metric_names = safe_names(name for table in event.metrics for name in table.names)
    field_names = safe_names(name for table in event.fields for name in table.names)
    labels = {"run_id": event.run_id, "phase": event.phase.name, "phase_kind": event.phase.kind}
    same = {"ecs": {"version": VERSION}, "service": {"name": service}, "labels": labels}
    for row, record in enumerate(RecordBatch(event)):
        metrics = {safe: record[name] for name, safe in metric_names.items() if name in record}
        fields = {safe: record[name] for name, safe in field_names.items() if name in record}
        at_ns, document = _record_document(event, errors.get(row), fields, metrics)
        yield Document(at_ns, document | same)


def _record_document(
    event: Records, error: RecordError | None, fields: dict[str, Any], metrics: dict[str, Any]
) -> Document:
    cancelled = fields.get("was_cancelled") is True
    outcome = "failure" if error is not None else "unknown" if cancelled else "success"
    start_ns, end_ns = fields.get("request_start_ns"), fields.get("request_end_ns")
    facts = {"kind": "event", "dataset": "phase_bus.records", "action": "request", "outcome": outcome}
    at_ns = end_ns if _is_time(end_ns) else event.ts_ns
    document: dict[str, Any] = {"event": facts | _times(start_ns, end_ns), "@timestamp": iso(at_ns)}
    if isinstance(request_id := fields.get("x_request_id"), str):
        document["http"] = {"request": {"id": request_id}}
        del fields["x_request_id"]
    if error is not None:
        document["error"] = {"type": error.type, "message": error.message}
        if error.code is not None:
            document["error"]["code"] = str(error.code)
    document["phase_bus"] = {"metrics": metrics, "request": fields}
    return Document(at_ns, document)


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """Return names as they can stand in a document, by what they are: unlike ones stay unlike.

    A dot would make an object of a name, beside a number of the name before the dot; and none may be empty.
    """
    unique = dict.fromkeys(names)
    safe = {name: name for name in unique if name.strip() and "." not in name}
    taken = {*safe}
    for name in unique:
        if name in safe:
            continue
        made = name.strip().replace(".", "_") or "_"
        while made in taken:
            made += "_"
        safe[name] = made
        taken.add(made)
    return safe


def iso(ts_ns: int) -> str:
    """Return a Unix time in ns as ISO 8601, in UTC and to the nanosecond."""
    second, fraction_ns = divmod(ts_ns, 10**9)
    return f"{_second(second)}.{fraction_ns:09d}Z"


@lru_cache(maxsize=1024)
def _second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _times(start_ns: Any, end_ns: Any) -> dict[str, Any]:
    """Return when something began, and how long it took, as far as that is known."""
    if not _is_time(start_ns):
        return {}
    times: dict[str, Any] = {"start": iso(start_ns)}
    if _is_time(end_ns) and end_ns >= start_ns:
        times["duration"] = end_ns - start_ns
    return times


def _is_time(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _LATEST_NS


def _is_single(name: str, value: Any) -> bool:
    """Return whether a value of an event gets a field: fields of changing names would be without end."""
    if name in _NOT_AGAIN or isinstance(value, PhaseStats):
        return False
    each = value if isinstance(value, tuple) else (value,)
    return all(isinstance(one, str | int | float) for one in each)


def _outcome(event: EventBase) -> str:
    match event:
        case RunComplete():
            return _OUTCOMES.get(event.status, "unknown")
        case Receipt():
            return "success" if event.complete else "failure"
        case PhaseTimeout() | Drop():
            return "failure"
        case Verdict():
            return _OUTCOMES_OF_VERDICTS[passed(event)]
    return ""


def _level(event: EventBase, outcome: str) -> str:
    if isinstance(event, Verdict):
        return severity(event)
    if outcome != "failure":
        return "info"
    return "error" if isinstance(event, RunComplete) else "warning"
