"""Keys: who is who on a bus that others than this machine can connect to.

The mechanism is ZeroMQ's CURVE (RFC 26 of the ZeroMQ project): Curve25519 keys, each 32 bytes, written as
40 characters of Z85 (RFC 32). No secret is ever part of a message, so that none comes to a terminal or log.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, get_args

import msgspec
import zmq
from msgspec import Struct

from phase_bus.core.address import Address
from phase_bus.core.files import replacing
from phase_bus.errors import AddressError, ConfigError, KeyFileError

KEY_FILE_VARIABLE = "PHASE_BUS_KEY_FILE"
"""The environment variable that names the key file; empty for no key."""

KeyRole: TypeAlias = Literal["publish", "consume", "admin"]
ROLES: tuple[KeyRole, ...] = get_args(KeyRole)
OWN_NAME = "bus"
"""What a client is called that has the bus's own key."""

_GUARD = (
    "make one with 'phase-bus keys new'; then copy that file to your other machines, or let others in with "
    "'phase-bus keys authorize PUBLIC --name NAME --role publish'; --insecure does without"
)
_AUTHORIZED = "authorized.yaml"
_MAX_BYTES = 4 << 20
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_KEY_LENGTH = 40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,63}")
_UNKNOWN = re.compile(r"unknown field `.*`(?= - at |$)", re.DOTALL)
_FOR_BUS = """\
# The key of a phase-bus bus, and of everybody who has this file: they may do everything on that bus.
# For your own machines only; to let others in, see 'phase-bus keys authorize --help'.
"""
_FOR_CLIENT = """\
# A key for somebody else's phase-bus bus, whose owner lets it in with 'phase-bus keys authorize'.
# For its owner's eyes only: what others do with it, they do under its owner's name.
"""
_FOR_AUTHORIZED = """\
# Who may connect to the bus whose key file is beside this one, and what for: publish, consume, or admin.
# 'phase-bus keys authorize' and 'phase-bus keys revoke' write it; a running bus reads it anew.
"""


class Secret(str):
    """A text that shows itself nowhere by accident; ``encode()`` gives it away."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<secret>"

    def __str__(self) -> str:
        return "<secret>"

    def __format__(self, _spec: str) -> str:
        return "<secret>"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a secret is not to be copied or pickled: hand on the name of the key file")


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


class _KeyFile(Struct, forbid_unknown_fields=True):
    public: str
    secret: str
    bus: str | None = None


# ---- key files ----


def default_key_file() -> Path:
    """Return where the user's key file is, if there is one.

    Raises:
        KeyFileError: if the user has no home directory.
    """
    config = os.environ.get("XDG_CONFIG_HOME", "")
    base = config if config.startswith("/") else "~/.config"
    return _expanded(Path(base, "phase-bus", "key.yaml"))


def find_key(given: str | Path | None = None) -> Key | None:
    """Return the key of a file that is named, or by $PHASE_BUS_KEY_FILE, or of the user's own, if any.

    Raises:
        KeyFileError: if the file that is named does not exist, or any of them is not fit for use.
    """
    named = os.environ.get(KEY_FILE_VARIABLE) if given is None else given
    if named is not None:
        return read_key(Path(named)) if str(named) else None
    try:
        path = default_key_file()
    except KeyFileError:  # no home directory, so no file in it
        return None
    with suppress(FileNotFoundError, NotADirectoryError):
        return _read_key(path)
    return None


def key_for(address: Address, given: str | Path | None = None) -> Key | None:
    """Return the key to show to the bus at an address: over ipc none is asked for.

    Raises:
        KeyFileError: as :func:`find_key`.
    """
    return find_key(given) if address.scheme == "tcp" and not address.direct else None


def check_guarded(address: Address, key: Key | None, *, insecure: bool, remedy: str = _GUARD) -> None:
    """Check that what is to be bound lets no stranger in, unless that is wanted.

    Raises:
        AddressError: if other machines can connect to it, and no key keeps them out.
        KeyFileError: if the key is that of a client of another bus.
    """
    if key is not None and not key.is_of_bus:
        raise KeyFileError(
            key.path,
            "is for a client of another bus",
            f"make one for a bus with 'phase-bus keys new FILE', and give it by {KEY_FILE_VARIABLE}=FILE",
        )
    if key is None and not insecure and not address.is_loopback:
        reason = "others than this machine can connect to it, and there is no key that keeps strangers out"
        raise AddressError(str(address), reason, remedy)


def check_all_guarded(addresses: Sequence[Address], key: Key | None, *, insecure: bool) -> None:
    """Check that what a bus is to bind lets no stranger in, unless that is wanted.

    Raises:
        AddressError: as :func:`check_guarded`; or if who shares the directory of one could come by another,
            where nothing tells who it is.
        KeyFileError: if the key is that of a client of another bus.
    """
    for address in addresses:
        check_guarded(address, key, insecure=insecure)
    by_tcp = [address for address in addresses if address.scheme == "tcp"]
    if key is None and not insecure and by_tcp and any(address.shared for address in addresses):
        reason = "whoever shares the group's directory could do everything there, since there is no key"
        raise AddressError(str(by_tcp[0]), reason, _GUARD)


def read_key(path: Path) -> Key:
    """Return the key of a file.

    Raises:
        KeyFileError: if there is none, it is malformed, or others than the user could have read it.
    """
    path = _expanded(path)
    try:
        return _read_key(path)
    except (FileNotFoundError, NotADirectoryError):
        remedy = f"name another one, or make one with 'phase-bus keys new {path}'"
        raise KeyFileError(path, "does not exist", remedy) from None


def write_new_key(path: Path, bus: str = "") -> Key:
    """Make a key and write it to a new file that only the user can read.

    Args:
        bus: the public key of the bus that it is for; without one it is that of a bus itself.

    Raises:
        KeyFileError: if the file is there already, or cannot be written.
        ConfigError: if ``bus`` is no public key.
    """
    path = _expanded(path)
    if bus:
        check_public(bus)
    public, secret = _new_pair()
    text = (_FOR_CLIENT if bus else _FOR_BUS) + f"public: '{public}'\nsecret: '{secret.decode()}'\n"
    if bus:
        text += f"bus: '{bus}'\n"
    try:
        with suppress(FileExistsError):  # no directory: the next line says so
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_new(path, text)
    except FileExistsError:
        remedy = f"'phase-bus keys show {path}' shows its public key; give another file for another key"
        raise KeyFileError(path, "exists already, and is not overwritten", remedy) from None
    except (OSError, ValueError) as error:
        raise _unusable(path, error, "written") from None
    return Key(public=public, secret=Secret(secret, "ascii"), bus=bus or public, path=path)


def check_public(text: str) -> str:
    """Return a text if it is a public key.

    Raises:
        ConfigError: if it is not. The text is not quoted: by mistake it may be a secret.
    """
    reason = _fault(text)
    if reason:
        raise ConfigError(
            f"a public key is {_KEY_LENGTH} characters as 'phase-bus keys show' prints them, in single "
            f"quotes for a shell, and {reason}"
        )
    return text


# ---- who may connect ----


def authorized_file(key: Key) -> Path:
    """Return the file that says who may connect to the bus that has a key."""
    return key.path.with_name(_AUTHORIZED)


def read_authorized(path: Path) -> dict[str, Authorized]:
    """Return who may connect, by public key; nobody if there is no such file.

    Raises:
        KeyFileError: if it is malformed, or others than the user could have written it.
    """
    try:
        text = _read_text(path, stat.S_IWGRP | stat.S_IWOTH, "written to by others", f"chmod go-w {path}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    clients = _convert(path, _parse(path, text), list[Authorized] | None) or []
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
        raise _unusable(path, error, "written") from None


def _replace(path: Path, clients: Iterable[Authorized]) -> None:
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    entries = [
        f"- name: '{each.name}'\n  public: '{each.public}'\n  roles: [{', '.join(each.roles)}]\n"
        for each in clients
    ]
    with replacing(path) as aside:
        _write_new(aside, "".join([_FOR_AUTHORIZED, *entries]))
        aside.chmod(mode)


# ---- files ----


def _read_key(path: Path) -> Key:
    text = _read_text(path, stat.S_IRWXG | stat.S_IRWXO, "read by others", f"chmod 600 {path}")
    content = _convert(path, _parse(path, text), _KeyFile)
    remedy = "make a new one with 'phase-bus keys new', or copy it again from where it is whole"
    for name in ("public", "secret", "bus"):
        value = getattr(content, name)
        if value is not None and (reason := _fault(value)):
            raise KeyFileError(path, f"what it has as {name} is no key: {reason}", remedy)
    if zmq.curve_public(content.secret.encode()) != content.public.encode():
        raise KeyFileError(path, "public and secret do not belong together", remedy)
    bus = content.bus or content.public
    return Key(public=content.public, secret=Secret(content.secret), bus=bus, path=path)


def _new_pair() -> tuple[str, bytes]:
    """Return a key pair whose public key no command line takes for an option."""
    while True:
        public, secret = zmq.curve_keypair()
        if not public.startswith(b"-"):
            return public.decode(), secret


def _fault(text: str) -> str:
    """Return why a text is no key, or nothing."""
    if len(text) != _KEY_LENGTH:
        return f"the length of this is {len(text)}"
    if not set(text) <= set(_Z85):
        return "this has others than are used in keys"
    for start in range(0, _KEY_LENGTH, 5):  # each five stand for four bytes
        value = 0
        for character in text[start : start + 5]:
            value = value * len(_Z85) + _Z85.index(character)
        if value >> 32:
            return "this stands for no key"
    return ""


def _write_new(path: Path, text: str) -> None:
    """Write a new file that only the user can read; leave nothing behind if that fails."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _read_text(path: Path, forbidden: int, how: str, remedy: str) -> str:
    """Return a file's content.

    Args:
        forbidden: what its mode must not have,
        how: how others could therefore use it,
        remedy: and the command that puts it right.

    Raises:
        FileNotFoundError: if there is none.
        NotADirectoryError: if what would be its directory is none.
        KeyFileError: if it cannot be read, or is not the user's alone.
    """
    try:
        with open(path, "rb", opener=_open_now) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise KeyFileError(path, "is not a file", "name a file")
            if about.st_uid not in (os.geteuid(), 0):
                whose = f"belongs to another user (uid {about.st_uid})"
                raise KeyFileError(path, whose, "copy it, so that the copy is yours")
            if about.st_mode & forbidden:
                mode = stat.S_IMODE(about.st_mode)
                raise KeyFileError(path, f"can be {how} (mode {mode:04o})", f"put it right with '{remedy}'")
            content = file.read(_MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:
        raise _unusable(path, error, "read") from None
    if len(content) > _MAX_BYTES:
        raise KeyFileError(path, "is too large for one", "name another file")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise KeyFileError(path, "is not YAML", "name another file") from None


def _open_now(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # should it be a named pipe, nobody may be at its other end


def _parse(path: Path, text: str) -> object:
    import yaml  # not in a benchmark's process that has no key

    try:
        return yaml.safe_load(text)
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # it quotes the file
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" (line {mark.line + 1})"
        raise KeyFileError(path, f"is not YAML{where}", "keys go in single quotes") from None


def _convert(path: Path, content: object, type_: Any) -> Any:
    try:
        return msgspec.convert(content, type_)
    except ValueError as error:  # it names places and types, and what no secret may stand in the place of
        reason = _UNKNOWN.sub("an unknown entry", str(error)).replace("Object", "it").replace("`", "'")
        remedy = "name another file, or make one with 'phase-bus keys'"
        raise KeyFileError(path, f"is not such a file: {reason}", remedy) from None


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except (OSError, RuntimeError, ValueError) as error:  # no home directory to put for a ~
        raise KeyFileError(path, str(error), "name the file by its whole path") from None


def _unusable(path: Path, error: Exception, how: str) -> KeyFileError:
    reason = getattr(error, "strerror", None) or str(error)
    return KeyFileError(
        path, f"cannot be {how}: {reason}", "name another file, or ask whoever it belongs to"
    )
