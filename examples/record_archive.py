"""A consumer with batching: request records as JSON lines, in files of many rows, each row exactly once.

In a clone of the repository:

    phase-bus exec --with examples.record_archive:RecordArchive:directory=archive -- phase-bus simulate
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from phase_bus import Consumer, Position, RecordBatch, Records


class RecordArchive(Consumer):
    """Write request records to JSON lines files of many rows.

    Handlers only fill a buffer; it is written when it is full, and by :meth:`flush`, which is called every
    second and after each run. A file is called after the last event in it and appears whole, so that the
    files themselves say how far this consumer has come: after a crash no row lacks and none is there twice.

    Args:
        directory: where the files are, ``<stream>-<offset>.jsonl``.
        batch_rows: how many rows are written at once, if they come that fast.
    """

    def __init__(self, directory: Path, batch_rows: int = 10_000) -> None:
        if batch_rows < 1:
            raise ValueError("batch_rows must be at least 1")
        self.directory = directory
        self.batch_rows = batch_rows
        self._rows: list[dict[str, Any]] = []
        self._last = Position("", 0)

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)

    async def position(self) -> Position | None:
        """Return the last event that is in a file: everything after it is to come (again)."""
        found: dict[str, int] = {}
        for path in self.directory.glob("*-*.jsonl"):
            stream, _, offset = path.stem.rpartition("-")
            found[stream] = max(found.get(stream, 0), int(offset))
        latest = next((stream for stream in reversed(self.streams) if stream in found), None)
        return None if latest is None else Position(latest, found[latest])

    async def on_records(self, event: Records) -> None:
        self._rows += ({"run_id": event.run_id, **row} for row in RecordBatch(event))
        self._last = Position(self.stream, self.offset)
        if len(self._rows) >= self.batch_rows:
            self._write()

    async def flush(self) -> None:
        if self._rows:
            self._write()

    def _write(self) -> None:
        path = self.directory / f"{self._last.stream}-{self._last.offset:012}.jsonl"
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            file.write(b"".join(msgspec.json.encode(row) + b"\n" for row in self._rows))
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
        self._rows.clear()  # only now: should writing fail, it is tried again
