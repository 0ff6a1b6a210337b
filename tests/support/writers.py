"""Consumers that write down what they got, for tests to check afterwards."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.position import Position
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import topic_of
from phase_bus.events import EventBase, PhaseEvent, PhaseStart, Records, RunComplete


class Checking(Consumer):
    """Append a line for each event: offset, topic, number of request records.

    Args:
        output: the file.
        delay_s: how long to sleep at each event.
    """

    def __init__(self, output: Path, delay_s: float = 0.0) -> None:
        self._output = output
        self._delay_s = delay_s
        self._file = -1

    async def start(self) -> None:
        self._file = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def stop(self) -> None:
        os.close(self._file)

    async def on_records(self, event: Records) -> None:
        await self._write(event, event.count)

    async def on_event(self, event: EventBase) -> None:
        await self._write(event, 0)

    async def _write(self, event: EventBase, count: int) -> None:
        # One call, so that a kill leaves a whole line or none; what is written survives a killed process.
        os.write(self._file, f"{self.offset} {topic_of(event).decode()} {count}\n".encode())
        if self._delay_s:
            await asyncio.sleep(self._delay_s)


def read_lines(output: Path) -> list[tuple[int, str, int]]:
    """Return what a checking consumer wrote: offset, topic, number of records."""
    if not output.exists():
        return []
    rows = (line.split() for line in output.read_text().splitlines())
    return [(int(offset), topic, int(count)) for offset, topic, count in rows]


class Once(Consumer):
    """Store each phase event's number and its offset in SQLite, as one: exactly once.

    Args:
        output: the database.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._db: sqlite3.Connection | None = None

    async def start(self) -> None:
        self._db = sqlite3.connect(self._output)
        self._db.execute("CREATE TABLE IF NOT EXISTS numbers (number INTEGER)")
        self._db.execute("CREATE TABLE IF NOT EXISTS place (id INTEGER PRIMARY KEY, stream, offset)")
        self._db.commit()

    async def stop(self) -> None:
        if self._db is not None:
            self._db.close()

    async def position(self) -> Position | None:
        assert self._db is not None
        row = self._db.execute("SELECT stream, offset FROM place").fetchone()
        return Position(*row) if row else None

    async def flush(self) -> None:
        assert self._db is not None
        self._db.commit()

    async def on_phase_start(self, event: PhaseStart) -> None:
        assert self._db is not None
        self._db.execute("INSERT INTO numbers VALUES (?)", (event.ts_ns,))
        self._db.execute("INSERT OR REPLACE INTO place VALUES (1, ?, ?)", (self.stream, self.offset))
        if event.ts_ns % 7 == 0:
            self._db.commit()
        await asyncio.sleep(0.001)


class Numbers(Consumer):
    """Append the number of each phase event; batches of records are taken, and only counted.

    Args:
        output: the file.
        delay_s: how long to sleep at each event and batch.
    """

    def __init__(self, output: Path, delay_s: float = 0.0) -> None:
        self._output = output
        self._delay_s = delay_s
        self._file = -1
        self._records = 0

    async def start(self) -> None:
        self._file = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def stop(self) -> None:
        os.close(self._file)

    async def on_phase_start(self, event: PhaseStart) -> None:
        os.write(self._file, b"%d\n" % event.ts_ns)
        if self._delay_s:
            await asyncio.sleep(self._delay_s)

    async def on_records(self, event: Records) -> None:
        self._records += event.count
        if self._delay_s:
            await asyncio.sleep(self._delay_s)


class Recording(Consumer):
    """Append a line for each event: its run, its kind, and its number, those of the records, or its status.

    The number of a phase event is its count of completed requests.

    Args:
        output: the file.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._file = -1

    async def start(self) -> None:
        self._file = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def stop(self) -> None:
        os.close(self._file)

    async def on_event(self, event: EventBase) -> None:
        numbers = ""
        if isinstance(event, Records):
            numbers = ",".join(map(str, RecordBatch(event).values("session_num").tolist()))
        elif isinstance(event, PhaseEvent):
            numbers = str(event.stats.completed)
        elif isinstance(event, RunComplete):
            numbers = event.status
        # One call, so that a kill leaves a whole line or none; what is written survives a killed process.
        os.write(self._file, f"{event.run_id} {event.kind} {numbers}\n".encode())
