"""Bundles at a consumer: it sees their events one by one, as if each had come alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq

from phase_bus.core import bundle
from phase_bus.core.wire import Header, encode_event, topic_of
from phase_bus.testing.waiting import until
from tests.support.clients import SOURCE
from tests.support.recorder import Recorder, running, start

TOPIC = topic_of(start())


def bundled(seq: int, count: int) -> tuple[bytes, bytes, bytes]:
    """The frames of a bundle of events that are numbered from ``seq`` on."""
    payloads = [encode_event(start(number)) for number in range(seq, seq + count)]
    return TOPIC, *bundle.join(Header(SOURCE, seq, seq).pack(), payloads)


async def test_a_publisher_in_direct_mode(ipc_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each event of a bundle is handled; one that is malformed is skipped, and told, as a whole."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        pub = context.socket(zmq.PUB)
        pub.setsockopt(zmq.LINGER, 0)
        pub.bind(f"ipc://{ipc_dir}/events.ipc")
        recorder = Recorder()
        async with running(recorder, f"direct+ipc://{ipc_dir}") as runner:
            first = (TOPIC, Header(SOURCE, 1, 1).pack(), encode_event(start(1)))

            def heard() -> bool:
                pub.send_multipart(first)
                return bool(recorder.events)

            await until(heard)
            pub.send_multipart(bundled(2, 256))
            topic, header, payload = bundled(258, 3)
            pub.send_multipart((topic, header, payload[:-1]))
            pub.send_multipart(bundled(261, 2))
            await until(lambda: recorder.numbers[-1] == 262)
            assert [n for n in recorder.numbers if n != 1] == [*range(2, 258), 261, 262]
            totals = runner.snapshot().totals
        assert totals.failed == 1
        assert totals.missed == 3
        assert "the payload does not hold 3 events" in caplog.text
    finally:
        context.destroy()
