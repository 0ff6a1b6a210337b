"""A share of the stream with the consumer's instance for it: all between its start and its last receipt.

A consumer on its own is one share over everything; a member of a group has one for each partition that is
assigned to it; the test kit and the retry of dead letters drive the same object. There is no socket and no
loop in it: a host hands it messages, and tells it what the bus has kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

from phase_bus.consumer.account import RunAccount
from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.dispatcher import KEPT_JOURNAL_LOSSES, Dispatcher, HandledEnd
from phase_bus.consumer.follower import Verdict
from phase_bus.consumer.raw import RawConsumer
from phase_bus.consumer.view import View
from phase_bus.core.bundle import following
from phase_bus.core.control import EVENTS, Commit, PrunedRun
from phase_bus.core.position import Lineage, Place, Position
from phase_bus.core.wire import Header, topic_prefix
from phase_bus.errors import PhaseBusError, StateError, WireError
from phase_bus.events import Event, JournalLoss, Loss, Receipt, RunComplete
from phase_bus.journal.rows import Checkpoint, Entry, Head, checkpoint_name

logger = logging.getLogger("phase_bus.consumer")
news = logging.getLogger("phase_bus.consumer.news")

GiveReceipt: TypeAlias = Callable[[Receipt], Awaitable[bool]]
Origin: TypeAlias = Literal["checkpoint", "start", "now"] | int

_RUN_COMPLETE = topic_prefix(RunComplete.kind)  # every consumer learns of the end of runs
_IDLE_S = 5.0


class Beginning(NamedTuple):
    """The offset after which to begin, and the state to begin with."""

    offset: int
    state: bytes | None


def begin_at(
    kept: Checkpoint | None, stored: int | None, *, origin: Origin = "checkpoint", head: int = 0
) -> Beginning:
    """Return the offset after which to begin, and the state to begin with.

    Args:
        kept: the checkpoint of the consumer's name; None for none.
        stored: the offset up to which it keeps everything with its data, None if it does not say.
        origin: where its user wants it to begin.
        head: the offset of the last event that there is.
    """
    if isinstance(origin, int):
        return Beginning(origin, None)
    if origin == "now":
        return Beginning(head, None)
    if origin == "start" or kept is None or (stored is not None and stored < kept.offset):
        # Never here before, or its data were set back to before the checkpoint: there is no account of
        # what it stored, so all is counted anew, but handled only after that.
        return Beginning(0, None)
    return Beginning(kept.offset, kept.state)


def loss_of(position: Position, place: Place, known_offset: int) -> JournalLoss | None:
    """Return what was lost for somebody who stood at a position, and is at another place now.

    Args:
        known_offset: how far the position's stream is known to have gone.
    """
    stream, offset = position.stream, position.offset
    if place.found == "cut":
        return JournalLoss(reason="cut", stream=stream, first=place.offset + 1, last=offset)
    if place.found == "elsewhere" and stream and offset:  # without a journal nothing was promised
        return JournalLoss(reason="moved", stream=stream, first=offset + 1, last=max(offset, known_offset))
    return None


class Share:
    """One instance of a consumer, with its place in the stream.

    Args:
        give: publishes a receipt, waits until the bus has it, and returns whether it has; None for an
            onlooker, which gives no receipts and keeps no checkpoint.
        attempts: how often a handler is tried before an event becomes a dead letter; by default as often as
            the consumer's options say.

    Attributes:
        name: what its checkpoint is kept under.
        placed: whether it has a place in the stream of the bus that it is connected to.
        journal_losses: what it learned that the journal lost, the latest ones.
        checkpoint: the offset of its last commit.
        commit: what the bus is to keep and has not confirmed.
        lost: in a group: it is assigned to another member by now.
        parts: returns what the other members of the group received of a run.
        lost_by_others: returns what they have lost and the leader has not told, by a name for each.
    """

    def __init__(
        self,
        consumer: Consumer,
        view: View,
        client_id: str,
        give: GiveReceipt | None = None,
        *,
        attempts: int | None = None,
    ) -> None:
        self.consumer = consumer
        self.view = view
        self.name = checkpoint_name(view.group, view.number) if view.group else consumer.name
        self.follower = view.follower
        self.dispatcher = Dispatcher(consumer, view, client_id, attempts)
        self.placed = view.follower.direct
        self.checkpoint = 0
        self.commit: Commit | None = None
        self.lost = False
        self.journal_losses: list[JournalLoss] = []
        self._left: Position | None = None  # where it stood when it left another bus's stream
        self._known_offset = 0  # how far that one is known to have gone
        self.parts: Callable[[str], Iterable[RunAccount]] = lambda _run_id: ()
        self.lost_by_others: Callable[[], dict[str, Loss]] = dict
        self._give = give
        if give is not None and (self.leads or not view.group):
            self.dispatcher.on_run = self._tell_run
        self._pruned: dict[int, tuple[PrunedRun, int]] = {}  # not passed yet, and where it learned of them
        self._prunings = 0  # how many there had been before it could lose anything by one
        self._handled_topics = (*view.wanted, _RUN_COMPLETE)
        self._ends: dict[str, tuple[RunComplete, int]] = {}  # with offsets; their receipts are to be given
        self._keeps_checkpoint = False
        self._changed = False  # there is something to commit besides new events
        self._latest: Commit | None = None  # the last commit, confirmed or not
        self._told: Commit | None = None  # the commit that the bus was told last
        self._flushed_events = 0  # how many had been received by the last flush
        self._flushed_s = 0.0

    @property
    def leads(self) -> bool:
        """Whether it is a group's share of events, whose owner leads the group."""
        return bool(self.view.group) and self.view.number == EVENTS

    @property
    def owes_receipts(self) -> bool:
        """Whether the end of a run was handled and its receipt is still to be given."""
        return bool(self._ends)

    # ---- its place in the stream ----

    async def start(self) -> None:
        """Start the instance."""
        try:
            await self.consumer.start()
        except BaseException:
            self.close_outputs()
            raise

    async def stop(self) -> None:
        """Stop the instance, and let others have its files."""
        try:
            await self.consumer.stop()
        finally:
            self.close_outputs()

    def close_outputs(self) -> None:
        """Let others have the files of the instance."""
        for file in self.consumer.context.outputs:
            file.close()
        self.consumer.context.outputs.clear()

    @property
    def moving(self) -> bool:
        """Whether it comes from another bus's stream, and has no place in that of this one yet."""
        return self._left is not None

    @property
    def position(self) -> Position:
        """The place up to which everything is handled, or of no interest."""
        return self._lineage.position(self.follower.offset)

    @property
    def _lineage(self) -> Lineage:
        return self.consumer.context.lineage

    async def begin(
        self,
        kept: Checkpoint | None,
        lineage: Lineage,
        *,
        origin: Origin = "checkpoint",
        head: Head | None = None,
        prunings: int = 0,
        journaled: bool = True,
    ) -> None:
        """Find the place in the stream from which the instance reads.

        An instance that comes from another bus's stream goes on with all that it has, and recognises what
        it finds here again.

        Args:
            lineage: that of the stream.
            head: where the stream ends now, if that is known.
            prunings: how many runs were pruned so far: to one that is new here these are no loss.
            journaled: whether what is past can be read; else it begins at the head.

        Raises:
            PhaseBusError: if the state in the checkpoint cannot be read.
        """
        left, self._left = self._left, None
        self.consumer.context.lineage = lineage
        position = await self.consumer.position()
        if position is None:
            stored = None
        elif left is None:
            stored = self._find(position, position.offset)
        else:  # what is lost is told by where it stood
            stored = lineage.find(position).offset
        if left is not None:
            after = self._find(left, self._known_offset)
            if kept is not None and not after and self.dispatcher.join(kept.state):
                after = kept.offset
        else:
            after, state = begin_at(kept, stored, origin=origin, head=head.offset if head else 0)
            if state is not None:
                self._restore(state)
        was_here = origin == "checkpoint" and (kept is not None or stored is not None or after > 0)
        self._prunings = 0 if was_here else prunings
        # What a consumer stored beyond its checkpoint is counted again, but not handled again.
        self.dispatcher.done_offset = stored or 0
        if journaled:
            number = head.event_number if head is not None and after >= head.offset else None
            self.follower.stand_at(after, number)
        elif head is not None:
            self.follower.stand_at(head.offset, head.event_number, replay=False)
        self.follower.journaled = self._keeps_checkpoint = journaled
        self.checkpoint = after
        self.placed = True
        # So that the journal waits for it from now on, though it may be long until it can write out.
        self._changed = self._changed or isinstance(self.consumer, RawConsumer)

    def _restore(self, state: bytes) -> None:
        try:
            self.dispatcher.restore(state)
        except (StateError, WireError) as error:
            group = self.view.group
            remedy = "as another --group" if group else "with --from start, or under another --name"
            raise PhaseBusError(f"consumer {self.name!r}: {error}; begin anew {remedy}") from error

    def _find(self, position: Position, known_offset: int) -> int:
        """Return the offset here at which a position of before is; tell what is lost."""
        place = self._lineage.find(position)
        if (loss := loss_of(position, place, known_offset)) is not None:
            self.note_journal_loss(loss)
        return place.offset

    def note_journal_loss(self, loss: JournalLoss) -> None:
        """Take note, once, that the journal lost something: for the log, the bus's status and receipts."""
        if loss not in self.journal_losses:
            self.journal_losses.append(loss)
            del self.journal_losses[:-KEPT_JOURNAL_LOSSES]
            self.dispatcher.note_journal_loss(loss)
            self._changed = True
            logger.error("consumer %r: %s", self.name, loss)

    def follow(self, lineage: Lineage) -> bool:
        """Go on in the stream of a bus that was started anew; return whether the place is in it.

        If it is not, the place is forgotten: :meth:`begin` finds another one.
        """
        if not self.placed:
            return False
        left = self.position
        if lineage.find(left).found == "here":
            self.consumer.context.lineage = lineage
            return True
        self._left, self._known_offset = left, self.follower.known_offset
        self.placed, self.commit, self._latest = False, None, None
        self._pruned.clear()
        return False

    # ---- events ----

    def heartbeat(self, header: Header, last_offsets: Mapping[int, int]) -> None:
        """Take in where the stream stands, and the offset of the last records in each partition."""
        self.follower.heartbeat(header._replace(previous=last_offsets.get(self.view.number, 0)))

    async def handle(
        self, topic: bytes, header: Header, payload: bytes | memoryview, *, replayed: bool
    ) -> RunComplete | None:
        """Handle one event, as :meth:`take` does."""
        return await self.take(Arrival(topic, header, payload), _always, replayed=replayed)

    async def take(
        self, arrival: Arrival, goes_on: Callable[[], bool], *, replayed: bool
    ) -> RunComplete | None:
        """Handle what has arrived if it is the next; a repetition is counted, a hole changes to replaying.

        What is left of the arrival then has not been looked at: it is to be given again.

        Args:
            goes_on: whether another event may be handled now.

        Returns:
            The event, if it ends a run whose receipt is to be given: flush then.
        """
        topic, header, follower = arrival.topic, arrival.header, self.follower
        if self._pruned:
            self.pass_pruned(header.offset - 1)
        verdict = follower.replayed(header) if replayed else follower.live(header)
        wanted = topic.startswith(self._handled_topics)
        if verdict is Verdict.HANDLE and wanted:
            again = replayed and not follower.ordered
            end = await self.dispatcher.take(arrival, goes_on, replayed=again)
            if end is not None and self._give is not None:
                self._ends[end.run_id] = (end, header.offset)
                return end
        elif verdict is Verdict.HANDLE:
            if arrival.left > 1:
                follower.advance(following(header, arrival.left - 1))
            arrival.drop()
        else:
            if verdict is Verdict.REPETITION and wanted:
                self.dispatcher.repetition(topic)
            arrival.done(1)
        return None

    def note_pruned(self, runs: Iterable[PrunedRun]) -> None:
        """Take in which runs are gone from the journal, before what is left there is handled."""
        for run in runs:
            if run.number > self._prunings:
                self._pruned.setdefault(run.number, (run, self.follower.offset))

    def pass_pruned(self, offset: int) -> None:
        """Note what was lost of the pruned runs of which nothing comes beyond an offset."""
        for number, (run, after) in list(self._pruned.items()):
            if run.last_offset <= offset:
                del self._pruned[number]
                self.dispatcher.lose(run, after)
                self._changed = True

    async def retry(self, entry: Entry, event: Event) -> bool:
        """Give the instance an event that is a dead letter once more; return whether it handled it."""
        self.end()  # nothing comes after it for which what it makes could wait
        failed = self.dispatcher.failed
        if not (await self.dispatcher.retry(entry, event) and await self.dispatcher.flush()):
            return False
        if self.dispatcher.failed > failed:  # it was accepted, and found impossible when it was written out
            return False
        self.dispatcher.settled(entry.topic)
        return True

    def forget(self, run_id: str) -> None:
        """Let go of a run of which the group has handled everything."""
        if not self.leads and self.dispatcher.forget(run_id):
            self.consumer.forget(run_id)
            self._changed = True

    # ---- flush, receipts, commits ----

    def left(self) -> str:
        """Return, in words, what was received and is not written out and committed; empty for nothing.

        It may be called from any thread, while handlers run.
        """
        events = self.dispatcher.received - self._flushed_events
        if not (events or self._ends):
            return ""
        what = f"{events} event{'' if events == 1 else 's'} not written out and committed"
        if self.dispatcher.is_handling:
            what += f", the handler of that at offset {self.consumer.context.offset} not back"
        if self._ends:
            what += f", no receipt for run {next(iter(self._ends))}"
        if not self._keeps_checkpoint:
            return f"{what}; they do not come again, since no journal is kept"
        source = "the stream" if self.follower.ordered else "the bus's journal"
        return f"{what}; what is after offset {self.checkpoint} comes again, from {source}"

    def is_due(self, ends_at: int = 0) -> bool:
        """Return whether there is something to flush and commit.

        In a group it is also committed that a run's end, ``ends_at``, was passed, and now and then that
        others' events went by, so that the leader does not wait after a loss for what never comes.
        """
        if self.dispatcher.received != self._flushed_events or self._changed:
            return True
        idle = self.follower.offset > self.checkpoint and time.monotonic() >= self._flushed_s + _IDLE_S
        return bool(self.view.group) and (idle or self.has_passed(ends_at))

    def has_passed(self, offset: int) -> bool:
        """Return whether it has come to an offset since its last commit."""
        return self.checkpoint < offset <= self.follower.offset

    async def flush(self) -> bool:
        """Let the instance write out; if it could, give receipts and make a commit; return whether so.

        There is no commit before the receipts are in the journal: whoever goes on from it will not give
        them any more.
        """
        if not await self.dispatcher.flush() or not await self.give_receipts():
            return False
        if not self.consumer.holds_checkpoint:  # else there is something left to write out
            self._flushed_events = self.dispatcher.received
        self._flushed_s = time.monotonic()
        self._changed = False
        keeps = self._keeps_checkpoint and not self.consumer.holds_checkpoint
        if self.placed and keeps and self._give is not None:
            self.checkpoint = self.follower.offset
            self.commit = self._latest = Commit(
                share=self.view.number,
                token=self.view.epoch,
                position=self.position,
                saved=self.dispatcher.saved(),
                dead_letters=tuple(self.dispatcher.dead_letters),
            )
        return True

    def end(self) -> None:
        """Let the instance know that what it flushes from now on is the last."""
        self.consumer.context.stopping = True

    async def give_receipts(self) -> bool:
        """Give the receipts of runs whose end was handled, oldest first; these count as handled then.

        Return whether the bus has all of them; what it has not yet is given again at the next call.
        """
        while self._ends and self._give is not None:
            run_id, (end, offset) = next(iter(self._ends.items()))
            own, others = dict(self.dispatcher.losses), self.lost_by_others()
            receipt = self.dispatcher.receipt(end, self.parts(run_id), [*own.values(), *others.values()])
            if not await self._give(receipt):
                return False
            self._tell_end(receipt)
            self.dispatcher.told(own, others)
            lost = end.status == "lost"
            self.dispatcher.finished(run_id, HandledEnd(receipt.complete, lost, offset))
            del self._ends[run_id]
        return True

    def _tell_run(self, run_id: str) -> None:
        if run_id:
            news.info("consumer %r: run %s begins", self.view.group or self.name, run_id)

    def _tell_end(self, receipt: Receipt) -> None:
        events = sum(counts.handled for counts in receipt.topics.values())
        what = "handled all of it" if receipt.complete else "did not handle all of it"
        name = self.view.group or self.name
        news.info(
            "consumer %r: run %s %s; %s: %d events", name, receipt.run_id, receipt.status, what, events
        )

    def tell(self) -> Commit | None:
        """Return the commit that the bus is to keep now, if it has not confirmed it."""
        self._told = self.commit
        return self.commit

    def tell_again(self) -> None:
        """Have the latest commit told once more, though it was confirmed: the bus was started anew."""
        self.commit = self._latest

    def confirm(self, checkpoint: Position) -> bool:
        """Note that the bus has kept the commit at a place; return whether it is the latest one.

        A reply that is about an older commit, or came before this one was told, confirms nothing.
        """
        if self.commit is None or self.commit is not self._told or self.commit.position != checkpoint:
            return False
        self.commit = None
        return True


def _always() -> bool:
    return True
