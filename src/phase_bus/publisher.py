"""The benchmark's side: publish events and request records without ever waiting for anybody."""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Self

import zmq

from phase_bus.address import Address, default_address
from phase_bus.columns import ListMode, RecordBuilder, as_text
from phase_bus.events import Drop, EventBase, PhaseProgress, PhaseRef, Records, RunComplete, RunStatus
from phase_bus.link import BusLink, DirectLink, Link
from phase_bus.outbox import Outbox
from phase_bus.wire import topic_of

logger = logging.getLogger("phase_bus.publisher")

PARTITIONS = 16
_RAW_RECORD_BYTES = 4096  # what a record not yet encoded is taken to occupy; AIPerf's has some 3.5 kB
_DROP_EVERY_S = 1.0
_IDLE_WAIT_S = 1.0
_CLOSING_WAIT_S = 0.02
_AWAKE, _UNTIL_BATCH_IS_DUE, _IDLE = range(3)  # what the thread does, for those who may wake it


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


class _Record(NamedTuple):
    run_id: str
    phase: PhaseRef
    metrics: Mapping[str, Any]
    fields: Mapping[str, Any]
    error: tuple[str, str, int | None] | None


class _Complete(NamedTuple):
    run_id: str
    status: RunStatus
    reason: str


class _Flush:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.acknowledged = False


class _Run:
    """What was published of one run so far."""

    def __init__(self) -> None:
        self.published: Counter[str] = Counter()
        self.records = 0
        self.dropped: Counter[str] = Counter()
        self.batches = 0


class Publisher:
    """Sends events to a bus (or, with ``bind``, straight to consumers) from a thread of its own.

    :meth:`publish`, :meth:`record` and :meth:`complete_run` only append to a queue: they never block
    and never raise, whatever happens to the bus. The thread encodes, batches, sends, and keeps what the
    bus has not acknowledged, up to ``buffer_bytes``; beyond that records are dropped, counted, and told
    in a ``drop`` event, while phase events are always kept.

    Args:
        address: where the bus is; by default ``$PHASE_BUS_ADDRESS``, else the user's own bus.
        bind: direct mode: publish from this address, without a bus. Best effort.
        name: what the bus shows this publisher as.
        buffer_bytes: how much may wait for the bus.
        lists: what becomes of metrics that are lists (:class:`~phase_bus.columns.RecordBuilder`).
        batch_records: a batch of records is closed at this size ...
        batch_s: ... or at this age, in seconds.
        linger_s: how long ZeroMQ may go on sending once closed, in seconds.

    Raises:
        AddressError: the address is malformed, or cannot be bound.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        bind: str | None = None,
        name: str = "publisher",
        buffer_bytes: int = 64 << 20,
        lists: ListMode = "summary",
        batch_records: int = 256,
        batch_s: float = 0.05,
        linger_s: float = 0.2,
    ) -> None:
        self.name = as_text(name)
        self.source = uuid.uuid4().bytes
        self._lists = lists
        self._batch_records = batch_records
        self._batch_s = batch_s
        self._inbox: deque[EventBase | _Record | _Complete | _Flush] = deque()
        self._inbox_limit = max(buffer_bytes // _RAW_RECORD_BYTES, 2 * batch_records)
        self._refused: Counter[tuple[str, PhaseRef]] = Counter()  # records the inbox had no room for
        # Reentrant, since a signal handler may publish while the thread it interrupts does.
        self._refused_lock = threading.RLock()
        self._outbox = Outbox(self.source, buffer_bytes)
        self._builders: dict[tuple[str, PhaseRef], RecordBuilder] = {}
        self._runs: dict[str, _Run] = {}
        self._drops: dict[str, Drop] = {}
        self._next_drop_s = 0.0
        self._flushes: list[tuple[int, _Flush]] = []
        self._warned: set[str] = set()
        self._deadline_s: float | None = None
        self._sleep = _AWAKE
        self._batch_due_s: float | None = None
        self._broken = False
        self._undelivered: Counter[str] = Counter()
        parsed = Address.parse(bind or address or default_address())
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        linger_ms = int(linger_s * 1000)
        self._link: Link
        try:
            if bind is not None or parsed.direct:
                link = DirectLink(self._context, parsed, self._outbox, linger_ms)
                self.address = str(link.address)
                self._link = link
            else:
                self.address = str(parsed)
                self._link = BusLink(self._context, parsed, self._outbox, self.name, linger_ms)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._wake_lock = threading.RLock()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        os.set_blocking(self._wake_read, False)
        self._thread = threading.Thread(target=self._main, name="phase-bus-publisher", daemon=True)
        self._thread.start()
        atexit.register(self.close, 0.5)
        _publishers.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether the bus answers (always true in direct mode)."""
        return not self._broken and self._link.connected

    @property
    def pending(self) -> int:
        """How many events and records wait to be sent or acknowledged."""
        return len(self._inbox) + len(self._outbox) + self._unbuilt()

    @property
    def undelivered(self) -> dict[str, int]:
        """After :meth:`close`: how many events of each topic the bus never acknowledged."""
        return dict(self._undelivered)

    def publish(self, event: EventBase) -> None:
        """Publish an event. Never blocks, never raises; the order of calls is kept."""
        if type(event) is Records and len(self._inbox) * self._batch_records >= self._inbox_limit:
            self._refuse(event.run_id, event.phase, event.count)
            return
        self._inbox.append(event)
        if self._sleep:
            self._wake()

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
            metrics: its metrics by name: numbers, or lists of numbers. Not to be changed afterwards.
            fields: what else is known of it by name: times in ns, ids, flags. Likewise.
            error: if it failed, the error's type, message, and code or None.
        """
        waiting = len(self._inbox)
        if waiting >= self._inbox_limit:
            self._refuse(run_id, phase, 1)
            return
        self._inbox.append(_Record(run_id, phase, metrics, fields, error))
        if self._sleep == _IDLE or (self._sleep and waiting >= self._batch_records):
            self._wake()

    def complete_run(self, run_id: str, status: RunStatus, reason: str = "") -> None:
        """Publish the run's last event, with the count of all that was published of it."""
        self._inbox.append(_Complete(run_id, status, reason))
        self._wake()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all published so far is acknowledged; return whether it is in time.

        In direct mode, until it was handed to ZeroMQ.
        """
        if self._broken:
            return False
        flush = _Flush()
        self._inbox.append(flush)
        self._wake()
        flush.done.wait(timeout_s)
        return flush.acknowledged

    def close(self, timeout_s: float = 2.0) -> None:
        """Deliver what is pending, for at most ``timeout_s`` seconds, and end the thread.

        What the bus did not acknowledge by then is logged and stands in :attr:`undelivered`.
        """
        atexit.unregister(self.close)
        if self._deadline_s is None:
            self._deadline_s = time.monotonic() + timeout_s
            self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout_s + 1.0)

    # ---- from here on: the publisher's own thread ----

    def _main(self) -> None:
        try:
            self._loop()
        except Exception:
            logger.exception("phase-bus: the publisher failed; nothing more will be published")
        finally:
            self._broken = True
            self._end()

    def _loop(self) -> None:
        poller = zmq.Poller()
        poller.register(self._wake_read, zmq.POLLIN)
        link_socket = self._link.socket
        while not self._finished():
            now_s = time.monotonic()
            closing = self._deadline_s is not None
            self._take_inbox()
            self._close_due_batches(now_s, closing)
            self._tell_drops(now_s, at_once=closing)
            wait_s = min(self._link.tick(now_s), _CLOSING_WAIT_S if closing else _IDLE_WAIT_S)
            want_write = self._link.send()
            self._settle_flushes()
            if link_socket is not self._link.socket:
                poller.unregister(link_socket)
                link_socket = self._link.socket
            poller.register(link_socket, zmq.POLLIN | (zmq.POLLOUT if want_write else 0))
            self._sleep = _IDLE
            if self._batch_due_s is not None:
                self._sleep = _UNTIL_BATCH_IS_DUE
                wait_s = min(wait_s, self._batch_due_s - now_s)
            if self._inbox:  # it came before the flag was up, so nobody will wake us
                wait_s = 0.0
            poller.poll(math.ceil(max(wait_s, 0.0) * 1000))
            self._sleep = _AWAKE
            self._drain_pipe()
            self._link.receive()

    def _finished(self) -> bool:
        if self._deadline_s is None:
            return False
        pending = self._inbox or self._builders or self._refused or self._drops or len(self._outbox)
        return not pending or time.monotonic() >= self._deadline_s

    def _take_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            try:
                self._take(item)
            except Exception as error:
                # One bad event must neither reach the benchmark nor end the thread.
                self._warn_once(
                    f"{type(item).__name__} {type(error).__name__}",
                    f"an event could not be encoded and was dropped: {error!r}",
                )
                self._drop_unusable(item)

    def _take(self, item: EventBase | _Record | _Complete | _Flush) -> None:
        match item:
            case _Record(run_id, phase, metrics, fields, error):
                builder = self._builders.get((run_id, phase))
                if builder is None:
                    builder = self._builders[run_id, phase] = RecordBuilder(self._lists)
                builder.add(metrics, fields, error)
                if len(builder) >= self._batch_records:
                    self._close_batch(run_id, phase)
            case _Complete():
                self._close_batches()
                self._tell_refused()
                self._tell_drops(time.monotonic(), at_once=True)
                self._put(self._run_complete(item))
                self._runs.pop(item.run_id, None)
            case _Flush():
                self._close_batches()
                self._flushes.append((self._outbox.last_seq, item))
            case _:
                if not isinstance(item, PhaseProgress):
                    self._close_batches()  # what came before an event goes before it
                self._put(item)

    def _close_due_batches(self, now_s: float, closing: bool) -> None:
        if self._batch_due_s is None:
            if self._builders:
                self._batch_due_s = now_s + self._batch_s
        elif now_s >= self._batch_due_s:
            # It goes on ticking while records come, so that they need not wake this thread.
            self._batch_due_s = now_s + self._batch_s if self._builders else None
            self._close_batches()
        if closing:
            self._close_batches()
        self._tell_refused()

    def _close_batches(self) -> None:
        for run_id, phase in list(self._builders):
            self._close_batch(run_id, phase)

    def _close_batch(self, run_id: str, phase: PhaseRef) -> None:
        builder = self._builders.pop((run_id, phase))
        try:
            self._put_batch(run_id, phase, builder)
        except Exception as error:
            # Nothing is known to lead here, but it would be a poor reason to end the benchmark's story.
            self._warn_once("batch", f"a batch of records could not be encoded: {error!r}")
            self._drop_batch(run_id, phase, len(builder), "it could not be encoded")

    def _put_batch(self, run_id: str, phase: PhaseRef, builder: RecordBuilder) -> None:
        run = self._run(run_id)
        columns, fields, errors, unusable = builder.build()
        if unusable:
            names = ", ".join(sorted(unusable))
            self._warn_once(f"unusable {names}", f"values that are no numbers were left out: {names}")
        partition = run.batches % PARTITIONS
        batch = Records(
            run_id=run_id,
            phase=phase,
            partition=partition,
            count=len(builder),
            columns=columns,
            fields=fields,
            errors=errors,
        )
        if self._put(batch):
            run.batches += 1

    def _put(self, event: EventBase) -> bool:
        if not self._outbox.put(event):
            self._drop(event, f"the buffer of {self._outbox.limit_bytes} bytes is full")
            return False
        run = self._run(event.run_id)
        run.published[topic_of(event).decode()] += 1
        if isinstance(event, Records):
            run.records += event.count
        return True

    def _run(self, run_id: str) -> _Run:
        return self._runs.setdefault(run_id, _Run())

    def _run_complete(self, end: _Complete) -> RunComplete:
        run = self._run(end.run_id)
        return RunComplete(
            run_id=end.run_id,
            status=end.status,
            reason=as_text(end.reason),
            published=dict(run.published),
            records=run.records,
            dropped=dict(run.dropped),
        )

    def _drop(self, event: EventBase, reason: str) -> None:
        records = event.count if isinstance(event, Records) else 0
        try:
            self._count_drop(event.run_id, topic_of(event).decode(), records, reason)
        except Exception as error:  # of no kind, or of a run whose name is none
            self._warn_once("topic", f"an event has no topic, and its loss is not counted: {error!r}")

    def _drop_batch(self, run_id: str, phase: PhaseRef, count: int, reason: str) -> None:
        self._drop(Records(run_id=run_id, phase=phase, count=count), reason)

    def _drop_unusable(self, item: object) -> None:
        reason = "it could not be encoded"
        if isinstance(item, EventBase):
            self._drop(item, reason)
        elif isinstance(item, _Record):
            self._drop_batch(item.run_id, item.phase, 1, reason)

    def _tell_refused(self) -> None:
        """Account for records that had to be refused because this thread was behind."""
        if not self._refused:
            return
        with self._refused_lock:
            refused, self._refused = self._refused, Counter()
        for (run_id, phase), count in refused.items():
            reason = f"more than {self._inbox_limit} records waited to be encoded"
            self._drop_batch(run_id, phase, count, reason)

    def _count_drop(self, run_id: str, topic: str, records: int, reason: str) -> None:
        self._run(run_id).dropped[topic] += 1
        so_far = self._drops.get(run_id)
        events = Counter(so_far.events if so_far else {})
        events[topic] += 1
        self._drops[run_id] = Drop(
            run_id=run_id,
            source=self.name,
            reason=reason,
            events=dict(events),
            records=records + (so_far.records if so_far else 0),
        )
        if isinstance(self._link, BusLink):
            self._link.events_dropped += 1
        self._warn_once(reason, f"events are being dropped: {reason}")

    def _tell_drops(self, now_s: float, *, at_once: bool) -> None:
        if not self._drops or (now_s < self._next_drop_s and not at_once):
            return
        self._next_drop_s = now_s + _DROP_EVERY_S
        for run_id in list(self._drops):
            self._put(self._drops.pop(run_id))

    def _settle_flushes(self) -> None:
        if self._flushes:
            next_seq = self._outbox.next_seq
            for pair in [pair for pair in self._flushes if pair[0] < next_seq]:
                self._flushes.remove(pair)
                pair[1].acknowledged = True
                pair[1].done.set()

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("phase-bus publisher %r: %s", self.name, text)

    def _end(self) -> None:
        self._undelivered = self._outbox.remaining()
        waiting, self._inbox = self._inbox, deque(maxlen=0)  # from now on everything falls through
        lost = sum(not isinstance(item, _Flush) for item in waiting) + self._unbuilt()
        if self._undelivered or lost:
            logger.warning(
                "phase-bus publisher %r: closed before %s had acknowledged everything; "
                "not delivered: %s, and %d not yet encoded",
                self.name,
                self.address,
                dict(self._undelivered) or "no events",
                lost,
            )
        for flush in (*(flush for _, flush in self._flushes), *waiting):
            if isinstance(flush, _Flush):
                flush.done.set()
        self._link.close()
        self._context.destroy()
        with self._wake_lock:
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_write = -1

    def _drain_pipe(self) -> None:
        try:
            while len(os.read(self._wake_read, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass

    # ---- from any thread ----

    def _unbuilt(self) -> int:
        return sum(map(len, list(self._builders.values())))

    def _forget(self) -> None:
        """After a fork, in the child: the thread stayed behind, and the sockets are the parent's."""
        self._wake_lock = threading.RLock()
        self._refused_lock = threading.RLock()
        self._wake_write = -1
        self._sleep = _AWAKE
        self._inbox = deque(maxlen=0)
        self._broken = True
        atexit.unregister(self.close)

    def _refuse(self, run_id: str, phase: PhaseRef, count: int) -> None:
        with self._refused_lock, suppress(TypeError):  # a run or phase that is none
            self._refused[run_id, phase] += count

    def _wake(self) -> None:
        with self._wake_lock:  # the descriptor must not be closed, and be another file's, meanwhile
            if self._wake_write >= 0:
                with suppress(BlockingIOError):  # the pipe is full: a wake-up is under way
                    os.write(self._wake_write, b"!")


def _after_fork_in_child() -> None:
    for publisher in list(_publishers):
        publisher._forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
