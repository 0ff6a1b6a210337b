"""The publisher's bounded buffer."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase_bus.core.bundle import split
from phase_bus.core.outbox import Outbox, frames_of
from phase_bus.core.wire import unpack_header
from phase_bus.events import EventBase, PhaseRef, PhaseStart, Records, Table

PHASE = PhaseRef("profiling")
START = PhaseStart(run_id="r", phase=PHASE, ts_ns=1)


def records(size_bytes: int = 1000, run_id: str = "r") -> Records:
    """A batch of records of about a size."""
    return Records(
        run_id=run_id, phase=PHASE, count=5, metrics=(Table(("x",), "i", 5, memoryview(bytes(size_bytes))),)
    )


def send_all(outbox: Outbox) -> list[int]:
    """Send everything; return the sequence numbers."""
    sent = []
    while (message := outbox.peek()) is not None:
        sent.append(message.seq)
        outbox.sent()
    return sent


def test_numbers() -> None:
    """Sequences of the source and of each topic count from 1; the header says how many records."""
    outbox = Outbox(b"s" * 16, 1 << 20)
    for event in (START, records(), records(), START):
        outbox.put(event)
    headers = []
    while (message := outbox.peek()) is not None:
        headers.append(unpack_header(message.frames[1]))
        outbox.sent()
    assert [(h.source_seq, h.topic_seq, h.records) for h in headers] == [
        (1, 1, 0),
        (2, 1, 5),
        (3, 2, 5),
        (4, 2, 0),
    ]


def test_records_are_refused_and_others_never() -> None:
    """The limit stops records only, and what is refused leaves no gap."""
    outbox = Outbox(b"s" * 16, 2500)
    assert outbox.put(records())
    assert outbox.put(records())
    assert not outbox.put(records())
    assert all(outbox.put(START) for _ in range(100))
    assert outbox.last_seq == 102
    outbox.acknowledge(102)
    assert outbox.put(records())
    assert (outbox.last_seq, len(outbox)) == (103, 1)


def test_an_event_that_cannot_be_encoded_leaves_no_trace() -> None:
    """It raises, and the next event gets the number."""
    outbox = Outbox(b"s" * 16, 1 << 20)

    class Odd(EventBase, frozen=True, kw_only=True, tag="odd"):
        value: object = None

    for bad in (
        Odd(run_id="r", value=object()),
        Odd(run_id="r"),
        PhaseStart(run_id="r", ts_ns=2**70, phase=PHASE),
    ):
        with pytest.raises((TypeError, AttributeError, OverflowError, ValueError, msgspec.MsgspecError)):
            outbox.put(bad)
    assert (len(outbox), outbox.size_bytes, outbox.last_seq) == (0, 0, 0)


def test_rewind() -> None:
    """All that is not acknowledged is sent again, in order."""
    outbox = Outbox(b"s" * 16, 1 << 20)
    for _ in range(5):
        outbox.put(START)
    outbox.sent()
    outbox.sent()
    outbox.sent()
    outbox.acknowledge(1)
    assert (outbox.next_seq, outbox.sent_seq) == (2, 3)
    outbox.rewind()
    assert outbox.sent_seq == 1
    assert send_all(outbox) == [2, 3, 4, 5]
    assert outbox.sent_seq == 5


def outbox_of(*events: tuple[bytes, int]) -> Outbox:
    """An outbox with events of these topics and sizes of payload."""
    outbox = Outbox(b"s" * 16, 1 << 30)
    for topic, size in events:
        outbox.add(topic, bytes(size), 5 if topic.startswith(b"records") else 0)
    return outbox


def parts_of(outbox: Outbox, largest_bytes: int = 0) -> list[int]:
    """Send everything, as much at once as may go together; return how many that was each time."""
    parts = []
    while messages := outbox.together(largest_bytes):
        parts.append(len(messages))
        outbox.sent(len(messages))
    return parts


A, B, OF_RECORDS = b"phase_progress.r$", b"phase_start.r$", b"records.07.r$"


@pytest.mark.parametrize(
    ("events", "parts"),
    [
        ([], []),
        ([(A, 100)], [1]),
        ([(A, 100)] * 3, [3]),
        ([(A, 100), (A, 90), (B, 100), (A, 80), (A, 70)], [2, 1, 2]),
        ([(OF_RECORDS, 100)] * 3, [1, 1, 1]),
        ([(A, 100), (OF_RECORDS, 100), (A, 100)], [1, 1, 1]),
        ([(A, 100)] * 600, [256, 256, 88]),
        ([(A, 8192), (A, 8192), (A, 8193), (A, 1)], [2, 1, 1]),
        ([(A, 8000)] * 9, [8, 1]),
    ],
)
def test_what_goes_together(events: list[tuple[bytes, int]], parts: list[int]) -> None:
    """Small events of one topic that wait in a row; never records, and no more than a bundle may have."""
    assert parts_of(outbox_of(*events)) == parts


@pytest.mark.parametrize("largest_bytes", [1, 250, 500, 1000, 5000])
def test_what_goes_together_is_no_larger_than_the_bus_takes(largest_bytes: int) -> None:
    outbox = outbox_of(*[(A, size) for size in range(50, 400)])
    count = 0
    while messages := outbox.together(largest_bytes):
        assert len(messages) == 1 or sum(map(len, frames_of(messages))) <= largest_bytes
        count += len(messages)
        outbox.sent(len(messages))
    assert count == 350


def test_events_in_a_bundle_are_those_that_went_in() -> None:
    """Numbers and payloads of each are those that it has alone, whatever was sent before."""
    outbox = outbox_of((B, 1), (A, 1))
    events = [PhaseStart(run_id="r", phase=PHASE, ts_ns=number) for number in range(5)]
    for event in events:
        outbox.put(event)
    alone = [message.frames for message in outbox][2:]
    assert parts_of(outbox) == [1, 1, 5]
    outbox.acknowledge(3)
    outbox.rewind()
    topic, frame, payload = frames_of(outbox.together())
    header = unpack_header(frame)
    assert (header.events, header.source_seq, header.topic_seq, topic) == (4, 4, 3, alone[0][0])
    split_up = [(h.pack(), bytes(view)) for h, view in split(header, frame, memoryview(payload))]
    assert split_up == [(header, payload) for _, header, payload in alone[1:]]
    assert msgspec.msgpack.decode(payload, type=list[PhaseStart]) == events[1:]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([A, B, OF_RECORDS]), st.sampled_from([10, 3000, 9000])),
            st.sampled_from(["send", "lose"]),
            st.integers(0, 9),
        )
    ),
    st.sampled_from([0, 100, 4000, 20_000]),
)
def test_the_other_side_has_each_event_once_and_in_order(
    steps: list[tuple[bytes, int] | str | int], largest_bytes: int
) -> None:
    """It takes what comes next and nothing twice; it acknowledges a part, or a connection loses some."""
    outbox = Outbox(b"s" * 16, 1 << 30)
    published: list[tuple[bytes, bytes]] = []
    taken: list[tuple[bytes, bytes]] = []
    numbers: Counter[bytes] = Counter()

    def send(*, lost: bool) -> None:
        messages = outbox.together(largest_bytes)
        if not messages:
            return
        topic, frame, payload = frames_of(messages)
        outbox.sent(len(messages))
        header = unpack_header(frame)
        for each, view in split(header, frame, memoryview(payload)):
            if not lost and each.source_seq == len(taken) + 1:
                taken.append((topic, bytes(view)))
                numbers[topic] += 1
                assert each.topic_seq == numbers[topic]

    for step in steps:
        if isinstance(step, tuple):
            topic, size = step
            published.append((topic, f"{len(published)}".encode().ljust(size)))
            outbox.add(*published[-1], 5 if topic == OF_RECORDS else 0)
        elif isinstance(step, int):
            outbox.acknowledge(len(taken) - step)
            assert outbox.next_seq > len(taken) - step
        else:
            send(lost=step == "lose")
            if step == "lose":
                outbox.rewind()
    outbox.rewind()
    while outbox.peek() is not None:
        send(lost=False)
    assert taken == published
    assert outbox.in_flight_bytes == outbox.size_bytes
    outbox.acknowledge(len(taken))
    assert (len(outbox), outbox.size_bytes, outbox.in_flight_bytes) == (0, 0, 0)


@given(st.lists(st.one_of(st.sampled_from(["put", "send", "rewind"]), st.integers(0, 40))))
def test_accounts_always_agree(steps: list[str | int]) -> None:
    """Whatever happens in whatever order, sizes and sequences are those of what is in there."""
    outbox = Outbox(b"s" * 16, 1 << 30)
    acknowledged = 0
    for step in steps:
        if step == "put":
            outbox.put(START)
        elif step == "send" and outbox.peek() is not None:
            outbox.sent()
        elif step == "rewind":
            outbox.rewind()
        elif isinstance(step, int) and step <= outbox.last_seq:
            outbox.acknowledge(step)
            acknowledged = max(acknowledged, step)
        assert len(outbox) == outbox.last_seq - acknowledged
        assert outbox.next_seq == acknowledged + 1
        assert acknowledged <= outbox.sent_seq <= outbox.last_seq
        assert sum(outbox.remaining().values()) == len(outbox)
    outbox.rewind()
    assert send_all(outbox) == list(range(acknowledged + 1, outbox.last_seq + 1))
    outbox.acknowledge(outbox.last_seq)
    assert (outbox.size_bytes, outbox.in_flight_bytes) == (0, 0)
