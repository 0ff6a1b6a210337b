"""The ``alerting`` consumer: tell somebody when a run does not go as it should, and when it does again.

What is worth an alert stands in ``alerting_conditions``, how it is delivered in ``alerting_delivery``, and
to whom in ``alerting_targets`` and ``alerting_apprise``.

Every alert goes to the log as well. Targets may be slow or fail without delaying events. An alert counts
as written once it is delivered; one that is not is tried again for a while, and then its event is a dead
letter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import Struct, field

from phase_bus import ConfigError, Consumer, EventBase, RunComplete, Secret, StateError
from phase_bus_consumers.alerting_conditions import Alert, Conditions, Known
from phase_bus_consumers.alerting_delivery import Cause, Deliveries, Item, Target, UndeliveredError
from phase_bus_consumers.alerting_targets import Command, PagerDuty, Webhook

_OWED = 200  # messages that were given up, and are kept for a retry
_VERSION = 1


class _Owed(Struct):
    """What a target was not told of."""

    target: str
    alert: Alert


class _State(Struct):
    """What the checkpoint keeps; ``owed`` is by the places of events that are dead letters."""

    known: Known
    owed: dict[str, list[_Owed]] = field(default_factory=dict)
    version: int = _VERSION


class _Group:
    """The changes of one run that become one message, and when that is sent."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.items: list[Item] = []


class PhaseAlerts(Consumer):
    """Send alerts about slow phases, time-outs, errors and failures, and say when they are over.

    Args:
        threshold_s: alert about phases as soon as they have taken longer than this many seconds.
        max_error_rate: alert about phases with a larger fraction of errors (0 to 1); off without it.
        command: run this for each alert, with the alert as JSON on standard input and in
            ``PHASE_BUS_ALERT``. It is split as a shell would, but no shell runs it.
        webhook: send each alert as JSON to this address (http or https, POST); ``env:NAME`` or
            ``file:PATH`` says where the address is, if it is a secret.
        timeout_s: how many seconds one attempt at the command, or an answer, may take.
        min_requests: how many answers a phase must have before there are alerts about its errors; a phase
            that is over is judged by as many as it had.
        retry_s: for how many seconds to retry an alert that was not delivered.
        notify: where Apprise addresses are, one per line or in its YAML: ``env:NAME``, ``file:PATH``,
            or a list of these.
        group_s: for how many seconds changes of one run are collected into one message for ``notify``.
        run_end: report each run's end as well (``notify``, and ``webhook`` with CloudEvents).
        pagerduty: where the integration key of a PagerDuty service is; its incidents are resolved as well.
        pagerduty_url: where PagerDuty accepts events; in Europe
            ``https://events.eu.pagerduty.com/v2/enqueue``.
        webhook_format: ``alert`` sends each alert that fires; ``cloudevents`` sends all changes, as
            CloudEvents 1.0.
        webhook_secret: where the secret for the webhook's signature is.
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
        notify: Secret | list[Secret] | None = None,
        group_s: float = 5.0,
        run_end: bool = False,
        pagerduty: Secret | None = None,
        pagerduty_url: str = "https://events.pagerduty.com/v2/enqueue",
        webhook_format: Literal["alert", "cloudevents"] = "alert",
        webhook_secret: Secret | None = None,
    ) -> None:
        if max_error_rate is not None and not 0 <= max_error_rate <= 1:
            raise ValueError(f"max_error_rate is a part of 1, such as 0.05, not {max_error_rate:g}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s:g}")
        if min_requests < 1:
            raise ValueError(f"min_requests must be at least 1, not {min_requests}")
        if retry_s < 0 or group_s < 0:
            raise ValueError(f"retry_s and group_s must not be negative, as {min(retry_s, group_s):g} is")
        if webhook_secret is not None and webhook is None:
            raise ValueError("webhook_secret signs what webhook=... is sent: give both")
        self._conditions = Conditions(threshold_s, max_error_rate, min_requests, run_end)
        self._targets: list[Target] = []
        if command is not None:
            self._targets.append(Command(command, timeout_s))
        if webhook is not None:
            cloudevents = webhook_format == "cloudevents"
            self._targets.append(Webhook(webhook, timeout_s, cloudevents, webhook_secret))
        if pagerduty is not None:
            self._targets.append(PagerDuty(pagerduty, pagerduty_url, timeout_s))
        self._notify = [notify] if isinstance(notify, Secret) else notify or []
        self._timeout_s, self._group_s = timeout_s, group_s
        self._deliveries = Deliveries(retry_s, self._complain)
        self._groups: dict[tuple[str, str], _Group] = {}  # by target and run
        self._owed: dict[str, list[_Owed]] = {}
        self._run_ended = False

    async def start(self) -> None:
        if self._notify:
            try:  # without it Apprise is not needed
                from phase_bus_consumers.alerting_apprise import services
            except ModuleNotFoundError as error:
                raise ConfigError(f"notify: {error}") from None
            self._targets += services(self._notify, self._timeout_s)
        for target in self._targets:
            if isinstance(target, Webhook | PagerDuty):
                target.source = f"phase-bus/{self.name}"
            await target.start()

    def state(self) -> bytes | None:
        state = _State(self._conditions.known, self._owed)
        return None if state == _State(Known()) else msgspec.msgpack.encode(state)

    def restore(self, state: bytes) -> None:
        try:
            kept = msgspec.msgpack.decode(state, type=_State)
        except msgspec.DecodeError as error:
            raise StateError(f"its state cannot be read: {error}") from error
        if kept.version != _VERSION:
            raise StateError(f"its state is of version {kept.version}, where this phase-bus has {_VERSION}")
        self._conditions.known, self._owed = kept.known, kept.owed

    async def _take(self, event: EventBase) -> None:
        self._run_ended |= isinstance(event, RunComplete)
        cause = Cause(event, self.stream, self.offset)
        if cause.place in self._owed:
            self._pay(cause)
            return
        before = msgspec.msgpack.encode(self._conditions.known) if self._deliveries.is_full else None
        changes = self._conditions.take(event)
        if changes and before is not None:
            self._conditions.known = msgspec.msgpack.decode(before, type=Known)
            raise self._deliveries.waiting()
        for alert in changes:
            self._log(alert)
            for target in self._targets:
                if alert.state in target.states:
                    self._send(target, cause, alert)

    # One method under several names: the names decide what is subscribed to.
    on_phase_progress = on_phase_complete = on_phase_timeout = on_drop = on_run_complete = _take
    on_verdict = _take

    async def flush(self) -> None:
        for line, group in list(self._groups.items()):
            if self._run_ended or self.stopping or time.monotonic() >= group.until_s:
                del self._groups[line]
                self._deliveries.add(self._target(line[0]), group.items)
        self._run_ended = False
        for given_up in await self._deliveries.settle():
            self._give_up(given_up.target, given_up.items, given_up.error)
        self.holds_checkpoint = bool(self._groups)
        if self._deliveries:
            raise self._deliveries.waiting()

    async def stop(self) -> None:
        await self._deliveries.stop()

    # ---- delivery ----

    def _send(self, target: Target, cause: Cause, alert: Alert) -> None:
        if not target.groups:
            self._deliveries.add(target, [(cause, alert)])
            return
        line = (target.name, alert.run_id)
        group = self._groups.setdefault(line, _Group(time.monotonic() + self._group_s))
        group.items.append((cause, alert))

    def _give_up(self, target: Target, items: Sequence[Item], error: Exception) -> None:
        """Make the events dead letters, and note which target is still to be told of them."""
        for cause, alert in items:
            if cause.place:
                self._owed.setdefault(cause.place, []).append(_Owed(target.name, alert))
            if not cause.given_up:
                cause.given_up = True
                self.fail(cause.event, cause.offset, error)
        for place in list(self._owed)[:-_OWED]:
            del self._owed[place]

    def _pay(self, cause: Cause) -> None:
        """Deliver, when a dead letter is tried again, what was given up: to those alone who lack it."""
        messages = [(self._target(owed.target), owed.alert) for owed in self._owed[cause.place]]
        del self._owed[cause.place]
        for target, alert in messages:
            self._deliveries.add(target, [(cause, alert)])

    def _target(self, name: str) -> Target:
        for target in self._targets:
            if target.name == name:
                return target
        raise UndeliveredError(f"there is no {name}: give the options that it was started with")

    def _log(self, alert: Alert) -> None:
        if alert.state == "firing":
            self.log.warning(alert.message, alert=alert.kind, run_id=alert.run_id)
        else:
            self.log.info(alert.message, **{alert.state: alert.kind}, run_id=alert.run_id)

    def _complain(self, what: str, error: BaseException | None) -> None:
        self.log.error(what, error=str(error))
