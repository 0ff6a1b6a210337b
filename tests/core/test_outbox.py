"""The publisher's bounded buffer."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phase_bus.core.outbox import Outbox
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
