"""The process around one member of a consumer group.

The bus says which shares of the group's work are this member's; for each there is an instance of the
consumer here. The member that has the share of events leads the group: it hands the partitions' committed
states to its instance, and the end of a run only when every partition has come to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec
import zmq

from phase_bus.account import RunAccount
from phase_bus.address import Address
from phase_bus.bus.journal_rows import checkpoint_name
from phase_bus.consumer import Consumer
from phase_bus.consumer_process import BREATH_S, FLUSH_S, ConsumerProcess
from phase_bus.control import EVENTS, Assigned, Beat, Commit, Heard, Hello, Welcome
from phase_bus.dispatcher import decode_saved
from phase_bus.errors import BusUnreachableError, ConfigError, PhaseBusError, WireError
from phase_bus.events import Heartbeat, RunComplete
from phase_bus.group_share import GroupShare, check_shareable
from phase_bus.wire import NO_PARTITION, Header, decode_event, partition_of, topic_prefix, unpack_header

logger = logging.getLogger("phase_bus.consumer")

_HEARTBEAT = topic_prefix("heartbeat")
_RUN_COMPLETE = topic_prefix("run_complete")
_LOOK_S = 1.0  # between two looks at what the partitions have come to
_LOOK_AT_END_S = 0.05  # likewise while the end of a run waits for them
_SOON_S = 0.05
_BEAT_BYTES = 512 << 10  # of commits in one beat at most: a bus refuses messages that are too large
_COMMITTED_BYTES_PER_S = 2 << 20  # by one member, beyond which it commits less often


class GroupRunner(ConsumerProcess):
    """Runs a member of a consumer group against a bus that keeps a journal.

    Args:
        build: makes an instance of the consumer, named after the group.
        group: the group's name.
        address: where the bus is.
        settings: what this member runs, in words; members that run something else cannot be in the group.
        high_water_mark: events queued in this process at most.
        on_ready: called once the member has its first assignment, and its subscriptions are in force.

    Attributes:
        shares: what the member works on now.

    Raises:
        ConfigError: the consumer takes no records, or the address has no bus.
    """

    def __init__(
        self,
        build: Callable[[], Consumer],
        group: str,
        address: Address,
        *,
        settings: str = "",
        high_water_mark: int = 1000,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        if address.direct:
            raise ConfigError(
                f"a group needs a bus, and {address} is a publisher's; start the consumer alone"
            )
        check_shareable(build())
        super().__init__(group, address, high_water_mark=high_water_mark, on_ready=on_ready)
        self.shares: dict[int, GroupShare] = {}
        self._build = build
        self._settings = settings
        self._failure: PhaseBusError | None = None
        self._bus_id = ""
        self._journal_id = ""
        self._assigned: Assigned | None = None  # the latest
        self._generation = 0  # of the one acted upon
        self._released: dict[int, Commit] = {}  # last commits of shares that are let go
        self._handled_runs: tuple[str, ...] = ()  # by the whole group, as told by the bus
        self._ends_at = 0  # the offset of the last end of a run
        self._next_flush_s = 0.0
        self._leader = _Leader()

    async def run(self) -> None:
        """Work on what the bus assigns until stopped, then commit and leave.

        Raises:
            PhaseBusError, OSError: a consumer could not start, or the bus keeps no journal.
        """
        control = asyncio.create_task(self._conversation.run())
        control.add_done_callback(lambda _: self.stop())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            self._live.subscribe((_HEARTBEAT, _RUN_COMPLETE))
            while not self._stop.is_set():
                await self._step(stopping)
            self.state = "stopping"
            for share in self._held():
                await self._flush(share)
        finally:
            stopping.cancel()
            try:
                for share in self.shares.values():
                    await share.consumer.stop()
            finally:
                await self._close(control)
        if self._failure is not None:
            raise self._failure

    async def _step(self, stopping: asyncio.Task[bool]) -> None:
        if not self._is_member():
            await asyncio.wait((stopping,), timeout=_LOOK_AT_END_S)
            return
        settled = await self._act_on_assignment()
        await self._drain()
        behind = [share for share in self._held() if share.replaying and not self._is_held_back(share)]
        for share in behind:
            await self._fetch(share)
        await self._lead()
        await self._flush_due()
        if settled and not behind:
            waits = self._leader.held_back is not None
            await self._live.readable.wait(stopping, timeout_s=_LOOK_AT_END_S if waits else FLUSH_S)
        elif self._replay is None:
            await asyncio.wait((stopping,), timeout=_LOOK_AT_END_S)
        self._live.ask_again()

    def _is_member(self) -> bool:
        """Whether what was assigned cannot have been given to others yet, for want of a word from here."""
        return self._assigned is not None and self._conversation.session.is_known(time.monotonic())

    def _is_ours(self, share: GroupShare) -> bool:
        """Whether a share is certainly this member's; else nothing of it may be handled nor written.

        It may not be when a handler has blocked this process for long, or it was suspended.
        """
        assigned, number = self._assigned, share.share
        if share.lost or assigned is None or not self._is_member():
            return False
        return assigned.shares.get(number) == share.token or number in assigned.release

    def _held(self) -> list[GroupShare]:
        return [share for share in self.shares.values() if not share.lost]

    # ---- the assignment ----

    async def _act_on_assignment(self) -> bool:
        """Let go of shares and take up others, as the bus says; return whether that is done."""
        for share in [share for share in self.shares.values() if share.lost]:
            await self._drop(share)
        assigned = self._assigned
        if assigned is None:
            return True
        if assigned.generation != self._generation:
            await self._let_go(assigned)
            if self._assigned is not assigned:
                return False  # the bus was restarted meanwhile, or has changed its mind
            self._generation = assigned.generation
            self._handled_runs = assigned.handled_runs
            for share in self._held():
                for run_id in assigned.handled_runs:
                    share.forget(run_id)
            self._conversation.tell_news()
        # One that it has just let go of is not read back before the bus has its last commit.
        missing = [n for n in assigned.shares if n not in self.shares and n not in self._released]
        if not missing:
            if self._live.greeted:
                self._become_ready()
            return True
        try:
            for number in missing:
                await self._take_up(number, assigned.shares[number])
        except BusUnreachableError:
            return False  # it may have been restarted; the control connection finds out
        self._live.ask_for_greeting()
        self._conversation.tell_news()
        return True

    async def _let_go(self, assigned: Assigned) -> None:
        for number, share in list(self.shares.items()):
            if assigned.shares.get(number) == share.token:
                continue
            if number in assigned.release:
                await self._flush(share)
                if share.commit is not None:
                    self._released[number] = share.commit
            else:
                logger.warning(
                    "consumer group %r: %s was given to another member while this one was silent; "
                    "what it had not committed is left to that one",
                    self.name,
                    checkpoint_name(self.name, number),
                )
            await self._drop(share)

    async def _take_up(self, number: int, token: int) -> None:
        """Begin a share where its last owner left it."""
        if self._replay is None:
            raise BusUnreachableError(str(self.address), 0.0)
        states = await self._replay.fetch_states(self.name, {}, only=number)
        consumer = self._build()
        if number != EVENTS:
            consumer.name = checkpoint_name(self.name, number)
            consumer.partition = number
        consumer.log = consumer.log.bind(consumer=consumer.name)
        consumer.journal_id = self._journal_id
        consumer._publish = self.publish
        share = GroupShare(consumer, number, token, self.client_id)
        await consumer.start()
        self.shares[number] = share
        stored = await consumer.position()
        position, saved = states.get(number, (0, None))
        if stored is not None and stored < position:
            position, saved = 0, None  # its data were set back: all is counted anew, and handled after that
        share.dispatcher.done_offset = stored or 0
        share.stand_at(position, saved)
        for run_id in self._handled_runs:
            share.forget(run_id)
        self._live.subscribe(share.topics)
        if share.leads:
            self._leader = _Leader()
            self._leader.committing = self._leader.handled = dict(share.dispatcher.handled)

    async def _drop(self, share: GroupShare) -> None:
        del self.shares[share.share]
        self._live.unsubscribe(share.topics)
        if share.leads:
            self._leader = _Leader()
        await share.consumer.stop()

    # ---- events ----

    async def _drain(self) -> None:
        """Handle what has arrived live, letting heartbeats and signals have their turns."""
        breath_s = time.monotonic() + BREATH_S
        while not self._stop.is_set():
            try:
                frames = self._live.receive()
            except zmq.Again:
                return
            try:
                await self._take(frames)
            except (WireError, ValueError) as error:
                logger.error("consumer group %r: %s; set aside", self.name, error)
            if time.monotonic() >= breath_s:
                await asyncio.sleep(0)
                self._live.readable.look_again()
                return

    async def _take(self, frames: list[zmq.Frame]) -> None:
        topic = frames[0].bytes
        if self._live.is_greeting(topic):
            for share in self.shares.values():
                share.replay()  # what was published before is in the journal only
            return
        _, header_frame, payload = frames
        header = unpack_header(header_frame.bytes, topic)
        if topic.startswith(_HEARTBEAT):
            self._take_heartbeat(topic, header, payload.buffer)
            return
        if topic.startswith(_RUN_COMPLETE):
            self._ends_at = max(self._ends_at, header.offset)
            self._next_flush_s = 0.0
        partition = partition_of(topic)
        owned = self.shares.get(EVENTS if partition == NO_PARTITION else partition)
        if owned is None or owned.replaying:
            return
        if self._is_ours(owned):
            await self._give(owned, topic, header, payload.buffer, replayed=False)
        else:
            owned.replay()  # should it be ours after all, this event is still to come

    def _take_heartbeat(self, topic: bytes, header: Header, payload: memoryview) -> None:
        event = decode_event(topic, payload)
        if isinstance(event, Heartbeat):
            for share in self.shares.values():
                share.heartbeat(header, event.partitions.get(share.share, 0))

    async def _fetch(self, share: GroupShare) -> None:
        """Handle the next piece of the journal."""
        if self._replay is None:
            return
        partition = None if share.leads else share.share
        try:
            piece = await self._replay.fetch(share.offset, records=False, partition=partition)
        except BusUnreachableError:
            return
        if not self._is_ours(share):
            return
        breath_s = time.monotonic() + BREATH_S
        for topic, header, payload in piece.events:
            await self._give(share, topic, header, payload, replayed=True)
            if time.monotonic() >= breath_s:
                await asyncio.sleep(0)
                breath_s = time.monotonic() + BREATH_S
            if share.lost or self._stop.is_set() or self._is_held_back(share):
                return
        if piece.end:
            share.caught_up(piece.offset, piece.event_number)
            # Who has come to the end of the journal may be the one for whom the end of a run waits.
            self._next_flush_s = min(self._next_flush_s, time.monotonic() + _SOON_S)

    async def _give(
        self, share: GroupShare, topic: bytes, header: Header, payload: memoryview, *, replayed: bool
    ) -> None:
        """Give an event to its share's instance, unless it came before or has to wait."""
        if share.leads and topic.startswith(_RUN_COMPLETE) and header.offset > share.offset:
            end = _end(topic, payload)
            if end is not None and not self._leader.has_all(end, header.offset):
                self._leader.held_back = (end, header.offset)
                share.replay()  # and so come to it again
                return
        if not share.is_next(topic, header, replayed=replayed):
            return
        try:
            ended = await share.take(topic, header, payload, replayed=replayed)
        except WireError as error:
            logger.error("consumer group %r: %s; set aside", self.name, error)
            return
        if ended is not None:
            self._leader.ends[ended.run_id] = ended
            await self._flush(share)

    def _is_held_back(self, share: GroupShare) -> bool:
        return share.leads and self._leader.held_back is not None

    # ---- leading ----

    async def _lead(self) -> None:
        """Hand what the partitions have committed to the leader's instance, if it is here."""
        leads = self.shares.get(EVENTS)
        leader, now_s = self._leader, time.monotonic()
        if leads is None or self._replay is None or now_s < leader.next_look_s or not self._is_ours(leads):
            return
        leader.next_look_s = now_s + (_LOOK_S if leader.held_back is None else _LOOK_AT_END_S)
        try:
            leader.note(await self._replay.fetch_states(self.name, leader.positions))
        except BusUnreachableError:
            return
        states, leader.unmerged = dict(sorted(leader.unmerged.items())), {}
        if states or not leader.merged:
            leader.merged = True  # so that the instance knows that it leads, whatever comes
            try:
                await leads.consumer.merge(states)
            except Exception:
                logger.exception("consumer group %r could not merge states; trying again", self.name)
                leader.unmerged = states | leader.unmerged
        if leader.held_back is not None and leader.has_all(*leader.held_back):
            leader.held_back = None

    async def _give_receipts(self, share: GroupShare) -> None:
        """Give the group's receipts of runs whose end was handled."""
        leader = self._leader
        while leader.ends:
            run_id, end = leader.ends.popitem()
            receipt = share.dispatcher.receipt(end, leader.accounts_of(run_id))
            self.publish(receipt)
            await self._flush_publisher()  # the summary and the receipt are there before the run is done
            (leader.lost.add if end.status == "lost" else leader.lost.discard)(run_id)
            share.dispatcher.finished(run_id, whole=receipt.complete)

    # ---- commits ----

    async def _flush_due(self) -> None:
        now_s = time.monotonic()
        soon = [share for share in self._held() if share.position < self._ends_at <= share.offset]
        if now_s < self._next_flush_s and not soon:
            return
        due = [share for share in self._held() if share.is_due(self._ends_at)]
        for share in due:
            await self._flush(share)
        size = sum(len(share.commit.saved or b"") for share in due if share.commit is not None)
        self._next_flush_s = now_s + max(FLUSH_S, size / _COMMITTED_BYTES_PER_S)
        if due:
            self._conversation.tell_news()

    async def _flush(self, share: GroupShare) -> None:
        """Let a share's instance write out; if it could, have the bus keep its position."""
        if not self._is_ours(share) or not await share.flush():
            return
        if share.leads:
            await self._give_receipts(share)
            self._leader.committing = dict(share.dispatcher.handled)
        share.prepare_commit()

    # ---- what the bus says and is told ----

    def _hello(self) -> Hello:
        return msgspec.structs.replace(super()._hello(), group=self.name, settings=self._settings)

    def _beat(self) -> Beat:
        held = self._held()
        handled = self._leader.handled
        return Beat(
            client_id=self.client_id,
            state=self.state,
            handled_runs=tuple(handled),
            incomplete_runs=tuple(run_id for run_id, whole in handled.items() if not whole),
            lost_runs=tuple(self._leader.lost & handled.keys()),
            received=sum(share.dispatcher.received for share in held),
            failed=sum(share.dispatcher.failed for share in held),
            generation=self._generation,
            shares=tuple(share.share for share in held),
            commits=tuple(_first(self._commits(), _BEAT_BYTES)),
        )

    def _commits(self) -> list[Commit]:
        """Return what the bus has not confirmed yet."""
        held = [share.commit for share in self._held() if share.commit is not None]
        return [*self._released.values(), *held]

    def _be_welcomed(self, welcome: Welcome) -> None:
        super()._be_welcomed(welcome)
        if welcome.replay is None:
            self._failure = ConfigError(
                f"group {self.name!r} needs a bus that keeps a journal; start it without --no-journal, or "
                "the consumer without a group"
            )
            self.stop()
        # Whether the shares are still this member's shows in the next assignment, which this asks for.
        self._assigned, self._generation = None, 0
        if welcome.bus_id != self._bus_id:
            # Another bus has given nothing to anybody yet.
            self._bus_id, self._journal_id = welcome.bus_id, welcome.journal_id
            self._released.clear()
            for share in self.shares.values():
                share.lost = True
        self._live.readable.look_again()

    def _be_assigned(self, assigned: Assigned) -> None:
        if assigned.problem:
            self._failure = ConfigError(
                f"group {self.name!r}: {assigned.problem}; start all of them alike, or give another --group"
            )
            self.stop()
            return
        self._assigned = assigned
        self._live.readable.look_again()

    def _be_heard(self, heard: Heard) -> None:
        for number, position in heard.kept.items():
            if number in self._released and self._released[number].position == position:
                del self._released[number]
            if number in self.shares:
                self._confirm(self.shares[number], position)
                self.shares[number].dispatcher.forget_dead_letters(heard.dead_letters)
        for number in heard.refused:
            if self._released.pop(number, None) is None and number in self.shares:
                self.shares[number].lost = True
        if heard.kept or heard.refused:
            self._live.readable.look_again()
            if self._commits():  # there was no room for them in the last beat
                self._conversation.tell_news()

    def _confirm(self, share: GroupShare, position: int) -> None:
        leader = self._leader
        if share.confirm(position) and share.leads and leader.handled != leader.committing:
            leader.handled = leader.committing
            self._conversation.tell_news()


class _Leader:
    """What the leader of a group knows of the partitions.

    Attributes:
        positions: how far each has come, by its last commit.
        unmerged: states that the leading instance has not taken over yet.
        held_back: the end of a run that waits for the partitions, and its offset.
        ends: of runs whose receipts are to be given.
        lost: runs that ended as lost.
        committing: the runs whose end is handled, as the last commit has them.
        handled: those of a commit that the bus has kept: members let go of no run before.
        next_look_s: when to look at the partitions again.
        merged: whether the leading instance has been handed anything yet.
    """

    def __init__(self) -> None:
        self.positions: dict[int, int] = {}
        self.unmerged: dict[int, bytes] = {}
        self.held_back: tuple[RunComplete, int] | None = None
        self.ends: dict[str, RunComplete] = {}
        self.lost: set[str] = set()
        self.committing: dict[str, bool] = {}
        self.handled: dict[str, bool] = {}
        self.next_look_s = 0.0
        self.merged = False
        self._accounts: dict[int, dict[str, RunAccount]] = {}

    def note(self, states: dict[int, tuple[int, bytes | None]]) -> None:
        """Take in what partitions have committed.

        Raises:
            WireError: it cannot be read.
        """
        for partition, (position, saved) in states.items():
            self.positions[partition] = position
            if saved is not None:
                kept = decode_saved(saved)
                self._accounts[partition] = kept.accounts
                if kept.state is not None:
                    self.unmerged[partition] = kept.state

    def accounts_of(self, run_id: str) -> list[RunAccount]:
        """Return what the partitions received of a run."""
        return [runs[run_id] for _, runs in sorted(self._accounts.items()) if run_id in runs]

    def has_all(self, end: RunComplete, offset: int) -> bool:
        """Return whether every partition has come to a run's end: by counting, or by passing its offset.

        And whether the instance has taken over all that they have come to.
        """
        if self.unmerged:
            return False
        for name, published in end.published.items():
            topic = name.encode()
            partition = partition_of(topic)
            if partition == NO_PARTITION or self.positions.get(partition, -1) >= offset:
                continue
            account = self._accounts.get(partition, {}).get(end.run_id)
            if account is None or account.counts(topic).received < published:
                return False
        return True


def _first(commits: Iterable[Commit], limit_bytes: int) -> Iterator[Commit]:
    """Yield the first commits, and at least one, up to a size."""
    size_bytes = 0
    for commit in commits:
        size_bytes += len(commit.saved or b"")
        if size_bytes > limit_bytes and size_bytes > len(commit.saved or b""):
            return
        yield commit


def _end(topic: bytes, payload: memoryview) -> RunComplete | None:
    """Return the end of a run, None if it cannot be read: then it is set aside as any other event."""
    try:
        end = decode_event(topic, payload)
    except WireError:
        return None
    return end if isinstance(end, RunComplete) else None
