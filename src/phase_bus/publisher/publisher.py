"""The benchmark's side: publish events and request records without ever waiting for anybody."""

from __future__ import annotations

import atexit
import logging
import math
import os
import shlex
import sys
import threading
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import zmq

from phase_bus.core import threads
from phase_bus.core.address import Address, default_address
from phase_bus.core.keys import Key, check_guarded, key_for
from phase_bus.core.outbox import Outbox
from phase_bus.core.threads import Waker
from phase_bus.core.values import ListMode, as_text
from phase_bus.events import EventBase, PhaseRef, Records, RunStatus
from phase_bus.publisher.columns import Columns, cut
from phase_bus.publisher.composer import BatchOptions, Completion, Composer, RawRecord
from phase_bus.publisher.drops import Drops
from phase_bus.publisher.link import BusLink, DirectLink
from phase_bus.publisher.spool import prepare_directory, write_spool

logger = logging.getLogger("phase_bus.publisher")

LABEL_VARIABLE = "PHASE_BUS_LABEL"  # what to call the runs that are published from a process

_RAW_RECORD_BYTES = 4096  # the assumed size of a record not yet encoded; AIPerf's has some 3.5 kB
_IDLE_WAIT_S = 1.0
_REPLIES_S = 0.1  # how long replies of the bus may go unread while nothing waits for them
_CLOSING_WAIT_S = 0.02
_ABANDONED_S = 10.0  # for what is pending when a publisher is forgotten without being closed
_ENDING_S, _SPOOLING_S = 1.0, 10.0  # how long the thread may take to end after its deadline
_POLLIN, _POLLOUT = int(zmq.POLLIN), int(zmq.POLLOUT)
_AWAKE, _UNTIL_BATCH_IS_DUE, _IDLE = range(3)  # what the thread does, for those who may wake it


_GUARD_DIRECT = (
    "direct mode has none: use a bus, an address of this machine alone, or allow it with insecure=True "
    "(--insecure)"
)
_senders: weakref.WeakSet[Sender] = weakref.WeakSet()


class _Flush:
    def __init__(self) -> None:
        self.done = threads.make_event()
        self.acknowledged = False


_Inbox: TypeAlias = deque[RawRecord | Columns | EventBase | Completion | _Flush]


class Sender:
    """What a publisher has: queue, thread, connection. It lives until all is delivered, or time is up.

    Its :class:`Publisher` is what a program holds. The thread knows nothing of that, so that a publisher
    that nobody refers to any more is noticed, and ends.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        buffer_bytes: int,
        options: BatchOptions,
        linger_s: float,
        spool_dir: str | Path | None,
        key: Key | None,
        *,
        direct: bool,
    ) -> None:
        self.name = as_text(name)
        self.source = uuid.uuid4().bytes
        self._options = options
        self._batch_records = options.batch_records
        self._inbox: _Inbox = deque()
        self._columns_bytes = 0  # of what is in the inbox
        self._columns_lock = threads.make_lock()
        self._inbox_limit = max(buffer_bytes // _RAW_RECORD_BYTES, 2 * options.batch_records)
        self._outbox = Outbox(self.source, buffer_bytes)
        refusal = f"more than {self._inbox_limit} records waited to be encoded"
        self._drops = Drops(self.name, refusal, self._warn_once)
        label = as_text(os.environ.get(LABEL_VARIABLE, ""))
        self._composer = Composer(self._outbox, self._drops, options, label)
        self._flushes: list[tuple[int, _Flush]] = []
        self._warned: set[str] = set()
        self._deadline_s: float | None = None
        self._abandoned = False
        self._sleep = _AWAKE
        self._talk_s = 0.0  # when to talk with the bus again, unless its replies are heeded before
        self._heeds_replies = True
        self._broken = False
        self._spool_dir: Path | None = None
        self.spooled: Path | None = None
        self.undelivered: dict[str, int] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        linger_ms = int(linger_s * 1000)
        self._link: BusLink | DirectLink
        try:
            if direct:
                link = DirectLink(self._context, address, self._outbox, linger_ms)
                self.address = str(link.address)
                self._link = link
            else:
                self.address = str(address)
                self._link = BusLink(self._context, address, self._outbox, self.name, linger_ms, key)
                if spool_dir:
                    expanded = os.path.expanduser(spool_dir)  # noqa: PTH111 - never raises
                    self._spool_dir = Path(expanded).absolute()
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._waker = Waker()
        self._thread_id = 0
        self._thread = threads.start_thread(self._main, "phase-bus-publisher")
        atexit.register(self.close, 0.5)
        self._unregister = _at_end_of_child(self.close)
        _senders.add(self)

    @property
    def connected(self) -> bool:
        """Whether the bus answers (always true in direct mode)."""
        return not self._broken and self._link.connected

    @property
    def rejected(self) -> int:
        """How many events the bus has refused."""
        return self._link.rejected if isinstance(self._link, BusLink) else 0

    @property
    def pending(self) -> int:
        """How many events and records wait to be sent or acknowledged."""
        return len(self._inbox) + len(self._outbox) + self._composer.open_records

    def close(self, timeout_s: float = 2.0) -> None:
        """Deliver what is pending, for at most ``timeout_s`` seconds, and end the thread."""
        if self._deadline_s is None or self._abandoned:
            self._abandoned = False
            self._deadline_s = time.monotonic() + timeout_s
            self._wake()
        if threading.get_native_id() != self._thread_id:
            self._thread.join(timeout_s + (_SPOOLING_S if self._spool_dir else _ENDING_S))
        # Only now: a program that exits meanwhile waits for the thread once more, and for its file.
        if not self._thread.is_alive():
            atexit.unregister(self.close)
            self._unregister()

    def abandon(self) -> None:
        """Deliver what is pending, and end, while nobody waits: its publisher is forgotten."""
        if self._deadline_s is None:
            self._abandoned = True
            self._deadline_s = time.monotonic() + _ABANDONED_S
            self._wake()

    def enqueue_columns(self, batches: Sequence[Columns]) -> None:
        """Take in batches as far as there is room for them; the first ones, so that no order is lost."""
        taken: list[Columns] = []
        with self._columns_lock:
            for batch in batches:
                waiting_bytes = self._columns_bytes + self._outbox.size_bytes
                if waiting_bytes + batch.size_bytes > self._outbox.limit_bytes:
                    break
                self._columns_bytes += batch.size_bytes
                taken.append(batch)
            self._inbox.extend(taken)
        for batch in batches[len(taken) :]:
            self._drops.refuse(batch.run_id, batch.phase, batch.count, self._outbox.full)
        # As for single records: few are in time when their batch is due.
        due = not self._options.is_few(sum(batch.count for batch in batches))
        if self._sleep == _IDLE or (self._sleep and (due or len(self._inbox) >= self._batch_records)):
            self._wake()

    def enqueue_flush(self) -> _Flush:
        """Ask to be told when all that is published so far is acknowledged."""
        flush = _Flush()
        self._inbox.append(flush)
        self._wake()
        return flush

    # ---- from here on: the publisher's own thread ----

    def _main(self) -> None:
        self._thread_id = threading.get_native_id()
        try:
            if self._spool_dir is not None:
                self._check_early(self._spool_dir)
            self._loop()
        except Exception:
            logger.exception("phase-bus: the publisher failed; nothing more will be published")
        finally:
            self._broken = True
            self._end()
            atexit.unregister(self.close)

    def _check_early(self, spool_dir: Path) -> None:
        """Warn early that the directory cannot be written to; in this thread, as a disk may be slow."""
        try:
            prepare_directory(spool_dir)
        except Exception as error:
            self._warn_once("spool", f"what the bus does not take cannot be kept on disk: {error}")

    def _loop(self) -> None:
        # An event that comes alone finds all of this in no cache: each call that it is spared counts.
        while not self._finished():
            now_s = time.monotonic()
            self._take_inbox(self._inbox, until_columns=True)
            self._composer.close_due(now_s)
            if self._deadline_s is not None:
                self._composer.close_batches()
            if self._heeds_replies or now_s >= self._talk_s:
                self._talk(now_s)
            want_write = self._link.send()
            if self._flushes:
                self._settle_flushes()
            self._rest(now_s, want_write)

    def _talk(self, now_s: float) -> None:
        """Do what not every event needs: read replies, say what is due, report drops."""
        self._composer.report_drops(now_s, at_once=self._deadline_s is not None)
        if isinstance(self._link, BusLink):
            self._link.events_dropped = self._drops.total
        self._link.receive()
        self._talk_s = now_s + min(self._link.tick(now_s), _IDLE_WAIT_S)

    def _rest(self, now_s: float, want_write: bool) -> None:
        """Wait until there is something to do."""
        closing = self._deadline_s is not None
        self._heeds_replies = bool(
            closing or self._flushes or self._outbox.unsent or not self._link.connected
        )
        if self._outbox.in_flight_bytes and not self._heeds_replies:
            self._talk_s = min(self._talk_s, now_s + _REPLIES_S)
        until_s, due_s = self._talk_s, self._composer.due_s
        if closing:
            until_s = min(until_s, now_s + _CLOSING_WAIT_S)
        self._sleep = _IDLE
        if due_s is not None:
            self._sleep = _UNTIL_BATCH_IS_DUE
            until_s = min(until_s, due_s)
        # What is in the inbox came before the flag was up, so nobody will wake us.
        wait_ms = 0 if self._inbox else math.ceil(max(until_s - now_s, 0.0) * 1000)
        if self._heeds_replies:
            # Only now is a reply worth a wake-up, which costs as much as ten events.
            events = _POLLIN | _POLLOUT if want_write else _POLLIN
            both: list[tuple[Any, int]] = [(self._waker.fd, _POLLIN), (self._link.socket, events)]
            if zmq.zmq_poll(both, wait_ms):
                self._waker.drain()
        else:
            self._waker.wait(wait_ms)
        self._sleep = _AWAKE

    def _finished(self) -> bool:
        if self._deadline_s is None:
            return False
        pending = self._inbox or self._composer.open_records or self._drops or len(self._outbox)
        return not pending or time.monotonic() >= self._deadline_s

    def _take_inbox(self, inbox: _Inbox, *, until_columns: bool = False) -> None:
        """Take what waits; with ``until_columns`` a batch of columns at most, so that it can go out."""
        add_record, add = self._composer.add_record, self._composer.add
        while inbox:
            item = inbox.popleft()
            try:
                if type(item) is tuple:
                    add_record(item)
                elif isinstance(item, EventBase):
                    add(item)
                else:
                    self._take(item)
            except Exception as error:
                # One bad event must neither reach the benchmark nor end the thread.
                self._warn_once(
                    f"{type(item).__name__} {type(error).__name__}",
                    f"an event could not be encoded and was dropped: {error!r}",
                )
                self._composer.drop_unusable(item)
            if until_columns and type(item) is Columns:
                return

    def _take(self, item: object) -> None:
        if isinstance(item, Columns):
            with self._columns_lock:
                self._columns_bytes -= item.size_bytes
            self._composer.add_columns(item)
        elif isinstance(item, Completion):
            self._composer.complete(item)
        elif isinstance(item, _Flush):
            self._composer.close_batches()
            self._flushes.append((self._outbox.last_seq, item))
        else:
            raise TypeError("it is no event")

    def _settle_flushes(self) -> None:
        next_seq = self._outbox.next_seq
        for pair in [pair for pair in self._flushes if pair[0] < next_seq]:
            self._flushes.remove(pair)
            pair[1].acknowledged = True
            pair[1].done.set()

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("phase-bus publisher %r: %s", self.name, text)

    # ---- the end ----

    def _end(self) -> None:
        waiting, self._inbox = self._inbox, deque(maxlen=0)  # from now on everything is discarded
        if self._spool_dir is not None:
            self._spool(self._spool_dir, waiting)
        self.undelivered = dict(self._outbox.remaining())
        not_encoded = sum(map(_records_or_one, waiting)) + self._composer.open_records
        if self.spooled is None and (self.undelivered or not_encoded):
            logger.warning(
                "phase-bus publisher %r: closed before %s had acknowledged everything; "
                "%d events not delivered%s, %d not yet encoded",
                self.name,
                self.address,
                sum(self.undelivered.values()),
                _by_kind(self.undelivered),
                not_encoded,
            )
        for flush in (*(flush for _, flush in self._flushes), *waiting):
            if isinstance(flush, _Flush):
                flush.done.set()
        self._link.close(not_encoded)
        self._context.destroy()
        self._waker.close()

    def _spool(self, directory: Path, waiting: _Inbox) -> None:
        try:
            self._take_inbox(waiting)
            self._composer.close_batches()
            self._composer.report_drops(time.monotonic(), at_once=True)
            if len(self._outbox):
                self.spooled, head = write_spool(directory, self.name, self._outbox)
                logger.warning(
                    "phase-bus publisher %r: closed before %s had acknowledged everything; %d events, with "
                    "%d request records in them, are in %s; deliver them with: phase-bus replay %s "
                    "--address %s",
                    self.name,
                    self.address,
                    head.events,
                    head.records,
                    self.spooled,
                    shlex.quote(str(self.spooled)),
                    shlex.quote(self.address),
                )
        except Exception as error:
            logger.error("phase-bus publisher %r: nothing could be left on disk: %s", self.name, error)

    # ---- from any thread ----

    def _forget(self) -> None:
        """After a fork, in the child: the thread stayed behind, and the sockets are the parent's."""
        self._waker.forget()
        self._drops.renew_lock()
        self._columns_lock = threads.make_lock()
        self._sleep = _AWAKE
        self._inbox = deque(maxlen=0)
        self._broken = True
        atexit.unregister(self.close)

    def _wake(self) -> None:
        self._sleep = _AWAKE  # so that others need not wake it until it sleeps again
        self._waker.wake()


class Publisher:
    """Sends events to a bus (or, with ``bind``, straight to consumers) from a thread of its own.

    :meth:`publish`, :meth:`record` and :meth:`complete_run` only append to a queue: they never block
    and never raise, whatever happens to the bus. The thread encodes, batches, sends, and keeps what the
    bus has not acknowledged, up to ``buffer_bytes``; beyond that records are dropped, counted, and
    reported in a ``drop`` event, while phase events are always kept.

    Args:
        address: where the bus is; by default ``$PHASE_BUS_ADDRESS``, else the user's own bus.
        bind: direct mode: publish from this address, without a bus. Best effort.
        name: what the bus shows this publisher as.
        buffer_bytes: how much may wait for the bus.
        lists: how metrics that are lists are sent (see :class:`~.RecordBuilder`).
        field_names: which of the records' fields to send; None for all.
        batch_records: a batch of records is closed at this size ...
        batch_s: ... or at this age, in seconds.
        linger_s: how long ZeroMQ may go on sending once closed, in seconds.
        spool_dir: a directory for a file of what the bus has not acknowledged by the end, which
            ``phase-bus replay`` delivers (:mod:`~phase_bus.publisher.spool`). Not in direct mode, where
            nobody acknowledges anything. A full buffer still drops records: the file is written at the
            end, and is no larger than the buffer.
        key_file: the file with the key for a bus at a ``tcp://`` address; by default that of
            ``$PHASE_BUS_KEY_FILE``, else the user's own, if there is one (``phase-bus keys``).
        insecure: in direct mode, bind an address that other machines can connect to: there are no keys.

    One that nobody refers to any more delivers what is pending, and ends, without being closed.

    Attributes:
        source: 16 bytes that name it in the headers of its events.

    Raises:
        AddressError: if the address is malformed, cannot be bound, or would let strangers in.
        KeyFileError: if there is a key file, and it is not fit for use.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        bind: str | None = None,
        name: str = "publisher",
        buffer_bytes: int = 64 << 20,
        lists: ListMode = "summary",
        field_names: Sequence[str] | None = None,
        batch_records: int = 256,
        batch_s: float = 0.1,
        linger_s: float = 0.2,
        spool_dir: str | Path | None = None,
        key_file: str | Path | None = None,
        insecure: bool = False,
    ) -> None:
        at = Address.parse(bind or address or default_address())
        direct = bind is not None or at.direct
        options = BatchOptions(lists, batch_records, batch_s, field_names)
        if direct:
            check_guarded(at, None, insecure=insecure, remedy=_GUARD_DIRECT)
        key = None if direct else key_for(at, key_file)
        self._sender = sender = Sender(
            at, name, buffer_bytes, options, linger_s, spool_dir, key, direct=direct
        )
        self.name, self.source, self.address = sender.name, sender.source, sender.address
        # Not at exit, where the sender itself waits until all is delivered.
        weakref.finalize(self, sender.abandon).atexit = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the bus answers (always true in direct mode)."""
        return self._sender.connected

    @property
    def undelivered(self) -> dict[str, int]:
        """After :meth:`close`, how many events of each topic the bus never acknowledged."""
        return self._sender.undelivered

    @property
    def rejected(self) -> int:
        """How many events the bus has refused, as far as its answers are read; they are lost."""
        return self._sender.rejected

    @property
    def spooled(self) -> Path | None:
        """After :meth:`close`, the file that holds them, if there is one."""
        return self._sender.spooled

    @property
    def pending(self) -> int:
        """How many events and records wait to be sent or acknowledged.

        While nobody waits in :meth:`flush` or :meth:`close`, acknowledgements are read every 0.1 s.
        """
        return self._sender.pending

    def publish(self, event: EventBase) -> None:
        """Publish an event. Never blocks, never raises; the order of calls is kept."""
        sender = self._sender
        if type(event) is Records and len(sender._inbox) * sender._batch_records >= sender._inbox_limit:
            sender._drops.refuse(event.run_id, event.phase, event.count)
            return
        sender._inbox.append(event)
        if sender._sleep:
            sender._wake()

    def record(
        self,
        run_id: str,
        phase: PhaseRef,
        metrics: Mapping[str, Any],
        fields: Mapping[str, Any],
        error: tuple[str, str, int | None] | None = None,
    ) -> None:
        """Publish a request's record, in a batch with others. Never blocks, never raises.

        Args:
            run_id: the run it belongs to.
            phase: the phase it belongs to.
            metrics: its metrics by name: numbers, or lists of numbers. Do not change them afterwards.
            fields: its other properties by name: times in ns, ids, flags. Do not change them either.
            error: if it failed, the error's type, message, and code or None.
        """
        sender = self._sender
        waiting = len(sender._inbox)
        if waiting >= sender._inbox_limit:
            sender._drops.refuse(run_id, phase, 1)
            return
        sender._inbox.append((run_id, phase, metrics, fields, error))
        if sender._sleep == _IDLE or (sender._sleep and waiting >= sender._batch_records):
            sender._wake()

    def records(
        self,
        run_id: str,
        phase: PhaseRef,
        columns: Mapping[str, Any],
        fields: Mapping[str, Any] | None = None,
        errors: Mapping[int, tuple[str, str, int | None]] | None = None,
    ) -> None:
        """Publish many requests' records, given by columns. Never blocks, never raises.

        The same is published as by a :meth:`record` for each, many times faster: where all values of a
        column are numbers, or all are texts, nothing is done for each of them in Python. Columns are
        copied, so the caller may change them afterwards; an array or list that is itself a value is not.

        The batches are as large as what is handed over at once, up to 8,192 records and 1 MiB, whatever
        ``batch_records`` says. Some hundred records at once are enough; fewer than a quarter of
        ``batch_records`` are batched with others, and each costs what it costs in :meth:`record`.

        What ``buffer_bytes`` has no room for, the last ones, and all if the arguments cannot be used, as
        columns of different lengths cannot, is counted and reported in a ``drop`` event.

        Args:
            run_id: the run they belong to.
            phase: the phase they belong to.
            columns: the metrics by name, each an array or a sequence with one value a record, all of the
                same length: numbers, or lists of numbers. A record has no such metric where there is None,
                or nothing in a masked array. NaN is a value.
            fields: other properties by name, likewise: times in ns, ids, flags.
            errors: by their place in the columns, from 0, the requests that failed: the error's type,
                message, and code or None.
        """
        batches = cut(run_id, phase, columns, fields, errors)
        if batches:
            self._sender.enqueue_columns(batches)

    def complete_run(self, run_id: str, status: RunStatus, reason: str = "") -> None:
        """Publish the run's last event, with the counts of everything published of it."""
        self._sender._inbox.append(Completion(run_id, status, reason))
        self._sender._wake()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything published so far is acknowledged; return False if that took too long.

        In direct mode, wait until it is handed to ZeroMQ.
        """
        if self._sender._broken:
            return False
        flush = self._sender.enqueue_flush()
        flush.done.wait(timeout_s)
        return flush.acknowledged

    def close(self, timeout_s: float = 2.0) -> None:
        """Deliver what is pending, for at most ``timeout_s`` seconds, and end the thread.

        What the bus has not acknowledged by then is logged and counted in :attr:`undelivered`. If there
        is a ``spool_dir``, it is written to a file, which begins when the time is over.
        """
        self._sender.close(timeout_s)


def _records_or_one(item: object) -> int:
    """Return for how many records or events something in the inbox stands."""
    return item.count if isinstance(item, Columns) else not isinstance(item, _Flush)


def _at_end_of_child(close: Callable[[], None]) -> Callable[[], object]:
    """Call something at the end of this process if it is one of multiprocessing's; return what undoes that.

    Such a process may end without a call of what is registered with atexit.
    """
    util = sys.modules.get("multiprocessing.util")  # it has this if it is one
    if util is None:
        return lambda: None
    return util.Finalize(None, close, exitpriority=10).cancel  # type: ignore[no-any-return]


def _after_fork_in_child() -> None:
    for sender in list(_senders):
        sender._forget()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _by_kind(undelivered: Mapping[str, int]) -> str:
    """Return how many events of each kind there are, by topics, in brackets; nothing if there are none."""
    kinds: Counter[str] = Counter()
    for topic, count in undelivered.items():
        kinds[topic.partition(".")[0]] += count
    told = ", ".join(f"{kind}: {count}" for kind, count in kinds.items())
    return f" ({told})" if told else ""
