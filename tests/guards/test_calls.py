"""How many functions a consumer calls from the socket to its handler: the same on every machine."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import zmq

from benchmarks import shapes
from benchmarks.calls import calls_of
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.wire import BUNDLED_MOST, encode_event, topic_of
from phase_bus.events import EventBase
from phase_bus.testing.waiting import DEADLINE_S
from tests.guards.bounds import assert_at_most
from tests.support.bundles import packed
from tests.support.clients import SOURCE

_EVENT = shapes.event_of_size(200)
_TOPIC, _PAYLOAD = topic_of(_EVENT), encode_event(_EVENT)


class Counting(Consumer):
    """Remembers which event was the last."""

    last = 0

    async def on_event(self, _event: EventBase) -> None:
        self.last = self.sequence


async def test_calls_of_a_message(ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, no_leaks: None) -> None:
    """Few of each event in a bundle, the clock's and the handler's own among them."""
    monkeypatch.setattr("phase_bus.consumer.zeromq._BREATH_S", DEADLINE_S)  # a message is handled in one go
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.bind(f"ipc://{ipc_dir}/events.ipc")
    consumer = named(Counting(), "counting")
    transport = ConsumerRunner(consumer, Address.parse(f"direct+ipc://{ipc_dir}"))._transport
    seq = 1

    def send(count: int) -> None:
        nonlocal seq
        pub.send_multipart(packed([_PAYLOAD] * count, _TOPIC, SOURCE, seq, seq))
        seq += count

    async def calls(count: int) -> int:
        """Return how many calls a message of so many events takes, when it is there."""
        send(count)
        await transport.wait(DEADLINE_S)
        found = calls_of(lambda: _to_end(transport.drain()))
        assert consumer.last == seq - 1
        return found

    try:
        transport.subscribe((b"",))
        while consumer.last != seq - 1 or seq == 1:  # nobody says from when on it is heard
            send(1)
            await transport.wait(0.05)
            await transport.drain()
        one = await calls(1)
        assert_at_most(110, one, "calls of an event that comes alone")
        of_many = (await calls(BUNDLED_MOST) - one) / (BUNDLED_MOST - 1)
        assert_at_most(12, of_many, "calls of one more event in a bundle")
    finally:
        await transport.close()
        context.destroy(linger=0)


def _to_end(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that waits for nothing."""
    with pytest.raises(StopIteration):
        coroutine.send(None)
