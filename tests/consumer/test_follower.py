"""Gap detection and the change between live and replay, against a model of the bus: whatever is lost."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from phase_bus.consumer.follower import Follower, Verdict
from phase_bus.core.wire import Header

SOURCE = bytes(16)
Kinds: TypeAlias = list[tuple[bool, bool]]

kinds = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12)
"""Events to publish: whether each is a batch of records, and whether it is lost on its live way."""

effort = settings(max_examples=150, stateful_step_count=60, deadline=None, print_blob=True)


class Live:
    """The live queue of one reader: in order, bounded, and lossy."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: deque[Header | None] = deque()  # None: the greeting, that subscriptions are in force

    def push(self, header: Header | None, *, lost: bool) -> bool:
        """Take a message, unless it is lost or there is no room; return whether it is in."""
        if lost or len(self.queue) >= self.capacity:
            return False
        self.queue.append(header)
        return True


class Bus(RuleBasedStateMachine):
    """A bus and one reader of it; what both kinds of bus have in common.

    An event's offset is its place in ``stream``, from 1, so that place says whether it is records.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stream: list[Header] = []
        self.is_record: list[bool] = []
        self.live = Live(1)
        self.records = True
        self.handled: list[int] = []
        self.follower = Follower(records=True)

    def head(self) -> Header:
        """What a heartbeat says."""
        last = self.stream[-1] if self.stream else Header(SOURCE, 0, 0)
        return Header(SOURCE, 0, 0, 0, last.offset, last.event_number)

    def put(self, record: bool, *, lost: bool) -> None:
        """Publish an event."""
        head = self.head()
        header = Header(SOURCE, 0, 0, 0, head.offset + 1, head.event_number + (not record))
        self.stream.append(header)
        self.is_record.append(record)
        if self.wants(header) and not self.live.push(header, lost=lost):
            self.on_lost(header)

    def on_lost(self, header: Header) -> None:
        """An event did not get into the live queue."""

    def wants(self, header: Header) -> bool:
        """Whether the reader wants the event of a header."""
        return self.records or not self.is_record[header.offset - 1]

    def wanted(self, after: int = 0) -> list[int]:
        """All that the reader wants after an offset."""
        return [header.offset for header in self.stream[after:] if self.wants(header)]

    @rule(events=kinds)
    def publish(self, events: Kinds) -> None:
        for record, lost in events:
            self.put(record, lost=lost)

    @rule(lost=st.booleans())
    def heartbeat(self, lost: bool) -> None:
        self.live.push(self.head(), lost=lost)

    def is_heartbeat(self, header: Header) -> bool:
        """Whether a message of the live queue is a heartbeat."""
        return not any(header is event for event in self.stream)


class Journaled(Bus):
    """With a journal nothing is missed, whatever gets lost on the way."""

    checkpoint = 0
    piece: deque[Header] | None = None
    piece_end: Header | None = None

    @initialize(records=st.booleans(), capacity=st.integers(1, 8), before=kinds, now=st.booleans())
    def begin(self, records: bool, capacity: int, before: Kinds, now: bool) -> None:
        self.records = records
        self.live = Live(capacity)
        self.publish(before)
        self.checkpoint = len(self.stream) if now else 0
        self.restart_consumer()

    def place(self) -> None:
        """Place the reader at its checkpoint, as the runner does after a welcome."""
        head = self.head()
        number: int | None = head.event_number if self.checkpoint >= head.offset else None
        self.follower = Follower(records=self.records)
        self.follower.stand_at(self.checkpoint, number if self.checkpoint else 0, replay=True)

    @rule()
    def restart_consumer(self) -> None:
        """It was killed: what it handled after its checkpoint comes again."""
        self.live.queue.clear()
        self.piece = None
        self.handled = []
        self.place()

    @rule(greeted=st.booleans(), late=kinds)
    def restart_bus(self, greeted: bool, late: Kinds) -> None:
        """It was killed and comes back with its journal; the live connection comes back later."""
        self.live.queue.clear()
        self.piece = None
        for record, _ in late:
            self.put(record, lost=True)
        self.live.push(None, lost=not greeted)

    @rule()
    def flush(self) -> None:
        """The checkpoint is stored."""
        self.checkpoint = self.follower.offset
        self.handled = []

    @precondition(lambda self: self.follower.replaying and self.piece is None)
    @rule(size=st.integers(1, 5), meanwhile=st.one_of(st.just([]), kinds))
    def fetch(self, size: int, meanwhile: Kinds) -> None:
        """The bus looks where the stream stands, then reads a piece; it may have gone on in between."""
        head = self.head()
        self.publish(meanwhile)
        after = [h for h in self.stream[self.follower.offset :] if self.wants(h)]
        self.piece = deque(after[:size])
        self.piece_end = None if self.piece else head

    @precondition(lambda self: self.piece is not None)
    @rule(count=st.integers(1, 5))
    def handle_piece(self, count: int) -> None:
        assert self.piece is not None
        for _ in range(min(count, len(self.piece))):
            header = self.piece.popleft()
            if self.follower.replayed(header) is Verdict.HANDLE:
                self.handled.append(header.offset)
        if not self.piece:
            if self.piece_end is not None:
                end = self.piece_end
                self.follower.caught_up(max(end.offset, self.follower.offset), end.event_number)
            self.piece = None

    @precondition(lambda self: not self.follower.replaying)
    @rule(count=st.integers(1, 8))
    def drain(self, count: int) -> None:
        for _ in range(min(count, len(self.live.queue))):
            if self.follower.replaying:
                return
            message = self.live.queue.popleft()
            if message is None:
                self.follower.replaying = True
            elif self.is_heartbeat(message):
                self.follower.heartbeat(message)
            elif self.follower.live(message) is Verdict.HANDLE:
                self.handled.append(message.offset)

    @invariant()
    def no_hole_no_double_in_order(self) -> None:
        wanted = self.wanted(self.checkpoint)
        assert self.handled == wanted[: len(self.handled)]
        assert self.follower.missed == 0

    def settle(self) -> None:
        """Let the reader work until there is nothing to do."""
        for _ in range(10 * len(self.stream) + 10 * self.live.capacity + 10):
            if self.piece is not None:
                self.handle_piece(3)
            elif self.follower.replaying:
                self.fetch(3, [])
            elif self.live.queue:
                self.drain(3)
            else:
                return
        raise AssertionError("the reader does not come to rest")

    def teardown(self) -> None:
        """Everything arrives, one heartbeat after the last loss, and the reader is live again."""
        self.settle()
        self.heartbeat(lost=False)
        self.settle()
        assert self.handled == self.wanted(self.checkpoint)
        assert not self.follower.replaying
        self.put(False, lost=False)
        self.drain(1)
        assert self.handled == self.wanted(self.checkpoint)
        assert not self.follower.replaying


class MemoryOnly(Bus):
    """Without a journal what is lost stays lost, and is counted exactly."""

    lost = 0

    @initialize(records=st.booleans(), capacity=st.integers(1, 8), before=kinds)
    def begin(self, records: bool, capacity: int, before: Kinds) -> None:
        self.records = records
        self.live = Live(capacity)
        self.publish(before)
        self.live.queue.clear()
        self.lost = 0
        head = self.head()
        self.follower = Follower(records=records)
        self.follower.journaled = False
        self.follower.stand_at(head.offset, head.event_number, replay=False)

    def on_lost(self, header: Header) -> None:
        self.lost += 1

    @rule(count=st.integers(1, 8))
    def drain(self, count: int) -> None:
        for _ in range(min(count, len(self.live.queue))):
            message = self.live.queue.popleft()
            assert message is not None
            if self.is_heartbeat(message):
                self.follower.heartbeat(message)
                continue
            verdict = self.follower.live(message)
            assert verdict is not Verdict.HOLE
            if verdict is Verdict.HANDLE:
                self.handled.append(message.offset)

    @rule(message=st.integers(0, 3))
    def repeat(self, message: int) -> None:
        """A message comes once more, at once or a little later."""
        if message < len(self.live.queue) and len(self.live.queue) < self.live.capacity:
            again = self.live.queue[message]
            assert again is not None
            if not self.is_heartbeat(again):
                self.live.queue.append(again)

    @rule()
    def restart(self) -> None:
        """Another bus begins another stream; the reader takes it from its beginning."""
        self.finish()
        self.stream, self.is_record, self.handled, self.lost = [], [], [], 0
        missed = self.follower.missed
        self.follower.stand_at(0, 0, replay=False)
        self.follower.missed -= missed

    @invariant()
    def never_stuck(self) -> None:
        assert not self.follower.replaying

    @invariant()
    def in_order_and_no_double(self) -> None:
        assert self.handled == sorted(set(self.handled))
        assert self.follower.missed <= self.lost

    def finish(self) -> None:
        """One heartbeat later every loss is known."""
        self.drain(self.live.capacity)
        self.heartbeat(lost=False)
        self.drain(1)
        assert self.follower.missed == self.lost

    def teardown(self) -> None:
        self.finish()


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Journaled, MemoryOnly])
def test_against_the_model(machine: type[Bus]) -> None:
    """Losses, overflows, restarts of both sides, pieces of any size: no gaps, no duplicates, in order."""
    run_state_machine_as_test(machine, settings=effort)


def test_a_checkpoint_in_the_middle_is_no_loss() -> None:
    """A reader without records that begins in the middle does not know the event number there."""
    follower = Follower(records=False)
    follower.stand_at(70, None, replay=True)
    assert follower.replayed(Header(SOURCE, 1, 1, 0, 90, 31)) is Verdict.HANDLE
    assert follower.missed == 0
    assert follower.replayed(Header(SOURCE, 1, 1, 0, 99, 34)) is Verdict.HANDLE
    assert follower.missed == 2, "that was pruned"


def test_without_a_journal_a_heartbeat_does_not_stop_the_reader() -> None:
    """What was lost at the end of a burst is counted, and the next event is handled."""
    follower = Follower(records=True)
    follower.journaled = False
    follower.stand_at(3, 3, replay=False)
    follower.heartbeat(Header(SOURCE, 0, 0, 0, 5, 5))
    assert (follower.missed, follower.replaying) == (2, False)
    assert follower.live(Header(SOURCE, 1, 1, 0, 6, 6)) is Verdict.HANDLE
