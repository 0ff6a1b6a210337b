"""How often the publisher's thread is woken: each time is a system call, and a switch of threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import shapes
from phase_bus.publisher.publisher import _REPLIES_S, Publisher
from phase_bus.testing.waiting import DEADLINE_S, wait_until
from tests.guards.bounds import assert_at_most
from tests.support.buses import BusThread
from tests.support.clients import Subscriber

_BATCH = 256
_EVENT = shapes.event_of_size(200)


@pytest.fixture
def publisher(ipc_dir: Path) -> Iterator[Publisher]:
    """A publisher without a bus, whose batches are closed by their size alone."""
    with Publisher(bind=f"ipc://{ipc_dir}", batch_records=_BATCH, batch_s=DEADLINE_S) as made:
        yield made


def test_a_batch_wakes_the_thread_once(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    wakes = 0
    wake = publisher._sender._wake

    def counting() -> None:
        nonlocal wakes
        wakes += 1
        wake()

    monkeypatch.setattr(publisher._sender, "_wake", counting)
    batches = 8
    for _ in range(batches):
        for record in shapes.records(_BATCH):
            publisher.record(shapes.RUN_ID, shapes.PHASE, *record)

    # One when the first record comes, one for each batch that is full.
    assert_at_most(batches + 1, wakes, f"wake-ups of the thread for {batches} batches")


def test_an_event_wakes_the_thread_once(bus: BusThread, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = 0
    with Subscriber(bus.address) as subscriber, Publisher(bus.address) as publisher:
        assert publisher.flush(DEADLINE_S)
        rest = publisher._sender._rest

        def counting(now_s: float, want_write: bool) -> None:
            nonlocal rounds
            rounds += 1
            rest(now_s, want_write)

        monkeypatch.setattr(publisher._sender, "_rest", counting)
        events, began_s = 50, time.monotonic()
        for number in range(1, events + 1):
            publisher.publish(_EVENT)
            wait_until(lambda: len(subscriber.of(type(_EVENT))) == number)  # noqa: B023 - called at once
        by_the_clock = 5 + (time.monotonic() - began_s) / _REPLIES_S  # some as it begins, and for beats
        assert_at_most(events + by_the_clock, rounds, f"rounds of the thread's loop for {events} events")
        wait_until(lambda: not publisher.pending)  # the replies are read, though nobody asks for them
