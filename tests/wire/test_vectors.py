"""The test vectors: read by a decoder that knows docs/wire.md only, and by our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from phase_bus.core import bundle
from phase_bus.core.control import Reply, Request
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import (
    HEADER,
    Header,
    decode_event,
    decode_reply,
    decode_request,
    encode_control,
    encode_event,
    topic_of,
    unpack_header,
)
from phase_bus.errors import WireError
from phase_bus.events import KINDS, Event, Records
from tests.wire import decoder, encoder
from tests.wire.vectors import SCHEMAS, as_json, frames_of, vectors

# A reader in another language knows the kinds by the files' names, and so does this one.
KNOWN = {v.values[0]["payload"]["kind"] for v in vectors("events")}

EVENTS = [*vectors("events"), *vectors("records")]
REFUSED = vectors("evolution", outcome="refuse")
READ = vectors("evolution", outcome="read")
BUNDLES = [*vectors("bundles", outcome="read"), *vectors("bundles", outcome="skip")]
NO_BUNDLES = vectors("bundles", outcome="refuse")

Vector = dict[str, Any]


def same(one: Any, other: Any) -> bool:
    """Say whether two JSON values are the same to the last bit; 1 and 1.0 are not, nor 0.0 and -0.0."""
    return json.dumps(one) == json.dumps(other)


def test_every_message_has_a_vector() -> None:
    """Every kind of event and every control message is among the vectors."""
    assert set(KINDS) == KNOWN
    ops = {v.values[0]["message"]["op"] for v in vectors("control")}
    assert ops == {t.__struct_config__.tag for union in (Request, Reply) for t in get_args(union)}


# ---- by what docs/wire.md says ----


@pytest.mark.parametrize("vector", EVENTS)
def test_foreign_reader_reads_events(vector: Vector) -> None:
    """Topic, header and payload are what the vector says."""
    event = decoder.read_event(frames_of(vector), KNOWN)
    assert {
        "text": frames_of(vector)[0].decode(),
        "kind": event.kind,
        "run_id": event.run_id,
        "partition": event.partition,
    } == vector["topic"]
    assert _head(event) == vector["header"]
    assert same(as_json(event.payload), vector["payload"])


def _head(event: decoder.Received) -> dict[str, Any]:
    return event.head._asdict() | {
        "source": event.head.source.hex(),
        "stream": event.head.stream.hex(),
        "wire_version": decoder.WIRE_VERSION,
    }


@pytest.mark.parametrize("vector", vectors("records"))
def test_foreign_reader_reads_records(vector: Vector) -> None:
    """The tables hold the records that the vector shows."""
    event = decoder.read_event(frames_of(vector), KNOWN)
    assert event.payload is not None
    records = as_json(decoder.read_records(event.payload))
    assert [sorted(each.items(), key=str) for each in records] == [
        sorted(each.items(), key=str) for each in vector["records"]
    ]
    assert event.head.records == len(records)


@pytest.mark.parametrize("vector", vectors("control"))
def test_foreign_reader_reads_control_messages(vector: Vector) -> None:
    """A control message is one frame of msgpack; a piece of the journal has three more for each event."""
    first, *rest = frames_of(vector)
    assert same(as_json(decoder.unpack(first)), vector["message"])
    for place in range(0, len(rest), 3):
        decoder.read_event(rest[place : place + 3], KNOWN)
    assert len(rest) == (6 if vector["name"] == "fetched" else 0)


@pytest.mark.parametrize("vector", REFUSED)
def test_foreign_reader_refuses(vector: Vector) -> None:
    """What is not an event of this wire version is refused."""
    with pytest.raises((decoder.RefusedError, KeyError)):  # a KeyError: a field that must be there is not
        _phase_of(frames_of(vector))


def _phase_of(frames: list[bytes]) -> Any:
    event = decoder.read_event(frames, KNOWN)
    assert event.payload is not None
    return event.payload["phase"]


@pytest.mark.parametrize("vector", vectors("evolution", outcome="skip"))
def test_foreign_reader_skips_new_kinds(vector: Vector) -> None:
    """Of an unknown kind topic and header can be read, and the payload is left alone."""
    event = decoder.read_event(frames_of(vector), KNOWN)
    assert (event.kind, event.payload, event.head.source_seq) == ("brand_new", None, 1)


@pytest.mark.parametrize("vector", READ)
def test_foreign_reader_reads_newer_and_older_events(vector: Vector) -> None:
    """More or less than expected is in the payload; records can be read all the same."""
    event = decoder.read_event(frames_of(vector), KNOWN)
    assert same(as_json(event.payload), vector["payload"])
    if vector["name"] == "new-elements":
        assert event.payload is not None
        (expected,) = (
            v.values[0]["records"] for v in vectors("records") if v.values[0]["name"] == "several-shapes"
        )
        assert decoder.read_records(event.payload) == expected


@pytest.mark.parametrize("vector", BUNDLES)
def test_foreign_reader_reads_bundles(vector: Vector) -> None:
    """A bundle's events have the numbers that follow on the first one's; each can be read by itself."""
    events = decoder.read_message(frames_of(vector), KNOWN)
    assert len(events) == vector["events"]
    assert [_head(events[0]), _head(events[-1])] == [vector["first"], vector["last"]]
    assert {(event.kind, event.run_id) for event in events} == {
        (vector["topic"]["kind"], vector["topic"]["run_id"])
    }
    payloads = [as_json(event.payload) for event in events if event.payload is not None]
    assert same(payloads, vector["payloads"])


@pytest.mark.parametrize("vector", [*EVENTS, *READ])
def test_foreign_reader_reads_events_that_are_alone(vector: Vector) -> None:
    """What reads bundles reads any message."""
    frames = frames_of(vector)
    (event,) = decoder.read_message(frames, KNOWN)
    assert repr(event) == repr(decoder.read_event(frames, KNOWN))  # a NaN is not equal to itself


@pytest.mark.parametrize("vector", NO_BUNDLES)
def test_foreign_reader_refuses_what_is_no_bundle(vector: Vector) -> None:
    """Whatever is wrong with it, it is refused, and nothing else happens."""
    with pytest.raises(decoder.RefusedError):
        decoder.read_message(frames_of(vector), KNOWN)


def test_foreign_reader_is_foreign() -> None:
    """It imports nothing but the standard library."""
    text = Path(decoder.__file__).read_text()
    imports = {line.split()[1] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imports == {"__future__", "struct", "typing"}


# ---- by ourselves ----


@pytest.mark.parametrize("vector", EVENTS)
def test_we_read_events(vector: Vector) -> None:
    """Decoded and encoded again, an event has the same bytes."""
    topic, header, payload = frames_of(vector)
    event = decode_event(topic, payload)
    assert event is not None
    assert topic_of(event) == topic
    assert encode_event(event) == payload
    assert unpack_header(header, topic).pack() == header


def _events_of(vector: Vector) -> list[tuple[Header, Event | None]]:
    """Return what our own reader makes of a message."""
    topic, frame, payload = frames_of(vector)
    parts = bundle.split(unpack_header(frame, topic), frame, memoryview(payload), topic)
    return [(header, decode_event(topic, part)) for header, part in parts]


@pytest.mark.parametrize("vector", BUNDLES)
def test_we_read_bundles(vector: Vector) -> None:
    """Our reader finds the same numbers as the foreign one, and the same events."""
    theirs = decoder.read_message(frames_of(vector), KNOWN)
    ours = _events_of(vector)
    for (header, event), their in zip(ours, theirs, strict=True):
        assert header.pack() == decoder.HEADER.pack(decoder.WIRE_VERSION, *their.head)
        assert header.events == 1
        assert (event is None) == (their.payload is None)
        if event is not None and their.payload is not None:
            assert msgspec.msgpack.decode(encode_event(event)).items() <= their.payload.items()


@pytest.mark.parametrize("vector", BUNDLES)
def test_we_write_bundles(vector: Vector) -> None:
    """Our writer and the foreign one make the same frames of the parts."""
    _, frame, payload = frames_of(vector)
    first = frame[: HEADER.size]
    parts = [bytes(part) for _, part in bundle.split(unpack_header(frame), frame, memoryview(payload))]
    assert bundle.join(first, parts) == encoder.bundle(first, parts) == (frame, payload)


@pytest.mark.parametrize("vector", NO_BUNDLES)
def test_we_refuse_what_is_no_bundle(vector: Vector) -> None:
    """It is a WireError that names the topic."""
    with pytest.raises(WireError) as caught:
        _events_of(vector)
    assert caught.value.topic == frames_of(vector)[0]


@pytest.mark.parametrize("vector", vectors("records"))
def test_we_read_records(vector: Vector) -> None:
    """Our reader finds the same records as the foreign one."""
    topic, _, payload = frames_of(vector)
    event = decode_event(topic, payload)
    theirs = decoder.read_records(decoder.unpack(payload))
    assert isinstance(event, Records)
    ours = list(RecordBatch(event))
    assert repr([sorted(r.items()) for r in ours]) == repr([sorted(r.items()) for r in theirs])


@pytest.mark.parametrize("vector", vectors("control"))
def test_we_read_control_messages(vector: Vector) -> None:
    """Decoded and encoded again, a control message has the same bytes."""
    frame = frames_of(vector)[0]
    decode = decode_request if vector["role"] == "request" else decode_reply
    assert encode_control(decode(frame)) == frame


# ---- by the schemas ----


@pytest.mark.parametrize("vector", EVENTS)
def test_events_fit_their_schemas(vector: Vector) -> None:
    """The JSON Schema of its kind describes each event."""
    schema = json.loads((SCHEMAS / f"{vector['topic']['kind']}.json").read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    validator(schema).validate(vector["payload"])


@pytest.mark.parametrize("vector", vectors("control"))
def test_control_messages_fit_the_asyncapi_document(vector: Vector) -> None:
    """The AsyncAPI document's schemas describe each control message."""
    document = json.loads((SCHEMAS / "asyncapi.json").read_text())
    payload = document["components"]["messages"][vector["message"]["op"]]["payload"]
    jsonschema.Draft7Validator({**payload, "components": document["components"]}).validate(
        vector["message"]
    )


def test_stream_is_as_a_bus_numbers_it() -> None:
    """In the small run sequences, offsets and event numbers count as docs/wire.md says."""
    last: dict[Any, int] = {}
    offset = number = 0
    for vector in (v.values[0] for v in vectors("events")):
        head, topic = vector["header"], vector["topic"]
        for key, seq in ((head["source"], "source_seq"), ((head["source"], topic["text"]), "topic_seq")):
            last[key] = last.get(key, 0) + 1
            assert head[seq] == last[key]
        if topic["kind"] != "heartbeat":
            offset += 1
            number += topic["kind"] != "records"
        assert (head["offset"], head["event_number"]) == (offset, number)
    assert offset > number > 0


def test_run_complete_counts_the_stream() -> None:
    """What the run's end says was published is what the small run has."""
    events = [v.values[0] for v in vectors("events")]
    (end,) = (v["payload"] for v in events if v["topic"]["kind"] == "run_complete")
    topics = [v["topic"]["text"] for v in events if v["header"]["source"] == events[0]["header"]["source"]]
    assert end["published"] == {
        topic: topics.count(topic) for topic in topics if "run_complete" not in topic
    }
    assert end["records"] == sum(v["header"]["records"] for v in events)
