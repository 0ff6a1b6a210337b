"""What comes in is checked before it is journaled: no byte ends the bus, and what is refused is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from phase_bus.core.control import Beat, Goodbye, Hello, Rejected, RunInfo
from phase_bus.core.wire import Header, decode_event, encode_control, encode_event, topic_of
from phase_bus.events import (
    LARGEST_COUNT,
    LATEST_NS,
    Drop,
    Heartbeat,
    RecordError,
    Records,
    RunComplete,
    RunStart,
    Table,
)
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread, DurableBus
from tests.support.clients import SOURCE, RawClient, Subscriber
from tests.support.recorder import PHASE, start

pytestmark = pytest.mark.usefixtures("no_leaks")

DEEP = b"\x91" * 100_000 + b"\xc0"
BAD_TEXT = b"\xa1\xff"
ID = SOURCE.hex()


def unknown_field(request: object, value: bytes) -> bytes:
    """Return a message with one more field, whose value is these bytes."""
    encoded = bytearray(msgspec.msgpack.encode(request))
    encoded[0] += 1  # of a map with less than 15 fields
    return bytes(encoded) + b"\xa4more" + value


def changed(message: object, **fields: object) -> bytes:
    """Return a message in which some fields have other values, of whatever type and range."""
    return msgspec.msgpack.encode({**msgspec.to_builtins(message), **fields})


CONTROL = {
    "text that is not UTF-8": b"\x82\xa2op\xa7goodbye\xa9client_id" + BAD_TEXT,
    "nesting": unknown_field(Goodbye(client_id=ID), DEEP),
    "a position": changed(Beat(client_id=ID, state="ready"), position=2**64 - 1),
    "a state that is no bytes": changed(Beat(client_id=ID, state="ready"), position=-1, saved=1),
    "a sequence": changed(Hello(client_id=ID, role="publisher", name="x"), next_seq=2**64 - 1),
    "a letter's offset": changed(
        Beat(client_id=ID, state="ready"),
        dead_letters=[{"offset": 2**63, "run_id": "r", "kind": "k", "error": "e"}],
    ),
    "nothing": b"",
    "a number": b"\x07",
}


@pytest.mark.parametrize("frame", CONTROL.values(), ids=CONTROL)
def test_requests(ipc_dir: Path, tmp_path: Path, frame: bytes) -> None:
    """A malformed request is counted; the bus goes on, before a hello and after it."""
    with DurableBus(ipc_dir, tmp_path) as bus, RawClient(bus.address) as client:
        client.socket.send(frame)
        assert wait_until(lambda: client.status().dropped) == 1
        client.ask(Hello(client_id=ID, role="consumer", name="x"))
        client.socket.send(frame)
        assert wait_until(lambda: client.status().dropped - 1) == 1


def batch(**fields: Any) -> Records:
    """Return a batch of two records, changed."""
    numbers = memoryview(bytes(16))
    table = Table(("n",), "i", 2, numbers)
    return Records(
        **{"run_id": "r", "phase": PHASE, "partition": 3, "count": 2, "metrics": (table,), **fields}
    )


def with_table(names: tuple[str, ...], types: str, size_bytes: int, rows: bytes | None = None) -> bytes:
    """Return the payload of a batch of two records with one table."""
    numbers = memoryview(bytes(size_bytes))
    table = Table(names, types, 2, numbers, rows=None if rows is None else memoryview(rows))
    return encode_event(batch(metrics=(table,)))


OUT_OF_ORDER = b"\x01\0\0\0\0\0\0\0"
START = RunStart(run_id="r", ts_ns=1)
END = RunComplete(run_id="r", status="completed")
NOT_UTF8 = encode_event(RunStart(run_id="r", producer="Z")).replace(b"\xa1Z", BAD_TEXT)
BATCHES: dict[str, tuple[int, bytes]] = {
    "another partition": (2, encode_event(batch(partition=4))),
    "too many records": (2**32 - 1, encode_event(batch(count=2**32 - 1, metrics=()))),
    "a count that no header has": (2, encode_event(batch(count=2**40, metrics=()))),
    "another count": (3, encode_event(batch())),
    "too few numbers": (2, with_table(("n",), "i", 8)),
    "too many names": (2, with_table(("n", "m"), "i", 16)),
    "a name twice": (2, with_table(("n", "n"), "ii", 32)),
    "rows out of order": (2, with_table(("n",), "i", 16, OUT_OF_ORDER)),
    "half a row": (2, with_table(("n",), "i", 16, OUT_OF_ORDER[:7])),
    "an error of no record": (2, encode_event(batch(errors=(RecordError(2, "x"),)))),
    "an error before the first": (2, encode_event(batch(errors=(RecordError(-1, "x"),)))),
}
EVENTS: dict[str, tuple[bytes, int, bytes]] = {
    "text that is not UTF-8": (b"run_start.r$", 0, NOT_UTF8),
    "nesting": (b"run_start.r$", 0, unknown_field(START, DEEP)),
    "a time": (b"run_complete.r$", 0, changed(END, ts_ns=2**64 - 1)),
    "a count": (b"run_complete.r$", 0, changed(END, published={"x": 2**63})),
    "a time that no clock has": (b"run_start.r$", 0, changed(START, ts_ns=2**63 - 1)),
    "a time before all clocks": (b"run_start.r$", 0, changed(START, ts_ns=-1)),
    "a count that cannot be added up": (b"run_complete.r$", 0, changed(END, published={"x": 2**54})),
    "a partition that is none": (b"run_complete.r$", 0, changed(END, published={"records.x.r$": 1})),
    "a bus's own word": (b"heartbeat.$", 0, encode_event(Heartbeat(partitions={0: 2**62}))),
    "a bus's greeting": (b"ready.r$", 0, b""),
    "records of a kind of its own": (b"future.r$", 2**32 - 1, b""),
    "no run": (b"run_start.$", 0, encode_event(RunStart(run_id=""))),
    "another kind": (b"phase_complete.r$", 0, encode_event(START)),
    "another run": (b"run_start.r$", 0, encode_event(RunStart(run_id="other"))),
    "no number of a partition": (b"records.x.r$", 2, encode_event(batch())),
    "records without a batch": (b"run_start.r$", 7, encode_event(START)),
    **{name: (b"records.03.r$", records, payload) for name, (records, payload) in BATCHES.items()},
}


@pytest.mark.parametrize(("topic", "records", "payload"), EVENTS.values(), ids=EVENTS)
def test_events(ipc_dir: Path, tmp_path: Path, topic: bytes, records: int, payload: bytes) -> None:
    """A malformed event is in no journal; publisher and readers hear of it, and what follows is taken."""
    with (
        DurableBus(ipc_dir, tmp_path) as bus,
        RawClient(bus.address) as client,
        Subscriber(bus.address) as subscriber,
    ):
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        client.socket.send_multipart((topic, Header(SOURCE, 1, 1, records).pack(), payload))
        rejected = client.reply()
        assert isinstance(rejected, Rejected)
        assert rejected.seq == 1
        client.publish(start(2), SOURCE, 2, 1)
        wait_until(lambda: any(e is not None and e.kind == "phase_start" for e in subscriber.read()))
        drops = subscriber.of(Drop)
        if topic not in (b"records.x.r$", b"heartbeat.$", b"run_start.$"):
            assert [(d.run_id, d.source, d.events, d.records) for d in drops] == [
                ("r", "raw", {topic.decode(): 1}, records)
            ]
        assert client.status().dropped == 1
        with JournalReader(bus.data) as journal:
            assert [entry.kind for entry in journal.entries()] == ["drop"] * len(drops) + ["phase_start"]


def test_numbers_on_a_topic(bus: BusThread) -> None:
    """One that is not new would be a repetition to every reader: refused. A hole is a loss, and seen."""
    with RawClient(bus.address) as client, Subscriber(bus.address, "phase_start.") as subscriber:
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        for seq, topic_seq in enumerate((1, 1, 0, 5, 4, 6), 1):
            client.socket.send_multipart(
                (topic_of(start(seq)), Header(SOURCE, seq, topic_seq).pack(), encode_event(start(seq)))
            )
        events = wait_until(lambda: len(e := subscriber.read()) == 3 and e)
        assert [event.ts_ns for event in events if event] == [1, 4, 6]
        assert client.status().dropped == 3


@pytest.mark.parametrize("publishers", [1, 3])
def test_sums_of_the_largest_numbers(ipc_dir: Path, tmp_path: Path, publishers: int) -> None:
    """Numbers that are right one by one end no bus when added up, and its own words can be read."""
    topics = [f"phase_{what}.r$".encode() for what in ("start", "progress", "complete")]
    with DurableBus(ipc_dir, tmp_path) as bus, RawClient(bus.address) as client:
        sources = [bytes(15) + bytes([number + 1]) for number in range(publishers)]
        published = {str(n): LARGEST_COUNT for n in range(2000)}
        drop = Drop(run_id="r", source="x", reason="x", events=published, records=LARGEST_COUNT)
        for source in sources:
            client.ask(Hello(client_id=source.hex(), role="publisher", name="raw"))
            client.publish(RunStart(run_id="r", ts_ns=LATEST_NS), source, 1, 1)
            client.publish(RunStart(run_id="left", ts_ns=LATEST_NS), source, 2, 1)
            for seq, topic in enumerate(topics, 3):
                payload = changed(start(), kind=topic.partition(b".")[0].decode())
                client.socket.send_multipart((topic, Header(source, seq, LARGEST_COUNT).pack(), payload))
            client.publish(drop, source, 6, 1)
            client.publish(drop, source, 7, 2)
        end = RunComplete(run_id="r", status="completed", published=published, records=LARGEST_COUNT)
        for source in sources:
            client.publish(end, source, 8, 1)
            client.socket.send(encode_control(Goodbye(client_id=source.hex(), last_seq=8)))

        def ended() -> Sequence[RunInfo]:
            runs = client.status().runs
            return () if any(run.status == "running" for run in runs) else runs

        runs = wait_until(ended)
        assert {run.run_id for run in runs} == {"r", "left"}
        assert all(run.events <= LARGEST_COUNT + 1 for run in runs)
        with JournalReader(bus.data) as journal:
            events = [decode_event(entry.topic, entry.payload) for entry in journal.entries()]
        ends = [event for event in events if isinstance(event, RunComplete)]
        assert {event.run_id for event in ends} == {run.run_id for run in runs}
        assert all(max(event.published.values(), default=0) <= LARGEST_COUNT for event in ends)
        assert client.status().dropped == 0


def test_a_sequence_at_its_end(ipc_dir: Path, tmp_path: Path) -> None:
    """Numbers beyond what a journal can hold are refused, however a publisher came by them."""
    with DurableBus(ipc_dir, tmp_path) as bus, RawClient(bus.address) as client:
        client.socket.send(changed(Hello(client_id=ID, role="publisher", name="raw"), next_seq=2**63 - 1))
        client.ask(Hello(client_id=ID, role="publisher", name="raw", next_seq=LARGEST_COUNT))
        client.publish(start(1), SOURCE, LARGEST_COUNT, 1)
        client.publish(start(1), SOURCE, LARGEST_COUNT + 1, 2)
        wait_until(lambda: (client.status().dropped, client.status().offset) == (2, 2))
        with JournalReader(bus.data) as journal:
            kept = [(entry.kind, entry.source_seq) for entry in journal.entries()]
        assert kept[0] == ("phase_start", LARGEST_COUNT)
        assert kept[1][0] == "drop"


def test_what_could_not_be_kept_comes_again(ipc_dir: Path, tmp_path: Path) -> None:
    """After a full disk the same events are no repetitions."""
    with DurableBus(ipc_dir, tmp_path) as bus, Publisher(bus.address) as publisher:
        wait_until(lambda: publisher.connected)
        with bus.full():
            publisher.publish(start(1))
            assert not publisher.flush(0.5)
        assert publisher.flush(10)
        with JournalReader(bus.data) as journal:
            assert [entry.kind for entry in journal.entries()] == ["phase_start"]


def test_a_publisher_goes_on(bus: BusThread, caplog: pytest.LogCaptureFixture) -> None:
    """An event that the bus refuses costs that event and a line."""
    with Publisher(bus.address, name="odd") as publisher, Subscriber(bus.address) as subscriber:
        publisher.publish(RunStart(run_id="r", ts_ns=2**64 - 1))
        publisher.publish(start(7))
        assert publisher.flush(10)
        wait_until(lambda: subscriber.of(Drop))
        wait_until(lambda: "the bus refused an event, which is lost" in caplog.text)
        assert [type(event).__name__ for event in subscriber.read()] == ["Drop", "PhaseStart"]


def test_junk_costs_few_lines(bus: BusThread, caplog: pytest.LogCaptureFixture) -> None:
    """However much of it comes, it is counted and logged a few times a second."""
    with RawClient(bus.address) as client:
        for _ in range(5000):
            client.socket.send(b"\xc1")
        wait_until(lambda: client.status().dropped == 5000)
    assert 1 <= caplog.text.count("not a request") < 50


def test_answers_of_no_bus(
    bus: BusThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A publisher skips what is no reply, and delivers all the same."""
    reply: Callable[..., object] = bus.bus._sockets.reply

    def with_junk(identity: bytes, message: Any) -> None:
        for frame in (b"\xc1", b"\x82\xa2op\xa5heard\xa6bus_id" + BAD_TEXT, DEEP, b""):
            with suppress(zmq.ZMQError):  # it is gone
                bus.bus._router.send_multipart((identity, frame))
        reply(identity, message)

    monkeypatch.setattr(bus.bus, "_reply", with_junk)
    monkeypatch.setattr(bus.bus._clients, "_reply", with_junk)
    with Publisher(bus.address) as publisher:
        publisher.publish(start(1))
        assert publisher.flush(10)
    assert "not a reply" in caplog.text
