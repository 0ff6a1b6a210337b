"""The rules by which the wire may change, and that older and newer programs understand each other."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any, cast, get_args

import msgspec
import pytest

from phase_bus.core.control import Reply, Request
from phase_bus.core.wire import decode_event, decode_reply, decode_request, encode_event, unpack_header
from phase_bus.errors import WireError
from phase_bus.events import Event
from scripts import frozen, samples
from tests.wire.vectors import SCHEMAS, as_json, frames_of, vectors

FROZEN = SCHEMAS / "frozen.json"
Vector = dict[str, Any]
Fields = dict[str, Any]

RULE = """\
The wire must stay readable to earlier versions (docs/wire.md, "How it may change"):
  {}
What was never released may be frozen anew: python -m scripts.make_schemas --freeze. Whatever else has to
change needs a new WIRE_VERSION, and that breaks every reader."""


# ---- the guard ----


def test_nothing_that_others_rely_on_has_changed() -> None:
    """No field that was released is gone or of another type, and each new one has a default."""
    problems = frozen.problems(json.loads(FROZEN.read_text()), frozen.fields())
    assert not problems, RULE.format("\n  ".join(problems))


def _table(now: Fields) -> Fields:
    return cast("Fields", now["messages"]["Table"])


def _drop_field(now: Fields) -> None:
    del now["messages"]["PhaseStats"]["fields"]["errors"]


def _change_type(now: Fields) -> None:
    now["messages"]["RunComplete"]["fields"]["records"]["type"] = "float"


def _narrow_choice(now: Fields) -> None:
    now["messages"]["PhaseRef"]["fields"]["kind"]["type"] = "Literal['warmup', 'profiling', 'ramp']"


def _add_without_default(now: Fields) -> None:
    now["messages"]["Hello"]["fields"]["added"] = {"type": "int"}


def _change_default(now: Fields) -> None:
    now["messages"]["Heard"]["fields"]["known"]["default"] = "False"


def _take_default_away(now: Fields) -> None:
    del now["messages"]["Heard"]["fields"]["known"]["default"]


def _drop_message(now: Fields) -> None:
    del now["messages"]["Drop"]


def _change_tag(now: Fields) -> None:
    now["messages"]["Ack"]["tag"] = "op=acknowledged"


def _insert_element(now: Fields) -> None:
    fields = _table(now)["fields"]
    _table(now)["fields"] = {"added": {"type": "int", "default": "0"}, **fields}


def _change_header(now: Fields) -> None:
    now["header"] += "Q"  # a longer one would be taken for that of a bundle


def _change_topic_end(now: Fields) -> None:
    now["topic_end"] = "#"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop_field, "PhaseStats.errors is gone"),
        (_change_type, "RunComplete.records was of type int and is of type float"),
        (_narrow_choice, "PhaseRef.kind was of type Literal"),
        (_add_without_default, "Hello.added is new and has no default"),
        (_change_default, "Heard.known had the default True and has the default False"),
        (_take_default_away, "Heard.known had the default True and has no default"),
        (_drop_message, "Drop is gone"),
        (_change_tag, "Ack: its tag"),
        (_insert_element, "Table is an array"),
        (_change_header, "the header's layout"),
        (_change_topic_end, "the topic's end"),
    ],
)
def test_guard_finds(change: Callable[[Fields], None], told: str) -> None:
    """Each change that would break a reader is found, once, by name; a new wire version allows it."""
    was = frozen.fields()
    now = copy.deepcopy(was)
    change(now)
    (problem,) = frozen.problems(was, now)
    assert told in problem
    assert frozen.problems(was, now | {"wire_version": was["wire_version"] + 1}) == []


def test_guard_allows() -> None:
    """What no reader minds: fields with a default, also at an array's end, messages."""
    was = frozen.fields()
    now = copy.deepcopy(was)
    now["messages"]["RunStart"]["fields"]["added"] = {"type": "int", "default": "0"}
    _table(now)["fields"]["added"] = {"type": "int", "default": "0"}
    now["messages"]["BrandNew"] = {"tag": "kind=brand_new", "form": "map", "fields": {"x": {"type": "int"}}}
    assert frozen.problems(was, now) == []


def test_everything_is_frozen() -> None:
    """The guard knows every event, every control message and what is inside them."""
    names = set(frozen.fields()["messages"])
    assert names > {t.__name__ for union in (Request, Reply) for t in get_args(union)}
    assert names > {type(event).__name__ for _, _, event in samples.STREAM}
    assert names > {"PhaseRef", "PhaseStats", "PhasePlan", "Table", "RecordError", "TopicReceipt"}
    assert names > {"Endpoint", "Commit", "DeadLetterNote", "ClientInfo", "GroupInfo", "RunInfo"}


# ---- older and newer programs ----


def _read(topic: bytes, header: bytes, payload: bytes) -> Event | None:
    unpack_header(header, topic)
    return decode_event(topic, payload)


@pytest.mark.parametrize("vector", vectors("evolution", outcome="read"))
def test_newer_and_older_events_are_read(vector: Vector) -> None:
    """What is unknown is ignored, and what is missing has its default."""
    event = _read(*frames_of(vector))
    assert event is not None
    assert as_json(msgspec.msgpack.decode(encode_event(event))) == vector["means"]


@pytest.mark.parametrize("vector", vectors("evolution", outcome="skip"))
def test_newer_kinds_are_skipped(vector: Vector) -> None:
    """A kind that this version does not know is not an error, whatever is in it."""
    assert _read(*frames_of(vector)) is None


@pytest.mark.parametrize("vector", vectors("evolution", outcome="refuse"))
def test_what_is_no_event_is_refused(vector: Vector) -> None:
    """It raises a WireError that names the topic."""
    topic, header, payload = frames_of(vector)
    with pytest.raises(WireError) as caught:
        _read(topic, header, payload)
    assert caught.value.topic == topic


def test_other_wire_version_is_refused_clearly() -> None:
    """The message says which version it is, which one is read, and what to do."""
    (vector,) = (v.values[0] for v in vectors("evolution") if v.values[0]["name"] == "other-version")
    topic, header, _ = frames_of(vector)
    with pytest.raises(WireError) as caught:
        unpack_header(header, topic)
    assert str(caught.value) == (
        "bad message on topic 'phase_start.3f2a9c$': wire version 5 is not 4; "
        "use the same phase-bus on both sides"
    )


@pytest.mark.parametrize("vector", vectors("control"))
def test_newer_control_messages_are_read(vector: Vector) -> None:
    """Fields that a newer client or bus adds, on every level, are ignored."""
    decode = decode_request if vector["role"] == "request" else decode_reply
    frame = frames_of(vector)[0]
    message = decode(frame)
    newer = msgspec.msgpack.decode(frame) | {"added": [1]}
    for name in ("events", "replay"):
        if newer.get(name) is not None and newer["op"] == "welcome":
            newer[name]["added"] = 1
    for name in ("clients", "runs", "groups", "commits", "dead_letters"):
        for part in newer.get(name, ()):
            if isinstance(part, dict):
                part["added"] = None
    assert decode(msgspec.msgpack.encode(newer)) == message


@pytest.mark.parametrize("union", [Request, Reply], ids=["requests", "replies"])
def test_older_control_messages_are_read(union: Any) -> None:
    """A control message that has only what it must have is read; the rest has its defaults."""
    decode = decode_request if union is Request else decode_reply
    every = [m for _, _, m in (*samples.REQUESTS, *samples.REPLIES) if isinstance(m, union)]
    assert {type(m) for m in every} == set(get_args(union))
    for message in every:
        fields = msgspec.structs.fields(message)
        old = {f.encode_name: getattr(message, f.name) for f in fields if f.required}
        frame = msgspec.msgpack.encode({"op": type(message).__struct_config__.tag, **old})
        assert decode(frame) == type(message)(**old)


@pytest.mark.parametrize("decode", [decode_request, decode_reply])
def test_newer_control_messages_are_set_aside(decode: Callable[[bytes], object]) -> None:
    """An unknown ``op`` is a WireError, which both sides log and skip."""
    with pytest.raises(WireError, match="brand_new"):
        decode(msgspec.msgpack.encode({"op": "brand_new"}))
