"""A connection to NATS: who we are there, and what its troubles are called here."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js import JetStreamContext

from phase_bus.core.address import StreamAddress
from phase_bus.core.throttle import Throttle
from phase_bus.errors import AddressError, ConfigError, PhaseBusError

logger = logging.getLogger("phase_bus.jetstream")

MOVED, UNDER_WAY = 10071, 10164
"""What a server says to a change on a condition: another message is the last one, or may become it."""
TRIES, AGAIN_S = 20, 0.02
"""How often, and after how many seconds, to try again where nothing came of what was under way."""
OLDEST_SERVER = (2, 12)  # the first that appends several messages as one, on a condition
_CONNECT_S = 5.0
_ASK_S = 5.0  # how long one request may take
_PENDING_BYTES = 64 << 20  # of what waits to be sent while there is no connection


_FULL = frozenset((10023, 10028, 10047))  # resources, memory, storage


class NatsUnreachableError(PhaseBusError):
    """No NATS server answers, or it answers too late: what was asked may be done or not."""

    def __init__(self, address: StreamAddress, reason: str) -> None:
        self.address = address
        super().__init__(
            f"NATS at {str(address)!r} does not answer: {reason}; start nats-server with JetStream, or "
            "check the address"
        )


class NatsFullError(NatsUnreachableError):
    """A NATS server takes nothing in, for want of room."""

    def __init__(self, address: StreamAddress, reason: str) -> None:
        self.address = address
        PhaseBusError.__init__(
            self,
            f"NATS at {str(address)!r} takes nothing in: {reason}; give JetStream more room, or let its "
            "streams forget what is old",
        )


@contextmanager
def asking(address: StreamAddress) -> Iterator[None]:
    """Tell of what goes wrong with requests in words of our own.

    Raises:
        NatsUnreachableError: no answer in time: what was asked may be done or not.
        PhaseBusError: the server refuses what was asked.
    """
    try:
        yield
    except nats.js.errors.ServiceUnavailableError as error:
        if error.err_code in _FULL:
            raise NatsFullError(address, error.description or "no room") from None
        raise NatsUnreachableError(address, error.description or "JetStream is not available") from None
    except nats.js.errors.APIError as error:
        reason = f"{error.description} (code {error.err_code})"
        raise PhaseBusError(f"NATS at {str(address)!r} refuses a request: {reason}") from None
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise NatsUnreachableError(address, str(error) or type(error).__name__) from None


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task that speaks to NATS, and wait until it has ended; raise what it raised.

    Waiting for an answer, nats-py may swallow that it is cancelled: then the task has to see by itself that
    it is to end.
    """
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class Connection:
    """A connection to the servers of an address, which is made again whenever it breaks.

    Attributes:
        address: where.
        client: nats-py's client.
        complaints: tells what several on it would say at once.
        js: its requests to JetStream.
        ask_s: how long one of these may take.
    """

    ask_s = _ASK_S

    def __init__(self, address: StreamAddress, client: Client) -> None:
        self.address = address
        self.client = client
        self.complaints = Throttle(logger)
        self.js: JetStreamContext = client.jetstream(timeout=_ASK_S)

    @property
    def max_payload_bytes(self) -> int:
        """The size of a message that the server takes at most."""
        return int(self.client.max_payload)

    @property
    def reconnects(self) -> int:
        """How often it was made again."""
        return int(self.client.stats["reconnects"])

    async def close(self) -> None:
        """Close it, without waiting for what is under way."""
        with suppress(nats.errors.Error, OSError):  # the server is gone already
            await self.client.close()


@asynccontextmanager
async def connected(address: StreamAddress, name: str) -> AsyncIterator[Connection]:
    """Connect, and close the connection at the end: see :func:`connect`."""
    connection = await connect(address, name)
    try:
        yield connection
    finally:
        await connection.close()


async def connect(address: StreamAddress, name: str, *, timeout_s: float = _CONNECT_S) -> Connection:
    """Connect to one of the servers of an address.

    Who we are is what the environment says, by the names that NATS's own tools use: ``NATS_CREDS``,
    ``NATS_NKEY`` (files), ``NATS_USER`` and ``NATS_PASSWORD``, ``NATS_TOKEN``; for TLS ``NATS_CA``,
    ``NATS_CERT`` and ``NATS_KEY``.

    Args:
        name: what the server is to call the connection.
        timeout_s: how long it is tried.

    Raises:
        NatsUnreachableError: no server answers in time.
        ConfigError: the server does not let us in, is too old, or a file that is named is no good.
    """
    complaints = Throttle(logger)
    trouble: list[str] = []  # what was in the way of the first connection
    was_connected = False
    said: set[str] = set()  # since the connection is there, or gone; it is tried each second for hours

    async def on_error(error: Exception) -> None:
        reason = str(error) or type(error).__name__
        if not was_connected:
            trouble.append(reason)
        elif reason not in said:
            said.add(reason)
            complaints.warn("NATS at %s: %s", address, reason)

    async def on_disconnect() -> None:
        if client.is_closed:
            return  # by us
        complaints.warn("NATS at %s: the connection is lost; connecting again", address)

    async def on_reconnect() -> None:
        said.clear()
        logger.info("NATS at %s: connected again", address)

    options = _credentials(address)
    scheme = "tls" if address.tls else "nats"
    client = Client()
    try:
        async with asyncio.timeout(timeout_s):
            await client.connect(
                [f"{scheme}://{server}" for server in address.servers],
                name=f"phase-bus {name}",
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=on_reconnect,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                connect_timeout=2,
                ping_interval=5,
                max_outstanding_pings=2,
                pending_size=_PENDING_BYTES,
                **options,
            )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        await client.close()
        reason = trouble[-1] if trouble else str(error) or "no connection in time"
        if denied := next((each for each in trouble if "authorization" in each.lower()), None):
            raise ConfigError(
                f"NATS at {str(address)!r} does not let us in: {denied}; set NATS_CREDS, NATS_NKEY, "
                "NATS_TOKEN, or NATS_USER and NATS_PASSWORD"
            ) from None
        raise NatsUnreachableError(address, reason) from None
    was_connected = True
    version = client.connected_server_version
    if (version.major, version.minor) < OLDEST_SERVER:
        await client.close()
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise ConfigError(
            f"NATS at {str(address)!r} is version {version.major}.{version.minor}, which cannot append on "
            f"a condition; run nats-server {oldest} or newer"
        )
    return Connection(address, client)


def _credentials(address: StreamAddress) -> dict[str, Any]:
    """Return what nats-py is to connect with.

    Raises:
        ConfigError: a file cannot be used.
    """
    given = {name: os.environ.get(f"NATS_{name.upper()}", "") for name in _NAMES}
    options: dict[str, Any] = {}
    for name, option in (("creds", "user_credentials"), ("nkey", "nkeys_seed")):
        if given[name]:
            options[option] = str(_readable(given[name], f"NATS_{name.upper()}"))
    for name in ("user", "password", "token"):
        if given[name]:
            options[name] = given[name]
    if address.tls or given["ca"] or given["cert"]:
        try:
            context = ssl.create_default_context(cafile=given["ca"] or None)
            if given["cert"]:
                context.load_cert_chain(given["cert"], given["key"] or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"NATS_CA, NATS_CERT and NATS_KEY: {error}; name files of PEM, which this user can read"
            ) from None
        options["tls"] = context
    return options


_NAMES = ("creds", "nkey", "user", "password", "token", "ca", "cert", "key")


def _readable(text: str, variable: str) -> Path:
    path = Path(text).expanduser()
    try:
        path.open("rb").close()
    except OSError as error:
        raise AddressError(
            text, f"{variable}: {error.strerror}", "name a file that this user can read"
        ) from None
    return path
