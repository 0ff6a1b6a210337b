"""A bus with a journal, a publisher and a consumer in one process, and what passes their sockets."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from phase_bus.bus.server import Bus
from phase_bus.core import wire
from phase_bus.core.address import Address
from phase_bus.journal.rows import Entry
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import DEADLINE_S, wait_until
from tests.support.buses import FAST


class Frames:
    """How many frames sockets of each type send and ask for.

    Attributes:
        sent: by the socket's type.
        received: likewise; asking an empty socket counts, too.
        payloads: what an XPUB sent as the last frame of each message.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: Counter[int] = Counter()
        self.received: Counter[int] = Counter()
        self.payloads: list[object] = []
        self._send, self._recv, self._recv_bytes = wire._send, wire._recv, wire._recv_bytes
        monkeypatch.setattr(wire, "_send", self._note_send)
        monkeypatch.setattr(wire, "_recv", self._note_recv)
        monkeypatch.setattr(wire, "_recv_bytes", self._note_recv_bytes)

    def _note_send(self, socket: zmq.Socket[bytes], frame: Any, flags: int) -> object:
        self.sent[int(socket.type)] += 1
        if int(socket.type) == zmq.XPUB and not flags & zmq.SNDMORE:
            self.payloads.append(frame)
        return self._send(socket, frame, flags)

    def _note_recv(self, socket: zmq.Socket[bytes], flags: int, copy: bool) -> zmq.Frame:
        self.received[int(socket.type)] += 1
        return self._recv(socket, flags, copy)

    def _note_recv_bytes(self, socket: zmq.Socket[bytes], flags: int) -> bytes:
        self.received[int(socket.type)] += 1
        return self._recv_bytes(socket, flags)


class GatedJournal(Journal):
    """A journal that keeps its first events back until the gate is open, so that more queue meanwhile.

    Attributes:
        appended: how many events, or bundles, each transaction had.
        kept: how many events all of them had.
        waits: whether it waits for the gate.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.appended: list[int] = []
        self.kept = 0
        self.gate = threading.Event()
        self.waits = False

    def append(self, entries: Sequence[Entry]) -> None:
        self.waits = not self.gate.is_set()
        assert self.gate.wait(DEADLINE_S)
        self.waits = False
        self.appended.append(len(entries))
        self.kept += sum(entry.events for entry in entries)
        super().append(entries)


@contextmanager
def running_bus(directory: Path) -> Iterator[tuple[str, GatedJournal]]:
    """Run a bus in a thread, until the block ends."""
    journal = GatedJournal(directory / "journal")
    bus = Bus([Address.parse(f"ipc://{directory}")], FAST, journal)
    bus.bind()
    thread = threading.Thread(target=bus.run)
    thread.start()
    try:
        yield f"ipc://{directory}", journal
    finally:
        journal.gate.set()
        bus.stop()
        thread.join(DEADLINE_S)
        bus.close()


def send_all(publisher: Publisher, publish: Callable[[], None], count: int, journal: GatedJournal) -> None:
    """Publish so many events while the journal keeps still, and then let it work."""
    wait_until(lambda: publisher.connected)
    for _ in range(count):
        publish()
    outbox = publisher._sender._outbox
    wait_until(lambda: outbox.last_seq >= count and outbox.peek() is None)
    journal.gate.set()
    assert publisher.flush(DEADLINE_S)
