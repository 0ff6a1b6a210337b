"""The forwarder: all that a bus has is in the stream once, in order, whatever breaks."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from phase_bus.consumer.runner import run_consumer
from phase_bus.core.address import StreamAddress
from phase_bus.core.wire import Header, topic_of
from phase_bus.errors import ConfigError
from phase_bus.events import RunComplete, RunStart
from phase_bus.jetstream.connection import connect, connected
from phase_bus.jetstream.forwarder import Forwarder
from phase_bus.jetstream.stream import open_stream
from phase_bus.journal.rows import Entry
from phase_bus.journal.writer import Journal
from phase_bus.testing import LiveBus, make_event, make_records, make_run, until
from tests.support.buses import BusThread
from tests.support.forwarded import JUNK, Held, check_sources, journal_frames, read_stream
from tests.support.servers.nats import NatsServer
from tests.support.servers.tcp_faults import TcpProxy

pytestmark = pytest.mark.usefixtures("no_leaks")


async def test_all_that_the_bus_has_is_in_the_stream_as_it_travels(nats: NatsServer) -> None:
    with LiveBus() as bus:
        bus.publish(*make_run(200, run_id="before"))
        async with bus.consumer(Forwarder, name="forward", to=nats.url) as run:
            bus.publish(*make_run(300, run_id="a run.of $dots*"))
            await run.catch_up()
            async with connected(StreamAddress.parse(nats.url), "stranger") as connection:
                (bus_id,) = {each.bus for each in await read_stream(nats.url)}
                await connection.js.publish(f"phase-bus.{bus_id}.junk.x", JUNK)
            bus.publish(*make_run(20, run_id="after what is not ours"))
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
            "after what is not ours": True,
        }


async def forwarded(bus: LiveBus, url: str, name: str = "forward", stream: str = "") -> None:
    """Run a forwarder until it has forwarded all that the bus has."""
    async with bus.consumer(Forwarder, name=name, to=url + stream) as run:
        await run.catch_up()


class Tape:
    """A journal as it once was, as a power cut or a restored copy brings it back."""

    def __init__(self, bus: LiveBus, copy: Path) -> None:
        self._copy = copy
        shutil.copytree(bus.directory / "journal", copy)

    def play(self, bus: LiveBus, again: Sequence[Entry] = ()) -> None:
        """Kill a bus and start it anew with that journal, in which some events come again."""
        bus.kill()
        journal = bus.directory / "journal"
        shutil.rmtree(journal)
        shutil.copytree(self._copy, journal)
        with closing(Journal(journal)) as writer:
            writer.append(again)
        bus.start()


def identities(held: Iterable[Held]) -> list[tuple[bytes, bytes, int]]:
    """Return what names each event wherever it comes."""
    return [(each.source, each.topic, each.topic_seq) for each in held]


async def test_a_journal_that_lost_its_end_and_got_some_of_it_again(
    nats: NatsServer, tmp_path: Path
) -> None:
    """What its publisher has sent again is not in the stream twice, and what is new is there."""
    run = make_run(60)
    with LiveBus() as bus:
        bus.publish(*run[:3])
        tape = Tape(bus, tmp_path / "journal")
        bus.publish(*run[3:8])
        await forwarded(bus, nats.url)
        before = await read_stream(nats.url)
        assert len(before) == 8
        with bus.reader() as reader:
            lost = [entry for entry in reader.entries() if entry.offset in (4, 5)]
        tape.play(bus, again=lost)
        bus.publish(*run[8:])
        async with bus.consumer(Forwarder, name="forward", to=nats.url) as forwarder:
            await forwarder.catch_up()
            bus.publish(*make_run(20, run_id="later"))
            await forwarder.catch_up()
        held = await read_stream(nats.url)
        assert held[:8] == before
        check_sources(held)
        topics = Counter(each.topic for each in held if not each.topic.startswith(b"receipt"))
        assert topics == Counter(map(topic_of, [*run, *make_run(20, run_id="later")]))


async def test_a_copy_of_a_journal_is_forwarded_beside_it(nats: NatsServer, tmp_path: Path) -> None:
    """Both buses go on, and forward at the same time: what they have in common is there once."""
    with LiveBus() as bus, LiveBus() as other:
        bus.publish(*make_run(40, run_id="common"))
        tape = Tape(bus, tmp_path / "journal")
        async with bus.consumer(Forwarder, name="forward", to=nats.url) as first:
            bus.publish(*make_run(40, run_id="the original's"))
            await first.catch_up()
            tape.play(other)
            async with other.consumer(Forwarder, name="forward", to=nats.url) as second:
                for number in range(4):
                    bus.publish(*make_run(20, run_id=f"a{number}"))
                    other.publish(*make_run(20, run_id=f"b{number}"))
                await asyncio.gather(first.catch_up(), second.catch_up())
        held = await read_stream(nats.url)
        check_sources(held)
        assert len({*identities(held)}) == len(held)
        both = [frames for each in (bus, other) for _, frames in journal_frames(each.directory / "journal")]
        # But for the last receipts, which nobody waited for.
        assert {f for f in both if b"receipt" not in f[0]} <= {each.frames for each in held}
        runs = Counter(each.topic for each in held if each.topic.startswith(b"run_complete"))
        assert len(runs) == 10
        assert {*runs.values()} == {1}


async def test_two_forwarders_of_one_bus_append_everything_once(nats: NatsServer) -> None:
    """By mistake, and under two names: whoever is second passes over what is there."""
    with LiveBus() as bus:
        async with (
            bus.consumer(Forwarder, name="forward", to=nats.url) as first,
            bus.consumer(Forwarder, name="another", to=nats.url) as second,
        ):
            for number in range(15):
                bus.publish(*make_run(100, run_id=f"run-{number}"))
            await asyncio.gather(first.catch_up(), second.catch_up())
        held = await read_stream(nats.url)
        journal = journal_frames(bus.directory / "journal")
        assert [each.frames for each in held] == [frames for _, frames in journal[: len(held)]]
        assert len(journal) - len(held) <= 2


async def until_held(nats: NatsServer, wanted: list[Held]) -> None:
    """Wait until a stream holds this."""
    held: list[Held] = []
    async with asyncio.timeout(30):
        while held != wanted:
            held = await read_stream(nats.url)


async def test_what_a_stream_has_lost_comes_again_from_the_journal(
    nats: NatsServer, tmp_path: Path
) -> None:
    """Servers that lost what they had acknowledged get it again, though nothing new is published."""
    address = StreamAddress.parse(nats.url)
    with LiveBus() as bus:
        async with bus.consumer(Forwarder, name="forward", to=nats.url) as run:
            bus.publish(*make_run(50, run_id="kept"))
            await run.catch_up()
            async with connected(address, "test") as connection:
                kept = await open_stream(connection, make=False)
            nats.kill()
            shutil.copytree(nats.directory / "data", tmp_path / "data")
            nats.start()
            bus.publish(*make_run(50, run_id="lost"))
            await run.catch_up()
            before = await read_stream(nats.url)
            nats.kill()
            shutil.rmtree(nats.directory / "data")
            shutil.copytree(tmp_path / "data", nats.directory / "data")
            nats.start()
            await until_held(nats, before)
        async with connected(address, "test") as connection:
            cut = await open_stream(connection, make=False)
        assert cut.lineage[:-1] == kept.lineage
        assert cut.lineage[-1].first_offset == kept.last_offset + 1
        # A new one has nothing of it, and gets all.
        async with connected(address, "test") as connection:
            await connection.js.delete_stream("phase-bus")
        async with bus.consumer(Forwarder, name="forward", to=nats.url):
            await until_held(nats, before)


async def test_large_events_come_in_parts_and_unknown_kinds_as_they_are(tmp_path: Path) -> None:
    with NatsServer(tmp_path / "nats", options="max_payload: 65536") as nats, LiveBus() as bus:
        rows = [{"text": "x" * 1000} for _ in range(300)]
        bus.publish(make_event(RunStart), make_records(rows), make_event(RunComplete))
        with bus.reader() as reader:
            (start, *_) = reader.entries()
        bus.kill()
        with closing(Journal(bus.directory / "journal")) as writer:
            head = writer.head
            topic = b"of_the_future.run-1$"
            header = Header(start.source, 99, 1, 0, head.offset + 1, head.event_number + 1).pack()
            payload = b"whatever this is"
            new = start._replace(offset=head.offset + 1, event_number=head.event_number + 1, source_seq=99)
            new = new._replace(topic=topic, kind="of_the_future", header=header, payload=payload)
            writer.append([new])
        bus.start()
        await forwarded(bus, nats.url)
        held = await read_stream(nats.url)
        journal = journal_frames(bus.directory / "journal")
        assert [each.frames for each in held] == [frames for _, frames in journal[: len(held)]]
        assert any(len(each.payload) > 3 * 65536 for each in held)
        assert (topic, payload) in {(each.topic, each.payload) for each in held}


async def test_the_journal_waits_for_what_is_not_forwarded(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where NATS has never been there, and the forwarder has all that it takes until it is."""
    monkeypatch.setattr("phase_bus.jetstream.forwarder.connect", partial(connect, timeout_s=0.3))
    monkeypatch.setattr("phase_bus.jetstream.forwarder._MOST_WAITING", 20)
    nats.kill()
    runs = [f"run-{number}" for number in range(4)]
    with LiveBus("--max-runs", "1") as bus:
        async with bus.consumer(Forwarder, name="forward", to=nats.url) as run:
            await until(lambda: bus.status().clients[0].position is not None)
            for run_id in runs:
                bus.publish(*make_run(20, run_id=run_id))
            bus.kill()
            bus.start()  # one prunes as it starts
            bus.publish(*make_run(20, run_id="last"))
            assert runs_in(bus) == [*runs, "last"]
            nats.start()
            await run.catch_up()
            bus.kill()
            bus.start()
            await until(lambda: runs_in(bus) == ["last"])
        held = await read_stream(nats.url)
    ends = [each.topic.decode() for each in held if each.topic.startswith(b"run_complete")]
    assert ends == [f"run_complete.{run_id}$" for run_id in [*runs, "last"]]
    assert all(receipt.complete for receipt in run.receipts.values())


def runs_in(bus: LiveBus) -> list[str]:
    """Return the runs in a bus's journal."""
    with bus.reader() as reader:
        return [row.run_id for row in reader.runs()]


def has_connected(proxy: TcpProxy, before: Counter[str]) -> bool:
    return proxy.counts["connections"] > before["connections"]


def has_broken(proxy: TcpProxy, before: Counter[str]) -> bool:
    return proxy.counts["cut"] + proxy.counts["lost"] > before["cut"] + before["lost"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["in a batch", "before the answer", "silence", "killed"])
async def test_everything_is_appended_once_through_a_line_that_breaks(
    nats: NatsServer, tcp_proxy: Callable[[int], TcpProxy], fault: str
) -> None:
    """Twice each: in the middle of a batch; after it; where what was sent comes late; without a server."""
    proxy = tcp_proxy(nats.port)
    rng = random.Random(16)
    with LiveBus() as bus:
        async with bus.consumer(Forwarder, name="forward", to=proxy.through(nats.url)) as run:
            for number in range(1 if fault == "silence" else 2):
                await run.catch_up()
                before = proxy.counts.copy()
                if fault == "in a batch":
                    proxy.cut_after(rng.randrange(200, 30_000))
                elif fault == "before the answer":
                    proxy.lose_answers(1, b"Nats-Expected-Last-Subject-Sequence")
                elif fault == "silence":
                    proxy.silent = True
                else:
                    nats.kill()
                bus.publish(*make_run(rng.randrange(500, 1000), run_id=f"run-{number}"))
                if fault == "silence":  # until the connection is given up, and what was sent is on its way
                    await until(partial(has_connected, proxy, before), 40)
                    proxy.silent = False
                elif fault == "killed":
                    nats.start()
                else:
                    await until(partial(has_broken, proxy, before))
            await run.catch_up()
        journal = journal_frames(bus.directory / "journal")
        held = await read_stream(nats.url)
        assert [each.frames for each in held] == [frames for _, frames in journal[: len(held)]]
        assert len(journal) - len(held) <= 1


async def test_a_bus_without_a_journal_cannot_be_forwarded(nats: NatsServer, ipc_dir: Path) -> None:
    with (
        BusThread(f"ipc://{ipc_dir}") as bus,
        pytest.raises(
            ConfigError, match="'forward': the bus keeps no journal; run it without --no-journal"
        ),
    ):
        await run_consumer(Forwarder(nats.url), bus.address, name="forward")
