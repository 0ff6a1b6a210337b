"""A cursor reads every event of its filters once, in order, whatever becomes of the server meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from phase_bus.core.wire import Header
from phase_bus.jetstream.cursor import Cursor, Taken
from phase_bus.jetstream.message import packed, subjects
from phase_bus.testing.waiting import DEADLINE_S, until
from tests.support.servers.nats import NatsServer
from tests.support.streams import Filler, Opened, opened


@asynccontextmanager
async def reading(
    opened: Opened, filters: list[str] | None = None, after: int = 0
) -> AsyncIterator[Cursor]:
    cursor = Cursor(
        opened.connection,
        opened.stream.name,
        filters or [subjects(opened.stream.name, records=True)],
        after,
        identity=opened.stream.id,
    )
    try:
        yield cursor
    finally:
        await cursor.close()


async def take(cursor: Cursor, count: int, timeout_s: float = DEADLINE_S) -> list[Taken]:
    """Take events until there are so many."""
    taken: list[Taken] = []
    deadline_s = time.monotonic() + timeout_s
    while len(taken) < count:
        assert time.monotonic() < deadline_s, f"{len(taken)} of {count}"
        taken += await cursor.take()
        await asyncio.sleep(0 if cursor.has_more else 0.005)
    assert len(taken) == count
    return taken


async def test_everything_comes_once_and_in_order(nats: NatsServer) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        filler = Filler(here)
        await filler.append(2500)  # more than one request
        taken = await take(cursor, 2500)
        assert [each.offset for each in taken] == list(range(1, 2501))
        assert [bytes(each.message.payload) for each in taken] == filler.payloads
        assert cursor.position == 2500
        assert cursor.at_end
        await filler.append(3)  # while it waits
        assert [each.offset for each in await take(cursor, 3)] == [2501, 2502, 2503]
        assert await cursor.take() == []


async def test_it_begins_after_an_offset_and_takes_what_it_wants(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        await Filler(here).append(10)
        async with reading(here, after=7) as cursor:
            assert [each.offset for each in await take(cursor, 3)] == [8, 9, 10]
        async with reading(here, after=10) as cursor:
            await cursor.take()
            await until(lambda: cursor.at_end)
            assert cursor.position == 10


async def test_large_events_come_whole(nats: NatsServer) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        filler = Filler(here, limit_bytes=1000)
        await filler.append(2, size_bytes=300)
        await filler.append(3, size_bytes=4500)
        await filler.append(1, size_bytes=300)
        taken = await take(cursor, 6)
        assert [bytes(each.message.payload) for each in taken] == filler.payloads
        assert [each.offset for each in taken] == [1, 2, 7, 12, 17, 18]


async def test_an_event_of_which_a_part_is_missing_is_lost_and_the_next_one_comes(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(nats.url) as here:
        filler = Filler(here, limit_bytes=1000)
        await filler.append(3, size_bytes=4500)
        await here.connection.js.delete_msg(here.stream.name, 8)  # in the middle of the second one
        async with reading(here) as cursor:
            taken = await take(cursor, 2, timeout_s=10)
            assert [bytes(each.message.payload) for each in taken] == [
                filler.payloads[0],
                filler.payloads[2],
            ]
            assert cursor.lost == [(6, 8), (9, 9), (10, 10)]


async def test_filters_and_what_passes_them_by(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        filler = Filler(here)
        name = here.stream.name
        await filler.append(5, kind="phase_start")
        await filler.append(5, kind="records.07")
        await filler.append(5, kind="records.08")
        async with (
            reading(here, [subjects(name, records=False)]) as events,
            reading(here, [subjects(name, records=True, partition=7)]) as seventh,
            reading(here, [subjects(name, records=True, partition=9)]) as ninth,
        ):
            assert [each.offset for each in await take(events, 5)] == [1, 2, 3, 4, 5]
            assert [each.offset for each in await take(seventh, 5)] == [6, 7, 8, 9, 10]
            assert await ninth.take() == []
            await until(lambda: ninth.position == 15)  # nothing is for it up to there
            await events.pass_over(15)
            await seventh.pass_over(15)
            assert (events.position, seventh.position) == (15, 15)

            await filler.append(1, kind="records.07")
            await seventh.pass_over(16)
            assert seventh.position < 16 or seventh.has_more
            assert [each.offset for each in await take(seventh, 1)] == [16]
            assert seventh.position == 16


async def test_a_slow_taker_holds_back_what_is_read_ahead(nats: NatsServer) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        filler = Filler(here)
        await filler.append(60, size_bytes=500_000)
        await cursor.take()
        await until(lambda: cursor.has_more)
        asked = time.monotonic() + 1.0
        while time.monotonic() < asked:
            await asyncio.sleep(0.05)
            assert cursor._waiting_bytes < (8 << 20) + (4 << 20) + (2 << 20)
        taken = await take(cursor, 60)
        assert [bytes(each.message.payload) for each in taken] == filler.payloads


@pytest.mark.slow
async def test_the_server_is_killed_and_comes_back(nats: NatsServer) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        filler = Filler(here)
        await filler.append(1500)
        taken = await take(cursor, 1500)
        nats.kill()
        nats.start()
        await until(lambda: here.connection.client.is_connected)
        await filler.append(1500)
        taken += await take(cursor, 1500, timeout_s=60)
        assert [bytes(each.message.payload) for each in taken] == filler.payloads


@pytest.mark.slow
async def test_the_server_stands_still_for_a_while(nats: NatsServer) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        filler = Filler(here)
        await filler.append(1500)
        taken = await take(cursor, 1500)
        nats.pause()
        stopped_s = time.monotonic()
        while time.monotonic() < stopped_s + 6:
            assert await cursor.take() == []
            await asyncio.sleep(0.1)
        nats.resume()
        await until(lambda: here.connection.client.is_connected)
        await filler.append(100)
        taken += await take(cursor, 100, timeout_s=60)
        assert [bytes(each.message.payload) for each in taken] == filler.payloads


async def test_a_reader_that_the_server_forgets_is_made_again(nats: NatsServer) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        filler = Filler(here)
        await filler.append(5)
        taken = await take(cursor, 5)
        (info,) = await here.connection.js.consumers_info(here.stream.name)
        await here.connection.js.delete_consumer(here.stream.name, info.name or "")
        await filler.append(5)
        taken += await take(cursor, 5)
        assert [bytes(each.message.payload) for each in taken] == filler.payloads


async def test_what_the_stream_has_lost_is_told(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        filler = Filler(here)
        await filler.append(10)
        await here.connection.js.purge_stream(here.stream.name, seq=7)
        async with reading(here, after=2) as cursor, reading(here) as new:
            assert [each.offset for each in await take(cursor, 4)] == [7, 8, 9, 10]
            assert cursor.lost == [(3, 6)]
            assert [each.offset for each in await take(new, 4)] == [7, 8, 9, 10]
            assert new.lost == []  # it was never there


async def test_what_is_not_ours_is_skipped(nats: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        filler = Filler(here)
        await filler.append(1)
        bus = "ab" * 16
        header = Header(bytes.fromhex(bus), 1, 1, 0, 1, 1, 0, b"abc").pack()
        junk = [b"", b"junk", b"\0" * 100, b"\xff" * 200]
        for topic in (b"records.x.run$", b"\xff", b"", b"records.08.run$", b"phase_start.other$"):
            junk += packed(topic, header, bus, b"payload", 1000)
        for each in junk:
            await here.connection.js.publish(f"{here.stream.name}.{bus}.records.07.run", each)
        await filler.append(1)
        assert [each.offset for each in await take(cursor, 2)] == [1, 2 + len(junk)]
        assert "skipped" in caplog.text


async def test_a_stream_that_is_made_anew_is_another_one(nats: NatsServer) -> None:
    async with opened(nats.url) as here, reading(here) as cursor:
        await Filler(here).append(5)
        await take(cursor, 5)
        await here.connection.js.delete_stream(here.stream.name)
        async with opened(nats.url) as again:
            assert again.stream.id != here.stream.id
            await Filler(again).append(5)
            await until(lambda: cursor.moved)
            assert not cursor.has_more


@pytest.mark.slow
async def test_a_stream_that_has_lost_its_end(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        await Filler(here).append(5)
        async with reading(here) as cursor:
            await take(cursor, 5)
            cursor._read = 9  # it had nine, and was restarted
            await cursor._begin_anew("test")
            await until(lambda: cursor.cut_after is not None, 20)
            assert cursor.cut_after == 5


async def test_what_does_not_exist_yet_can_be_waited_for(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        filler = Filler(here)
        await filler.append(5)
        async with reading(here, after=7) as cursor:
            await cursor.take()
            await until(lambda: cursor._subscription is not None)
            await filler.append(5)
            assert [each.offset for each in await take(cursor, 3)] == [8, 9, 10]


async def test_the_server_keeps_nothing_of_a_cursor_that_is_closed(nats: NatsServer) -> None:
    async with opened(nats.url) as here:
        await Filler(here).append(5)
        async with reading(here) as cursor:
            await take(cursor, 5)
            (info,) = await here.connection.js.consumers_info(here.stream.name)
            assert info.config.num_replicas == 1
        assert await here.connection.js.consumers_info(here.stream.name) == []
