"""Files that a consumer writes, and nobody else meanwhile."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import ClassVar

import msgspec
from msgspec import Struct

from phase_bus.core.files import check_writable, is_at, make_directory, remove_asides, write_whole
from phase_bus.errors import ConfigError

logger = logging.getLogger("phase_bus.consumer")

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
_LOOK_S = 0.01
_LOOKS = 50  # at a lock whose owner has not yet written who it is
_SIGNATURE_BYTES = 4096


class _Holder(Struct):
    """Who has a file, as its lock says."""

    consumer: str = ""
    pid: int = 0
    host: str = ""
    claim: str = ""


class _Handles:
    """The descriptors of a file and its lock: raw ones, to be closed whenever the file is forgotten."""

    def __init__(self) -> None:
        self.lock = self.end = -1
        self.lock_path: Path | None = None  # to be removed with the lock
        self._pid = os.getpid()

    def release(self) -> None:
        """Close them."""
        if self.lock >= 0:
            if self.lock_path is not None and self._pid == os.getpid() and is_at(self.lock, self.lock_path):
                with suppress(OSError):
                    self.lock_path.unlink()
            os.close(self.lock)
        self.lock = -1
        self.close_end()

    def close_end(self) -> None:
        """Close the file itself."""
        if self.end >= 0:
            os.close(self.end)
        self.end = -1


class OutputFile:
    """A file that one consumer writes, and nobody else meanwhile.

    Who has it is in a lock beside it, ``.NAME.lock``, which is removed with :meth:`close`. One that a
    killed process leaves behind keeps nobody out. A consumer with the name and claim of the one that has
    the file (without any claim: in the same process) is its successor, and takes it over; the other, which
    may only have been asleep, can write it no more.

    Args:
        path: the file. A device or pipe is nobody's, and is not locked.
        option: the option that the user set it by, for messages.
        consumer: who is to have it, for messages.
        claim: what only the consumer and its successors have, empty for nobody.

    Raises:
        ConfigError: if it cannot be written, or another process has it.
    """

    _of_process: ClassVar[dict[Path, OutputFile]] = {}

    def __init__(self, path: Path, option: str, consumer: str = "", claim: str = "") -> None:
        self.path = path
        self._option = option
        self._me = _Holder(consumer, os.getpid(), socket.gethostname(), claim)
        self._may_succeed = True
        self._real = path.resolve()
        self._lock_path = self._real.with_name(f".{self._real.name}.lock")
        self._handles = _Handles()
        self._release = weakref.finalize(self, self._handles.release)
        self._locked = not path.exists() or path.is_file()
        try:
            if self._locked:
                make_directory(self._real, option)
                self._acquire()
        except PermissionError:
            self._lock_itself()
        except OSError as error:
            self._locked = False
            if error.errno in _NO_LOCKS:
                text = "%s: %r is in a file system without locks; see to it that nobody else writes it"
                logger.warning(text, option, str(path))
            # Whatever else it is, check_writable names it.
        try:
            check_writable(path, option)
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_process(cls, path: Path, option: str) -> OutputFile:
        """Return the file that all of this process write together: one after another."""
        real = path.resolve()
        found = cls._of_process.get(real)
        if found is None or found._me.pid != os.getpid():
            found = cls._of_process[real] = cls(path, option)
        return found

    def replace(self, text: str) -> None:
        """Replace the content at once, so that a reader sees the old or the new, never a part.

        Raises:
            OSError: if it cannot be written; the old content is still there.
            ConfigError: if another process has taken it over.
        """
        self._check()
        write_whole(self._real if self._locked else self.path, text)

    def append(self, text: str) -> None:
        """Write whole lines at the end, at once.

        They begin a line of their own whatever is before them, such as the half line of a killed process.
        If somebody has renamed the file, they begin a new one.

        Raises:
            OSError: if they cannot be written; nothing of them is there.
            ConfigError: if another process has taken it over.
        """
        self._check()
        handles = self._handles
        if handles.end >= 0 and not is_at(handles.end, self.path):
            handles.close_end()
        if handles.end < 0:
            handles.end = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            if self._has_half_a_line():
                text = "\n" + text
        size = os.fstat(handles.end).st_size
        left = memoryview(text.encode(errors="backslashreplace"))
        try:
            while left:
                left = left[os.write(handles.end, left) :]
        except OSError:
            with suppress(OSError):  # of a pipe or device
                os.ftruncate(handles.end, size)
            handles.close_end()
            raise

    @property
    def size(self) -> int:
        """How many bytes are in it; 0 if it is no file, or there is none yet."""
        return self._real.stat().st_size if self._real.is_file() else 0

    def rotate(self, keep: int) -> None:
        """Rename the file to ``NAME.1``, that one to ``NAME.2`` and so on; the next line begins a new file.

        Who follows the file sees it renamed, never cut. What is no regular file stays.

        Args:
            keep: the highest number; what has it is replaced.

        Raises:
            OSError: if it cannot be renamed; it can still be appended to.
            ConfigError: if another process has taken it over, or writes one of the others.
        """
        self._check()
        if not self._real.is_file():
            return
        places = [self._real.with_name(f"{self._real.name}.{number}") for number in range(1, keep + 1)]
        for place in places:
            self._check_free(place)
        # A killed process may have left a gap: what comes before it moves, and nothing is replaced.
        last = next((n for n, place in enumerate(places) if not place.exists()), keep - 1)
        for older, newer in zip(places[last:0:-1], places[last - 1 :: -1], strict=False):
            newer.replace(older)
        self._real.replace(places[0])
        self._handles.close_end()

    def _check_free(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR)
            try:
                if not _try_lock(lock):
                    raise self._in_use(_read(lock), path)
            finally:
                os.close(lock)

    def _has_half_a_line(self) -> bool:
        """Return whether the file's last line has no end; not if nobody can tell."""
        with suppress(OSError):
            if self.size:
                with self._real.open("rb") as file:
                    file.seek(-1, os.SEEK_END)
                    return file.read(1) != b"\n"
        return False

    def close(self) -> None:
        """Let others have the file. Closing it again does nothing."""
        self._release()

    # ---- the lock ----

    def _check(self) -> None:
        handles = self._handles
        if not self._locked or (handles.lock >= 0 and is_at(handles.lock, self._lock_path)):
            return
        # If it was taken over, there is nothing left to claim; its file may only have been removed, though.
        self._may_succeed = False
        if handles.lock >= 0:
            os.close(handles.lock)
            handles.lock = -1
        self._acquire()

    def _acquire(self) -> None:
        for _ in range(_LOOKS):
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                holder = None if _try_lock(lock) else _read(lock)
                if is_at(lock, self._lock_path):
                    if holder is None:
                        self._have(lock)
                        remove_asides(self._real)
                        return
                    if holder.pid:
                        self._take_over(holder)
                        return
                    time.sleep(_LOOK_S)  # it has just been locked, and is not signed yet
            finally:
                if self._handles.lock != lock:
                    os.close(lock)
        raise self._in_use(_Holder())

    def _take_over(self, holder: _Holder) -> None:
        """Put a lock of this process's own in the place of its predecessor's.

        Between its last look at the lock and the renaming of what it has written, the predecessor may be
        asleep; what it renames then is replaced with this process's next write.
        """
        same = (holder.consumer, holder.claim) == (self._me.consumer, self._me.claim)
        if not (
            self._may_succeed and same and (self._me.claim or (self._is_me(holder) and self._me.consumer))
        ):
            raise self._in_use(holder)
        aside = self._lock_path.with_name(f"{self._lock_path.name}.{token_hex(4)}")
        lock = os.open(aside, os.O_RDWR | os.O_CREAT, 0o666)
        _try_lock(lock)
        self._have(lock)
        aside.replace(self._lock_path)

    def _have(self, lock: int) -> None:
        self._handles.lock, self._handles.lock_path = lock, self._lock_path
        os.ftruncate(lock, 0)
        os.pwrite(lock, msgspec.json.encode(self._me), 0)

    def _lock_itself(self) -> None:
        """Lock the file, which can only be appended to, since its directory is somebody else's."""
        with suppress(PermissionError):  # then check_writable says so
            lock = os.open(self._real, os.O_WRONLY | os.O_APPEND)
            self._handles.lock, self._lock_path = lock, self._real
            if not _try_lock(lock):
                self.close()
                raise self._in_use(_Holder())

    def _is_me(self, holder: _Holder) -> bool:
        return (holder.pid, holder.host) == (self._me.pid, self._me.host)

    def _in_use(self, holder: _Holder, path: Path | None = None) -> ConfigError:
        what = f"{self._option}: {str(path or self.path)!r} is written by"
        remedy = f"give another file with {self._option}=..."
        who = f"consumer {holder.consumer!r}" if holder.consumer else "another process"
        if self._is_me(holder):
            return ConfigError(
                f"{what} this process already{f', {who}' if holder.consumer else ''}; {remedy}"
            )
        where = f" (pid {holder.pid} on {holder.host})" if holder.pid else ""
        return ConfigError(
            f"{what} {who}{where}, and two would overwrite each other's runs; {remedy}, or end that process"
        )


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(lock: int) -> _Holder:
    try:
        return msgspec.json.decode(os.pread(lock, _SIGNATURE_BYTES, 0), type=_Holder)
    except (msgspec.MsgspecError, UnicodeDecodeError, OSError):
        return _Holder()
