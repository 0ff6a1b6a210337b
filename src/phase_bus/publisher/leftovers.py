"""What a publisher could not deliver by its end: counted, told, and kept on disk if it is to be."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from phase_bus.core.outbox import Outbox
from phase_bus.publisher.drops import Warn
from phase_bus.publisher.spool import prepare_directory, write_spool

logger = logging.getLogger("phase_bus.publisher")


class Leftovers:
    """Accounts for what is in an outbox when its publisher ends.

    Args:
        name: the publisher's name.
        address: where the bus is, or was.
        outbox: what the bus has not acknowledged.
        spool_dir: where a file of it is left, None for nowhere.
        warn: logs a warning, once for each key.

    Attributes:
        events: how many events of each topic there are, once :meth:`settle` was called.
        file: the file they are in, None if they are in none.
    """

    def __init__(self, name: str, address: str, outbox: Outbox, spool_dir: Path | None, warn: Warn) -> None:
        self.events: Counter[str] = Counter()
        self.file: Path | None = None
        self._name = name
        self._address = address
        self._outbox = outbox
        self._spool_dir = spool_dir
        self._warn = warn

    def prepare(self) -> None:
        """Say early that the directory is no good. A disk may keep one waiting."""
        if self._spool_dir is not None:
            try:
                prepare_directory(self._spool_dir)
            except Exception as error:
                self._warn("spool", f"what the bus will not take cannot be kept on disk: {error}")

    def settle(self, encode_rest: Callable[[], None], waiting: Callable[[], int]) -> None:
        """Keep and count what is left, and say so.

        Args:
            encode_rest: puts into the outbox what is not encoded yet; called if it is to be kept.
            waiting: returns how much is not encoded.
        """
        if self._spool_dir is not None:
            self._write(self._spool_dir, encode_rest)
        self.events = self._outbox.remaining()
        if self.file is None and (self.events or waiting()):
            logger.warning(
                "phase-bus publisher %r: closed before %s had acknowledged everything; "
                "not delivered: %s, and %d not yet encoded",
                self._name,
                self._address,
                dict(self.events) or "no events",
                waiting(),
            )

    def _write(self, directory: Path, encode_rest: Callable[[], None]) -> None:
        try:
            encode_rest()
            if not len(self._outbox):
                return
            self.file, head = write_spool(directory, self._name, self._outbox)
        except Exception as error:
            logger.error("phase-bus publisher %r: nothing could be left on disk: %s", self._name, error)
            return
        logger.warning(
            "phase-bus publisher %r: closed before %s had acknowledged everything; %d events, with %d "
            "request records in them, are in %s; deliver them with: phase-bus replay %s --address %s",
            self._name,
            self._address,
            head.events,
            head.records,
            self.file,
            shlex.quote(str(self.file)),
            shlex.quote(self._address),
        )
