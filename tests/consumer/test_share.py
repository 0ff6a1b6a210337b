"""A share without any bus: what it handles, what it commits, and which replies confirm that."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from phase_bus import Consumer, EventBase, PhaseStart, Receipt, RunComplete
from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.consumer.consumer import named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.address import Address
from phase_bus.core.control import PrunedRun, PrunedTopic
from phase_bus.core.position import Lineage, Position, Segment
from phase_bus.core.wire import Header, encode_event, topic_of
from phase_bus.errors import JournalError
from phase_bus.events import PhaseRef
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Checkpoint, Head
from phase_bus.journal.writer import Journal
from phase_bus.testing import until

SOURCE = bytes(range(16))


class Counter(Consumer):
    """Counts, and keeps the count as its state."""

    def __init__(self) -> None:
        self.count = 0
        self.broken = False

    async def on_phase_start(self, _event: PhaseStart) -> None:
        self.count += 1

    async def flush(self) -> None:
        if self.broken:
            raise OSError("no space left")

    def state(self) -> bytes:
        return str(self.count).encode()

    def restore(self, state: bytes) -> None:
        self.count = int(state)


class Host:
    """Hands a share numbered events, as a bus does, and takes its receipts."""

    def __init__(self, *, onlooker: bool = False, direct: bool = False) -> None:
        self.consumer = named(Counter(), "counter")
        self.receipts: list[Receipt] = []
        self.taken = True  # whether the bus takes receipts
        give = None if onlooker else self._give
        self.share = Share(self.consumer, View.whole(self.consumer, direct=direct), "0" * 32, give)
        self._offset = 0

    async def _give(self, receipt: Receipt) -> bool:
        if self.taken:
            self.receipts.append(receipt)
        return self.taken

    async def hand(self, event: EventBase, *, skip: int = 0) -> RunComplete | None:
        """Hand over the next event, or one after a hole."""
        self._offset += 1 + skip
        header = Header(SOURCE, self._offset, self._offset, 0, self._offset, self._offset)
        return await self.share.handle(topic_of(event), header, encode_event(event), replayed=False)


LINEAGE = Lineage([Segment("a" * 32, 1)])


def at(offset: int) -> Position:
    return LINEAGE.position(offset)


def start(run_id: str = "r") -> PhaseStart:
    return PhaseStart(run_id=run_id, ts_ns=1, phase=PhaseRef("p"))


async def begun(kept: Checkpoint | None = None, *, journaled: bool = True, onlooker: bool = False) -> Host:
    host = Host(onlooker=onlooker)
    await host.share.start()
    await host.share.begin(kept, LINEAGE, head=Head(0, 0), journaled=journaled)
    return host


async def test_a_commit_is_confirmed_by_its_offset() -> None:
    host = await begun()
    share = host.share
    await host.hand(start())
    assert await share.flush()
    assert share.tell() is not None
    assert not share.confirm(at(0))
    assert share.tell() is not None
    assert share.confirm(at(1))
    assert share.tell() is None
    assert not share.confirm(at(1)), "there is nothing to confirm"


async def test_a_late_reply_confirms_nothing() -> None:
    """Neither one about an older commit, nor one that came before the commit was told."""
    host = await begun()
    share = host.share
    await host.hand(start())
    await share.flush()
    share.tell()
    await host.hand(start())
    await share.flush()
    assert not share.confirm(at(1))
    assert not share.confirm(at(2)), "nobody was told of this one"
    commit = share.tell()
    assert commit is not None
    assert commit.position == at(2)
    assert share.confirm(at(2))


async def test_a_pruned_run_that_goes_on() -> None:
    """Its publisher was taken for lost, and comes back: what was received before counts."""
    host = await begun()
    share = host.share
    for _ in range(2):
        await host.hand(start())
    topics = {"phase_start.r$": PrunedTopic(2, 0, 2)}
    share.note_pruned([PrunedRun(number=1, run_id="r", last_offset=2, topics=topics)])
    await host.hand(start())
    end = RunComplete(run_id="r", ts_ns=2, status="completed", published={"phase_start.r$": 3})
    assert await host.hand(end) is not None
    assert await share.flush()
    (receipt,) = host.receipts
    assert receipt.complete
    assert receipt.topics["phase_start.r$"].received == 3


async def test_a_consumer_can_hold_its_checkpoint() -> None:
    """Nothing is committed meanwhile, and receipts are given all the same."""
    host = await begun()
    share = host.share
    await host.hand(start())
    host.consumer.holds_checkpoint = True
    assert await host.hand(RunComplete(run_id="r", ts_ns=2, status="completed")) is not None
    assert await share.flush()
    assert [receipt.run_id for receipt in host.receipts] == ["r"]
    assert share.tell() is None
    host.consumer.holds_checkpoint = False
    assert await share.flush()
    commit = share.tell()
    assert commit is not None
    assert commit.position == at(2)


async def test_what_was_confirmed_is_told_again_to_a_new_bus() -> None:
    """It may have lost it in a power cut; and on another stream the offset means nothing."""
    host = await begun()
    share = host.share
    await host.hand(start())
    await share.flush()
    share.tell()
    share.confirm(at(1))
    share.tell_again()
    assert share.tell() is not None
    assert share.follow(Lineage([*LINEAGE.segments, Segment("b" * 32, 2)])), "the same, restarted"
    assert share.tell() is not None
    assert not share.follow(Lineage([*LINEAGE.segments, Segment("b" * 32, 1)])), "it lost the event"
    assert share.tell() is None
    assert not share.placed


async def test_it_goes_on_from_a_checkpoint() -> None:
    host = await begun()
    await host.hand(start())
    await host.share.flush()
    commit = host.share.tell()
    assert commit is not None
    other = Host()
    await other.share.begin(Checkpoint(commit.position, commit.saved), LINEAGE)
    assert other.consumer.count == 1
    await other.hand(start())  # has the offset 1 again
    assert other.consumer.count == 1
    await other.hand(start())
    assert other.consumer.count == 2


async def test_an_onlooker_leaves_nothing_behind() -> None:
    host = await begun(onlooker=True)
    await host.hand(start())
    assert await host.hand(RunComplete(run_id="r", ts_ns=2, status="completed")) is None
    assert await host.share.flush()
    assert host.share.tell() is None
    assert host.receipts == []


async def test_without_a_journal_it_goes_on_after_a_hole_and_commits_nothing() -> None:
    host = await begun(journaled=False)
    await host.hand(start(), skip=4)
    assert host.consumer.count == 1
    assert host.share.follower.missed == 4
    assert await host.share.flush()
    assert host.share.tell() is None


async def test_with_a_journal_a_hole_is_read_there_first() -> None:
    host = await begun()
    await host.hand(start(), skip=4)
    assert host.consumer.count == 0
    assert host.share.follower.replaying


async def test_direct_mode_has_no_places() -> None:
    host = Host(direct=True)
    assert host.share.placed
    await host.hand(start(), skip=7)
    await host.hand(start())
    assert host.consumer.count == 2
    assert await host.share.flush()
    assert host.share.tell() is None


async def test_receipts_come_in_the_order_of_the_ends() -> None:
    """After the flush that they speak of; what could not be written out is owed, and said at the end."""
    host = await begun()
    host.consumer.broken = True
    for run_id in ("first", "second", "third"):
        await host.hand(start(run_id))
        assert await host.hand(RunComplete(run_id=run_id, ts_ns=2, status="completed")) is not None
        assert not await host.share.flush()
    assert host.share.owes_receipts
    assert host.receipts == []
    assert host.share.tell() is None
    host.consumer.broken = False
    assert await host.share.flush()
    assert [receipt.run_id for receipt in host.receipts] == ["first", "second", "third"]
    assert list(host.share.dispatcher.handled) == ["first", "second", "third"]
    assert not host.share.owes_receipts


async def test_a_malformed_event_is_counted_and_passed() -> None:
    host = await begun()
    header = Header(SOURCE, 1, 1, 0, 1, 1)
    assert await host.share.handle(b"phase_start.r$", header, b"\xff", replayed=False) is None
    assert host.share.dispatcher.failed == 1
    assert host.share.follower.offset == 1


async def test_a_commit_that_fails_in_the_bus_is_made_again(
    ipc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any new event: the bus's answer to the beat confirms nothing that is not in the journal."""
    with Journal(tmp_path / "journal") as journal:
        bus = Bus([Address.parse(f"ipc://{ipc_dir}")], BusOptions(heartbeat_s=0.05), journal)
        bus.bind()
        thread = threading.Thread(target=bus.run)
        thread.start()
        failed = threading.Event()
        works = threading.Event()
        commit = journal.commit

        def fails_at_first(*arguments: object) -> None:
            if not works.is_set():
                failed.set()
                raise JournalError(tmp_path, "no space left", "make room")
            commit(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(journal, "commit", fails_at_first)
        consumer = named(Counter(), "counter")
        runner = ConsumerRunner(consumer, Address.parse(f"ipc://{ipc_dir}"))
        task = asyncio.create_task(runner.run())
        try:
            await until(lambda: runner.state == "ready")
            runner.publish(start())
            await until(lambda: consumer.count == 1)
            await until(failed.is_set)
            assert runner.share.commit is not None
            works.set()
            await until(lambda: runner.share.commit is None)
            with JournalReader(tmp_path / "journal") as reader:
                kept = Checkpoint(reader.lineage.position(1), runner.share.dispatcher.saved())
                assert reader.checkpoint("counter") == kept
        finally:
            runner.stop()
            await task
            bus.stop()
            thread.join(10)
            bus.close()


async def test_a_run_counts_as_handled_when_the_bus_has_its_receipt() -> None:
    """Until then there is no commit beyond its end: who goes on from there would not give it any more."""
    host = await begun()
    host.taken = False
    await host.hand(start())
    await host.hand(RunComplete(run_id="r", status="completed", published={"phase_start.r$": 1}))
    assert not await host.share.flush()
    assert (host.share.commit, host.receipts, host.share.dispatcher.handled) == (None, [], {})
    assert host.share.is_due()
    host.taken = True
    assert await host.share.flush()
    assert [receipt.run_id for receipt in host.receipts] == ["r"]
    assert list(host.share.dispatcher.handled) == ["r"]
    assert host.share.commit is not None


async def test_the_end_of_one_of_several_publishers_is_no_end() -> None:
    host = await begun()
    end = RunComplete(run_id="r", status="completed", published={"phase_start.r$": 2}, running=1)
    assert await host.hand(end) is None
    assert await host.share.flush()
    assert (host.receipts, host.share.owes_receipts) == ([], False)
