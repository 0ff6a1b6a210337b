"""Who may connect to a bus that has a key, and what for: a file beside that of the key."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from msgspec import Struct

from phase_bus.core.files import replacing
from phase_bus.core.key_files import read_yaml, unusable, write_new
from phase_bus.core.keys import Key, check_public
from phase_bus.errors import ConfigError, KeyFileError

KeyRole: TypeAlias = Literal["publish", "consume", "admin"]
ROLES: tuple[KeyRole, ...] = get_args(KeyRole)
OWN_NAME = "bus"
"""What a client is called that has the bus's own key."""

_AUTHORIZED = "authorized.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
_FOR_AUTHORIZED = """\
# Who may connect to the bus whose key file is beside this one, and what for: publish, consume, or admin.
# 'phase-bus keys authorize' and 'phase-bus keys revoke' write it; a running bus reads it anew.
"""


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


def authorized_file(key: Key) -> Path:
    """Return the file that says who may connect to the bus that has a key."""
    return key.path.with_name(_AUTHORIZED)


def read_authorized(path: Path) -> dict[str, Authorized]:
    """Return who may connect, by public key; nobody if there is no such file.

    Raises:
        KeyFileError: if it is malformed, or others than the user could have written it.
    """
    try:
        forbidden, remedy = stat.S_IWGRP | stat.S_IWOTH, f"chmod go-w {path}"
        clients = read_yaml(path, list[Authorized] | None, forbidden, "written to by others", remedy) or []
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[str, Authorized] = {}
    for client in clients:
        try:
            check_client(client)
        except ConfigError as error:
            raise KeyFileError(path, str(error), "mend it, or remove that entry") from None
        if found.setdefault(client.public, client) is not client:
            reason = f"has the key {client.public!r} twice"
            raise KeyFileError(path, reason, "remove one of the two entries")
    return found


def check_client(client: Authorized) -> None:
    """Check what is said of a client.

    Raises:
        ConfigError: if its name, key or roles are not such.
    """
    check_public(client.public)
    if not _NAME.fullmatch(client.name):
        raise ConfigError(f"name {client.name!r}: use at most 64 letters, digits and _ . @ + -")
    if client.name == OWN_NAME:
        raise ConfigError(f"name {client.name!r}: stands for the bus's own key; use another one")
    if not client.roles:
        raise ConfigError(f"client {client.name!r} has no role; give one or more of {', '.join(ROLES)}")


def authorize(path: Path, client: Authorized) -> Authorized | None:
    """Let a client in, and return what was said of its key before, if anything.

    Raises:
        KeyFileError: if the file cannot be read or written.
        ConfigError: if name, key or roles of the client are not such.
    """
    check_client(client)
    with _changing(path) as clients:
        before = clients.get(client.public)
        clients[client.public] = client
    return before


def revoke(path: Path, name_or_public: str) -> list[Authorized]:
    """Let a client no longer in; return what was said of it, a key each, which is nothing if it is unknown.

    Raises:
        KeyFileError: if the file cannot be read or written.
    """
    with _changing(path) as clients:
        gone = [each for each in clients.values() if name_or_public in (each.name, each.public)]
        for each in gone:
            del clients[each.public]
    return gone


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Authorized]]:
    """Give who may connect, to be changed; nobody else changes it meanwhile."""
    path = Path(os.path.realpath(path))  # a link stays one
    try:
        with path.with_name(f".{path.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            clients = read_authorized(path)
            before = dict(clients)
            yield clients
            if clients != before:
                _replace(path, clients.values())
    except (OSError, ValueError) as error:
        raise unusable(path, error, "written") from None


def _replace(path: Path, clients: Iterable[Authorized]) -> None:
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    entries = [
        f"- name: '{each.name}'\n  public: '{each.public}'\n  roles: [{', '.join(each.roles)}]\n"
        for each in clients
    ]
    with replacing(path) as aside:
        write_new(aside, "".join([_FOR_AUTHORIZED, *entries]))
        aside.chmod(mode)
