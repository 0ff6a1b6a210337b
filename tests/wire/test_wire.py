"""Frames: header, topics, events, control messages; old readers and new writers."""

from __future__ import annotations

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from phase_bus.core import control
from phase_bus.core.address import Address
from phase_bus.core.wire import (
    Header,
    decode_event,
    decode_reply,
    decode_request,
    encode_control,
    encode_event,
    parse_topic,
    receive_event,
    receive_reply,
    topic_of,
    topic_prefix,
    unpack_header,
)
from phase_bus.errors import WireError
from phase_bus.events import (
    KINDS,
    Drop,
    Event,
    Heartbeat,
    PhaseComplete,
    PhasePlan,
    PhaseProgress,
    PhaseRef,
    PhasesConfigured,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    Records,
    RunComplete,
    RunStart,
    Summary,
    TopicReceipt,
    Verdict,
)
from phase_bus.publisher.record_builder import RecordBuilder

PHASE = PhaseRef("warmup", "warmup", 0)
STATS = PhaseStats(sent=3, completed=2, start_ns=5, expected_duration_s=1.5, was_cancelled=True)
_builder = RecordBuilder()
_builder.add({"a": 1, "b": [1, 2]}, {"c": "x"}, ("E", "m", 500))
_metrics, _fields, _errors, _ = _builder.build()

EVENTS: list[Event] = [
    RunStart(run_id="r", producer="aiperf", models=("m",), urls=("u",), trial=1, variation={"a": [1]}),
    PhasesConfigured(run_id="r", phases=(PhasePlan(phase=PHASE, expected_requests=5),)),
    PhaseStart(run_id="r", phase=PHASE),
    PhaseProgress(run_id="r", phase=PHASE, stats=STATS),
    PhaseSendingComplete(run_id="r", phase=PHASE, stats=STATS),
    PhaseTimeout(run_id="r", phase=PHASE, stats=STATS, requests_cut=2),
    PhaseComplete(run_id="r", phase=PHASE, stats=STATS),
    Records(
        run_id="r", phase=PHASE, count=1, partition=3, metrics=_metrics, fields=_fields, errors=_errors
    ),
    RunComplete(run_id="r", status="lost", reason="x", published={"a$": 1}, records=2, dropped={"b$": 1}),
    Summary(run_id="r", producer="p", final=True, result={"a": {"b": 1.5}}),
    Verdict(run_id="r", producer="p", threshold="t", state="failed", value=1.5, limit=1.0, unit="ns"),
    Receipt(run_id="r", consumer="c", topics={"t$": TopicReceipt(published=1)}),
    Drop(run_id="r", source="s", reason="x", events={"t$": 2}, records=5),
    Heartbeat(bus_id="b"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_round_trip(event: Event) -> None:
    """Every kind of event survives the wire."""
    assert decode_event(topic_of(event), encode_event(event)) == event


def test_every_kind_is_tried() -> None:
    """The list above is the whole vocabulary."""
    assert {event.kind for event in EVENTS} == set(KINDS)


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_header(
    source: bytes, source_seq: int, topic_seq: int, records: int, offset: int, number: int
) -> None:
    """A header of 64 bytes holds what it is given."""
    header = Header(source, source_seq, topic_seq, records, offset, number)
    assert len(header.pack()) == 64
    assert unpack_header(header.pack()) == header


def test_header_bytes() -> None:
    """The layout is what the documentation says."""
    packed = Header(bytes(range(16)), 2, 3, 4, 5, 6).pack()
    assert packed.hex() == (
        "0400000004000000000102030405060708090a0b0c0d0e0f"
        "02000000000000000300000000000000050000000000000006000000000000000000000000000000"
    )


@pytest.mark.parametrize("more", [b"1", b"size", bytes(4 * 257)])
def test_header_of_another_size(more: bytes) -> None:
    """What follows on a header are the sizes of a bundle's events: of two, to as many as there may be."""
    header = Header(bytes(16), 1, 1)
    assert unpack_header(header.pack() + bytes(8)).events == 2
    with pytest.raises(WireError, match="a header has 64 bytes, this one"):
        unpack_header(header.pack() + more)


@pytest.mark.parametrize("frame", [b"", b"\x01" * 47, b"\x01" + bytes(55)])
def test_bad_header(frame: bytes) -> None:
    """A header that is too short or of another version is an error that names the topic."""
    with pytest.raises(WireError, match=r"phase_start\.r\$") as caught:
        unpack_header(frame, b"phase_start.r$")
    assert caught.value.topic == b"phase_start.r$"


@pytest.mark.parametrize("run_id", ["3f2a", "llama-3.1", "lauf-ü", "a.b.c", ""])
def test_topics(run_id: str) -> None:
    """A topic gives back its kind and run, whatever the run is called."""
    for event in (PhaseStart(run_id=run_id, phase=PHASE), Records(run_id=run_id, phase=PHASE, count=0)):
        assert parse_topic(topic_of(event)) == (event.kind, run_id)
        assert topic_of(event).startswith(topic_prefix(event.kind))


def test_topic_of_records() -> None:
    """Records have their partition in two digits before the run."""
    assert topic_of(Records(run_id="3f2a", phase=PHASE, count=0, partition=7)) == b"records.07.3f2a$"


@pytest.mark.parametrize("topic", [b"", b"phase_start", b"phase_start.r", b"\xff.r$", b"$"])
def test_bad_topic(topic: bytes) -> None:
    """A malformed topic is an error."""
    with pytest.raises(WireError):
        parse_topic(topic)


def test_unknown_kind() -> None:
    """A kind that this version does not know is not an error."""
    assert decode_event(b"brand_new.r$", b"\xc1") is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"kind": "phase_start"}),
        msgspec.msgpack.encode([1]),
        encode_event(Heartbeat(ts_ns=1)),
        msgspec.msgpack.encode({"kind": "brand_new", "run_id": "r"}),
    ],
)
def test_bad_payload(payload: bytes) -> None:
    """A payload that is not of its topic's kind is a WireError and nothing else."""
    with pytest.raises(WireError):
        decode_event(b"phase_start.r$", payload)


def test_new_fields_are_ignored() -> None:
    """An old reader understands a newer writer."""
    event = PhaseStart(run_id="r", phase=PHASE)
    plain = msgspec.to_builtins(event) | {"added": {"x": 1}}
    plain["phase"]["added"] = 5
    plain["stats"]["added"] = None
    assert decode_event(topic_of(event), msgspec.msgpack.encode(plain)) == event


def test_new_array_elements_are_ignored() -> None:
    """Tables and record errors travel as arrays; a newer writer's further elements are ignored."""
    event = EVENTS[7]
    plain = msgspec.msgpack.decode(encode_event(event))
    for table in plain["metrics"]:
        table += [None] * (6 - len(table)) + ["added"]
    plain["errors"][0].append("added")
    assert decode_event(topic_of(event), msgspec.msgpack.encode(plain)) == event


def test_missing_fields_have_defaults() -> None:
    """A new reader understands an older writer."""
    payload = msgspec.msgpack.encode({"kind": "run_complete", "run_id": "r", "ts_ns": 1, "status": "lost"})
    assert decode_event(b"run_complete.r$", payload) == RunComplete(run_id="r", ts_ns=1, status="lost")


@pytest.mark.parametrize("frames", [[b"x"], [b"x", b"y"], [b"w", b"x", b"y", b"z"], [b"x"] * 5])
def test_a_message_of_other_than_three_frames(frames: list[bytes]) -> None:
    """It is reported, and may take the next one with it, but those after that are read correctly."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    try:
        here.bind("inproc://frames")
        there.connect("inproc://frames")
        for _ in range(2):
            there.send_multipart(frames)
            with pytest.raises(WireError, match="three frames"):
                receive_event(here)
            there.send_multipart(frames)
            there.send_multipart([b"t", b"h", b"p"])
            with pytest.raises(WireError, match="three frames"):
                receive_event(here)
            there.send_multipart([b"topic", b"header", b"payload"])
            found = [b"t"]
            while found[0] == b"t":  # what came before it may have been left
                topic, header, payload = receive_event(here)
                found = [topic, header, payload.bytes]
            assert found == [b"topic", b"header", b"payload"]
            with pytest.raises(zmq.Again):
                receive_event(here)
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize("before", [[b""], [b"x", b"y"]])
def test_a_reply_of_more_than_one_frame(before: list[bytes]) -> None:
    """It is reported; no frame of it is taken for a reply, and the next one is read correctly."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    ack, refused = control.Ack(seq=10), control.Refused(seq=3, reason="the disk is full")
    address = Address.parse("tcp://127.0.0.1:5670")
    try:
        here.bind("inproc://replies")
        there.connect("inproc://replies")
        for frames in ([*before, encode_control(ack)], [encode_control(ack), *before]):
            there.send_multipart(frames)
            with pytest.raises(WireError, match="one frame"):
                receive_reply(here, address)
            there.send(encode_control(refused))
            assert receive_reply(here, address) == refused
            assert receive_reply(here, address) is None
    finally:
        context.destroy(linger=0)


def test_control_messages() -> None:
    """Requests and replies survive, and are not taken for each other."""
    hello = control.Hello(client_id="a", role="consumer", name="n", subscriptions=("x.",))
    assert decode_request(encode_control(hello)) == hello
    ack = control.Ack(seq=5, resend=True)
    assert decode_reply(encode_control(ack)) == ack
    with pytest.raises(WireError):
        decode_reply(encode_control(hello))
    with pytest.raises(WireError):
        decode_request(encode_control(ack))
    with pytest.raises(WireError):
        decode_request(b"\xc1")


def test_texts_that_utf_8_cannot_carry_spoil_no_event() -> None:
    """Arguments and names of files may hold lone surrogates, wherever they end up in an event."""
    event = RunStart(
        run_id="r\udcff",
        producer="ok",
        models=("m\ud800", "n"),
        variation={"k\udc80": ["v\udcff", 1, None, {"deep": "\ud800"}]},
    )
    topic = topic_of(event)
    assert topic == b"run_start.r?$"
    again = decode_event(topic, encode_event(event))
    assert again == RunStart(
        run_id="r?",
        ts_ns=event.ts_ns,
        producer="ok",
        models=("m?", "n"),
        variation={"k?": ["v?", 1, None, {"deep": "?"}]},
    )
