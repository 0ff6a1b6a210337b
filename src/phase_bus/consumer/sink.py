"""Sinks: consumers that hand rows to another system, in batches, until that system has them."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypedDict, TypeVar

from phase_bus.consumer.consumer import Consumer
from phase_bus.consumer.patience import Patience
from phase_bus.consumer.rows import (
    Answer,
    DeniedError,
    Origin,
    RefusedRowsError,
    Row,
    UnavailableError,
)
from phase_bus.core.tasks import is_to_end
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.events import EventBase, RunComplete

T = TypeVar("T")

_FLUSH_S = 10.0  # how long a flush tries before it fails, to be called again
_LAST_FLUSH_S = 5.0  # and the last one, whose process is to end
_FLUSH_EVERY_S = 1.0
_LOOK_S = 0.1
_LISTED_ROWS = 10  # of those refused, in a dead letter


class Limits(TypedDict, total=False):
    """The options that all sinks have: see :class:`Sink`."""

    batch_rows: int
    batch_bytes: int
    batch_age_s: float
    max_rows_per_s: float


class Sink(Consumer):
    """A consumer that hands rows to another system, and keeps at it until that system has them.

    A subclass says what is sent and how: :meth:`rows` makes rows of an event, and :meth:`send` hands a
    batch of them to the server. Everything else is done here. A batch goes out when it has enough rows or
    bytes, or is old enough, and at a run's end. While the server is away no more events are taken: they
    wait in the bus's journal, and memory does not grow. The checkpoint moves once the server has answered,
    so after a crash rows may be sent again, with the same :attr:`Row.key`. A row that the server will never
    take makes its event a dead letter, which names the row; the others are sent.

    Args:
        batch_rows: how many rows are sent at once, at most.
        batch_bytes: how many bytes of rows are sent at once, about.
        batch_age_s: after how many seconds rows are sent, though there are not so many.
        max_rows_per_s: how many rows are sent in a second, at most, so that what comes after an outage does
            not swamp the server; 0 for no limit.
    """

    def __init__(
        self,
        batch_rows: int = 1000,
        batch_bytes: int = 4 << 20,
        batch_age_s: float = 1.0,
        max_rows_per_s: float = 50_000.0,
    ) -> None:
        for name, value in (("batch_rows", batch_rows), ("batch_bytes", batch_bytes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not (batch_age_s >= 0 and max_rows_per_s >= 0):
            raise ValueError("batch_age_s and max_rows_per_s must not be negative")
        self._batch_rows, self._batch_bytes, self._batch_age_s = batch_rows, batch_bytes, batch_age_s
        self._pace = _Pace(max_rows_per_s)
        self._waiting: deque[Row] = deque()
        self._waiting_rows = self._waiting_bytes = 0
        self._sending: list[Row] = []  # taken from those that wait, and not answered for yet
        self._part_rows = batch_rows  # how many of these are sent at once, while some are refused
        self._refused: dict[str, tuple[Origin, dict[int, str]]] = {}  # by the origin's key
        self._connected = False
        self._since_s: float | None = None  # since when there is something that is not sent
        self._run_ended = False
        self._flight: asyncio.Task[None] | None = None  # sends a batch, while the next one is gathered
        self._patience = Patience(
            lambda: self.log,
            lambda: _count(self._sending) + self._waiting_rows,
            lambda: self.retry_wait_s,
        )

    # ---- what a subclass says ----

    def rows(self, event: EventBase) -> Sequence[Any]:
        """Return the rows that an event is sent as, none if it is of no interest.

        Raises:
            Exception: if it cannot be sent; it becomes a dead letter then.
        """
        raise NotImplementedError

    def size_of(self, data: Any) -> int:
        """Return the size of a row's data in bytes: its length, unless a subclass knows better."""
        return len(data)

    def weight_of(self, data: Any) -> int:  # noqa: ARG002 - a subclass looks at it
        """Return how many rows a row's data counts for: more than one if a subclass keeps them together.

        A sink that sends columns has all records of an event as one row, which counts for as many.
        """
        return 1

    async def connect(self) -> None:
        """Look whether the server is there and lets us, and prepare what the rows need there.

        Called when the process starts; if the server is not there then, again before the first batch, until
        it has succeeded.

        Raises:
            DeniedError: it does not let us: the process ends, with this in one line. So it does with a
                :class:`RefusedRowsError`.
            UnavailableError: it is not there; this is told, and the sink waits for it.
            ConfigError: whatever else keeps the sink from working.
        """

    async def send(self, rows: Sequence[Row]) -> Answer | None:
        """Hand a batch to the server; return once it has answered. None says that it took all rows.

        Any other exception than those below counts as an :class:`UnavailableError`: rows are not given up
        because something went wrong here.

        Raises:
            UnavailableError: it took none of them, or nobody knows whether it did.
            RefusedRowsError: it will never take this batch as it is.
        """
        raise NotImplementedError

    # ---- what the process around it calls ----

    async def start(self) -> None:
        """Look for the server."""
        try:
            await self._connect()
        except (ConfigError, DeniedError, RefusedRowsError) as error:
            await self.stop()
            whose = f"consumer {self.name!r}"
            raise ConfigError(str(error) if whose in str(error) else f"{whose}: {error}") from None
        except UnavailableError as error:
            self.log.warning("the server does not answer; its rows wait for it", reason=str(error))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Let go of what is being sent; a subclass lets go of its connections after that."""
        await self.abandon()

    async def on_event(self, event: EventBase) -> None:
        """Make rows of an event, and send a batch if there are enough; wait if one is being sent."""
        self._run_ended |= isinstance(event, RunComplete)
        origin = Origin(event, self.stream, self.offset, self.source, self.sequence)
        new = [
            Row(origin, number, data, self.size_of(data), self.weight_of(data))
            for number, data in enumerate(self.rows(event))
        ]
        self._waiting.extend(new)
        self._waiting_bytes += sum(row.size for row in new)
        self._waiting_rows += sum(row.weight for row in new)
        if self._waiting and self._since_s is None:
            self._since_s = time.monotonic()
        while self._waiting_rows >= self._batch_rows or self._waiting_bytes >= self._batch_bytes:
            await self._landed()
            self._launch()

    async def flush(self) -> None:
        """Send what waits if it is old enough, a run has ended, or the process is about to end."""
        self.holds_checkpoint = not self._is_due()
        if self.holds_checkpoint:
            return
        await self.send_all(_LAST_FLUSH_S if self.stopping else _FLUSH_S)
        self._since_s, self._run_ended = None, False
        for origin, reasons in self._refused.values():
            self.fail(origin.event, origin.offset, _refusal(reasons))
        self._refused.clear()

    def _is_due(self) -> bool:
        if self._since_s is None or self._run_ended or self.stopping or not self.stream:
            return True
        if self.partition is not None:  # nobody tells it of a run's end, for which the group waits
            return True
        return time.monotonic() + _FLUSH_EVERY_S > self._since_s + self._batch_age_s

    # ---- sending ----

    async def send_all(self, within_s: float | None = None) -> None:
        """Send all that waits, in batches; for a subclass that needs to know that it is there.

        Args:
            within_s: for how long each batch is tried; None for ever.

        Raises:
            PhaseBusError: the time is over; what the server has not taken is kept.
        """
        while self._sending or self._waiting:
            self._launch()
            await self._landed(within_s)

    async def insist(self, attempt: Callable[[], Awaitable[T]], within_s: float | None = None) -> T:
        """Ask the server for something until it answers, with the patience that rows are sent with.

        Args:
            attempt: asks once.
            within_s: for how long; None for ever.

        Raises:
            Exception: the time is over; it is the last attempt's.
        """
        return await self._patience.insist(attempt, within_s)

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Do blocking work in a thread; one that is cancelled still waits until it is over.

        Else what the work uses, such as a connection, would be closed under it.
        """
        working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            working.exception()  # nobody is left to hear of it
            raise

    async def _connect(self) -> None:
        if not self._connected:
            await self.connect()
            self._connected = True

    def _launch(self) -> None:
        """Begin to send a batch, unless one is being sent."""
        if self._flight is None:
            self._sending = self._sending or self._take_batch()
            self._flight = asyncio.create_task(self._send_batch())

    async def _landed(self, within_s: float | None = None) -> None:
        """Wait until the server has answered for all rows of the batch that is being sent, if one is.

        Raises:
            PhaseBusError: it has not, and the time is over; it goes on being sent.
        """
        if (flight := self._flight) is None:
            return
        until_s = math.inf if within_s is None else time.monotonic() + within_s
        while not flight.done():
            left_s = until_s - time.monotonic()
            if (
                left_s <= 0 or self._patience.not_before_s > until_s
            ):  # or the server asks for more than that
                trouble = self._patience.trouble or "no answer so far"
                raise PhaseBusError(f"{_count(self._sending)} rows are not delivered: {trouble}")
            await asyncio.wait({flight}, timeout=None if within_s is None else min(left_s, _LOOK_S))
        if self._flight is flight:
            self._flight = None
        await flight

    async def _send_batch(self) -> None:
        await self._pace.wait(_count(self._sending))
        await self.insist(self._attempt)

    async def abandon(self) -> None:
        """Send nothing more. What was not answered for comes again, since the checkpoint is before it."""
        if (flight := self._flight) is not None:
            flight.cancel()
            await asyncio.wait({flight})

    def _take_batch(self) -> list[Row]:
        batch: list[Row] = []
        size = count = 0
        while self._waiting:
            size += self._waiting[0].size
            count += self._waiting[0].weight
            if batch and (size > self._batch_bytes or count > self._batch_rows):
                break
            batch.append(self._waiting.popleft())
        self._waiting_bytes -= sum(row.size for row in batch)
        self._waiting_rows -= _count(batch)
        return batch

    async def _attempt(self) -> None:
        """Send what is to be sent, in parts while some of it is refused as a whole."""
        await self._connect()
        while self._sending:
            part = self._sending[: self._part_rows]
            try:
                answer = await self._answer(part)
            except RefusedRowsError as error:
                if len(part) > 1:
                    self._part_rows = len(part) // 2
                    continue
                answer = Answer(refused={0: str(error)})
            for place, reason in answer.refused.items():
                self._refuse(part[place], reason)
            self._sending[: len(part)] = [part[place] for place in answer.again]
            if len(answer.again) < len(part):
                self._patience.encourage()
            if answer.again:
                raise UnavailableError(answer.reason, answer.after_s)
            self._part_rows = min(self._part_rows * 2, self._batch_rows)

    async def _answer(self, part: Sequence[Row]) -> Answer:
        """Send rows; return the answer, which says of each of them one thing."""
        try:
            answer = await self.send(part) or Answer()
        except asyncio.CancelledError:
            if is_to_end():
                raise
            raise UnavailableError("the request was cancelled") from None  # not by us: by what sends
        places = [*answer.refused, *answer.again]
        if len({*places}) < len(places) or not {*places} <= {*range(len(part))}:
            raise ValueError(f"send() answered for rows {sorted(places)} of {len(part)}, from 0 on")
        return answer

    def _refuse(self, row: Row, reason: str) -> None:
        _, reasons = self._refused.setdefault(row.origin.key, (row.origin, {}))
        reasons[row.number] = reason


def _count(rows: Sequence[Row]) -> int:
    return sum(row.weight for row in rows)


class _Pace:
    """No more than so many rows a second."""

    def __init__(self, rows_per_s: float) -> None:
        self._rows_per_s = rows_per_s
        self._free_s = 0.0

    async def wait(self, rows: int) -> None:
        """Wait until so many rows may go."""
        if not self._rows_per_s:
            return
        now_s = time.monotonic()
        from_s = max(now_s, self._free_s)
        self._free_s = from_s + rows / self._rows_per_s
        if from_s > now_s:
            await asyncio.sleep(from_s - now_s)


def _refusal(reasons: dict[int, str]) -> RefusedRowsError:
    """Return what the dead letter of an event says some of whose rows were refused."""
    listed = [f"row {number}: {reason}" for number, reason in sorted(reasons.items())[:_LISTED_ROWS]]
    more = f"; and {len(reasons) - len(listed)} more rows" if len(reasons) > len(listed) else ""
    return RefusedRowsError("the server refused " + "; ".join(listed) + more)
