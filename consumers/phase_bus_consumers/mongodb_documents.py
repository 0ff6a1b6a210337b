"""What the MongoDB sink writes: records and events as BSON documents."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from phase_bus import EventBase, PhaseEvent, RecordBatch, Records, Verdict
from phase_bus_consumers.extras import needs

with needs("mongodb"):
    import bson
    from bson.datetime_ms import DatetimeMS
    from bson.errors import InvalidDocument
    from bson.raw_bson import RawBSONDocument

_INT64 = range(-(2**63), 2**63)
_KEYS = str.maketrans({"\0": "\ufffd", ".": "\uff0e"})  # what MongoDB takes apart, or does not take


def event_document(event: EventBase) -> bytes:
    """Return a document of an event that carries no records."""
    document = {"run_id": event.run_id, "kind": event.kind, "ts": _date(event.ts_ns)}
    if isinstance(event, PhaseEvent):
        document["phase"] = event.phase.name
    return bson.encode({**document, "event": _fitting(msgspec.to_builtins(event))})


def verdict_document(event: Verdict) -> bytes:
    """Return a document of a verdict, with a field for each thing that it says."""
    said = msgspec.structs.asdict(event)
    del said["ts_ns"]
    return bson.encode({"ts": _date(event.ts_ns), **_fitting(said)})


def record_documents(event: Records) -> list[bytes]:
    """Return a document for each record of a batch.

    Raises:
        WireError: if the batch is damaged.
    """
    fields = _names(event.fields)
    metrics = _names(event.metrics)
    same = {"run_id": event.run_id, "phase": event.phase.name, "phase_index": event.phase.index}
    documents = []
    for record in RecordBatch(event):
        known = {fields[name]: value for name, value in record.items() if name in fields}
        measured = {metrics[name]: value for name, value in record.items() if name in metrics}
        end_ns = known.get("request_end_ns")
        ts = _date(end_ns if isinstance(end_ns, int) else event.ts_ns)
        documents.append(
            _encoded({**same, "ts": ts, "error": record["error"], "fields": known, "metrics": measured})
        )
    return documents


def with_id(document: bytes, key: str) -> RawBSONDocument:
    """Return a document with an ``_id`` before all else.

    It is put in front of the encoded rest: a row's key is known only when it is sent.
    """
    text = key.encode()
    first = b"\x02_id\0" + struct.pack("<i", len(text) + 1) + text + b"\0"
    return RawBSONDocument(struct.pack("<i", len(document) + len(first)) + first + document[4:])


def _names(tables: Any) -> dict[str, str]:
    """Return the names of some tables' columns, and for each its own key in a document."""
    names = dict.fromkeys(name for table in tables for name in table.names)
    found = {name: name for name in names if _key(name) == name}
    taken = {*found}
    for name in names:
        if name not in found:
            key = _key(name)
            while key in taken:
                key += "_"
            found[name] = key
            taken.add(key)
    return found


def _key(name: str) -> str:
    """Return a name that is one key of a document: a dot, and a dollar in front, are the wide ones."""
    name = name.translate(_KEYS)
    return "\uff04" + name[1:] if name.startswith("$") else name


def _encoded(document: dict[str, Any]) -> bytes:
    try:
        return bson.encode(document)
    except (OverflowError, InvalidDocument):  # seldom: an integer of more than 64 bits
        return bson.encode({name: _fitting(value) for name, value in document.items()})


def _fitting(value: Any) -> Any:
    """Return a value that BSON can hold: a larger integer becomes a text."""
    if isinstance(value, Mapping):
        return {_key(str(name)): _fitting(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_fitting(each) for each in value]
    return str(value) if isinstance(value, int) and value not in _INT64 else value


def _date(ns: int) -> DatetimeMS:
    """Return a time as one of MongoDB's dates, which have milliseconds."""
    return DatetimeMS(ns // 1_000_000)
