"""The stream: who made it, and what is known of it after it has lost its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from phase_bus.core.address import StreamAddress
from phase_bus.core.position import Lineage, Position, Segment
from phase_bus.errors import PhaseBusError
from phase_bus.jetstream.connection import NatsFullError, connected
from phase_bus.jetstream.keys import open_keys
from phase_bus.jetstream.stream import cut_stream, open_stream
from tests.support.servers.nats import NatsServer

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_a_stream_that_lost_its_end_tells_who_stood_there(nats: NatsServer) -> None:
    async with connected(StreamAddress.parse(nats.url), "test") as connection:
        with pytest.raises(PhaseBusError, match="there is no stream 'phase-bus'"):
            await open_stream(connection, make=False)
        made = await open_stream(connection, make=True)
        assert made.lineage == (Segment(made.id, 1),)
        for _ in range(3):
            await connection.js.publish("phase-bus.test", b"")
        first = await cut_stream(connection, 2)
        assert (first.id != made.id, first.first_offset, first.last_offset) == (True, 1, 3)
        second = await cut_stream(connection, 7)
        third = await cut_stream(connection, 5)
        assert third == await open_stream(connection, make=False)
        assert len({made.id, first.id, second.id, third.id}) == 4

        lineage = Lineage(third.lineage)
        assert lineage.streams == (made.id, first.id, second.id, third.id)
        assert lineage.find(Position(made.id, 2)) == ("here", 2)
        assert lineage.find(Position(made.id, 3)) == ("cut", 2)
        assert lineage.find(Position(first.id, 6)) == ("cut", 5)
        assert lineage.find(Position(second.id, 8)) == ("cut", 5)
        assert lineage.find(Position(third.id, 9)) == ("here", 9)
        assert lineage.position(2).stream == made.id
        assert lineage.position(5).stream == first.id
        assert lineage.position(6).stream == third.id
        # The stream is what it was in all else.
        config = (await connection.js.stream_info("phase-bus")).config
        assert (config.allow_atomic, config.allow_direct, config.subjects) == (True, True, ["phase-bus.>"])


async def test_a_stream_of_somebody_else_is_left_alone(nats: NatsServer) -> None:
    async with connected(StreamAddress.parse(f"{nats.url}/other"), "test") as connection:
        await connection.js.add_stream(name="other", subjects=["other.>"])
        with pytest.raises(
            PhaseBusError, match=r"was not made by phase-bus; give another name: .*/OTHER-NAME"
        ):
            await open_stream(connection, make=True)
        with pytest.raises(PhaseBusError, match="was not made by phase-bus"):
            await cut_stream(connection, 0)
        config = (await connection.js.stream_info("other")).config
        assert "phase-bus-cuts" not in (config.metadata or {})


async def test_a_server_that_is_full_says_so(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", room="4KB") as nats:
        async with connected(StreamAddress.parse(nats.url), "test") as connection:
            keys = await open_keys(connection, await open_stream(connection, make=True))
            assert await keys.create("small", b"")

            async def fill() -> None:
                for number in range(10):
                    assert await keys.create(f"large-{number}", bytes(1000))

            with pytest.raises(NatsFullError, match=r"takes nothing in: insufficient .* more room"):
                await fill()
