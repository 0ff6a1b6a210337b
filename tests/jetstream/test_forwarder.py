"""The forwarder: all that a bus has is in the stream once, in order, whatever breaks."""

from __future__ import annotations

import pytest

from phase_bus.jetstream.forwarder import Forwarder
from phase_bus.testing import LiveBus, make_run
from tests.support.forwarded import check_sources, journal_frames, read_stream
from tests.support.servers.nats import NatsServer

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_all_that_the_bus_has_is_in_the_stream_as_it_travels(nats: NatsServer) -> None:
    with LiveBus() as bus:
        bus.publish(*make_run(200, run_id="before"))
        async with bus.consumer(Forwarder, name="forward", to=nats.url) as run:
            bus.publish(*make_run(300, run_id="a run.of $dots*"))
            await run.catch_up()
        journal = journal_frames(bus.directory / "journal")
        held = await read_stream(nats.url)
        assert [(each.offset, each.frames) for each in held] == journal[: len(held)]
        assert len(journal) - len(held) <= 1  # a receipt
        check_sources(held)
        assert {each.bus for each in held} == {held[0].journal_stream}
        assert {run_id: receipt.complete for run_id, receipt in run.receipts.items()} == {
            "before": True,
            "a run.of $dots*": True,
        }
