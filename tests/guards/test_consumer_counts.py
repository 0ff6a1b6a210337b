"""What a consumer does for each event and batch, counted."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
import zmq

from benchmarks import shapes
from phase_bus.aggregation.state import RunState
from phase_bus.consumer.consumer import Consumer, handlers_of
from phase_bus.consumer.dispatcher import Dispatcher
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.readable import Readable
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import Header, decode_event, encode_event, topic_of
from phase_bus.events import EventBase, Records
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import DEADLINE_S, until
from tests.guards.counting import assert_at_most, blocks_kept, calls_of, run_to_end
from tests.guards.traffic import Frames, running_bus, send_all

_COUNT = 500
_EVENT = shapes.event_of_size(200)


class Counter(Consumer):
    """Counts events; at the first it waits until the gate is open, and its whole process with it."""

    name = "counter"

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.count = 0
        self._gate = gate

    async def on_event(self, event: EventBase) -> None:
        self.count += 1
        if self.count == 1 and self._gate is not None:
            assert self._gate.wait(DEADLINE_S)


def _batch(count: int) -> tuple[bytes, bytes]:
    event = shapes.batch(count)
    return topic_of(event), encode_event(event)


def _decoded(topic: bytes, payload: bytes | memoryview) -> RecordBatch:
    event = decode_event(topic, payload)
    assert isinstance(event, Records)
    return RecordBatch(event)


def test_an_event_takes_few_calls_to_its_handler_and_leaves_nothing() -> None:
    consumer = Counter()
    dispatcher = Dispatcher(consumer, handlers_of(consumer), (b"",), "0" * 32)
    topic, payload = topic_of(_EVENT), encode_event(_EVENT)
    seq = 0

    def take() -> bool:
        nonlocal seq
        for _ in range(_COUNT):
            seq += 1
            header = Header(b"s" * 16, seq, seq, 0, seq, seq)
            run_to_end(dispatcher.take(topic, header, payload, replayed=False))
        return True

    take()

    # Four of them are the test's own.
    assert_at_most(17, calls_of(take).all / _COUNT, "calls an event in Dispatcher.take")
    assert_at_most(0.1, blocks_kept(take)[1] / _COUNT, "blocks of memory left behind by an event")


@pytest.mark.parametrize("count", [256, 2048])
def test_decoding_a_batch_makes_no_object_a_record(count: int) -> None:
    topic, payload = _batch(count)
    batch = _decoded(topic, payload)

    _, blocks = blocks_kept(lambda: decode_event(topic, payload))
    assert_at_most(110, blocks, f"blocks of memory in a decoded batch of {count} records")
    tables = [np.frombuffer(table.numbers, np.uint8) for table in batch.event.metrics]
    whole = np.frombuffer(payload, np.uint8)
    assert all(np.shares_memory(table, whole) for table in tables), "the tables are copied"


@pytest.mark.parametrize(("count", "bound"), [(256, 1200), (2048, 2800)])
def test_aggregation_takes_calls_by_column_not_by_record(count: int, bound: int) -> None:
    topic, payload = _batch(count)
    state = RunState(shapes.RUN_ID)
    for _ in range(40):  # beyond what is exact, as all of a long run is
        state.update(_decoded(topic, payload))

    def update() -> None:
        for _ in range(16):
            state.update(_decoded(topic, payload))

    assert_at_most(bound, calls_of(update).all / 16, f"calls to aggregate {count} records of 34 metrics")


async def test_a_burst_takes_three_receives_an_event_and_few_wake_ups(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    frames = Frames(monkeypatch)
    waits = 0
    wait = Readable.wait

    async def counting(self: Readable, *arguments: object, **named: object) -> None:
        nonlocal waits
        waits += 1
        await wait(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Readable, "wait", counting)
    with running_bus(ipc_dir) as (address, journal):
        journal.gate.set()
        consumer = Counter(journal.gate)
        runner = ConsumerRunner(consumer, Address.parse(address), receipts=False)
        running = asyncio.create_task(runner.run())
        await until(lambda: runner.state == "ready")
        journal.gate.clear()
        asked, waited = frames.received[zmq.SUB], waits
        with Publisher(address) as publisher:
            # In a thread, since the consumer's loop stands still meanwhile.
            await asyncio.to_thread(
                send_all, publisher, lambda: publisher.publish(_EVENT), _COUNT, frames, journal
            )
            await until(lambda: consumer.count == _COUNT)
        # Heartbeats and empty looks are among them.
        assert_at_most(3.5, (frames.received[zmq.SUB] - asked) / _COUNT, "receives an event")
        assert_at_most(0.2, (waits - waited) / _COUNT, "waits for the socket an event of a burst")
        runner.stop()
        await running
