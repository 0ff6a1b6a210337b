"""Where alerts go without a library of others: a command, a webhook, PagerDuty."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import os
import re
import shlex
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import msgspec

from phase_bus import ConfigError, PhaseBusError, Secret, printable
from phase_bus_consumers.alerting_conditions import Alert
from phase_bus_consumers.alerting_delivery import RejectedError, Target, UndeliveredError, in_thread

_QUOTED = 300  # characters of an answer
_LONGEST_VARIABLE = 100_000  # bytes; Linux takes 128 KiB
_MOST_HUNG = 20  # requests that were given up, and go on: their server sends an answer that has no end
_SUMMARY = 1024  # characters that PagerDuty takes
_LONGEST_KEY = 255  # characters, likewise
_SEVERITIES = {
    "run_failed": "critical",
    "run_lost": "critical",
    "error_rate": "error",
    "threshold": "error",
    "phase_timeout": "error",
}

_hung: set[threading.Event] = set()


class Command(Target):
    """A program that is run for each alert."""

    name = "command"

    def __init__(self, command: str, timeout_s: float) -> None:
        self._command = shlex.split(command)
        self._timeout_s = timeout_s

    async def start(self) -> None:
        command = self._command
        if shutil.which(next(iter(command), "")) is None:
            raise ConfigError(
                f"command: {shlex.join(command)!r} does not begin with a program that can be run; "
                "give its full path with command=..."
            )

    async def send(self, alerts: Sequence[Alert]) -> None:
        command, body = self._command, msgspec.json.encode(alerts[0])
        environment = dict(os.environ)
        if len(body) <= _LONGEST_VARIABLE:  # standard input has it in any case
            environment["PHASE_BUS_ALERT"] = body.decode()
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
            await asyncio.wait_for(process.communicate(body), self._timeout_s)
        except TimeoutError:
            raise UndeliveredError(
                f"command {command[0]!r} took longer than {self._timeout_s:g} s"
            ) from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            raise UndeliveredError(f"command {command[0]!r} failed with exit code {process.returncode}")


class Webhook(Target):
    """An address that is sent each alert as JSON, or as a CloudEvent, and signed if there is a secret.

    Args:
        url: the address, or where it is.
        secret: what the signature is made with, as the Standard Webhooks specification has it.
        source: who sends it.
    """

    name = "webhook"

    def __init__(
        self, url: str, timeout_s: float, cloudevents: bool, secret: Secret | None, source: str = ""
    ) -> None:
        is_place = url.startswith(("env:", "file:")) and not url.startswith("file://")
        self._url = Secret(url) if is_place else None
        self._plain_url = "" if self._url else _checked("webhook", url)
        self._timeout_s = timeout_s
        self._cloudevents = cloudevents
        self._secret = secret
        self.source = source
        if cloudevents:
            self.states = ("firing", "resolved", "ended")

    async def start(self) -> None:
        try:
            self._address()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if self._secret is not None:
            _key_of(self._secret)

    async def send(self, alerts: Sequence[Alert]) -> None:
        (alert,) = alerts
        headers = {"Content-Type": "application/json"}
        identifier = f"{alert.key}/{alert.state}/{alert.ts_ns}"
        body = msgspec.json.encode(alert)
        if self._cloudevents:
            headers["Content-Type"] = "application/cloudevents+json; charset=utf-8"
            body = msgspec.json.encode(cloud_event(alert, identifier, self.source))
        try:
            if self._secret is not None:
                headers |= signature(identifier, int(time.time()), body, _key_of(self._secret))
            url = self._address()
        except (PhaseBusError, ValueError) as error:
            raise UndeliveredError(f"webhook: {error}") from error
        # Only the host: the rest of a webhook's address is often a secret.
        await _post(f"webhook at {urlsplit(url).hostname}", url, body, headers, self._timeout_s)

    def _address(self) -> str:
        return _checked(f"webhook: {self._url}", self._url.value()) if self._url else self._plain_url


class PagerDuty(Target):
    """An incident for each alert, by PagerDuty's Events API v2; it is resolved when the alert is over.

    Args:
        routing_key: the integration key of a service.
        url: where events are sent.
        source: who sends them.
    """

    name = "pagerduty"
    states = ("firing", "resolved")

    def __init__(self, routing_key: Secret, url: str, timeout_s: float, source: str = "") -> None:
        self._routing_key = routing_key
        self._url = _checked("pagerduty_url", url)
        self._timeout_s = timeout_s
        self.source = source

    async def start(self) -> None:
        self._routing_key.value()

    async def send(self, alerts: Sequence[Alert]) -> None:
        (alert,) = alerts
        try:
            key = self._routing_key.value()
        except PhaseBusError as error:
            raise UndeliveredError(f"pagerduty: {error}") from error
        event = {
            "routing_key": key,
            "event_action": "trigger" if alert.state == "firing" else "resolve",
            "dedup_key": _short_key(alert.key),
            "client": "phase-bus",
            "payload": {
                "summary": alert.message[:_SUMMARY],
                "source": self.source,
                "severity": _SEVERITIES.get(alert.kind, "warning"),
                "timestamp": _rfc3339(alert.ts_ns),
                "component": alert.phase,
                "group": alert.run_id,
                "class": alert.kind,
                "custom_details": alert.details,
            },
        }
        host = urlsplit(self._url).hostname
        headers = {"Content-Type": "application/json"}
        body = msgspec.json.encode(event)
        await _post(f"PagerDuty at {host}", self._url, body, headers, self._timeout_s, hidden=key)


def cloud_event(alert: Alert, identifier: str, source: str) -> dict[str, Any]:
    """Return an alert as a CloudEvent 1.0, structured mode."""
    what = "run" if alert.kind == "run_end" else "alert"
    return {
        "specversion": "1.0",
        "id": identifier,
        "source": source,
        "type": f"phase-bus.{what}.{alert.state}",
        "subject": f"{alert.run_id}/{alert.phase}" if alert.phase else alert.run_id,
        "time": _rfc3339(alert.ts_ns),
        "datacontenttype": "application/json",
        "data": alert,
    }


def signature(identifier: str, timestamp_s: int, body: bytes, key: bytes) -> dict[str, str]:
    """Return the headers that sign a body, and when it was sent, by the Standard Webhooks specification."""
    signed = b"%s.%d.%s" % (identifier.encode(), timestamp_s, body)
    code = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return {
        "webhook-id": identifier,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{code}",
    }


def _key_of(secret: Secret) -> bytes:
    """Read the key of signatures: after ``whsec_`` it is in base64, anything else is the key itself."""
    text = secret.value()
    if not text.startswith("whsec_"):
        return text.encode()
    try:
        return base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        raise ConfigError(f"webhook_secret: what {secret} has after whsec_ is no base64") from None


def _checked(option: str, url: str) -> str:
    """Return an address.

    Raises:
        ValueError: if it is none. It is not repeated.
    """
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        good = False
    if not good or re.search(r"[\0-\x20\x7f]", url):
        raise ValueError(f"{option} must be an address that begins with http:// or https://")
    return url


def _short_key(key: str) -> str:
    return key if len(key) <= _LONGEST_KEY else hashlib.sha256(key.encode()).hexdigest()


def _rfc3339(ts_ns: int) -> str:
    seconds, ns = divmod(ts_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns // 1000:06}Z"


class _NotElsewhere(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: after it there would be no body, and somebody else would see the headers."""

    def redirect_request(self, *_: Any) -> None:
        return None


async def _post(
    whom: str, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float, hidden: str = ""
) -> None:
    """Send something by POST.

    Raises:
        RejectedError: it is wrong, and will be the next time.
        UndeliveredError: it did not arrive.
    """
    # Its scheme is http or https: others were refused with the options.
    request = urllib.request.Request(url, body, dict(headers), method="POST")  # noqa: S310

    def send() -> None:
        with urllib.request.build_opener(_NotElsewhere).open(request, timeout=timeout_s):
            pass

    _hung.difference_update([each for each in _hung if not each.is_set()])
    if len(_hung) >= _MOST_HUNG:
        raise UndeliveredError(f"{whom}: {len(_hung)} requests before have not come to an end")
    busy = threading.Event()
    within_s = 2 * timeout_s  # to connect, and to answer
    try:
        # The time-out of the request itself begins anew with each byte of an answer.
        await asyncio.wait_for(in_thread(send, busy), within_s)
    except TimeoutError:
        _hung.add(busy)
        raise UndeliveredError(f"{whom}: no answer within {within_s:g} s") from None
    except HTTPError as error:
        with error:  # it holds the connection
            said = error.read(_QUOTED).decode(errors="replace") if hidden else ""
        said = printable(" ".join(said.replace(hidden or "\0", "***").split()))
        kind = RejectedError if hidden and error.code == 400 else UndeliveredError
        raise kind(f"{whom}: {error}" + (f": {said}" if said else "")) from None
    except (OSError, HTTPException, ValueError) as error:
        raise UndeliveredError(f"{whom}: {error}") from error
