"""The journal of a bus on the same machine, read by a consumer itself instead of asking for each piece."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from phase_bus.core.control import JournalFile
from phase_bus.journal.files import SCHEMA_VERSION, connect, is_held, pragma
from phase_bus.journal.reader import JournalReader

logger = logging.getLogger("phase_bus.consumer")

_TIMEOUT_S = 5.0
_LONG_BYTES = 256 << 20  # of the log: twice of what it has before the bus waits for it to start over

T = TypeVar("T")


class LocalJournal:
    """Reads the journal of one running bus, a piece at a time, and none but that.

    The bus must never feel it. The file is open only while a piece is read, by a connection that can write
    nothing and copies no log: whatever happens between two pieces, to this process or to the bus, nothing
    is held meanwhile. And the file is left alone while the log is so long that readers may be what keeps it
    from starting over.

    What the bus would answer is always right, so that everything odd has one remedy: to ask it. For a
    piece alone if there is damage in it, which the bus tells in its log; from then on if the files are not
    the bus's own any more, cannot be read, have a damaged checkpoint, or the bus is gone.

    Args:
        file: where the bus has its journal.
        stream: the stream of that bus, which is the journal's last one as long as it runs.

    Attributes:
        usable: whether it is worth asking; never again once it was not.
    """

    def __init__(self, file: JournalFile, stream: str) -> None:
        self._file = file
        self._stream = stream
        path = Path(file.path)
        self._path = path
        self._parts = (file.path, f"{file.path}-wal", f"{file.path}-shm")
        # One thread: with those of the loop a piece takes a third more, as each has memory of its own.
        self._thread = ThreadPoolExecutor(1, "phase-bus-journal")
        self.usable = True

    def close(self) -> None:
        """Read no more, and wait for nothing."""
        self.usable = False
        self._thread.shutdown(wait=False)

    async def read(self, read: Callable[[JournalReader], T]) -> T | None:
        """Return what a function reads, in a thread: a disk that hangs must not end the heartbeats.

        None if the bus is to be asked.
        """
        if not self.usable:
            return None
        reading = asyncio.get_running_loop().run_in_executor(self._thread, self._read, read)
        try:
            return await asyncio.wait_for(reading, _TIMEOUT_S)
        except TimeoutError:
            self._give_up(f"nothing came of it within {_TIMEOUT_S:g} s")
        except Exception as error:  # whatever it is, the bus can be asked
            self._give_up(str(error))
        return None

    def _read(self, read: Callable[[JournalReader], T]) -> T | None:
        log_bytes = self._log_bytes()  # first: where files are missing, SQLite would make some
        if log_bytes is None:
            self.usable = False
            return None
        if log_bytes > _LONG_BYTES:
            return None
        with closing(connect(self._path, "mode=ro")) as db:
            reader = JournalReader(self._path, db)
            found = read(reader) if pragma(db, "user_version") == SCHEMA_VERSION else None
            # Only now: then all that was read before was of this bus.
            if found is None or reader.last_stream != self._stream or self._log_bytes() is None:
                self.usable = False
                return None
        if reader.damaged_checkpoints:
            self.usable = False  # which is told once
        return found if self.usable and not reader.damaged else None

    def _log_bytes(self) -> int | None:
        """Return the log's size if the bus has the files where it said, and they may be read, else None."""
        try:
            there = [os.stat(part) for part in self._parts]  # noqa: PTH116 - with each piece
        except OSError:
            return None
        if there[0].st_dev != self._file.device or tuple(t.st_ino for t in there) != self._file.inodes:
            return None
        if not (all(os.access(part, os.R_OK) for part in self._parts) and is_held(self._path)):
            return None
        return there[1].st_size

    def _give_up(self, why: str) -> None:
        self.usable = False
        logger.warning("the journal %s cannot be read here (%s); asking the bus for it", self._path, why)
