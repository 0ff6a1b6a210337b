"""Files of keys, and of who may connect: read only if nobody else can have touched them, or seen them.

Nothing that a file says is part of an error, where a secret could stand in the place of something else.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import msgspec

from phase_bus.errors import KeyFileError

_MAX_BYTES = 4 << 20
_UNKNOWN = re.compile(r"unknown field `.*`(?= - at |$)", re.DOTALL)


def write_new(path: Path, text: str) -> None:
    """Write a new file that only the user can read; leave nothing behind if that fails."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def read_yaml(path: Path, type_: Any, forbidden: int, how: str, remedy: str) -> Any:
    """Return what a file has, as a type.

    Args:
        type_: what :func:`msgspec.convert` makes of it,
        forbidden: what its mode must not have,
        how: how others could therefore use it,
        remedy: and the command that puts it right.

    Raises:
        FileNotFoundError: if there is none.
        NotADirectoryError: if what would be its directory is none.
        KeyFileError: if it cannot be read, is not the user's alone, or of another type.
    """
    return _convert(path, _parse(path, _read_text(path, forbidden, how, remedy)), type_)


def _read_text(path: Path, forbidden: int, how: str, remedy: str) -> str:
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
        raise unusable(path, error, "read") from None
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # it quotes the file
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


def expanded(path: Path) -> Path:
    """Return the whole path of a file.

    Raises:
        KeyFileError: if there is no home directory to put for a ``~``.
    """
    try:
        return path.expanduser().absolute()
    except (OSError, RuntimeError, ValueError) as error:
        raise KeyFileError(path, str(error), "name the file by its whole path") from None


def unusable(path: Path, error: Exception, how: str) -> KeyFileError:
    """Return the error that says that a file cannot be read, or written."""
    reason = getattr(error, "strerror", None) or str(error)
    return KeyFileError(
        path, f"cannot be {how}: {reason}", "name another file, or ask whoever it belongs to"
    )
