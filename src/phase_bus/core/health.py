"""What a process says of its health: checks and metrics, made from a snapshot that its loop leaves.

:mod:`phase_bus.core.health_server` offers them over HTTP, from threads that never touch the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol, TypeAlias

from phase_bus.core.address import Address
from phase_bus.errors import AddressError, ConfigError

_FORMS = "give a port, or HOST:PORT, such as 9464 or 10.0.0.5:9464; an IPv6 address goes in brackets"
LEAST_PATIENCE_S = 5.0  # a loop that has not turned for less is not called stuck

Values: TypeAlias = dict[tuple[str, ...], float]


class Metric(NamedTuple):
    """A metric with its values, by the values of its labels.

    Label values must be few: names of consumers, roles, reasons, and never of runs.
    """

    name: str
    kind: Literal["counter", "gauge"]
    text: str
    values: Values
    labels: tuple[str, ...] = ()


class Snapshot(Protocol):
    """What a loop leaves at each of its turns; nothing in it changes any more."""

    @property
    def taken_s(self) -> float:
        """When it was made, by :func:`time.monotonic`."""

    @property
    def patience_s(self) -> float:
        """After how many seconds without another one the loop is stuck."""

    @property
    def problem(self) -> str:
        """Why the process is not ready, in words that anybody may read; empty if it is."""

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics: always the same ones. It is called by another thread than the loop's."""


def parse_place(place: str) -> Address:
    """Return where to listen: on this machine only, unless the place names a host.

    Raises:
        ConfigError: if it is neither ``PORT`` nor ``HOST:PORT``.
    """
    try:
        return Address.parse(f"tcp://{place if ':' in place else f'127.0.0.1:{place}'}")
    except AddressError:
        raise ConfigError(f"--health {place!r}: not a place to listen at; {_FORMS}") from None


def nth_place(place: str, number: int) -> str:
    """Return the place of one of several processes, numbered from 1 on, that are given one place.

    Each has the next port; of port 0 each takes a free one.

    Raises:
        ConfigError: if there is no such port.
    """
    first = parse_place(place)
    port = first.port + number - 1 if first.port else 0
    if port > 65535:
        raise ConfigError(
            f"--health {place!r}: there are not {number} ports from there on; give a lower one"
        )
    return f"{first.host}:{port}"
