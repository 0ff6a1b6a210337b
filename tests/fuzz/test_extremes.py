"""Each number of each message at its ends, one at a time: what fits by itself is not too much for a bus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from phase_bus.core.control import Goodbye, Hello
from phase_bus.core.wire import Header, decode_event, encode_control
from phase_bus.journal.reader import JournalReader
from phase_bus.testing.waiting import wait_until
from tests.fuzz.mutations import corpus
from tests.support.buses import DurableBus
from tests.support.clients import SOURCE, RawClient
from tests.support.recorder import publish

pytestmark = pytest.mark.usefixtures("no_leaks")

ENDS = (0, -1, 2**32, 2**53, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))
_IN_A_TURN = 50


def with_ends(value: Any) -> Iterator[Any]:
    """Yield a message with each of its numbers at each of its ends."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ({**value, key: changed} for changed in with_ends(inner))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from ([*value[:place], changed, *value[place + 1 :]] for changed in with_ends(inner))
    elif type(value) is int:
        yield from ENDS


def test_requests(kept: DurableBus) -> None:
    """They are answered or refused, and the answers can be read."""
    with RawClient(kept.address) as client:
        for frame, *_ in corpus("control"):
            for number, message in enumerate(with_ends(msgspec.msgpack.decode(frame))):
                client.socket.send(msgspec.msgpack.encode(message))
                if number % _IN_A_TURN == 0:
                    client.status()
        client.status()


def test_events(kept: DurableBus) -> None:
    """What is taken in can be decoded, added up, told and kept."""
    hello = encode_control(Hello(client_id=SOURCE.hex(), role="publisher", name="raw"))
    seq, seqs = 0, dict[bytes, int]()
    with RawClient(kept.address) as client:
        client.socket.send(hello)
        for topic, header, payload in corpus("events"):
            for event in with_ends(msgspec.msgpack.decode(payload)):
                seq, seqs[topic] = seq + 1, seqs.get(topic, 0) + 1
                records = Header(SOURCE, seq, seqs[topic], int.from_bytes(header[4:8], "little"))
                client.socket.send_multipart((topic, records.pack(), msgspec.msgpack.encode(event)))
                if seq % _IN_A_TURN == 0:
                    client.status()
        client.socket.send(encode_control(Goodbye(client_id=SOURCE.hex(), last_seq=seq)))
        wait_until(lambda: all(run.status != "running" for run in client.status().runs))
        assert 0 < client.status().dropped < seq
    publish(kept.address, 20, run_id="good", end=True)
    kept.close()
    kept.open()
    with JournalReader(kept.data) as journal:
        assert journal.verify() == []
        assert [run.records for run in journal.runs() if run.run_id == "good"] == [20]
        for entry in journal.entries():
            decode_event(entry.topic, entry.payload)
