"""Keys: who is who on a bus that others than this machine can connect to.

The mechanism is ZeroMQ's CURVE (RFC 26 of the ZeroMQ project): Curve25519 keys, each 32 bytes, written as
40 characters of Z85 (RFC 32). No secret is ever part of a message, so that none comes to a terminal or log.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import zmq
from msgspec import Struct

from phase_bus.core.address import Address
from phase_bus.core.files import make_private_directory
from phase_bus.core.key_files import expanded, read_yaml, unusable, write_new
from phase_bus.errors import AddressError, ConfigError, KeyFileError

KEY_FILE_VARIABLE = "PHASE_BUS_KEY_FILE"
"""The environment variable that names the key file; empty for no key."""

_GUARD = (
    "make one with 'phase-bus keys new'; then copy that file to your other machines, or let others in with "
    "'phase-bus keys authorize PUBLIC --name NAME --role publish'; --insecure does without"
)
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_KEY_LENGTH = 40
_FOR_BUS = """\
# The key of a phase-bus bus, and of everybody who has this file: they may do everything on that bus.
# For your own machines only; to let others in, see 'phase-bus keys authorize --help'.
"""
_FOR_CLIENT = """\
# A key for somebody else's phase-bus bus, whose owner lets it in with 'phase-bus keys authorize'.
# For its owner's eyes only: what others do with it, they do under its owner's name.
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


class _KeyFile(Struct, forbid_unknown_fields=True):
    public: str
    secret: str
    bus: str | None = None


def default_key_file() -> Path:
    """Return where the user's key file is, if there is one.

    Raises:
        KeyFileError: if the user has no home directory.
    """
    config = os.environ.get("XDG_CONFIG_HOME", "")
    base = config if config.startswith("/") else "~/.config"
    return expanded(Path(base, "phase-bus", "key.yaml"))


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
    path = expanded(path)
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
    path = expanded(path)
    if bus:
        check_public(bus)
    public, secret = _new_pair()
    text = (_FOR_CLIENT if bus else _FOR_BUS) + f"public: '{public}'\nsecret: '{secret.decode()}'\n"
    if bus:
        text += f"bus: '{bus}'\n"
    try:
        with suppress(FileExistsError):  # no directory: the next line says so
            make_private_directory(path.parent)
        write_new(path, text)
    except FileExistsError:
        remedy = f"'phase-bus keys show {path}' shows its public key; give another file for another key"
        raise KeyFileError(path, "exists already, and is not overwritten", remedy) from None
    except (OSError, ValueError) as error:
        raise unusable(path, error, "written") from None
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


def _read_key(path: Path) -> Key:
    forbidden, mend = stat.S_IRWXG | stat.S_IRWXO, f"chmod 600 {path}"
    content = read_yaml(path, _KeyFile, forbidden, "read by others", mend)
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
