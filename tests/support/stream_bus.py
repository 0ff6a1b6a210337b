"""A bus in memory whose events are forwarded to a real stream, where its consumers read them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.consumer.share import Origin
from phase_bus.core.address import StreamAddress
from phase_bus.core.outbox import Outbox
from phase_bus.events import Receipt
from phase_bus.jetstream.cursor import Cursor
from phase_bus.jetstream.keys import key_of
from phase_bus.jetstream.message import packed, subject_of, subjects
from phase_bus.jetstream.notes import CheckpointNote, LetterNote, NameNote, read_note
from phase_bus.jetstream.transport import JetStreamTransport
from phase_bus.testing.live import LiveRun
from phase_bus.testing.memory import MemoryBus
from phase_bus.testing.outcome import C, RunningOutcome, StoredMessage, prepare
from tests.support.servers.app import LoopThread
from tests.support.streams import Opened, opened

T = TypeVar("T")


class QuickTransport(JetStreamTransport):
    """Beats ten times a second, so that tests need not wait."""

    heartbeat_s = 0.1
    silent_after_s = 1.0


class StreamBus(MemoryBus):
    """What is published is in the stream when the call returns. Use it as a context manager."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.address = url
        self._thread = LoopThread()
        self._context = opened(url)
        self._forwarded = 0

    def __enter__(self) -> Self:
        self._opened = self._thread.do(self._context.__aenter__())
        return self

    def __exit__(self, *_error: object) -> None:
        self._thread.do(self._context.__aexit__(None, None, None))
        self._thread.end()

    def do(self, work: Callable[[Opened], Awaitable[T]]) -> T:
        """Do something with the stream; return its result."""

        async def run() -> T:
            return await work(self._opened)

        return self._thread.do(run())

    def take(self, outbox: Outbox, *, own: bool = False) -> None:
        super().take(outbox, own=own)
        self.do(self._forward)

    async def _forward(self, opened: Opened) -> None:
        bus, stream = self.lineage.journal_id, opened.stream.name
        while self._forwarded < len(self.messages):
            topic, header, payload = self.messages[self._forwarded]
            for data in packed(topic, header.pack(), bus, payload, 1 << 20):
                await opened.connection.js.publish(subject_of(stream, bus, topic), data)
            self._forwarded += 1

    def _entries(self) -> list[StoredMessage]:
        """Return what is in the stream."""
        return self.do(_read_all)

    def consumer(  # type: ignore[override]
        self, consumer: C | type[C], *, name: str = "", origin: Origin = "checkpoint", **options: Any
    ) -> RunningOutcome[C]:
        return StreamRun(self, prepare(consumer, name, options), origin)


class StreamRun(LiveRun[C]):
    """A consumer of a stream, with its process's whole machinery, in this process."""

    _bus: StreamBus  # type: ignore[assignment]

    def __init__(self, bus: StreamBus, consumer: C, origin: Origin) -> None:
        super().__init__(bus, consumer, origin)  # type: ignore[arg-type]

    def _host(self, consumer: C, origin: Origin) -> ConsumerRunner:
        return ConsumerRunner(
            consumer,
            StreamAddress.parse(self._bus.address),
            origin=origin,
            on_ready=self._ready.set,
            transport=QuickTransport,
        )

    def _last_offset(self) -> int:
        entries = self._bus._entries()
        return max((e.header.offset for e in entries if e.topic.startswith(self._wanted)), default=0)

    def _is_at(self, offset: int) -> bool:
        if not offset:
            return True
        note = self._note(CheckpointNote, key_of("checkpoint", self.consumer.name))
        if note is None or note.position is None or note.position.offset < offset:
            return False
        if self._origin in ("checkpoint", "now"):
            return True
        after = self._origin if isinstance(self._origin, int) else 0
        wanted = [e for e in self._bus._entries() if e.topic.startswith(self._wanted)]
        return self._info_received() >= sum(entry.header.offset > after for entry in wanted)

    def _info_received(self) -> int:
        note = self._note(NameNote, key_of("name", self.consumer.name))
        return 0 if note is None or note.client_id != self._runner.client_id else note.received

    def _info(self) -> Any:
        return self._note(NameNote, key_of("name", self.consumer.name))

    def _note(self, kind: type[T], key: str) -> T | None:
        kept = self._bus.do(lambda opened: opened.keys.get(key))
        return None if kept is None else read_note(kind, key, kept)

    def _collect(self) -> None:
        for receipt in self._bus.events(Receipt):
            if receipt.consumer_id == self._runner.client_id:
                self.receipts[receipt.run_id] = receipt
        kept = self._bus.do(lambda opened: opened.keys.all(key_of("dead", self.consumer.name)))
        self.dead_letters = [read_note(LetterNote, key, each).letter for key, each in kept.items()]


async def _read_all(opened: Opened) -> list[StoredMessage]:
    """Return all that is in a stream, with the offsets that it has there."""
    found: list[StoredMessage] = []
    name = opened.stream.name
    last = (await opened.connection.js.stream_info(name)).state.last_seq
    news = asyncio.Event()
    cursor = Cursor(opened.connection, name, [subjects(name, records=True)], 0, news.set)
    try:
        while cursor.position < last or cursor.has_more:
            news.clear()
            for offset, message, _ in await cursor.take():
                header = message.header._replace(offset=offset)
                found.append(StoredMessage(message.topic, header, bytes(message.payload)))
            if cursor.position < last and not cursor.has_more:
                await asyncio.wait_for(news.wait(), 10)
    finally:
        await cursor.close()
    return found
