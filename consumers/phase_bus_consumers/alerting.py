"""The ``alerting`` consumer: warn somebody when a run does not go as it should.

Every alert goes to the log, and to a command or a webhook if one is given. Those run in the background
and may be slow or fail without delaying events. An alert counts as written once it is delivered; one that
is not is tried again for a while, and then its event is a dead letter.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal, TypeAlias
from urllib.error import HTTPError
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay
from tenacity import wait_random_exponential as backoff

from phase_bus import (
    ConfigError,
    Consumer,
    Drop,
    EventBase,
    PhaseBusError,
    PhaseComplete,
    PhaseEvent,
    PhaseProgress,
    PhaseTimeout,
    RunComplete,
)

_LONGEST_WAIT_S = 30.0  # between two attempts
_PATIENCE_S = 2.0  # how long flush waits for a new alert's delivery before it says that it is not done
_MAX_WAITING = 200  # alerts that are not delivered yet
_REMEMBERED = 1000  # alerts of phases that go on


AlertKind: TypeAlias = Literal[
    "slow_phase", "phase_timeout", "error_rate", "run_failed", "run_lost", "events_dropped"
]


class Alert(Struct, frozen=True):
    """An alert: what happened when (Unix time in ns), and the numbers behind it, with units in their names.

    ``phase`` is empty if it concerns the whole run.
    """

    kind: AlertKind
    message: str
    run_id: str
    phase: str
    ts_ns: int
    details: dict[str, Any]


class UndeliveredError(PhaseBusError):
    """An alert has not reached whom it was for."""


@dataclass
class _Cause:
    """The event that alerts were made of, its offset, and whether one of them was given up."""

    event: EventBase
    offset: int
    given_up: bool = False


class PhaseAlerts(Consumer):
    """Warn about slow phases, time-outs, errors and failed runs, to the log, a command or a webhook.

    Args:
        threshold_s: warn about phases that take longer than this many seconds, while they do.
        max_error_rate: warn about phases with a larger fraction of errors (0 to 1); off without it.
        min_requests: how many answers there must be before a phase that goes on is warned of for its
            errors; one that is over is judged by however many it had.
        command: run this for each alert, with the alert as JSON on standard input and in
            ``PHASE_BUS_ALERT``. It is split as a shell would, but no shell runs it.
        webhook: send each alert as JSON to this address (http or https, POST).
        timeout_s: how many seconds one attempt at the command or the webhook may take.
        retry_s: for how many seconds an alert that was not delivered is tried again.
    """

    def __init__(
        self,
        threshold_s: float = 60.0,
        max_error_rate: float | None = None,
        command: str | None = None,
        webhook: str | None = None,
        timeout_s: float = 5.0,
        min_requests: int = 20,
        retry_s: float = 300.0,
    ) -> None:
        if max_error_rate is not None and not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate is a part of 1, such as 0.05, not {max_error_rate:g}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s:g}")
        if min_requests < 1:
            raise ValueError(f"min_requests must be at least 1, not {min_requests}")
        if retry_s < 0:
            raise ValueError(f"retry_s must not be negative, as {retry_s:g} is")
        if webhook is not None and (
            urlsplit(webhook).scheme not in ("http", "https") or not urlsplit(webhook).hostname
        ):
            raise ValueError("webhook must be an address that begins with http:// or https://")
        self.threshold_s = threshold_s
        self.max_error_rate = max_error_rate
        self.command = None if command is None else shlex.split(command)
        self.webhook = webhook
        self.timeout_s = timeout_s
        self._drops: dict[str, Counter[str]] = {}
        self.min_requests = min_requests
        self.retry_s = retry_s
        self._told: dict[tuple[str, str, AlertKind], None] = {}  # by run and phase
        self._deliveries: set[asyncio.Task[None]] = set()
        self._patient_until_s = 0.0
        self._trouble = ""  # why the last attempt failed
        self._given_up: list[tuple[_Cause, Exception]] = []

    async def start(self) -> None:
        if self.command is not None and shutil.which(next(iter(self.command), "")) is None:
            raise ConfigError(
                f"command: {shlex.join(self.command)!r} does not begin with a program that can be run; "
                "give its full path with command=..."
            )

    async def flush(self) -> None:
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=max(self._patient_until_s - time.monotonic(), 0))
        given_up, self._given_up = self._given_up, []
        for cause, error in given_up:
            if not cause.given_up:
                cause.given_up = True
                self.fail(cause.event, cause.offset, error)
        if self._deliveries:
            alerts = "1 alert is" if len(self._deliveries) == 1 else f"{len(self._deliveries)} alerts are"
            raise UndeliveredError(f"{alerts} not delivered yet: {self._trouble or 'no answer so far'}")

    async def stop(self) -> None:
        deliveries = set(self._deliveries)
        for delivery in deliveries:
            delivery.cancel()
        if deliveries:
            await asyncio.wait(deliveries)

    # ---- what is worth an alert ----

    async def on_phase_progress(self, event: PhaseProgress) -> None:
        start_ns = event.stats.start_ns
        if start_ns is not None:
            self._judge_duration(event, (event.ts_ns - start_ns) / 1e9, "has been running for")
        if event.stats.completed >= self.min_requests:
            self._judge_errors(event, "so far ")

    async def on_phase_complete(self, event: PhaseComplete) -> None:
        if event.stats.duration_s is not None:
            self._judge_duration(event, event.stats.duration_s, "took")
        self._judge_errors(event)

    def _judge_duration(self, event: PhaseEvent, duration_s: float, took: str) -> None:
        if duration_s > self.threshold_s and self._is_first(event, "slow_phase"):
            self._alert(
                event,
                "slow_phase",
                f"phase {event.phase} {took} {duration_s:.1f} s, more than {self.threshold_s:g} s",
                duration_s=duration_s,
                threshold_s=self.threshold_s,
            )

    def _judge_errors(self, event: PhaseEvent, so_far: str = "") -> None:
        stats, limit = event.stats, self.max_error_rate
        rate = stats.errors / stats.completed if stats.completed else 0.0
        if limit is not None and rate > limit and self._is_first(event, "error_rate"):
            self._alert(
                event,
                "error_rate",
                f"phase {event.phase}: {so_far}{stats.errors} of {stats.completed} requests failed "
                f"({rate:.1%}, more than {limit:.1%})",
                errors=stats.errors,
                completed=stats.completed,
                error_rate=rate,
                max_error_rate=limit,
            )

    def _is_first(self, event: PhaseEvent, kind: AlertKind) -> bool:
        """Note that an alert is raised; return whether it is the first of its kind for the phase."""
        key = (event.run_id, event.phase.name, kind)
        if key in self._told:
            return False
        self._told[key] = None
        if len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        return True

    async def on_phase_timeout(self, event: PhaseTimeout) -> None:
        grace_s = event.stats.grace_period_s
        period = "its grace period" if grace_s is None else f"its grace period of {grace_s:g} s"
        self._alert(
            event,
            "phase_timeout",
            f"phase {event.phase} timed out: {event.requests_cut} requests cut at the end of {period}",
            requests_cut=event.requests_cut,
            grace_period_s=grace_s,
        )

    async def on_drop(self, event: Drop) -> None:
        # Drops come in bursts: one alert at the run's end says it all.
        self._drops.setdefault(event.run_id, Counter()).update(event.events)
        if len(self._drops) > _REMEMBERED:  # their runs' ends never came
            del self._drops[next(iter(self._drops))]

    async def on_run_complete(self, event: RunComplete) -> None:
        self._told = {key: None for key in self._told if key[0] != event.run_id}
        reason = f": {event.reason}" if event.reason else ""
        if event.status == "failed":
            self._alert(event, "run_failed", f"run {event.run_id} failed{reason}", reason=event.reason)
        elif event.status == "lost":
            self._alert(event, "run_lost", f"run {event.run_id} was lost{reason}", reason=event.reason)
        # The publisher's own drops are reported in both places, the bus's only in drop events.
        dropped = self._drops.pop(event.run_id, Counter()) | Counter(event.dropped)
        if dropped:
            self._alert(
                event,
                "events_dropped",
                f"run {event.run_id} ended with {dropped.total()} events dropped: "
                "results computed from them are not whole",
                events=dict(dropped),
            )

    # ---- delivery ----

    def _alert(self, event: EventBase, kind: AlertKind, message: str, **details: Any) -> None:
        phase = event.phase.name if isinstance(event, PhaseEvent) else ""
        alert = Alert(kind, message, event.run_id, phase, event.ts_ns, details)
        self.log.warning(message, alert=kind, run_id=alert.run_id)
        body = msgspec.json.encode(alert)
        cause = _Cause(event, self.offset)
        command, webhook = self.command, self.webhook
        if command is not None:
            self._deliver(cause, lambda: self._run(command, body))
        if webhook is not None:
            self._deliver(cause, lambda: self._post(webhook, body))

    def _deliver(self, cause: _Cause, send: Callable[[], Awaitable[None]]) -> None:
        if len(self._deliveries) >= _MAX_WAITING:
            raise UndeliveredError(f"{_MAX_WAITING} alerts are not delivered yet: {self._trouble}")
        self._patient_until_s = time.monotonic() + _PATIENCE_S
        task = asyncio.create_task(self._keep_trying(cause, send))
        self._deliveries.add(task)  # the loop itself keeps tasks only weakly
        task.add_done_callback(self._deliveries.discard)

    async def _keep_trying(self, cause: _Cause, send: Callable[[], Awaitable[None]]) -> None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(UndeliveredError),
            wait=backoff(multiplier=0.5, max=_LONGEST_WAIT_S, min=0.2),
            stop=stop_after_delay(self.retry_s),
            before_sleep=self._complain,
            reraise=True,
        )
        try:
            async for attempt in retrying:
                with attempt:
                    await send()
        except UndeliveredError as error:
            self.log.error("an alert reached nobody and is given up", error=str(error))
            self._given_up.append((cause, error))

    def _complain(self, state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        self._trouble = str(error)
        if state.attempt_number == 1:
            self.log.error("an alert is not delivered yet; trying again", error=str(error))

    async def _run(self, command: list[str], body: bytes) -> None:
        environment = {**os.environ, "PHASE_BUS_ALERT": body.decode()}
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                env=environment,
                start_new_session=True,  # so that its children end with it, and Ctrl-C does not reach it
            )
        except OSError as error:
            raise UndeliveredError(f"command {command[0]!r} could not be run: {error}") from error
        try:
            await asyncio.wait_for(process.communicate(body), self.timeout_s)
        except TimeoutError:
            raise UndeliveredError(
                f"command {command[0]!r} took longer than {self.timeout_s:g} s"
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            raise UndeliveredError(f"command {command[0]!r} failed with exit code {process.returncode}")

    async def _post(self, url: str, body: bytes) -> None:
        try:
            await asyncio.to_thread(_post, url, body, self.timeout_s)
        except (OSError, HTTPException, ValueError) as error:
            # Only the host: the rest of a webhook's address is often a secret.
            raise UndeliveredError(f"webhook at {urlsplit(url).hostname}: {error}") from error


def _post(url: str, body: bytes, timeout_s: float) -> None:
    # Its scheme is http or https: others were refused with the options.
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310 - likewise
            pass
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
