"""Keys: who is who on a bus that others than this machine can connect to.

The mechanism is ZeroMQ's CURVE (RFC 26 of the ZeroMQ project): Curve25519 keys, each 32 bytes, written as
40 characters of Z85 (RFC 32).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

KEY_FILE_VARIABLE = "PHASE_BUS_KEY_FILE"
"""The environment variable that names the key file; empty for no key."""

KeyRole: TypeAlias = Literal["publish", "consume", "admin"]


class Secret(str):
    """A text that shows itself nowhere by accident."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"


class Key(Struct, frozen=True, kw_only=True):
    """A key pair, and the public key of the bus that it is for.

    Attributes:
        bus: the public key of the bus to talk to; that of this key itself if bus and clients share it.
        path: the file it was read from.
    """

    public: str
    secret: Secret
    bus: str
    path: Path

    @property
    def is_of_bus(self) -> bool:
        """Whether a bus can be run with it: it is not that of another bus's client."""
        return self.bus == self.public


class Authorized(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client that a bus lets in.

    Attributes:
        name: who it is. What one client has named is its own: keys of one name stand for one client.
        public: its public key.
        roles: what it may do.
    """

    name: str
    public: str
    roles: tuple[KeyRole, ...]
