"""Where alerts go by Apprise: Slack, Teams, mail and a hundred others, each by an address of its own."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from phase_bus import ConfigError, Secret, printable
from phase_bus_consumers.alerting_conditions import Alert
from phase_bus_consumers.alerting_delivery import Target, UndeliveredError, in_thread
from phase_bus_consumers.extras import needs

with needs("alerting"):
    import apprise

_QUOTED = 200  # characters of what Apprise complains of
_HUNG_S = 60.0  # more than Apprise takes in all, which may wait between messages for a service's sake
_SHORTEST_SECRET = 3  # characters of an address's part that is never shown
_PLAIN = {"POST", "GET", "PUT", "text", "html", "yes"}  # options that Apprise writes into each address
_LONG = 6  # characters of one that is not shown within a word either


class Service(Target):
    """One address of Apprise's.

    Args:
        service: Apprise's object for it.
        name: which of the addresses, and of which kind.
        timeout_s: how long the other side may take to connect, and to answer.
    """

    groups = True
    states = ("firing", "resolved", "ended")

    def __init__(self, service: Any, name: str, timeout_s: float) -> None:
        self.name = name
        self._service = service
        service.socket_connect_timeout = service.socket_read_timeout = timeout_s
        self._hung_s = timeout_s * 2 + _HUNG_S
        self._busy = threading.Event()
        text = service.url(privacy=False).partition("://")[2]
        parts = {part for form in (text, unquote(text)) for part in re.split(r"[/@:?&=,;\s]+", form)}
        secrets = sorted(
            (part for part in parts if len(part) >= _SHORTEST_SECRET and part not in _PLAIN),
            key=len,
            reverse=True,
        )
        whole = (re.escape(part) if len(part) >= _LONG else rf"\b{re.escape(part)}\b" for part in secrets)
        self._secrets = re.compile("|".join(whole))

    async def send(self, alerts: Sequence[Alert]) -> None:
        title, body = message(alerts)
        firing = any(alert.state == "firing" for alert in alerts)
        resolved = any(alert.state == "resolved" for alert in alerts)
        kind = "warning" if firing else "success" if resolved else "info"
        if self._busy.is_set():
            raise UndeliveredError(f"{self.name}: it still has the last message in hand")

        def notify() -> tuple[bool, str]:
            with _Complaints() as complaints:
                done = self._service.notify(body=body, title=title, notify_type=apprise.NotifyType(kind))
            return bool(done), "; ".join(complaints.lines)

        try:
            done, why = await asyncio.wait_for(in_thread(notify, self._busy), self._hung_s)
        except TimeoutError:
            raise UndeliveredError(f"{self.name}: no answer within {self._hung_s:g} s") from None
        except Exception as error:
            why = self._plain(str(error))
            raise UndeliveredError(f"{self.name}: {type(error).__name__}: {why}") from None
        if not done:
            raise UndeliveredError(f"{self.name}: {self._plain(why) or 'it did not take the message'}")

    def _plain(self, text: str) -> str:
        """Return what Apprise says in one line, without any part of the address."""
        return printable(" ".join(self._secrets.sub("***", text).split()))[:_QUOTED]


def services(places: Sequence[Secret], timeout_s: float) -> list[Service]:
    """Read the addresses, one a line, or in Apprise's own YAML.

    Raises:
        ConfigError: if there is none in one of the places, or one that Apprise does not know.
    """
    logger = logging.getLogger("apprise")  # addresses may be in what it says: see _Complaints
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    logger.addHandler(logging.NullHandler())
    asset = apprise.AppriseAsset(app_id="phase-bus", app_desc="phase-bus")
    asset.http_redirects = False  # a message is not sent on: its success elsewhere would say nothing
    found: list[Service] = []
    for place in places:
        config, every = apprise.AppriseConfig(asset=asset), apprise.Apprise(asset=asset)
        with _Complaints() as complaints:
            config.add_config(place.value())
            every.add(config)
            here = list(every)
        if complaints.lines or not here:
            lines = re.findall(r"\bline (\d+)", " ".join(complaints.lines))
            raise ConfigError(
                f"notify: {place} has an address that Apprise does not know"
                + (f", in line {lines[0]}" if lines else "")
                + "; write one a line, such as slack://..., or Apprise's YAML"
            )
        for service in here:
            kind = printable(str(service.service_name)) or type(service).__name__
            found.append(Service(service, f"notify {len(found) + 1} ({kind})", timeout_s))
    return found


def message(alerts: Sequence[Alert]) -> tuple[str, str]:
    """Return title and body for changes of one run: the last one of each thing."""
    latest = {alert.key: alert for alert in alerts}.values()
    states = sorted({alert.state for alert in latest}, key=["firing", "resolved", "ended"].index)
    what = ", ".join(dict.fromkeys(alert.kind.replace("_", " ") for alert in latest))
    title = f"[{', '.join(states).upper()}] run {alerts[0].run_id}: {what}"
    return title, "\n".join(f"{alert.state.upper()}: {alert.message}" for alert in latest)


class _Complaints(logging.Handler):
    """What Apprise complains of in this thread, in place of its log: addresses may be in it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self.lines: list[str] = []

    def __enter__(self) -> _Complaints:
        logging.getLogger("apprise").addHandler(self)
        return self

    def __exit__(self, *_error: object) -> None:
        logging.getLogger("apprise").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.lines.append(record.getMessage())
