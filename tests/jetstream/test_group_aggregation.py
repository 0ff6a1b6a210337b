"""What a group aggregates from a stream is, to the byte, what one worker does over ZeroMQ."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.core.control import EVENTS
from phase_bus.events import PhaseComplete, PhaseRef, PhaseStart, PhaseStats, Summary
from phase_bus.jetstream.claims import share_of
from phase_bus.jetstream.notes import CheckpointNote, read_note
from phase_bus.journal.reader import JournalReader
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until
from phase_bus_consumers.aggregator import ResultsAggregator
from tests.jetstream.test_group import Forwarded, until_found
from tests.support.buses import DurableBus
from tests.support.groups import Member, shared_out
from tests.support.servers.nats import NatsServer
from tests.support.streams import opened

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASE = PhaseRef("profiling")
T = TypeVar("T")


def publish(publisher: Publisher, draw: random.Random, count: int) -> None:
    """Publish the records of so many requests."""
    for number in range(count):
        latency_ns = int(draw.lognormvariate(17, 1))
        metrics = {
            "request_latency": latency_ns,
            "time_to_first_token": latency_ns * draw.random(),
            "inter_token_latency": [draw.lognormvariate(14, 9) for _ in range(draw.randrange(4))],
        }
        error = ("Timeout", "too late", None) if number % 50 == 0 else None
        publisher.record("r", PHASE, metrics, {}, error)
    assert publisher.flush(20)


async def states_in_stream(url: str) -> dict[int, bytes | None]:
    """Return what is kept of the partitions beside the stream."""
    async with opened(url) as (_, _, keys):
        kept = await keys.all("checkpoint.totals")
    notes = {share_of(key): read_note(CheckpointNote, key, each) for key, each in kept.items()}
    return {number: note.saved for number, note in notes.items() if number is not None}


async def states_in_journal(data: Path) -> dict[int, bytes | None]:
    """Return what is kept of them in a journal."""
    with JournalReader(data) as reader:
        return {number: each.state for number, each in reader.group_checkpoints("totals", {})}


async def when_whole(
    read: Callable[[T], Awaitable[dict[int, bytes | None]]], where: T
) -> dict[int, bytes | None] | None:
    """Return the aggregator's state of each partition, None until all records are in them."""
    kept = {
        number: decode_saved(saved)
        for number, saved in (await read(where)).items()
        if saved and number != EVENTS
    }
    accounts = [account for each in kept.values() for account in each.accounts.values()]
    records = sum(counts.records for account in accounts for counts in account.topics.values())
    return {number: each.state for number, each in kept.items()} if records == 2000 else None


def summaries(data: Path) -> list[Summary]:
    with JournalReader(data) as reader:
        return reader.events("r", Summary)


async def test_the_same_bytes(kept: DurableBus, nats: NatsServer) -> None:
    """While members come and go, and at the run's end."""

    class Aggregator(ResultsAggregator):
        def __init__(self) -> None:
            super().__init__(output=None, interval_s=60.0, exact_limit=20)

    forwarded, draw = Forwarded(kept, nats), random.Random(1)
    group = [forwarded.member(Aggregator) for _ in range(3)]
    alone = None
    try:
        with Publisher(kept.address, batch_records=5) as publisher:
            publisher.publish(PhaseStart(run_id="r", phase=PHASE, stats=PhaseStats(start_ns=1)))
            publish(publisher, draw, 1000)
            await forwarded.forward()
            await until(lambda: shared_out(group))
            await group.pop(0).stop()
            publish(publisher, draw, 1000)
            await forwarded.forward()

            alone = Member(kept.address, Aggregator)
            expected = await until_found(lambda: when_whole(states_in_journal, kept.data))
            assert await until_found(lambda: when_whole(states_in_stream, nats.url)) == expected

            publisher.publish(PhaseComplete(run_id="r", phase=PHASE, stats=PhaseStats(end_ns=9)))
            publisher.complete_run("r", "completed")
            assert publisher.flush(20)
            await forwarded.forward()
        (of_stream,) = await forwarded.of(Summary)
        (of_bus,) = await until(lambda: summaries(kept.data))
    finally:
        for member in (*group, *([] if alone is None else [alone])):
            await member.stop()
    assert of_stream.final
    assert msgspec.msgpack.encode(of_stream.result) == msgspec.msgpack.encode(of_bus.result)
