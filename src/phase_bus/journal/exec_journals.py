"""The journals of ``exec``: a directory for each, kept within limits over all of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from phase_bus.core.files import lock_file, private
from phase_bus.errors import JournalError
from phase_bus.journal.files import FILE_NAME, lock, size_on_disk
from phase_bus.journal.paths import make_state_directory, state_directory
from phase_bus.journal.reader import JournalReader

MAX_BYTES = 4 << 30  # of all of them together
MAX_AGE_S = 30 * 86400.0
KEPT_WHATEVER_AGE = 20  # a clock that is wrong must not take them all away
KEPT_WHATEVER_SIZE_S = 86400.0  # how old those are at most that do not go for want of space

_PREFIX = "exec-"
_REMOVED = ".removed"  # what has this suffix is no journal any more
_LOCK_NAME = "exec.lock"  # in a journal's directory; and in the one above, while journals come and go


class ExecJournal:
    """The journal of one ``exec``, as a context manager: its directory is this process's until the end.

    At its beginning what is over the limits of the journals before it is removed, the oldest first, and
    what holds no run; at its end the directory itself, if it holds none. What another process uses is never
    touched: whoever does has a lock, which ends with the process however that ends.

    Attributes:
        directory: where the journal is.
        removed: the names of those before it that were removed, and had runs.

    Raises:
        JournalError: if the directory cannot be made.
    """

    def __init__(self) -> None:
        base = state_directory()
        name = f"{_PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        try:
            make_state_directory()
            with _changing(base):
                self.directory = _new_directory(base, name)
                self._lock = lock_file(self.directory / _LOCK_NAME)
        except OSError as error:
            raise JournalError(
                base / name,
                f"cannot be made ({error.strerror})",
                "see that the directory above can be written to, or set XDG_STATE_HOME to another",
            ) from error
        self.removed: list[str] = []

    def __enter__(self) -> Self:
        self.removed = _prune(self.directory.parent)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._lock.close()
        if not _holds_runs(self.directory):
            _remove(self.directory)


class _Past(NamedTuple):
    """A journal that is there, and when it was written last, in Unix seconds."""

    used_s: float
    size_bytes: int
    directory: Path


def _prune(base: Path) -> list[str]:
    """Remove what is over the limits or holds no run; return the names of those that held some."""
    for gone in base.glob(f".{_PREFIX}*{_REMOVED}"):  # a process was killed as it removed them
        shutil.rmtree(gone, ignore_errors=True)
    held = []
    for directory in base.glob(f"{_PREFIX}*"):
        if _holds_runs(directory):
            path = directory / FILE_NAME
            with suppress(FileNotFoundError):  # another process removes it just now
                held.append(_Past(_used_s(path), size_on_disk(path), directory))
        else:
            _remove(directory)
    held.sort()
    return [past.directory.name for past in _over_limits(held, time.time()) if _remove(past.directory)]


def _over_limits(held: list[_Past], now_s: float) -> Iterator[_Past]:
    """Yield what is to be removed, the oldest first; ``held`` is in that order."""
    total_bytes = sum(past.size_bytes for past in held)
    for number, past in enumerate(held):
        age_s = now_s - past.used_s
        too_old = age_s > MAX_AGE_S and number < len(held) - KEPT_WHATEVER_AGE
        too_large = total_bytes > MAX_BYTES and age_s > KEPT_WHATEVER_SIZE_S
        if too_old or too_large:
            total_bytes -= past.size_bytes
            yield past


def _used_s(path: Path) -> float:
    """Return when a journal was written last: its log, unless it is empty, may be newer than its file."""
    told = [path.stat()]
    with suppress(FileNotFoundError):
        told.append(path.with_name(f"{path.name}-wal").stat())
    return max(each.st_mtime for each in told if each is told[0] or each.st_size)  # readers make empty ones


def _holds_runs(directory: Path) -> bool:
    """Return whether there are runs in a directory, as far as can be told."""
    path = directory / FILE_NAME
    if not path.exists():
        return False
    try:
        with JournalReader(path) as reader:
            return reader.info().runs > 0
    except JournalError:  # damaged, or of another version: somebody may still want it
        return path.exists() and path.stat().st_size > 0


def _remove(directory: Path) -> bool:
    """Remove a journal unless somebody uses it; return whether it is gone.

    It gets a name first that makes it no journal: whatever is left of it if this process is killed is
    removed by the next one.
    """
    gone = directory.with_name(f".{directory.name}{_REMOVED}")
    try:
        with _changing(directory.parent), ExitStack() as locks:
            if not directory.is_dir():
                return False
            locks.enter_context(lock_file(directory / _LOCK_NAME))  # its exec's
            locks.enter_context(lock(directory))  # its bus's, which may outlive a killed exec
            directory.rename(gone)
    except (OSError, JournalError):
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


@contextmanager
def _changing(base: Path) -> Iterator[None]:
    """Keep other processes from making and removing journals: for a moment, to which they wait."""
    with open(base / _LOCK_NAME, "a", opener=private) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _new_directory(base: Path, name: str) -> Path:
    """Make a directory that was not there: in containers processes may share both time and pid."""
    for number in count(1):
        directory = base / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            directory.mkdir(0o700)
            return directory
    raise AssertionError
