"""Runs that end when the test says so, and what a stream has of them, read apart from all consumers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Self

import msgspec

from phase_bus.core.address import StreamAddress
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event
from phase_bus.events import (
    Event,
    PhaseComplete,
    PhaseRef,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    Records,
    RunComplete,
    RunStart,
)
from phase_bus.jetstream.connection import Connection, connected
from phase_bus.jetstream.message import unpacked
from phase_bus.publisher.publisher import Publisher

PHASE = PhaseRef("profiling", "profiling", 0)
_STEP_S = 0.05


class Load:
    """A run with numbered records at a steady rate, published from a thread until it is told to end.

    As a context manager it ends at the latest with that.

    Args:
        address: of the bus.
        rate: records a second.

    Attributes:
        records: how many there were so far.
    """

    def __init__(self, address: str, run_id: str, rate: float = 400.0) -> None:
        self.run_id = run_id
        self.records = 0
        self._address = address
        self._rate = rate
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def end(self) -> int:
        """End the run; return how many records the bus has acknowledged, which are all."""
        self._stop.set()
        self._thread.join()
        assert not self._failures, self._failures
        return self.records

    def _main(self) -> None:
        try:
            self._publish()
        except BaseException as error:  # shown where the test waits
            self._failures.append(error)

    def _publish(self) -> None:
        run_id = self.run_id
        with Publisher(self._address, name="load", batch_records=64) as publisher:
            publisher.publish(RunStart(run_id=run_id, producer="load"))
            publisher.publish(PhaseStart(run_id=run_id, phase=PHASE, stats=self._stats()))
            began_s = time.monotonic()
            while not self._stop.wait(_STEP_S):
                due = int((time.monotonic() - began_s) * self._rate)
                for number in range(self.records, due):
                    metrics = {"request_latency": 1_000_000 + number, "request_count": 1}
                    publisher.record(run_id, PHASE, metrics, {"session_num": number})
                self.records = max(due, self.records)
            publisher.publish(PhaseSendingComplete(run_id=run_id, phase=PHASE, stats=self._stats()))
            publisher.publish(PhaseComplete(run_id=run_id, phase=PHASE, stats=self._stats()))
            publisher.complete_run(run_id, "completed")
            assert publisher.flush(30.0), "the bus did not acknowledge everything"
            assert not publisher.undelivered

    def _stats(self) -> PhaseStats:
        return PhaseStats(sent=self.records, completed=self.records)


class Forwarded(msgspec.Struct, frozen=True):
    """An event in a stream.

    Attributes:
        offset: in the stream.
        bus: the journal that it comes from, by its subject.
        place: its offset there.
        source, number: its publisher, and its number among what that one published.
    """

    offset: int
    bus: str
    place: int
    source: str
    number: int
    event: Event


def forwarded(url: str) -> list[Forwarded]:
    """Return everything in a stream, message by message; parts of an event are joined."""

    async def read() -> list[Forwarded]:
        async with connected(StreamAddress.parse(url), "test") as connection:
            return [each async for each in _read(connection)]

    return asyncio.run(read())


async def _read(connection: Connection) -> AsyncIterator[Forwarded]:
    stream = connection.address.stream
    state = (await connection.js.stream_info(stream)).state
    pieces: list[bytes] = []
    for offset in range(state.first_seq, state.last_seq + 1):
        raw = await connection.js.get_msg(stream, offset, direct=True)
        assert raw.data is not None
        assert raw.subject is not None
        message = unpacked(raw.data)
        pieces.append(bytes(message.payload))
        if message.parts:
            continue
        header, payload = message.header, b"".join(pieces)
        pieces.clear()
        event = decode_event(message.topic, payload)
        assert event is not None
        bus = raw.subject.split(".")[1]
        yield Forwarded(offset, bus, header.offset, header.source.hex(), header.source_seq, event)


def check_forwarded(found: list[Forwarded], runs: dict[str, int]) -> None:
    """Hold a stream against what was published: all of it, once, and in order.

    Args:
        runs: how many records each run had.
    """
    by_source: dict[str, list[int]] = {}
    by_bus: dict[str, list[int]] = {}
    for each in found:
        by_source.setdefault(each.source, []).append(each.number)
        by_bus.setdefault(each.bus, []).append(each.place)
    for run_id, records in runs.items():
        events = [each for each in found if each.event.run_id == run_id]
        ((bus, source),) = {(each.bus, each.source) for each in events if isinstance(each.event, RunStart)}
        assert by_bus[bus] == list(range(1, len(by_bus[bus]) + 1))
        assert by_source[source] == list(range(1, len(by_source[source]) + 1))
        assert list(_numbers(events)) == list(range(records))
        (end,) = [each.event for each in events if isinstance(each.event, RunComplete)]
        assert end.records == records


def _numbers(events: list[Forwarded]) -> Iterator[int]:
    batches = [each.event for each in events if isinstance(each.event, Records)]
    return iter(sorted(n for batch in batches for n in RecordBatch(batch).values("session_num").tolist()))
