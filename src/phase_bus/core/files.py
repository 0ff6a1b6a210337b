"""Output files that people look at while a run goes on, files for their owner only, and locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO

from phase_bus.errors import ConfigError

logger = logging.getLogger("phase_bus.files")

_ASIDE = re.compile(r"\.[0-9a-f]{8}")  # the end of the name of a file that is to take another's place


def check_writable(path: Path, option: str) -> None:
    """Check that an output file can be written; make its directory, but none above that.

    Args:
        path: the file.
        option: the option that the user set it by, for the message.

    Raises:
        ConfigError: if it cannot be written.
    """
    try:
        make_directory(path, option)
        existed = path.exists()
        place = path if existed else path.resolve()  # a link stays, that leads to what is yet to be made
        with place.open("a"):
            pass
        if not existed:
            place.unlink()
    except OSError as error:
        made = "make its directory first, or " if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(
            f"{option}: {str(path)!r} cannot be written ({error.strerror}); "
            f"{made}give another file with {option}=..."
        ) from error


def make_directory(path: Path, option: str) -> None:
    """Make the directory of an output file and say so; none above it, which may be mistyped.

    Raises:
        OSError: if it cannot be made.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        logger.warning("%s: made the directory %s", option, path.parent)


def inode_of(path: str | Path) -> int | None:
    """Return the number of the file that a path leads to, None if there is none."""
    there = _stat(path)
    return None if there is None else there.st_ino


def is_at(descriptor: int, path: str | Path) -> bool:
    """Return whether an open file is the one that a path leads to."""
    there = _stat(path)
    return there is not None and os.path.samestat(there, os.fstat(descriptor))


def _stat(path: str | Path) -> os.stat_result | None:
    try:  # with each transaction of a journal: ``suppress`` costs twice as much, and so does a Path
        return os.stat(path)  # noqa: PTH116
    except OSError:
        return None


def private(path: str, flags: int) -> int:
    """Open a file, as ``opener`` of :func:`open`: if it is new, for its owner only, whatever the umask.

    Raises:
        OSError: if it cannot be opened, or is a link, which might lead to anybody's file.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def make_private_directory(directory: Path, mode: int = 0o700) -> None:
    """Make a directory for its owner only, unless it is there; in those above it others can change nothing.

    Raises:
        OSError: if it cannot be made.
    """
    if not directory.parent.is_dir():
        make_private_directory(directory.parent, 0o755)
    directory.mkdir(mode, exist_ok=True)


def tighten(path: Path) -> None:
    """Take a file or directory from everybody but its owner, if that is this process's user."""
    with suppress(OSError):
        there = path.lstat()
        if there.st_uid == os.geteuid() and there.st_mode & 0o077 and not stat.S_ISLNK(there.st_mode):
            set_mode(path, stat.S_IMODE(there.st_mode) & ~0o077)


def set_mode(path: Path, mode: int) -> None:
    """Set the mode of what has a name, but of nothing that a link leads to: somebody may have put it there.

    Raises:
        OSError: if it cannot be set.
    """
    if sys.platform != "linux":
        path.chmod(mode, follow_symlinks=False)
        return
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # Python's own way needs a younger C library
    try:
        there = os.fstat(handle)
        if stat.S_ISLNK(there.st_mode) or (there.st_nlink > 1 and not stat.S_ISDIR(there.st_mode)):
            raise OSError(errno.ELOOP, "is a link", str(path))
        Path(f"/proc/self/fd/{handle}").chmod(mode)
    finally:
        os.close(handle)


def lock_file(path: Path) -> IO[str]:
    """Keep others from locking a file until the returned one is closed.

    Raises:
        BlockingIOError: if somebody has locked it.
        OSError: if it cannot be written or locked.
    """
    file = open(path, "a", opener=private)  # noqa: SIM115 - it stays open
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        file.close()
        raise
    return file


def write_whole(path: Path, text: str) -> None:
    """Replace a file's content at once, so that a reader sees the old or the new, never a part.

    Raises:
        OSError: if it cannot be written; the old content is still there.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; at the end, and only without an error, that file takes the other's place."""
    if path.exists() and not path.is_file():
        yield path  # a device, such as standard output: not to be replaced
        return
    aside = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def remove_asides(path: Path) -> None:
    """Remove what killed processes have left beside a file, which nobody else may write now."""
    start = f".{path.name}"
    with suppress(OSError):  # what stays does no harm
        for beside in path.parent.iterdir():
            if beside.name.startswith(start) and _ASIDE.fullmatch(beside.name, len(start)):
                beside.unlink(missing_ok=True)


@contextmanager
def replacing_output(output: Path) -> Iterator[Path]:
    """Do the same for the file that the user set by ``--output``; raise a ConfigError if that fails."""
    try:
        with replacing(output) as aside:
            yield aside
    except OSError as error:
        raise ConfigError(
            f"--output {str(output)!r}: cannot be written ({error.strerror or error}); give another file"
        ) from error
