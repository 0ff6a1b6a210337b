"""Buses in threads and processes of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.core.address import Address
from phase_bus.core.keys import Key
from phase_bus.errors import JournalError
from phase_bus.journal.writer import Journal
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import DEADLINE_S

FAST = BusOptions(heartbeat_s=0.1)


class BusThread:
    """A bus in a thread of this process."""

    def __init__(
        self,
        *addresses: str,
        options: BusOptions = FAST,
        journal: Journal | None = None,
        key: Key | None = None,
        insecure: bool = False,
    ) -> None:
        parsed = [Address.parse(address) for address in addresses]
        self.bus = Bus(parsed, options, journal, key, insecure=insecure)
        try:
            self.bus.bind()
        except BaseException:
            self.bus.close()
            raise
        self.addresses = [str(address) for address in self.bus.addresses]
        self.address = self.addresses[0]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop it."""
        self.bus.stop()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.bus.run()
        finally:
            self.bus.close()


def plain_bus(directory: Path, address: str) -> BusProcess:
    """Return a bus without a journal, in a process of its own, not started yet."""
    options = ("--no-journal", "--heartbeat-s", str(FAST.heartbeat_s))
    return BusProcess(directory / "bus.log", address, options=options)


class DurableBus(BusThread):
    """A bus with a journal, in a thread of this process; it can be closed and opened again."""

    def __init__(self, ipc_dir: Path, data: Path, options: BusOptions = FAST) -> None:
        self.data, self.options = data, options
        self.address = f"ipc://{ipc_dir}"
        self.open()

    def open(self) -> None:
        """Start it."""
        self.journal = Journal(self.data)
        super().__init__(self.address, options=self.options, journal=self.journal)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Let its journal refuse everything."""

        def refuse(*args: object, **kwargs: object) -> None:
            raise JournalError(self.data, "the disk is full", "free some space")

        methods = vars(self.journal)
        methods.update(dict.fromkeys(("append", "commit", "add_dead_letter"), refuse))
        try:
            yield
        finally:
            for name in ("append", "commit", "add_dead_letter"):
                del methods[name]
