"""The ``alerting`` consumer: warn somebody when a run does not go as it should.

Every alert goes to the log, and to a command or a webhook if one is given. Those run in the background
and may be slow or fail without delaying anything.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import urllib.request
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Literal, TypeAlias
from urllib.error import HTTPError
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from phase_bus import (
    ConfigError,
    Consumer,
    Drop,
    EventBase,
    PhaseComplete,
    PhaseEvent,
    PhaseTimeout,
    RunComplete,
)

_WEBHOOK_ATTEMPTS = 2  # a dropped connection deserves a second try; more would need a real back-off


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


class PhaseAlerts(Consumer):
    """Warn about slow phases, time-outs, errors and failed runs, to the log, a command or a webhook.

    Args:
        threshold_s: warn about phases that took longer than this many seconds.
        max_error_rate: warn about phases with a larger fraction of errors (0 to 1); off without it.
        command: run this for each alert, with the alert as JSON on standard input and in
            ``PHASE_BUS_ALERT``. It is split as a shell would, but no shell runs it.
        webhook: send each alert as JSON to this address (http or https, POST).
        timeout_s: how many seconds the command, or one attempt at the webhook, may take.
    """

    def __init__(
        self,
        threshold_s: float = 60.0,
        max_error_rate: float | None = None,
        command: str | None = None,
        webhook: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        if max_error_rate is not None and not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate is a part of 1, such as 0.05, not {max_error_rate:g}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s:g}")
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
        self._deliveries: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        if self.command is not None and shutil.which(next(iter(self.command), "")) is None:
            raise ConfigError(
                f"command: {shlex.join(self.command)!r} does not begin with a program that can be run; "
                "give its full path with command=..."
            )

    async def flush(self) -> None:
        while self._deliveries:  # bounded by the timeouts
            await asyncio.wait(self._deliveries)

    async def stop(self) -> None:
        for delivery in self._deliveries:
            delivery.cancel()
        await self.flush()

    # ---- what is worth an alert ----

    async def on_phase_complete(self, event: PhaseComplete) -> None:
        stats, duration_s = event.stats, event.stats.duration_s
        if duration_s is not None and duration_s > self.threshold_s:
            self._alert(
                event,
                "slow_phase",
                f"phase {event.phase} took {duration_s:.1f} s, more than {self.threshold_s:g} s",
                duration_s=duration_s,
                threshold_s=self.threshold_s,
            )
        rate = stats.errors / stats.completed if stats.completed else 0.0
        if self.max_error_rate is not None and rate > self.max_error_rate:
            self._alert(
                event,
                "error_rate",
                f"phase {event.phase}: {stats.errors} of {stats.completed} requests failed "
                f"({rate:.1%}, more than {self.max_error_rate:.1%})",
                errors=stats.errors,
                completed=stats.completed,
                error_rate=rate,
                max_error_rate=self.max_error_rate,
            )

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

    async def on_run_complete(self, event: RunComplete) -> None:
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
        if self.command is not None:
            self._deliver(self._run(self.command, body))
        if self.webhook is not None:
            self._deliver(self._post(self.webhook, body))

    def _deliver(self, delivery: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(delivery)
        self._deliveries.add(task)  # the loop itself keeps tasks only weakly
        task.add_done_callback(self._deliveries.discard)

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
            self.log.error("the alert command could not be run", command=command, error=str(error))
            return
        try:
            await asyncio.wait_for(process.communicate(body), self.timeout_s)
        except TimeoutError:
            self.log.error("the alert command took too long", command=command, timeout_s=self.timeout_s)
        else:
            if process.returncode:
                self.log.error("the alert command failed", command=command, code=process.returncode)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()

    async def _post(self, url: str, body: bytes) -> None:
        for attempt in range(1, _WEBHOOK_ATTEMPTS + 1):
            try:
                await asyncio.to_thread(_post, url, body, self.timeout_s)
                return
            except (OSError, HTTPException, ValueError) as error:
                # Only the host: the rest of a webhook's address is often a secret.
                host = urlsplit(url).hostname
                self.log.error("the webhook failed", host=host, attempt=attempt, error=str(error))


def _post(url: str, body: bytes, timeout_s: float) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):
            pass
    except HTTPError as error:
        error.close()  # it holds the connection
        raise
