"""From a message to the consumer's handler: decoding, retries, dead letters, counting for the receipt."""

from __future__ import annotations

import asyncio
import logging
import shlex
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec
from msgspec import Struct
from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_random

from phase_bus.consumer.account import RunAccount, TopicCounts, Totals
from phase_bus.consumer.arrival import Arrival
from phase_bus.consumer.consumer import Consumer, Handler
from phase_bus.consumer.failure import as_traceback, in_words, is_away
from phase_bus.consumer.raw import RawConsumer, RawEvent
from phase_bus.consumer.view import View
from phase_bus.core.control import KEPT_LOST_RUNS, REMEMBERED_RUNS, DeadLetterNote, PrunedRun
from phase_bus.core.position import Position
from phase_bus.core.readable import wait_for_event
from phase_bus.core.tasks import is_to_end
from phase_bus.core.throttle import Throttle
from phase_bus.core.values import as_text
from phase_bus.core.wire import decode, parse_topic, topic_of, unpack_header
from phase_bus.errors import PhaseBusError, WireError
from phase_bus.events import Event, EventBase, JournalLoss, Loss, Receipt, RunComplete
from phase_bus.journal.rows import Entry

logger = logging.getLogger("phase_bus.consumer")

_RETRIES = 2  # of a handler, unless its consumer says otherwise
_RETRIES_AWAY = 8  # likewise, when what it talks to does not answer: with its waits, for a minute
KEPT_JOURNAL_LOSSES = 20  # of one receipt, and of one consumer for `status`: the latest
_KEPT_LOSSES = 100
_WAITING_LETTERS = 1000  # dead letters that the bus has not taken over yet
_ERROR_CHARACTERS, _TRACEBACK_CHARACTERS = 1000, 16_000  # of a dead letter
_KEPT_TOLD = 20 * _KEPT_LOSSES  # those of all shares of a group
_SHORT_WAIT_S = 0.05  # while a handler fails each time: a consumer that is broken shall not fall behind


class HandledEnd(Struct, frozen=True, array_like=True):
    """The end of a run that is handled, written out, and whose receipt is in the journal.

    Attributes:
        whole: whether everything of the run was handled.
        lost: whether it ended as lost, so that its publisher may still come back.
        offset: the end's place in the journal.
    """

    whole: bool
    lost: bool = False
    offset: int = 0


class Saved(Struct):
    """What is kept in a consumer's checkpoint; for ``handled`` and so on see :class:`Dispatcher`.

    Attributes:
        journal_losses: what the journal lost, to be told in the receipt of the next run.
    """

    accounts: dict[str, RunAccount]
    handled: dict[str, HandledEnd]
    state: bytes | None = None
    losses: dict[str, Loss] = {}
    told_losses: list[str] = []
    journal_losses: list[JournalLoss] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Saved).decode


def decode_saved(saved: bytes) -> Saved:
    """Return what was kept in a checkpoint.

    Raises:
        WireError: if it cannot be decoded.
    """
    return decode(_decode, saved, "the state in a checkpoint cannot be decoded")


class Dispatcher:
    """Gives one consumer its events, one after another.

    When a handler raises it is called again, after growing waits; if it goes on raising, the event becomes
    a dead letter and the next one is handled.

    Args:
        attempts: how often a handler is tried; by default as often as the consumer's options say.

    Attributes:
        first_wait_s: how long to wait before a handler is called again, in s; then four times as long.
        hurry: the process is to end: whatever is waited for between two tries, the last one is now.
        done_offset: up to here the consumer has everything already, so handlers are not called.
        failed: dead letters and malformed events.
        handled: the latest runs whose end is handled, and those among them that ended as lost.
        dead_letters: those that the bus has not taken over yet; of too many only the number is told.
        losses: what was lost and is to be told in the next receipt, by a name for each. In a share of a
            group that does not lead they stay, the latest of them; the leader tells them.
        told_losses: those of the group's other shares that this one, which leads, has told.
        lag_ns, worst_lag_ns: from an event's happening to its being handled: the last, the longest.
        cannot_write: whether the last :meth:`flush` failed.
    """

    first_wait_s = 0.5

    def __init__(self, consumer: Consumer, view: View, client_id: str, attempts: int | None = None) -> None:
        self.hurry = asyncio.Event()
        self.done_offset = 0
        self.received = 0
        self.failed = 0
        self.handled: dict[str, HandledEnd] = {}
        self.dead_letters: list[DeadLetterNote] = []
        self._skipped = 0  # failures without a dead letter, to be told with the next one
        self.losses: dict[str, Loss] = {}
        self.told_losses: list[str] = []
        self.lag_ns = self.worst_lag_ns = 0
        self.cannot_write = False
        self._replayed = self._repeated = self._missed = self._worked = self._written = 0
        self._consumer = consumer
        self._context = consumer.context
        self._context.fail = self.fail
        self._handlers = view.handlers
        self._any = view.handlers.get("*")
        self._raw = isinstance(consumer, RawConsumer)
        self._follower = view.follower
        self._wanted = view.wanted
        self._subscribed = view.topics
        self._client_id = client_id
        self._attempts = attempts
        self._accounts: dict[str, RunAccount] = {}
        self.on_run: Callable[[str], None] = lambda _run_id: None
        self._of_topic: dict[bytes, tuple[RunAccount, TopicCounts]] = {}
        self._unknown: set[str] = set()
        self._failing: set[str] = set()  # the kinds of event whose last one the handler failed on
        self._complaints = Throttle(logger)
        self._journal_losses: list[JournalLoss] = []  # for the next run's receipt

    @property
    def is_handling(self) -> bool:
        """Whether a handler is at work; it may be asked from any thread."""
        counts = [
            each for account in list(self._accounts.values()) for each in list(account.topics.values())
        ]
        return any(each.received > each.handled + each.failed for each in counts)

    async def take(
        self, arrival: Arrival, goes_on: Callable[[], bool], *, replayed: bool
    ) -> RunComplete | None:
        """Handle what has arrived while it goes on, at most to a run's end; return that, if it is one.

        The follower stands at the first of the events, and moves on with each further one. What cannot be
        decoded becomes a dead letter.
        """
        topic, header = arrival.topic, arrival.header
        account, counts = self._of_topic.get(topic) or self._account(topic)
        source, source_seq, topic_seq, records, offset, number, *_ = header
        missed = topic_seq - counts.last_seqs.get(source, 0) - 1
        if missed < 0:  # its publisher sent it again, after the journal lost it
            self.repetition(topic)
            arrival.done(1)
            return None
        counts.missed += missed
        self._missed += missed
        counts.records += records
        kind = parse_topic(topic).kind
        handler = self._handlers.get(kind) or self._any
        may_end = kind == RunComplete.kind
        step = 1 if offset else 0  # what no bus has placed has no offset
        context, follower, taken = self._context, self._follower, 0
        end: RunComplete | None = None
        for event in arrival.events(raw=self._raw):
            if taken:
                source_seq, offset, number = source_seq + 1, offset + step, number + step
                follower.offset, follower.event_number = offset, number
            taken += 1
            self.received += 1
            counts.received += 1
            if replayed:
                self._replayed += 1
                counts.replayed += 1
            handled = True
            if event is None or isinstance(event, WireError):
                handled = self._pass_over(topic, offset, event, counts)
            elif not (may_end and _goes_on(event)):
                if handler is not None and not 0 < offset <= self.done_offset:
                    context.offset = offset
                    context.event = (source, source_seq)
                    context.event_number = number
                    handled = await self._handle(handler, event, kind, counts)
                self._note_lag(account, event.ts_ns)
                if may_end:
                    end = _end_of(event)
            if handled:
                counts.handled += 1
                self._worked += 1
            if may_end or not (taken == arrival.left or goes_on()):
                break
        counts.last_seqs[source] = topic_seq + taken - 1
        arrival.done(taken)
        return end

    def _pass_over(self, topic: bytes, offset: int, event: WireError | None, counts: TopicCounts) -> bool:
        """Return whether an event for no handler counts as handled: its kind is not known.

        One that cannot be decoded becomes a dead letter.
        """
        kind, run_id = parse_topic(topic)
        if event is None:
            self._skip_unknown(kind)
            return True
        self._give_up(offset, run_id, kind, event, counts, attempts=1)
        return False

    def _note_lag(self, account: RunAccount, happened_ns: int) -> None:
        lag_ns = self.lag_ns = time.time_ns() - happened_ns
        if lag_ns > account.worst_lag_ns:
            account.worst_lag_ns = lag_ns
        if lag_ns > self.worst_lag_ns:
            self.worst_lag_ns = lag_ns

    async def retry(self, entry: Entry, event: Event) -> bool:
        """Call the handler once for an event that is a dead letter; return whether it succeeded.

        Raises:
            KeyError: if the consumer has no handler for the event's kind.
        """
        handler = self._handlers.get(event.kind) or self._handlers["*"]
        given = RawEvent(entry.topic, unpack_header(entry.header), entry.payload) if self._raw else event
        self._context.offset, self._context.event = entry.offset, (entry.source, entry.source_seq)
        self._context.event_number = entry.event_number
        try:
            await _called(handler, given)
        except Exception as error:
            logger.error(
                "consumer %r failed again on the event at offset %d: %s",
                self._context.name,
                entry.offset,
                in_words(error),
            )
            return False
        return True

    def fail(self, event: EventBase, offset: int, error: Exception) -> None:
        """Make an event a dead letter that a handler accepted, and that the consumer failed on later."""
        _, counts = self._account(topic_of(event))
        counts.handled -= 1
        self._worked -= 1
        self._give_up(offset, event.run_id, event.kind, error, counts, attempts=1)

    def settled(self, topic: bytes) -> None:
        """Count an event as handled and written out that had failed."""
        _, counts = self._of_topic.get(topic) or self._account(topic)
        if counts.failed:
            counts.failed -= 1
            counts.handled += 1
            counts.written = counts.handled

    def repetition(self, topic: bytes) -> None:
        """Count an event that came once more."""
        _, counts = self._of_topic.get(topic) or self._account(topic)
        counts.repeated += 1
        self._repeated += 1

    def forget_dead_letters(self, positions: tuple[Position, ...]) -> None:
        """Let go of what the bus has taken over."""
        if positions:
            self.dead_letters = [each for each in self.dead_letters if each.position not in positions]

    def lose(self, run: PrunedRun, after: int) -> None:
        """Note, and log, what was lost of a run that was pruned; its end will not come any more.

        Args:
            after: where the consumer stood when it learned of the pruning.
        """
        account = self._accounts.get(run.run_id) or RunAccount(run.run_id)
        topics = {t: held for t, held in run.topics.items() if t.encode().startswith(self._subscribed)}
        loss = account.lost(topics, self._wanted, max(after, self.done_offset))
        # One of which nothing is lost here may go on: its publisher was taken for lost, and comes back.
        if loss is not None and run.run_id not in self.handled:
            self.forget(run.run_id)
        if loss is not None:
            logger.error("consumer %r has lost %s", self._context.name, loss)
            self.losses[f"pruned {run.number} {run.run_id}"] = loss
            for old in list(self.losses)[:-_KEPT_LOSSES]:
                del self.losses[old]

    def told(self, losses: Iterable[str], others: Iterable[str]) -> None:
        """Note that losses, here and of other shares, were told in a receipt."""
        for name in losses:
            self.losses.pop(name, None)
        self.told_losses = [*self.told_losses, *others][-_KEPT_TOLD:]

    def receipt(
        self, end: RunComplete, parts: Iterable[RunAccount] = (), lost: Iterable[Loss] = ()
    ) -> Receipt:
        """Return the receipt of a run that has ended, other members' parts included; complain of losses."""
        account = self._accounts[end.run_id].joined(parts)
        receipt = account.receipt(end, self._wanted, self._context.name, self._client_id, _by_run(lost))
        for line in account.complaints(receipt):
            logger.warning("consumer %r, run %s: %s", self._context.name, end.run_id, line)
        return receipt

    async def flush(self) -> bool:
        """Let the consumer write out all that it has handled so far; return whether it could."""
        self.cannot_write = not await self._write_out()
        return not self.cannot_write

    async def _write_out(self) -> bool:
        try:
            await _called(self._consumer.flush)
        except (PhaseBusError, OSError) as error:
            self._complaints.warn(
                "consumer %r could not write out: %s; trying again", self._context.name, error
            )
            return False
        except Exception as error:
            self._complaints.log(
                logging.ERROR,
                "consumer %r could not write out: %s; trying again",
                self._context.name,
                in_words(error),
            )
            return False
        for account in self._accounts.values():
            account.written()
        self._written = self._worked
        return True

    def totals(self) -> Totals:
        """Return what became of all events since this process started."""
        return Totals(
            received=self.received,
            replayed=self._replayed,
            repeated=self._repeated,
            missed=self._missed,
            handled=self._worked,
            written=self._written,
            failed=self.failed,
        )

    def finished(self, run_id: str, end: HandledEnd) -> None:
        """Note that a run's end is handled and written out."""
        self.handled.pop(run_id, None)
        self.handled[run_id] = end
        lost = [each for each, end in self.handled.items() if end.lost]
        for old in [each for each in self.handled if each not in lost][:-REMEMBERED_RUNS]:
            del self.handled[old]
            self.forget(old)
        for old in lost[:-KEPT_LOST_RUNS]:
            if self.forget(old):
                logger.warning(
                    "consumer %r lets go of run %s, which was lost %d lost runs ago: should its publisher "
                    "come back, what it had received before will be missing in the receipt",
                    self._context.name,
                    old,
                    KEPT_LOST_RUNS,
                )
        # Named for a while longer, so that the members of a group are told to let go of them too.
        for old in lost[: -KEPT_LOST_RUNS - REMEMBERED_RUNS]:
            del self.handled[old]

    def forget(self, run_id: str) -> bool:
        """Let go of a run's account; return whether there was one."""
        self._of_topic.clear()
        return self._accounts.pop(run_id, None) is not None

    def saved(self) -> bytes:
        """Return what is to be kept in the checkpoint: the accounts of runs, and the consumer's state."""
        state = self._consumer.state()
        told = (self.losses, self.told_losses, self._journal_losses)
        return _encode(Saved(self._accounts, self.handled, state, *told))

    def note_journal_loss(self, loss: JournalLoss) -> None:
        """Have what the journal lost told by the receipts of the runs that go on, or of the next one."""
        going_on = [account for run_id, account in self._accounts.items() if run_id not in self.handled]
        for losses in [account.journal_losses for account in going_on] or [self._journal_losses]:
            losses.append(loss)
            del losses[:-KEPT_JOURNAL_LOSSES]

    def restore(self, saved: bytes) -> None:
        """Go on, and let the consumer go on, from what an earlier process left.

        Raises:
            WireError: if it cannot be decoded.
        """
        kept = decode_saved(saved)
        self._accounts = kept.accounts
        self._of_topic.clear()
        self.handled, self.losses, self.told_losses = kept.handled, kept.losses, kept.told_losses
        self._journal_losses = kept.journal_losses
        if kept.state is not None:
            self._consumer.restore(kept.state)

    def join(self, saved: bytes | None) -> bool:
        """Go on after a checkpoint that one of this name left in another journal, keeping what there is.

        Returns:
            False if that is not possible, since the consumer's own state is in it: nothing has changed.

        Raises:
            WireError: if it cannot be decoded.
        """
        kept = Saved({}, {}) if saved is None else decode_saved(saved)
        if kept.state is not None:
            return False
        self._accounts = kept.accounts | self._accounts
        self.handled = kept.handled | self.handled
        self._of_topic.clear()
        return True

    def _account(self, topic: bytes) -> tuple[RunAccount, TopicCounts]:
        """Return the account of a topic's run, and the topic's counts in it: looked up once a topic."""
        run_id = parse_topic(topic).run_id
        account = self._accounts.get(run_id)
        if account is None:
            account = self._accounts[run_id] = RunAccount(run_id, journal_losses=self._journal_losses)
            self.on_run(run_id)
            self._journal_losses = []
        found = self._of_topic[topic] = (account, account.counts(topic))
        return found

    async def _handle(
        self, handler: Handler, event: Event | RawEvent, kind: str, counts: TopicCounts
    ) -> bool:
        """Call a handler, again if it fails; return whether it has taken the event at last."""
        failure: Exception
        try:
            await handler(event)
        except asyncio.CancelledError as error:
            failure = _cancelled(error)
        except Exception as error:
            failure = error
        else:
            if self._failing:
                self._failing.discard(kind)
            return True
        try:  # not inside 'except', or each further one would tell of those before
            return await self._try_again(handler, event, failure, counts)
        finally:
            del failure  # with its frames, of which this is one

    async def _try_again(
        self, handler: Handler, event: Event | RawEvent, error: Exception, counts: TopicCounts
    ) -> bool:
        """Call a handler again that failed once; if it goes on failing, make the event a dead letter."""
        tries = 1

        async def again() -> None:
            nonlocal tries
            tries += 1
            await _called(handler, event)

        if self._retries(event.kind, error):
            self._complaints.warn(
                "consumer %r failed on a %s event of run %s: %s; trying again",
                self._context.name,
                event.kind,
                event.run_id,
                in_words(error),
            )
            try:
                await self._insist(event.kind, again)
            except Exception as last:
                error = last
            else:
                self._failing.discard(event.kind)
                return True
        self._failing.add(event.kind)
        self._give_up(self._context.offset, event.run_id, event.kind, error, counts, attempts=tries)
        return False

    async def _insist(self, kind: str, again: Callable[[], Awaitable[None]]) -> None:
        """Call a handler until it succeeds, until there have been as many tries as it is given.

        Raises:
            Exception: what the last of them raised.
        """
        first_s, longest_s = self.first_wait_s, self._consumer.retry_wait_s
        if kind in self._failing:
            first_s, longest_s = min(first_s, _SHORT_WAIT_S), min(longest_s, 4 * _SHORT_WAIT_S)

        def is_enough(state: RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome is not None else None
            return self.hurry.is_set() or state.attempt_number >= self._retries(kind, error)

        retrying = AsyncRetrying(
            stop=is_enough,
            wait=wait_exponential(first_s * 4, exp_base=4, max=longest_s) + wait_random(0, first_s / 2),
            sleep=self._rest,
            reraise=True,
        )
        await self._rest(min(first_s, longest_s))
        await retrying(again)

    async def _rest(self, seconds: float) -> None:
        await wait_for_event(self.hurry, seconds)

    def _retries(self, kind: str, error: BaseException | None) -> int:
        """Return how often the handler for a kind of event is called again that raised this."""
        if self._attempts is not None:
            return self._attempts - 1
        if self._consumer.retry_times is not None:
            return self._consumer.retry_times
        is_first = kind not in self._failing
        return _RETRIES_AWAY if is_first and error is not None and is_away(error) else _RETRIES

    def _give_up(
        self, offset: int, run_id: str, kind: str, error: Exception, counts: TopicCounts, *, attempts: int
    ) -> None:
        """Make an event a dead letter; it has the traceback, so that the log need not."""
        self._complaints.log(
            logging.ERROR,
            "consumer %r failed%s on a %s event of run %s: %s; it is a dead letter now: "
            "phase-bus dead-letters list --consumer %s",
            self._context.name,
            f" {attempts} times" if attempts > 1 else "",
            kind,
            run_id,
            in_words(error),
            shlex.quote(self._context.name),
        )
        self.failed += 1
        counts.failed += 1
        if len(self.dead_letters) >= _WAITING_LETTERS:
            self._skipped += 1
            return
        told = as_text(as_traceback(error))
        self.dead_letters.append(
            DeadLetterNote(
                offset=offset,
                stream=self._context.lineage.position(offset).stream,
                run_id=run_id,
                kind=kind,
                error=as_text(repr(error))[:_ERROR_CHARACTERS],
                traceback=_shortened(told, _TRACEBACK_CHARACTERS),
                attempts=attempts,
                skipped=self._skipped,
            )
        )
        self._skipped = 0

    def _skip_unknown(self, kind: str) -> None:
        if kind not in self._unknown:
            self._unknown.add(kind)
            logger.warning(
                "consumer %r: events of kind %r are newer than this phase-bus; skipped",
                self._context.name,
                kind,
            )


def _shortened(text: str, most: int) -> str:
    """Return a text's beginning and, mostly, its end, where a traceback says what went wrong."""
    if len(text) <= most:
        return text
    begin, end = most // 4, most - most // 4
    return f"{text[:begin]}\n... {len(text) - most:,} characters left out ...\n{text[-end:]}"


def _by_run(losses: Iterable[Loss]) -> tuple[Loss, ...]:
    """Return one loss for each run and reason: the shares of a group have each lost their part."""
    found: dict[tuple[str, str], Loss] = {}
    for loss in losses:
        same = found.get((loss.run_id, loss.reason))
        if same is not None:
            loss = msgspec.structs.replace(
                same, events=same.events + loss.events, records=same.records + loss.records
            )
        found[loss.run_id, loss.reason] = loss
    return tuple(found.values())


def _goes_on(event: Event | RawEvent) -> bool:
    """Return whether one of several publishers has ended a run, which goes on."""
    return isinstance(event, RunComplete) and bool(event.running)


def _end_of(event: Event | RawEvent) -> RunComplete | None:
    """Return the end of a run, if an event is one."""
    if isinstance(event, RawEvent):
        return event.end
    return event if isinstance(event, RunComplete) else None


async def _called(function: Callable[..., Awaitable[None]], *arguments: object) -> None:
    """Call a consumer's method; one that was cancelled, though this process is not to end, has failed.

    Raises:
        Exception: whatever it raises.
    """
    try:
        await function(*arguments)
    except asyncio.CancelledError as error:
        raise _cancelled(error) from error


def _cancelled(error: asyncio.CancelledError) -> RuntimeError:
    """Return that a method has failed which was cancelled.

    Raises:
        CancelledError: if this process is to end.
    """
    if is_to_end():
        raise error
    failure = RuntimeError("it was cancelled")
    failure.__cause__ = error
    return failure
