"""Addresses: the one thing a user gives to say where a bus is."""

from __future__ import annotations

import os
import re
import tempfile
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from phase_bus.core.control import Endpoint
from phase_bus.core.printable import printable
from phase_bus.errors import AddressError

ADDRESS_VARIABLE = "PHASE_BUS_ADDRESS"
"""The environment variable that says where the bus is."""
FORMS = "write ipc:///some/directory (group+ipc:// if it is shared with a group) or tcp://host:port"
_MAX_IPC_PATH = 107  # sun_path of a Unix socket, less its closing zero
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
