"""Addresses: the one thing a user gives to say where a bus is."""

from __future__ import annotations

import os
import re
import tempfile
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from phase_bus.core.control import Endpoint
from phase_bus.core.printable import printable
from phase_bus.errors import AddressError

ADDRESS_VARIABLE = "PHASE_BUS_ADDRESS"
"""The environment variable that says where the bus is."""
FORMS = "write ipc:///some/directory (group+ipc:// if it is shared with a group) or tcp://host:port"
_MAX_IPC_PATH = 107  # sun_path of a Unix socket, less its closing zero
_FORWARD = (
    "give the address of a bus here, and have that one forward: phase-bus bus --forward nats://HOST:4222"
)
_STREAM_FORMS = "write nats://HOST:PORT, tls://HOST:PORT, several hosts by commas, and /STREAM after them"
_NATS_PORT = 4222
_STREAM = re.compile(r"[A-Za-z0-9_-]{1,100}")
_PORT = re.compile(r"[0-9]{1,5}")
_NAME = re.compile(r"[A-Za-z0-9_.-]*[A-Za-z_-][A-Za-z0-9_.-]*")


class Address(Struct, frozen=True):
    """Where a bus is: a directory of Unix sockets, or a host and port.

    Attributes:
        port: that of the control socket; 0 lets the system choose when binding.
        direct: whether there is no bus, but a publisher in direct mode.
        shared: whether the directory is shared with its group on purpose; else it is one user's alone.
    """

    scheme: Literal["ipc", "tcp"]
    directory: str = ""
    host: str = ""
    port: int = 0
    direct: bool = False
    shared: bool = False

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address: ``ipc://DIRECTORY``, ``group+ipc://DIRECTORY``, ``tcp://HOST:PORT``.

        Before each there may be ``direct+``.

        Raises:
            AddressError: if it is malformed.
        """
        if StreamAddress.is_meant(text):
            raise AddressError(text, "is of NATS, which no benchmark and no bus speaks to", _FORWARD)
        direct = text.startswith("direct+")
        prefixed, separator, rest = text.removeprefix("direct+").partition("://")
        scheme = prefixed.removeprefix("group+")
        shared = scheme != prefixed
        if not separator or scheme not in ("ipc", "tcp"):
            raise AddressError(text, "not an address", FORMS)
        if shared and scheme == "tcp":
            raise AddressError(text, "only a directory can be shared with a group", "leave 'group+' out")
        if scheme == "ipc":
            if not rest:
                raise AddressError(text, "names no directory", FORMS)
            try:
                directory = str(Path(rest).expanduser().absolute())
            except (RuntimeError, ValueError) as error:  # no home directory to put for a ~
                raise AddressError(text, str(error), FORMS) from None
            check_socket_path(text, f"{directory}/control.ipc")
            return cls("ipc", directory=directory, direct=direct, shared=shared)
        host, _, port = rest.rpartition(":")
        if not _is_host(host):
            raise AddressError(text, "names no host and port", f"{FORMS}; an IPv6 address goes in brackets")
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise AddressError(text, f"{port!r} is not a port (0 to 65535)", FORMS)
        return cls("tcp", host=host, port=int(port), direct=direct)

    def __str__(self) -> str:
        """Return the address as a user writes it."""
        where = self.directory if self.scheme == "ipc" else f"{self.host}:{self.port}"
        prefix = f"{'direct+' if self.direct else ''}{'group+' if self.shared else ''}"
        return f"{prefix}{self.scheme}://{where}"

    @property
    def control(self) -> str:
        """The ZeroMQ endpoint of the bus's control socket."""
        return self.endpoint(Endpoint(ipc_name="control.ipc", tcp_port=self.port))

    @property
    def direct_events(self) -> str:
        """The ZeroMQ endpoint of a publisher in direct mode."""
        return self.endpoint(Endpoint(ipc_name="events.ipc", tcp_port=self.port))

    def endpoint(self, endpoint: Endpoint) -> str:
        """Return the ZeroMQ endpoint of another of the bus's sockets."""
        if self.scheme == "ipc":
            return f"ipc://{self.directory}/{endpoint.ipc_name}"
        return f"tcp://{self.host}:{endpoint.tcp_port}"

    @property
    def is_wildcard(self) -> bool:
        """Whether it stands for every address of a machine."""
        return self.scheme == "tcp" and self.host != self._reachable_host

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect to it. A name but ``localhost`` may mean any interface."""
        if self.scheme == "ipc" or self.host.lower() in ("localhost", "lo", "lo0"):
            return True
        try:
            return ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def connectable(self) -> Address:
        """Return where a client connects to: this machine, if the address stands for every one of it.

        Raises:
            AddressError: if the port is any free one.
        """
        if self.scheme == "tcp" and self.port == 0:
            raise AddressError(
                str(self), "can be bound, but not connected to", "give the host and port of the bus"
            )
        return replace(self, host=self._reachable_host)

    @property
    def _reachable_host(self) -> str:
        if self.host in ("*", "0.0.0.0"):  # noqa: S104 - nothing is bound here
            return "127.0.0.1"
        if self.host.startswith("[") and IPv6Address(self.host[1:-1]).is_unspecified:
            return "[::1]"
        return self.host


class StreamAddress(Struct, frozen=True):
    """Where a stream in NATS JetStream is, which holds what buses forward to it.

    Attributes:
        servers: a host and port each.
        stream: the stream's name.
        tls: whether the servers are spoken to with TLS only.
        direct: never; an :class:`Address` may be.
    """

    servers: tuple[str, ...]
    stream: str = "phase-bus"
    tls: bool = False
    direct: ClassVar[bool] = False

    @staticmethod
    def is_meant(text: str) -> bool:
        """Return whether a text is meant as one."""
        return text.startswith(("nats://", "tls://"))

    @classmethod
    def parse(cls, text: str) -> StreamAddress:
        """Read an address: ``nats://HOST:PORT``, more hosts after commas, and ``/STREAM`` if it has a name.

        Raises:
            AddressError: if it is malformed. Passwords have no place in it.
        """
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in ("nats", "tls"):
            raise AddressError(text, "not an address of NATS", _STREAM_FORMS)
        if "@" in rest:
            shown = f"{scheme}://...{rest[rest.rindex('@') :]}"
            raise AddressError(
                shown,
                "has a user in it",
                "leave that out, and give NATS_CREDS, or NATS_USER and NATS_PASSWORD",
            )
        hosts, _, stream = rest.partition("/")
        if stream and not _STREAM.fullmatch(stream):
            raise AddressError(
                text, f"{stream!r} is no name of a stream", "use letters, digits, '_' and '-'"
            )
        servers = []
        for each in hosts.split(","):
            host, colon, port = each.rpartition(":") if not each.endswith("]") else (each, "", "")
            host, port = (host, port) if colon else (each, str(_NATS_PORT))
            if host == "*" or not _is_host(host):
                raise AddressError(text, f"{each!r} is no host and port", _STREAM_FORMS)
            if not _PORT.fullmatch(port) or not 0 < int(port) <= 65535:
                raise AddressError(text, f"{port!r} is not a port (1 to 65535)", _STREAM_FORMS)
            servers.append(f"{host}:{int(port)}")
        return cls(tuple(servers), stream=stream or "phase-bus", tls=scheme == "tls")

    def __str__(self) -> str:
        """Return the address as a user writes it."""
        name = "" if self.stream == "phase-bus" else f"/{self.stream}"
        return f"{'tls' if self.tls else 'nats'}://{','.join(self.servers)}{name}"

    def connectable(self) -> StreamAddress:
        """Return itself."""
        return self


AnyAddress: TypeAlias = Address | StreamAddress


def parse_any(text: str) -> AnyAddress:
    """Read the address of a bus, or of a stream that buses forward to.

    Raises:
        AddressError: if it is malformed.
    """
    return StreamAddress.parse(text) if StreamAddress.is_meant(text) else Address.parse(text)


def check_socket_path(text: str, path: str) -> None:
    """Raise an :class:`AddressError`, which quotes a text, unless a Unix socket may be called so."""
    if printable(path) != path:  # ZeroMQ takes UTF-8 without zeros; the rest would spoil messages
        raise AddressError(text, "the path has control characters, or is not UTF-8", "use another one")
    over = len(os.fsencode(path)) - _MAX_IPC_PATH
    if over > 0:
        raise AddressError(text, f"the path is {over} bytes too long for a socket", "use a shorter one")


def _is_host(host: str) -> bool:
    """Whether it is ``*``, an IPv4 address, an IPv6 address in brackets, or may be a host's name."""
    if host == "*" or (len(host) < 256 and _NAME.fullmatch(host)):
        return True
    try:
        if host.startswith("[") and host.endswith("]"):
            IPv6Address(host[1:-1])
            return printable(host) == host
        IPv4Address(host)
    except ValueError:
        return False
    return True


def default_address() -> str:
    """Return the address to use where none is given: the environment's, or one in the user's directory."""
    given = os.environ.get(ADDRESS_VARIABLE)
    if given:
        return given
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) if runtime else Path(tempfile.gettempdir())
    name = "phase-bus" if runtime else f"phase-bus-{os.getuid()}"
    return f"ipc://{base / name}"
