"""Asking a server again until it answers, and telling now and then that it does not."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState, stop_before_delay, stop_never

from phase_bus.consumer.rows import UnavailableError
from phase_bus.errors import PhaseBusError

T = TypeVar("T")

_FIRST_WAIT_S = 0.2  # between two attempts; then twice as long, and so on
_MOST_PATIENCE_S = 300.0  # however long the server asks for
_TELL_EVERY_S = 30.0


class Patience:
    """How often one server was asked in vain, and when it may be asked again.

    Args:
        log: returns where to tell it.
        waiting: returns how many rows wait for an answer.
        longest_wait_s: returns the longest wait between two attempts, unless the server asks for more.

    Attributes:
        trouble: why the last attempt failed; empty since one has not.
        not_before_s: until then the server asks to be left alone, by :func:`time.monotonic`.
    """

    def __init__(
        self, log: Callable[[], Any], waiting: Callable[[], int], longest_wait_s: Callable[[], float]
    ) -> None:
        self._log, self._waiting, self._longest_wait_s = log, waiting, longest_wait_s
        self.trouble = ""
        self.not_before_s = 0.0
        self._failures = 0  # attempts in a row of which nothing came
        self._told_s = 0.0  # when it was last told that the server does not take rows; 0 if it does

    async def insist(self, attempt: Callable[[], Awaitable[T]], within_s: float | None = None) -> T:
        """Ask until there is an answer: see :meth:`~phase_bus.consumer.sink.Sink.insist`."""
        stop = stop_never if within_s is None else stop_before_delay(within_s)
        retrying = AsyncRetrying(stop=stop, wait=self._wait, before_sleep=self._complain, reraise=True)
        await self._leave_alone(within_s)

        async def once() -> T:
            return await attempt()

        answer: T = await retrying(once)
        self.trouble = ""
        self.encourage()
        if self._told_s:
            self._told_s = 0.0
            self._log().info("the server takes rows again")
        return answer

    def encourage(self) -> None:
        """Wait briefly after the next failure: the server has taken something, if not all."""
        self._failures = 0

    async def _leave_alone(self, within_s: float | None) -> None:
        """Wait for as long as the server asked for, also of an earlier call."""
        wait_s = self.not_before_s - time.monotonic()
        if within_s is not None and wait_s > within_s:
            raise UnavailableError(f"the server asks to be left alone for {wait_s:.0f} s more")
        await asyncio.sleep(max(wait_s, 0.0))

    def _wait(self, state: RetryCallState) -> float:
        """Return how long to wait before the next attempt, in s: as the server asks, and some more."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked_s = error.after_s if isinstance(error, UnavailableError) and error.after_s else 0.0
        asked_s = min(asked_s, _MOST_PATIENCE_S) if asked_s > 0 else 0.0
        self.not_before_s = time.monotonic() + asked_s
        self._failures += 1
        return asked_s + _back_off(self._failures, self._longest_wait_s())

    def _complain(self, state: RetryCallState) -> None:
        """Tell that the server does not take rows: at once, and then now and then."""
        error = state.outcome.exception() if state.outcome is not None else None
        known = isinstance(error, PhaseBusError | OSError)
        self.trouble = str(error) if known else repr(error)
        now_s = time.monotonic()
        if self._told_s and now_s < self._told_s + _TELL_EVERY_S:
            return
        self._told_s = now_s
        self._log().warning(
            "the server does not take rows; trying again until it does",
            reason=self.trouble,
            rows=self._waiting(),
            exc_info=None if known else error,
        )


def _back_off(failures: int, most_s: float) -> float:
    """Return how long to wait after so many failures, in s: at random, so that many do not come at once."""
    longest_s = min(_FIRST_WAIT_S * 2.0 ** min(failures, 30), most_s)
    return random.uniform(0.0, longest_s)  # noqa: S311 - no secret
