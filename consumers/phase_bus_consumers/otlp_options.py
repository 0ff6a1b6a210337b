"""The options of the ``otlp`` sink: addresses and headers, and what the environment says about them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args
from urllib.parse import unquote

from phase_bus import Secret
from phase_bus_consumers.extras import needs
from phase_bus_consumers.otlp_values import Signal

with needs("otlp"):
    from phase_bus_consumers.http import header

_STANDARD = "OTEL_EXPORTER_OTLP"
_DEFAULT_URL = "http://localhost:4318"


def chosen_signals(signals: str) -> list[Signal]:
    """Return the signals that an option names.

    Raises:
        ValueError: if there is no such signal, or none is named.
    """
    known: tuple[Signal, ...] = get_args(Signal)
    names = {name.strip() for name in signals.split(",")} - {""}
    unknown = sorted(names.difference(known))
    if unknown or not names:
        raise ValueError(f"signals are {', '.join(known)}, not {', '.join(unknown) or 'none of them'}")
    return [signal for signal in known if signal in names]


def addresses(
    url: str | None, own: Mapping[str, str | None], signals: Sequence[Signal]
) -> dict[Signal, str]:
    """Return the address for each signal.

    With addresses of their own for some signals, and none for all, the other signals are not sent.
    """
    found: dict[Signal, str] = {}
    for signal in signals:
        variable = os.environ.get(f"{_STANDARD}_{signal.upper()}_ENDPOINT")
        address = own[signal] or (variable if url is None else None)
        if address:
            found[signal] = address
    base = url or os.environ.get(f"{_STANDARD}_ENDPOINT") or ("" if found else _DEFAULT_URL)
    if base:
        found = {signal: found.get(signal) or f"{base.rstrip('/')}/v1/{signal}" for signal in signals}
    return found


class _StandardHeader(Secret):
    """A header in the environment variable that OpenTelemetry has for them, all of which are secrets."""

    def __init__(self, name: str) -> None:
        super().__init__(f"env:{_STANDARD}_HEADERS")
        self._name = name

    def value(self) -> str:
        """Read it."""
        return pairs(super().value()).get(self._name, "")


def headers_of(given: str) -> dict[str, str | Secret]:
    """Return the headers that are given, or those of the environment.

    Raises:
        ValueError: if one is given in clear that looks as if it were a secret.
    """
    if not given:
        return {name: _StandardHeader(name) for name in pairs(os.environ.get(f"{_STANDARD}_HEADERS", ""))}
    return {name: header(name, value) for name, value in _split(given, ",;")}


def pairs(listed: str) -> dict[str, str]:
    """Return ``name=value,name=value`` of an environment variable, with %-signs for odd characters.

    Raises:
        ValueError: if it is written otherwise.
    """
    return {name: unquote(value) for name, value in _split(listed)}


def _split(listed: str, separators: str = ",") -> Iterator[tuple[str, str]]:
    for pair in filter(None, map(str.strip, re.split(f"[{separators}]", listed))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ValueError("headers and attributes are written name=value,name=value")
        yield name.strip(), value.strip()
