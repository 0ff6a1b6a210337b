"""The AsyncAPI document: sockets, topics and messages of a bus, as the bus sees them.

AsyncAPI knows no binding for ZeroMQ, so what is particular to it (sockets, frames, the header's bytes)
stands in extensions named ``x-zeromq``. Schemas are in AsyncAPI's own dialect, a superset of JSON Schema
draft 7: an array's elements are ``items`` there, and not ``prefixItems`` as in the other files.
"""

from __future__ import annotations

import inspect
from typing import Any, get_args

import msgspec

from phase_bus.core.control import Reply, Request
from phase_bus.core.wire import BUNDLED_MOST, HEADER, WIRE_VERSION
from phase_bus.events import KINDS, Event, EventBase, Records
from scripts.vectors import example_of

JsonObject = dict[str, Any]

_MSGPACK = "application/vnd.msgpack"
_FRAMES = ["topic", "header", "payload"]
_ALONE = (Records.kind, "heartbeat")  # the kinds that do not travel in bundles
_BUNDLE = {
    "frames": _FRAMES,
    "header": f"that of the first event, then the size of each event's payload (u4); 2 to {BUNDLED_MOST}",
    "payload": "a msgpack array, in the form 'array 16', of the events' payloads",
}
_REQUESTS = {str(t.__struct_config__.tag): t for t in get_args(Request)}
_REPLIES = {str(t.__struct_config__.tag): t for t in get_args(Reply)}
_REPLAY = {"fetch", "fetch_states", "fetched", "fetched_states", "read_failed"}  # of the replay socket
# What the bus answers; members of a group are also sent `assigned`, unasked.
_ANSWERS = {
    "hello": ("welcome",),
    "beat": ("heard", "ack"),
    "goodbye": ("heard",),
    "status": ("status_reply",),
    "end_runs": ("heard",),
    "remove_dead_letter": ("heard",),
    "fetch": ("fetched", "read_failed"),
    "fetch_states": ("fetched_states", "read_failed"),
}
# Name, offset in bytes, size, what it is (docs/wire.md says more).
_HEADER = (
    ("wire_version", 0, "u1", "the version of the wire format"),
    ("stream", 1, "3 bytes", "the beginning of the stream's id, in hex here; zero before the bus has it"),
    ("records", 4, "u4", "how many request records the event carries"),
    ("source", 8, "16 bytes", "names the publishing process, in hex here"),
    ("source_seq", 24, "u8", "the event's number among all of its source, from 1"),
    ("topic_seq", 32, "u8", "the event's number among those of its source on its topic, from 1"),
    ("offset", 40, "u8", "its place in the bus's stream, from 1; 0 before the bus has it"),
    ("event_number", 48, "u8", "how many events up to and including this one are no records; likewise"),
    ("previous", 56, "u8", "of records, the offset of those before them in their partition; likewise"),
)
_SOCKETS = {
    "control": ("ROUTER", "DEALER", "control.ipc", "Requests, and events from publishers."),
    "events": ("XPUB", "SUB", "events.ipc", "The live stream. The welcome says where it is."),
    "replay": ("ROUTER", "DEALER", "replay.ipc", "Past events, of a bus with a journal. See the welcome."),
    "direct": ("PUB", "SUB", "events.ipc", "A publisher in direct mode: no bus, no acknowledgement."),
}


def document() -> JsonObject:
    """Return the AsyncAPI document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "phase-bus",
            "version": f"{WIRE_VERSION}.0.0",
            "description": "Events of LLM benchmark runs over ZeroMQ. docs/wire.md says it in words.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": _MSGPACK,
        "servers": {
            f"{name}-{scheme}": _server(name, scheme) for name in _SOCKETS for scheme in ("tcp", "ipc")
        },
        "channels": {
            **{kind: _event_channel(kind) for kind in KINDS},
            "ready": _ready_channel(),
            "intake": _intake_channel(),
            "control": _control_channel("control", "Requests to the bus and its answers: one frame each."),
            "replay": _control_channel(
                "replay", "Pieces of the journal: three frames a message follow the answer."
            ),
        },
        "operations": dict(_operations()),
        "components": {
            "messages": {
                **{kind: _event_message(kind) for kind in KINDS},
                "ready": _ready_message(),
                **{op: _control_message(op, t) for op, t in (_REQUESTS | _REPLIES).items()},
            },
            "schemas": {"Header": _header_schema(), **_schemas()},
            "parameters": {
                "run_id": {"description": "The run's id. It may hold dots."},
                "partition": {"description": "The partition, in decimal, with two digits at least."},
                "client_id": {"description": "32 hex digits of the subscriber's choice."},
            },
        },
    }


# ---- where ----


def _server(name: str, scheme: str) -> JsonObject:
    socket, peer, file, about = _SOCKETS[name]
    extension = {"x-zeromq": {"socket": socket, "peer": peer, "bind": True, "transport": scheme}}
    if scheme == "ipc":
        place: JsonObject = {
            "host": "{directory}",
            "pathname": f"/{file}",
            "variables": {"directory": {"description": "The directory in the bus's address."}},
        }
    else:
        port = {
            "description": "The port in the address."
            if name in ("control", "direct")
            else "In the welcome."
        }
        place = {
            "host": "{host}:{port}",
            "variables": {"host": {"description": "The host in the address."}, "port": port},
        }
    return {**place, "protocol": "zmtp", "protocolVersion": "3.1", "description": about, **extension}


def _servers(*names: str) -> list[JsonObject]:
    return [{"$ref": f"#/servers/{name}-{scheme}"} for name in names for scheme in ("tcp", "ipc")]


def _event_channel(kind: str) -> JsonObject:
    parameters = {"heartbeat": (), Records.kind: ("partition", "run_id")}.get(kind, ("run_id",))
    qualifier = ".".join(f"{{{name}}}" for name in parameters)
    channel: JsonObject = {
        "address": f"{kind}.{qualifier}$",
        "messages": _messages(kind),
        "servers": _servers("events") if kind == "heartbeat" else _servers("events", "direct"),
    }
    if parameters:
        channel["parameters"] = {name: {"$ref": f"#/components/parameters/{name}"} for name in parameters}
    return channel


def _ready_channel() -> JsonObject:
    return {
        "address": "ready.{client_id}$",
        "description": "The bus's greeting: the answer to a subscription to this very topic, which shows "
        "that all subscriptions made before it on the same connection are in force.",
        "messages": _messages("ready"),
        "servers": _servers("events"),
        "parameters": {"client_id": {"$ref": "#/components/parameters/client_id"}},
    }


def _intake_channel() -> JsonObject:
    return {
        "address": None,
        "description": "Events from publishers that have been welcomed: the same three frames as in the "
        "live stream, each source's in the order of its sequence. The bus acknowledges (ack), asks for "
        "what is missing (ack with resend), or cannot keep it (refused).",
        "messages": _messages(*(kind for kind in KINDS if kind != "heartbeat")),
        "servers": _servers("control"),
    }


def _control_channel(server: str, about: str) -> JsonObject:
    ops = [op for op in (*_REQUESTS, *_REPLIES) if (op in _REPLAY) == (server == "replay")]
    return {"address": None, "description": about, "messages": _messages(*ops), "servers": _servers(server)}


def _messages(*names: str) -> JsonObject:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


# ---- what the bus does ----


def _operations() -> list[tuple[str, JsonObject]]:
    operations: list[tuple[str, JsonObject]] = [
        (f"publish-{name}", _operation("send", name, name)) for name in (*KINDS, "ready")
    ]
    kinds = [kind for kind in KINDS if kind != "heartbeat"]
    taken = _operation("receive", "intake", *kinds)
    taken["reply"] = _reply("control", "ack", "refused", "heard")
    operations.append(("take-in", taken))
    for op, answers in _ANSWERS.items():
        channel = "replay" if op in _REPLAY else "control"
        answered = _operation("receive", channel, op)
        answered["reply"] = _reply(channel, *answers)
        operations.append((f"answer-{op}", answered))
    operations.append(("assign", _operation("send", "control", "assigned")))
    return operations


def _operation(action: str, channel: str, *messages: str) -> JsonObject:
    return {"action": action, **_reply(channel, *messages)}


def _reply(channel: str, *messages: str) -> JsonObject:
    return {
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }


# ---- messages ----


def _event_message(kind: str) -> JsonObject:
    return {
        "name": kind,
        "contentType": _MSGPACK,
        "summary": _summary(KINDS[kind]),
        "headers": {"$ref": "#/components/schemas/Header"},
        "payload": {"$ref": f"#/components/schemas/{KINDS[kind].__name__}"},
        "examples": [{"name": kind, "payload": example_of(kind)}],
        "x-zeromq": {"frames": _FRAMES} | ({} if kind in _ALONE else {"bundle": _BUNDLE}),
    }


def _ready_message() -> JsonObject:
    return {
        "name": "ready",
        "summary": "All subscriptions are in force.",
        "headers": {"$ref": "#/components/schemas/Header"},
        "payload": {"type": "string", "maxLength": 0},
        "x-zeromq": {"frames": _FRAMES},
    }


def _control_message(op: str, kind: type[msgspec.Struct]) -> JsonObject:
    events = [*_FRAMES, "..."] if op == "fetched" else []
    return {
        "name": op,
        "contentType": _MSGPACK,
        "summary": _summary(kind),
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
        "x-zeromq": {"frames": ["payload", *events]},
    }


def _summary(kind: type[msgspec.Struct]) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]


# ---- schemas ----


def _header_schema() -> JsonObject:
    properties = {}
    for name, place, size, about in _HEADER:
        digits = {"source": 32, "stream": 6}.get(name)
        kind = {"type": "string", "pattern": f"^[0-9a-f]{{{digits}}}$"} if digits else {"type": "integer"}
        properties[name] = {**kind, "description": about, "x-zeromq": {"at": place, "size": size}}
    return {
        "title": "Header",
        "description": f"The second frame: {HEADER.size} bytes, little-endian. In a bundle the size of "
        "each event's payload follows (u4).",
        "type": "object",
        "properties": properties,
        "required": [name for name, *_ in _HEADER],
    }


def _schemas() -> dict[str, Any]:
    types: list[type[EventBase] | type[msgspec.Struct]] = [
        *get_args(Event),
        *_REQUESTS.values(),
        *_REPLIES.values(),
    ]
    _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return {name: _draft_7(schema) for name, schema in sorted(schemas.items())}


def _draft_7(schema: Any) -> Any:
    """Return a schema in the terms of draft 7."""
    if isinstance(schema, list):
        return [_draft_7(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _draft_7(value) for key, value in schema.items()}
    if "prefixItems" in found:
        more = found.pop("items", None)
        found["items"] = found.pop("prefixItems")
        if more is not None:
            found["additionalItems"] = more
    return found
