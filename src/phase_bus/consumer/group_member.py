"""The process around one member of a consumer group.

The bus assigns shares of the group's work to this member; for each there is an instance of the consumer
here. The member that has the share of events leads the group: it hands the partitions' committed states to
its instance, and the end of a run only when every partition has come to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial

from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.consumer import Consumer, subscriptions_of
from phase_bus.consumer.holdings import Holdings
from phase_bus.consumer.member import FLUSH_S, LOOK_S, Member
from phase_bus.consumer.share import Share
from phase_bus.consumer.transport import OpenTransport
from phase_bus.consumer.view import View, check_shareable
from phase_bus.consumer.zeromq import ZeroMqTransport
from phase_bus.core.address import AnyAddress
from phase_bus.core.control import Assigned, Beat, Heard, Hello, Welcome
from phase_bus.core.position import Lineage
from phase_bus.core.session import introduce
from phase_bus.core.wire import partition_of, topic_prefix
from phase_bus.errors import ConfigError, PhaseBusError

logger = logging.getLogger("phase_bus.consumer")

_HEARTBEAT = topic_prefix("heartbeat")
_RUN_COMPLETE = topic_prefix("run_complete")
# From when a share has come to the end of the journal until that is committed: not at once, since the
# others come to it at about the same time, and all can be told in one beat.
_SOON_S = 0.05
_COMMITTED_BYTES_PER_S = 2 << 20  # by one member, beyond which it commits less often
_LONG_S, _TURN_S = 0.05, 0.02  # after a flush that took so long, heartbeats have their turns for a while


class GroupMember(Member):
    """Runs a member of a consumer group against a bus that keeps a journal.

    Args:
        build: makes an instance of the consumer, named after the group.
        settings: what this member runs, in words; members that run something else cannot be in the group.
        on_ready: called once the member has its first assignment, and its subscriptions are in force.
        transport: makes what carries the events.

    Attributes:
        shares: what the member works on now, by number.

    Raises:
        ConfigError: if the consumer takes no records, or the address has no bus.
    """

    noun = "consumer group"

    def __init__(
        self,
        build: Callable[[], Consumer],
        group: str,
        address: AnyAddress,
        *,
        settings: str = "",
        high_water_mark: int = 1000,
        on_ready: Callable[[], None] | None = None,
        transport: OpenTransport = ZeroMqTransport,
    ) -> None:
        if address.direct:
            raise ConfigError(
                f"a group needs a bus, and {address} is a publisher's; start the consumer alone"
            )
        self._subscriptions = subscriptions_of(check_shareable(build()))
        self._holdings = Holdings(group)
        self.shares = self._holdings.shares
        super().__init__(
            group, address, high_water_mark=high_water_mark, on_ready=on_ready, transport=transport
        )
        self._build = build
        self._settings = settings
        self._ends_at = 0  # the offset of the last end of a run
        self._rest_until_s = 0.0  # when it is to commit again, after what it has committed last

    def left(self) -> str:
        """Return, in words, what was received and is not written out and committed; empty for nothing."""
        told = ((share.name, share.left()) for share in self._holdings.held)
        return " | ".join(f"{name}: {left}" for name, left in told if left)

    async def run(self) -> None:
        """Work on what the bus assigns until stopped, then commit and leave.

        Raises:
            PhaseBusError, OSError: if a consumer cannot start, or the bus keeps no journal.
        """
        control = self._start_link()
        try:
            self._transport.subscribe((_HEARTBEAT, _RUN_COMPLETE))
            while not self._stop.is_set():
                await self._step()
            self.state = "stopping"
            for share in self._holdings.held:
                share.end()
                await self._flush(share)
        finally:
            try:
                for share in self.shares.values():
                    await share.stop()
            finally:
                await self._close(control)
        if self._failure is not None:
            raise self._failure

    async def _step(self) -> None:
        if not self._is_member():
            await self.pause(LOOK_S)
            return
        settled = await self._act_on_assignment()
        await self._transport.drain()
        behind = [share for share in self._holdings.held if self._holdings.reads_journal(share)]
        for share in behind:
            if not await self._catch_up(share):
                break
        await self._lead()
        await self._flush_due()
        if settled and not behind:
            wait_s = min(FLUSH_S, max(self._next_flush_s - time.monotonic(), 0.0))
            if self._holdings.leader is not None:
                wait_s = min(wait_s, self._holdings.leader.look_s)
            await self._wait(wait_s)
        elif not self._transport.has_past:
            await self.pause(LOOK_S)
        self._transport.ask_again()

    def _is_member(self) -> bool:
        """Whether what was assigned cannot have been given to others yet, for want of a word from here."""
        return self._is_known() and self._holdings.assigned is not None

    def _is_ours(self, share: Share) -> bool:
        """Whether a share is certainly this member's; else nothing of it may be handled nor written.

        It may not be when a handler has blocked this process for long, or it was suspended.
        """
        return self._holdings.is_assigned(share) and self._is_member()

    # ---- the assignment ----

    async def _act_on_assignment(self) -> bool:
        """Let go of shares and take up others, as the bus says; return whether that is done."""
        for share in self._holdings.lost:
            await self._drop(share)
        assigned = self._holdings.assigned
        if assigned is None:
            return True
        if assigned.generation != self._holdings.generation:
            await self._let_go(assigned)
            if self._holdings.assigned is not assigned:
                return False  # the bus was restarted meanwhile, or has changed its mind
            self._holdings.generation = assigned.generation
            for share in self._holdings.held:
                for run_id in assigned.handled_runs:
                    share.forget(run_id)
            self._transport.tell_news()
        missing = self._holdings.missing
        if not missing:
            if self._transport.greeted:
                self._become_ready()
            return True
        for number in missing:
            if not await self._take_up(number, assigned):
                return False
        self._transport.ask_for_greeting()
        self._transport.tell_news()
        return True

    async def _let_go(self, assigned: Assigned) -> None:
        for number, share in list(self.shares.items()):
            if assigned.shares.get(number) == share.view.epoch:
                continue
            if number in assigned.release:
                share.end()
                await self._flush(share)
                self._holdings.release(share)
            else:
                logger.warning(
                    "consumer group %r: %s was given to another member while this one was silent; "
                    "what it had not committed is left to that one",
                    self.name,
                    share.name,
                )
            await self._drop(share)

    async def _take_up(self, number: int, assigned: Assigned) -> bool:
        """Begin a share where its last owner left it; return whether the bus could say where that is."""
        bus_id = self._bus_id
        kept = await self._transport.fetch_states(self.name, {}, only=number)
        if kept is None:
            return False
        consumer = self._build()
        consumer.context.publish = self.publish
        consumer.context.address = str(self.address)
        consumer.context.claim = self._claim
        view = View.in_group(consumer, self.name, number, assigned.shares[number])
        view = view.ordered() if self._transport.ordered else view
        share = Share(consumer, view, self.client_id, self._give_receipt)
        await share.start()
        try:
            await share.begin(kept.get(number), self._lineage, prunings=self._prunings)
        except BaseException:
            await share.stop()
            raise
        if self._bus_id != bus_id:  # another bus has welcomed this process meanwhile
            await share.stop()
            return False
        self._holdings.add(share)
        for run_id in assigned.handled_runs:
            share.forget(run_id)
        self._transport.subscribe(view.topics)
        return True

    async def _drop(self, share: Share) -> None:
        self._holdings.remove(share)
        self._past = self._past.plus(share.dispatcher.totals())
        self._worst_lag_ns = max(self._worst_lag_ns, share.dispatcher.worst_lag_ns)
        self._transport.unsubscribe(share.view.topics)
        try:
            await share.stop()
        except (PhaseBusError, OSError) as error:
            # Its next owner may have its files by now. What it has not committed is left to that one.
            logger.warning(
                "consumer group %r: %s goes to another member, and could not finish here: %s",
                self.name,
                share.name,
                error,
            )

    # ---- events ----

    @property
    def held(self) -> Iterable[Share]:
        return self.shares.values()

    @property
    def takes_live(self) -> bool:
        return not self._stop.is_set()

    async def take(self, arrival: Arrival, goes_on: Callable[[], bool], *, replayed: bool) -> None:
        topic = arrival.topic
        is_end = topic.startswith(_RUN_COMPLETE)
        if is_end and not replayed:
            self._ends_at = max(self._ends_at, arrival.header.offset)
            self._next_flush_s = 0.0
        share = self.shares.get(partition_of(topic))  # that of events has the number of no partition
        if share is None or not (replayed or self._takes_live(share)):
            arrival.drop()
            return
        leader = self._holdings.leader if is_end and share.leads else None
        if leader is not None and leader.holds_back(arrival):
            share.follower.replaying = True  # and so come to it again
            arrival.drop()
            return
        may_go_on = goes_on if replayed else lambda: goes_on() and self._takes_live(share)
        if await share.take(arrival, may_go_on, replayed=replayed) is not None:
            await self._flush(share)
            self._transport.tell_news()

    def _takes_live(self, share: Share) -> bool:
        """Return whether a share may have a live event; if not, that comes again, from the journal."""
        if not (share.follower.replaying or self._is_ours(share)):
            share.follower.replaying = True  # should it be ours after all, the event is still to come
        return not share.follower.replaying

    async def _catch_up(self, share: Share) -> bool:
        """Handle the next piece of the journal; return whether the bus could give one."""
        piece = await self._fetch(share, partial(self._may_read, share))
        if piece is not None and piece.end and not share.follower.replaying:
            # Who has come to the end of the journal may be the one for whom the end of a run waits.
            soon_s = time.monotonic() + _SOON_S
            if self._transport.ordered:  # where it comes to an end with each event that is new
                soon_s = max(soon_s, self._rest_until_s)
            self._next_flush_s = min(self._next_flush_s, soon_s)
        return piece is not None

    def _may_read(self, share: Share) -> bool:
        return self._is_ours(share) and self._holdings.reads_journal(share)

    # ---- leading ----

    async def _lead(self) -> None:
        """Hand what the partitions have committed to the leader's instance, if it is here."""
        leader, now_s = self._holdings.leader, time.monotonic()
        if leader is None or now_s < leader.next_look_s or not self._is_ours(leader.share):
            return
        leader.next_look_s = now_s + leader.look_s
        states = await self._transport.fetch_states(self.name, leader.positions)
        if states is not None:
            await leader.take_over(states)

    # ---- commits ----

    async def _flush_due(self) -> None:
        now_s = time.monotonic()
        held = self._holdings.held
        if now_s < self._next_flush_s and not any(share.has_passed(self._ends_at) for share in held):
            return
        due = [share for share in held if share.is_due(self._ends_at)]
        for share in due:
            began_s = time.monotonic()
            await self._flush(share)
            if time.monotonic() > began_s + _LONG_S:  # with large states others would take it for gone
                await asyncio.sleep(_TURN_S)
        size = sum(len(share.commit.saved or b"") for share in due if share.commit is not None)
        self._next_flush_s = now_s + max(FLUSH_S, size / _COMMITTED_BYTES_PER_S)
        if due:
            self._rest_until_s = self._next_flush_s
            self._transport.tell_news()

    async def _flush(self, share: Share) -> None:
        """Let a share's instance write out, and commit that, if the share is still this member's."""
        if not (self._is_ours(share) and await share.flush()):
            return
        if share.leads and self._holdings.leader is not None:
            self._holdings.leader.committed()

    # ---- what the bus says and is told ----

    def hello(self) -> Hello:
        return introduce(
            self.client_id,
            "consumer",
            self.name,
            subscriptions=self._subscriptions,
            group=self.name,
            settings=self._settings,
        )

    def beat(self) -> Beat:
        return self._holdings.beat(self)

    def _on_welcome(self, welcome: Welcome) -> None:
        super()._on_welcome(welcome)
        if welcome.replay is None:
            problem = (
                f"group {self.name!r} needs a bus that keeps a journal; start it without --no-journal, or "
                "the consumer without a group"
            )
            self.fail(ConfigError(problem))
        self._lineage = Lineage(welcome.lineage)
        if self._bus_id and welcome.bus_id != self._bus_id:
            self._holdings.move(self._lineage)
        self._holdings.begin_anew(lose_all=welcome.bus_id != self._bus_id)
        self._bus_id = welcome.bus_id
        self._transport.look_again()

    def _on_assigned(self, assigned: Assigned) -> None:
        if assigned.problem:
            remedy = "start all of them alike, or give another --group"
            self.fail(ConfigError(f"group {self.name!r}: {assigned.problem}; {remedy}"))
            return
        self._holdings.assigned = assigned
        self._transport.look_again()

    def _on_ack(self, heard: Heard) -> None:
        if self._holdings.take_ack(heard):
            self._transport.tell_news()
        if heard.kept or heard.refused:
            if self._holdings.leader is not None:
                self._holdings.leader.look_soon()
            self._transport.look_again()
