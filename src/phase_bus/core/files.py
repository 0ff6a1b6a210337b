"""Output files that people look at while a run goes on, and directories that only one bus may use."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import IO

from phase_bus.core.address import Address
from phase_bus.errors import AddressError, ConfigError

logger = logging.getLogger("phase_bus.files")

BUS_LOCK = "bus.lock"  # in an ipc address's directory, held by its bus


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
        with path.open("a"):
            pass
        if not existed:
            path.unlink()
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


class DirectoryLock:
    """Keeps others from binding in an ipc address's directory, until :meth:`release`.

    ZeroMQ itself would take the sockets away from whoever has them.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._sockets: dict[Path, int] = {}  # with their inodes

    def remember_sockets(self) -> None:
        """Take those that are in the directory now for ours."""
        found = Path(self._file.name).parent.glob("*.ipc")
        self._sockets = {path: inode for path in found if (inode := inode_of(path))}

    @property
    def is_ours(self) -> bool:
        """Whether the directory is the one that was locked: a cleaner may have removed it since."""
        return is_at(self._file.fileno(), self._file.name)

    @property
    def is_whole(self) -> bool:
        """Whether the directory and the sockets in it are still ours."""
        return self.is_ours and all(inode_of(path) == inode for path, inode in self._sockets.items())

    def release(self) -> None:
        """Remove our own sockets, and let others have the directory.

        The lock's own file stays: removing it would race with the next process that locks it.
        """
        for path, inode in self._sockets.items():
            if self.is_ours and inode_of(path) == inode:
                path.unlink(missing_ok=True)
        self._file.close()


def inode_of(path: str | Path) -> int | None:
    """Return the number of the file that a path leads to, None if there is none."""
    there = _stat(path)
    return None if there is None else there.st_ino


def is_at(descriptor: int, path: str | Path) -> bool:
    """Return whether an open file is the one that a path leads to."""
    there = _stat(path)
    return there is not None and os.path.samestat(there, os.fstat(descriptor))


def _stat(path: str | Path) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(path)  # noqa: PTH116 - with each transaction of a journal: a Path costs twice as much
    return None


def lock_directory(address: Address) -> DirectoryLock:
    """Make an ipc address's directory, and keep others from binding there.

    Raises:
        AddressError: if it is in use, or cannot be written to.
    """
    directory = Path(address.directory)
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return DirectoryLock(lock_file(directory / BUS_LOCK))
    except BlockingIOError:
        raise AddressError(
            str(address),
            "is in use by another bus",
            "choose another directory, or end that bus ('phase-bus status' shows it)",
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AddressError(
            str(address), f"cannot be used: {reason}", "choose a directory that you may write to"
        ) from None


def lock_file(path: Path) -> IO[str]:
    """Keep others from locking a file until the returned one is closed.

    Raises:
        BlockingIOError: if somebody has locked it.
        OSError: if it cannot be written or locked.
    """
    file = path.open("a")
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
