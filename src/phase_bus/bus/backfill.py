"""Copying a journal's write-ahead log into its file, beside the thread that writes."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable

logger = logging.getLogger("phase_bus.bus")


class Backfill:
    """Copies a SQLite write-ahead log back in a thread of its own: a checkpoint, as SQLite calls it.

    Done by the writer, as SQLite does by itself, it would make every event wait for the disk that
    comes in meanwhile, for it is the only time that a log in WAL mode with ``synchronous=NORMAL`` is
    synced. The writer goes on while this copies, so some of the log is always left; the writer's own
    checkpoint, at a larger size, then has only that to copy before it begins the log anew. It is also
    what bounds the log should this thread fail.

    Args:
        connect: opens a connection to the file, for the thread alone.
        every_pages: after how many pages in the log to copy it. They are estimated: SQLite does not tell.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], every_pages: int) -> None:
        self._connect = connect
        self._every_pages = every_pages
        self._pages = 0
        self._due = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def wrote(self, pages: int) -> None:
        """Take note of what a transaction has added to the log. Call it from the writer's thread."""
        self._pages += pages
        if self._pages >= self._every_pages:
            self._pages = 0
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="phase-bus-backfill", daemon=True)
                self._thread.start()
            self._due.set()

    def close(self) -> None:
        """End the thread, once it has copied what it is at. Doing so twice does no harm."""
        self._closed = True
        if self._thread is not None:
            self._due.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            db = self._connect()
            try:
                while self._due.wait() and not self._closed:
                    self._due.clear()
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                db.close()
        except sqlite3.Error as error:
            # The writer copies as well, if later; what is wrong with the file it will say of each event.
            logger.warning("phase-bus bus: the journal's log is no longer copied beforehand: %s", error)
