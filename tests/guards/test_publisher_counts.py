"""What the publisher does for each record and event, counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import shapes
from phase_bus.core.outbox import Outbox
from phase_bus.publisher.publisher import _REPLIES_S, Publisher
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus.testing.waiting import DEADLINE_S, wait_until
from tests.guards.counting import assert_at_most, blocks_kept, calls_of
from tests.support.buses import BusThread
from tests.support.clients import Subscriber

_COUNT = 256
_EVENT = shapes.event_of_size(200)


@pytest.fixture
def publisher(ipc_dir: Path) -> Iterator[Publisher]:
    """A publisher without a bus, whose batches are closed by their size alone."""
    with Publisher(bind=f"ipc://{ipc_dir}", batch_records=_COUNT, batch_s=DEADLINE_S) as made:
        yield made


def _record(publisher: Publisher, records: list[shapes.Record]) -> None:
    for record in records:
        publisher.record(shapes.RUN_ID, shapes.PHASE, *record)


def test_record_hands_a_reference_over_and_no_more(publisher: Publisher) -> None:
    records = shapes.records(_COUNT)
    _record(publisher, records)
    assert publisher.flush(DEADLINE_S)

    calls = calls_of(lambda: _record(publisher, records))

    # record(), len() and append(); now and then a wake-up.
    assert_at_most(3.3, calls.all / _COUNT, "calls a record in the benchmark's thread")


def test_publish_hands_a_reference_over_and_no_more(publisher: Publisher) -> None:
    def publish() -> None:
        for _ in range(_COUNT):
            publisher.publish(_EVENT)

    # publish() and append(); a wake-up, 6 calls, each time that the thread has gone to sleep again.
    assert_at_most(5.0, calls_of(publish).all / _COUNT, "calls an event in the benchmark's thread")


def test_a_batch_wakes_the_thread_once(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes = 0
    wake = publisher._wake

    def counting() -> None:
        nonlocal wakes
        wakes += 1
        wake()

    monkeypatch.setattr(publisher, "_wake", counting)
    batches = 8
    for _ in range(batches):
        _record(publisher, shapes.records(_COUNT))

    # One when the first record comes, one for each batch that is full.
    assert_at_most(batches + 1, wakes, f"wake-ups of the thread for {batches} batches")


def test_an_event_wakes_the_thread_once(bus: BusThread, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0
    with Subscriber(bus.address) as subscriber, Publisher(bus.address) as publisher:
        assert publisher.flush(DEADLINE_S)
        tick = publisher._link.tick

        def counting(now_s: float) -> float:
            nonlocal rounds
            rounds += 1
            return tick(now_s)

        monkeypatch.setattr(publisher._link, "tick", counting)
        events, began_s = 50, time.monotonic()
        for number in range(1, events + 1):
            publisher.publish(_EVENT)
            wait_until(lambda: len(subscriber.of(type(_EVENT))) == number)  # noqa: B023 - called at once
        by_the_clock = 5 + (time.monotonic() - began_s) / _REPLIES_S  # some as it begins, and for beats
        assert_at_most(events + by_the_clock, rounds, f"rounds of the thread's loop for {events} events")
        wait_until(lambda: not publisher.pending)  # the replies are read, though nobody asks for them


@pytest.mark.parametrize("count", [256, 2048])
def test_calls_to_pack_a_batch_do_not_grow_with_its_records(count: int) -> None:
    builder, records = RecordBuilder(), shapes.records(count)

    def add() -> None:
        for record in records:
            builder.add(*record)

    add()
    builder.build()  # from now on the records' shape is known
    add()

    assert_at_most(110, calls_of(builder.build).all, f"calls to pack {count} records")


def test_a_packed_batch_keeps_no_object_a_record() -> None:
    builder, records = RecordBuilder(), shapes.records(2048)

    def packed() -> object:
        for record in records:
            builder.add(*record)
        return builder.build()

    packed()
    _, blocks = blocks_kept(packed)

    assert_at_most(50, blocks, "blocks of memory in a batch of 2,048 records")


def test_an_event_is_encoded_once_and_kept_in_few_pieces() -> None:
    outbox = Outbox(b"s" * 16, 1 << 30)
    outbox.put(_EVENT)

    def put() -> None:
        for _ in range(_COUNT):
            outbox.put(_EVENT)

    assert_at_most(11, calls_of(put).all / _COUNT, "calls to encode and number an event")

    def kept() -> Outbox:
        fresh = Outbox(b"s" * 16, 1 << 30)
        for _ in range(_COUNT):
            fresh.put(_EVENT)
        return fresh

    _, blocks = blocks_kept(kept)
    # The message, its tuple, the header; topic and payload are large or shared; the number.
    assert_at_most(7, blocks / _COUNT, "blocks of memory an event that waits")
