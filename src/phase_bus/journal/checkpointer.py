"""Copying the journal's write-ahead log into its file, beside the bus's loop and not in it.

SQLite calls that a checkpoint of the log. Its own way is that the commit which makes the log too long
copies it and waits for the disk: a third of the loop's CPU time with large events, and for all a pause
every few MB. Here a thread with a connection of its own does so.

No other connection may copy the log, and copying never begins while there might be nothing to copy and
somebody writes: SQLite before 3.51.3 can lose what is written when a log starts over just as a second
checkpoint begins (its "WAL-reset bug", https://sqlite.org/wal.html#walresetbug). A log can start over only
when all of it was copied; so copying begins if something was committed after the end of the last time,
or while the writer waits.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from phase_bus.journal.files import connect

logger = logging.getLogger("phase_bus.bus")

_sync = getattr(os, "fdatasync", os.fsync)  # which macOS does not have

_COPY_BYTES = 1 << 20  # of more, disk and processor would be at work for so long that events wait for it
_LONG_BYTES = 128 << 20  # of the log, which starts over from there on when little is left to copy


class WalCheckpointer:
    """Copies a journal's log now and then. One thread writes the journal, and calls all methods here.

    Args:
        path: the journal's file.
        file: a descriptor of it, open for as long as this is.
    """

    def __init__(self, path: Path, file: int) -> None:
        self._path = path
        self._file = file
        self._db = connect(path, "mode=rw")
        self._thread: threading.Thread | None = None
        self._asked = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._closing = False
        self._writer_waits = False
        self._uncopied_bytes = 0
        self._log_bytes = 0  # written since the log could last start over
        self._failed = False
        try:
            self._copied_version = self._version()
        except BaseException:
            self._db.close()
            raise

    def begin(self) -> None:
        """Note that a transaction is about to begin; wait for the thread if the log has grown too long.

        A log to which somebody always writes is never copied to its end, and would grow for ever. It does
        start over after this, unless a reader stays at something in it. The wait is shortest just after a
        copy has ended.
        """
        if self._log_bytes < _LONG_BYTES:
            return
        if self._idle.is_set() or self._log_bytes >= _LONG_BYTES + _LONG_BYTES // 4:
            self._idle.wait()
            self._writer_waits = True
            self._copy()
            self._idle.wait()
            self._writer_waits = False
            self._log_bytes = 0

    def wait(self) -> None:
        """Wait until the thread copies nothing; it begins again only when it is told of a transaction."""
        self._idle.wait()

    def committed(self, size_bytes: int) -> None:
        """Note how much, about, the transaction wrote."""
        self._log_bytes += size_bytes
        self._uncopied_bytes += size_bytes
        if self._uncopied_bytes >= _COPY_BYTES and self._idle.is_set():
            self._copy()

    def close(self) -> None:
        """End the thread, after the copying that it is at. Doing so twice does no harm."""
        self._closing = True
        self._asked.set()
        if self._thread is not None:
            self._thread.join()
        self._db.close()

    def _copy(self) -> None:
        self._uncopied_bytes = 0
        self._idle.clear()
        self._asked.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="phase-bus-wal", daemon=True)
            self._thread.start()

    def _main(self) -> None:
        while self._asked.wait() and not self._closing:
            self._asked.clear()
            try:
                if self._writer_waits or self._version() != self._copied_version:
                    self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                    # SQLite has the file on the disk only once all of the log is in it, which is while the
                    # writer waits: then there should be little left to write.
                    _sync(self._file)
                    self._copied_version = self._version()
                    self._failed = False
            except Exception as error:  # the log grows; once it cannot, the writer says so
                if not self._failed:
                    what = "phase-bus bus: the write-ahead log of %s cannot be copied into it: %s"
                    logger.warning(what, self._path, error)
                self._failed = True
            finally:
                self._idle.set()

    def _version(self) -> object:
        """Return a number that changes whenever another connection has committed something."""
        return self._db.execute("PRAGMA data_version").fetchone()
