"""How alerts reach somebody: each target gets its own, in order, and is tried again until it takes them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay
from tenacity import wait_random_exponential as backoff

from phase_bus import EventBase, PhaseBusError
from phase_bus_consumers.alerting_conditions import Alert, AlertState

_LONGEST_WAIT_S = 30.0  # between two attempts
_PATIENCE_S = 2.0  # how long flush waits for a new alert's delivery before it says that it is not done
_MAX_WAITING = 200  # messages that are not delivered yet


class UndeliveredError(PhaseBusError):
    """An alert has not reached whom it was for."""


class RejectedError(UndeliveredError):
    """And it never will: the other side does not take it as it is."""


class Target:
    """Somebody, or something, that alerts are sent to.

    Attributes:
        name: what it is called, in messages and in the checkpoint.
        groups: whether it gets the changes of one run within a short time as one message.
        states: of which changes it is to be told.
    """

    name = ""
    groups = False
    states: tuple[AlertState, ...] = ("firing",)

    async def start(self) -> None:
        """Look whether all that it needs is there.

        Raises:
            ConfigError: if not.
        """

    async def send(self, alerts: Sequence[Alert]) -> None:
        """Deliver: one alert, or several if it groups them.

        Raises:
            UndeliveredError: if that did not succeed.
        """
        raise NotImplementedError


@dataclass
class Cause:
    """The event that alerts were made of, its place, and whether one of them was given up."""

    event: EventBase
    stream: str
    offset: int
    given_up: bool = False

    @property
    def place(self) -> str:
        """Its place as a text; empty without a journal."""
        return f"{self.stream}-{self.offset}" if self.offset else ""


Item = tuple[Cause, Alert]


class GivenUp(Struct):
    """A message that reached nobody, and why."""

    target: Target
    items: Sequence[Item]
    error: Exception


class Deliveries:
    """Messages on their way.

    Those to one target about one thing, and all to a target that groups, go one after another: that
    something is over is not told before that it began.

    Args:
        retry_s: for how many seconds a message is tried again.
        complain: is given what to log, and why.
    """

    def __init__(self, retry_s: float, complain: Callable[[str, BaseException | None], None]) -> None:
        self._retry_s = retry_s
        self._complain = complain
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._patient_until_s = 0.0
        self._trouble = ""  # why the last attempt failed
        self._given_up: list[GivenUp] = []

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def is_full(self) -> bool:
        """Whether so much waits that no more is taken."""
        return len(self._tasks) >= _MAX_WAITING

    def waiting(self) -> UndeliveredError:
        """Return how much waits, and why, as an error."""
        alerts = "1 alert is" if len(self) == 1 else f"{len(self)} alerts are"
        return UndeliveredError(f"{alerts} not delivered yet: {self._trouble or 'no answer so far'}")

    def add(self, target: Target, items: Sequence[Item]) -> None:
        """Begin to deliver a message."""
        self._patient_until_s = time.monotonic() + _PATIENCE_S
        line = (target.name, "" if target.groups else items[0][1].key)
        task = asyncio.create_task(self._deliver(self._last.get(line), target, items))
        self._tasks.add(task)  # the loop itself keeps tasks only weakly
        self._last[line] = task
        task.add_done_callback(lambda _task: self._ended(line, task))

    async def settle(self) -> list[GivenUp]:
        """Wait a moment for new messages' delivery; return those that were given up since the last time."""
        if self._tasks:
            timeout_s = max(self._patient_until_s - time.monotonic(), 0)
            await asyncio.wait(self._tasks, timeout=timeout_s)
        given_up, self._given_up = self._given_up, []
        return given_up

    async def stop(self) -> None:
        """Leave off."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, line: tuple[str, str], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._last.get(line) is task:
            del self._last[line]

    async def _deliver(
        self, before: asyncio.Task[None] | None, target: Target, items: Sequence[Item]
    ) -> None:
        if before is not None:
            await asyncio.wait([before])
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            wait=backoff(multiplier=0.5, max=_LONGEST_WAIT_S, min=0.2),
            stop=stop_after_delay(self._retry_s),
            before_sleep=self._trying_again,
            reraise=True,
        )
        try:
            await retrying(target.send, [alert for _, alert in items])
        except Exception as error:  # whatever it is: what is not delivered is not forgotten
            self._complain("an alert reached nobody and is given up", error)
            self._given_up.append(GivenUp(target, items, error))

    def _trying_again(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        self._trouble = str(error)
        if state.attempt_number == 1:
            self._complain("an alert is not delivered yet; trying again", error)


async def in_thread(work: Callable[[], Any], busy: threading.Event) -> Any:
    """Do blocking work in a thread that keeps no process from ending; ``busy`` is set meanwhile."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error is not None else future.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        busy.clear()
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    busy.set()
    threading.Thread(target=run, name="alerting", daemon=True).start()
    return await future


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, RejectedError)
