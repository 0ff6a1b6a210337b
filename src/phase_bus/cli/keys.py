"""``phase-bus keys``: new, show, authorize, revoke, list."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from phase_bus.cli.options import JsonOption
from phase_bus.cli.output import counted, print_json, print_line, print_table, say
from phase_bus.core import authorized
from phase_bus.core.authorized import ROLES, Authorized, KeyRole, authorized_file, read_authorized
from phase_bus.core.keys import (
    KEY_FILE_VARIABLE,
    Key,
    check_public,
    default_key_file,
    find_key,
    read_key,
    write_new_key,
)
from phase_bus.errors import ConfigError, KeyFileError, suggest

_BusKeyOption = Annotated[
    Path | None,
    Parameter(help="The bus's key file. Default: $PHASE_BUS_KEY_FILE, or else your own."),
]
_AT_ONCE = "a running bus notices within a second"


def new(
    file: Path | None = None,
    /,
    *,
    bus: Annotated[
        str | None,
        Parameter(
            help="If it is for somebody else's bus: the public key of that bus, in single quotes.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Make a key, and print its public part.

    The bus and the clients of one user share one key: copy the file to your other machines, and nothing
    else is needed. For somebody else's bus you need your own key, which the bus's owner must authorize. An
    existing file is never overwritten.

    For example:

        phase-bus keys new
        phase-bus keys new --bus 'PUBLIC-KEY-OF-THE-BUS'

    Args:
        file: The file to write. Default: $XDG_CONFIG_HOME/phase-bus/key.yaml, or else
            ~/.config/phase-bus/key.yaml, where every command finds it.
    """
    if bus is not None:
        check_public(bus)
    key = write_new_key(file or default_key_file(), bus or "")
    if json:
        print_json(_told(key))
        return
    print_line(key.public)
    at = shlex.quote(str(key.path))
    where = "" if _is_found(key.path) else f"; say so with {KEY_FILE_VARIABLE}={at}"
    say(f"that is the public key; the key is in {key.path}{where}")
    if key.is_of_bus:
        say("copy that file to the same place on your other machines; nothing else is needed")
        say(
            f"others run: phase-bus keys new --bus {shlex.quote(key.public)} ; and you, with what that "
            "prints: phase-bus keys authorize PUBLIC --name NAME --role publish"
        )
    else:
        say(
            "give the public key to the bus's owner, who runs: "
            f"phase-bus keys authorize {shlex.quote(key.public)} --name NAME --role publish"
        )


def show(file: Path | None = None, /, *, json: JsonOption = False) -> None:
    """Print the public part of a key, never the secret one.

    For example:

        phase-bus keys show
        phase-bus keys show /etc/phase-bus/key.yaml --json

    Args:
        file: The key file. Default: $PHASE_BUS_KEY_FILE, or else your own.
    """
    key = _found(file)
    if json:
        print_json(_told(key))
        return
    print_line(key.public)
    whose = "a bus, and of whoever shares it" if key.is_of_bus else f"a client of the bus {key.bus!r}"
    say(f"that is the public key of {whose}; the key is in {key.path}")


def authorize(
    # By mistake it may be a secret, which may begin with a hyphen, and which no message is to repeat.
    public: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    name: Annotated[
        str, Parameter(help="Who the client is. Whatever it names on the bus belongs to this name.")
    ],
    role: Annotated[
        list[KeyRole],
        Parameter(help="What it may do: publish, consume, or admin (everything). May be repeated."),
    ],
    key_file: _BusKeyOption = None,
) -> None:
    """Let a client's key into your bus, or change what it may do.

    Several keys may share a name, for somebody with several machines. A running bus notices within a
    second.

    For example:

        phase-bus keys authorize 'PUBLIC-KEY' --name alice --role publish
        phase-bus keys authorize 'PUBLIC-KEY' --name dashboard --role consume

    Args:
        public: The client's public key, in single quotes.
    """
    key = _of_bus(key_file)
    if public.encode() == key.secret.encode():
        raise ConfigError(f"that is the secret key in {key.path}, which nobody else should have")
    check_public(public)
    if public == key.public:
        raise ConfigError(
            "that is the bus's own key, which may do everything anyway; give the key of a client"
        )
    roles = tuple(each for each in ROLES if each in role)
    before = authorized.authorize(authorized_file(key), Authorized(name=name, public=public, roles=roles))
    say(f"{name!r} may {_words(roles)} with that key; {_AT_ONCE}")
    if before is not None:
        say(f"before, it belonged to {before.name!r}, who could {_words(before.roles)}")


def revoke(client: str, /, *, key_file: _BusKeyOption = None) -> None:
    """Stop letting a client in; a running bus cuts it off within a second.

    For example:

        phase-bus keys revoke alice

    Args:
        client: The client's name, which means all its keys; or one public key, in single quotes.
    """
    path = authorized_file(_of_bus(key_file))
    gone = authorized.revoke(path, client)
    if not gone:
        names = {each.name for each in read_authorized(path).values()}
        hint = suggest(client, names) or "; nobody is"
        raise ConfigError(f"nobody is authorized by this name or key{hint}")
    names = {each.name for each in gone}
    say(f"{counted(len(gone), 'key')} of {', '.join(map(repr, names))} revoked; {_AT_ONCE}")


def list_(*, key_file: _BusKeyOption = None, json: JsonOption = False) -> None:
    """List the clients that your bus lets in, other than those that use its own key.

    For example:

        phase-bus keys list --json
    """
    key = _of_bus(key_file)
    clients = sorted(read_authorized(authorized_file(key)).values(), key=lambda each: each.name)
    if json:
        print_json(clients)
        return
    rows = ((each.name, ", ".join(each.roles), each.public) for each in clients)
    empty = f"nobody except those who have {key.path}"
    print_table(("NAME", "MAY", "PUBLIC KEY"), rows, empty, whole=("NAME", "PUBLIC KEY"), spare=("MAY",))


def _found(file: Path | None) -> Key:
    key = find_key() if file is None else read_key(file)
    if key is None:
        raise ConfigError("there is no key file; make one with 'phase-bus keys new', or name another one")
    return key


def _of_bus(file: Path | None) -> Key:
    key = _found(file)
    if not key.is_of_bus:
        raise ConfigError(
            f"the key in {key.path} is for a client of another bus, whose owner decides who is let in; "
            "name your own bus's key with --key-file FILE"
        )
    return key


def _is_found(path: Path) -> bool:
    """Whether the file is looked for without being named."""
    named = os.environ.get(KEY_FILE_VARIABLE)
    with suppress(KeyFileError):  # no home directory
        return path == default_key_file() if named is None else path == Path(named).expanduser().absolute()
    return False


def _told(key: Key) -> dict[str, object]:
    return {"file": str(key.path), "public": key.public, "bus": key.bus, "of_bus": key.is_of_bus}


def _words(roles: tuple[KeyRole, ...]) -> str:
    return " and ".join("do everything" if role == "admin" else role for role in roles)
