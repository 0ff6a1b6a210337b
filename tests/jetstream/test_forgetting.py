"""A stream that keeps what is new only: what it has forgotten is not lost, and is not forwarded again."""

from __future__ import annotations

import pytest

from phase_bus.core.address import StreamAddress
from phase_bus.jetstream.connection import connected
from phase_bus.jetstream.forwarder import Forwarder
from phase_bus.jetstream.stream import Stream, open_stream
from phase_bus.testing import LiveBus, make_run, until
from tests.support.forwarded import journal_frames
from tests.support.servers.nats import NatsServer

pytestmark = pytest.mark.usefixtures("no_leaks")


async def forget(nats: NatsServer) -> Stream:
    """Take everything out of the stream, as its age does; return what it is then."""
    async with connected(StreamAddress.parse(nats.url), "test") as connection:
        await connection.js.purge_stream("phase-bus")
        return await open_stream(connection, make=False)


async def test_a_bus_goes_on_after_all_it_had_forwarded_was_forgotten(
    nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    with LiveBus() as bus:
        for run_id in ("first", "second"):  # which is forwarded by another process
            async with bus.consumer(Forwarder, name="forward", to=nats.url) as run:
                for part in ("a", "b"):
                    bus.publish(*make_run(50, run_id=f"{run_id}-{part}"))
                    await run.catch_up()
                    last = nats.last_offset()
                    stream = await forget(nats)
                    assert (stream.first_offset, stream.last_offset) == (last + 1, last)
                    assert len(stream.lineage) == 1  # nobody is told that it was cut
                # As many as there are in the journal, so each came once.
                await until(lambda: nats.last_offset() == len(journal_frames(bus.directory / "journal")))
    assert "somebody else" not in caplog.text
