"""The sink ``parquet``: a dataset of files, partitioned by run, that has each event once.

The files are made in ``parquet_tables``, and kept where ``parquet_files`` says.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from phase_bus import EventBase, Position, RecordBatch, Records, Row, Sink, Verdict
from phase_bus_consumers.extras import needs

with needs("parquet"):
    from phase_bus_consumers.parquet_files import Files, Part, folder_of
    from phase_bus_consumers.parquet_tables import event_table, file_of, record_table, verdict_table

_MOST_PARTS = 1000  # that are remembered; others are looked up again
_TABLES: dict[str, Any] = {"records": record_table, "events": event_table, "verdicts": verdict_table}


class _Item(NamedTuple):
    event: EventBase
    at: Position


class ParquetSink(Sink):
    """Write records, events and verdicts to Parquet files, partitioned by run, each exactly once.

    A file is named by the stream and the offsets of the events in it, and appears only when complete.
    These names say what is already in the files, so that after a crash nothing is missing or doubled,
    however the batches are cut then. A dead letter cannot be retried, because the position is beyond it.

    Args:
        path: a directory, or a URL that fsspec knows (``s3://BUCKET/FOLDER``), without secrets in it.
        batch_rows: records in a file, at most; fewer at a run's end, or if it is old enough.
        batch_bytes: bytes of records in memory for a file, about.
        batch_age_s: after how many seconds a file is written, though there is not so much.
        max_rows_per_s: rows a second, at most; 0 for no limit.
    """

    def __init__(
        self,
        path: str = "phase-bus-parquet",
        batch_rows: int = 100_000,
        batch_bytes: int = 64 << 20,
        batch_age_s: float = 30.0,
        max_rows_per_s: float = 0.0,
    ) -> None:
        super().__init__(batch_rows, batch_bytes, batch_age_s, max_rows_per_s)
        self._path = path
        self._files: Files | None = None
        self._parts: dict[tuple[str, str], Part] = {}  # by folder and kind of file
        self._live = Position(uuid.uuid4().hex, 0)  # without a journal it numbers events itself

    def rows(self, event: EventBase) -> Sequence[_Item]:
        folder_of(event.run_id)
        if isinstance(event, Records):
            RecordBatch(event).check()
        if self.stream:
            return [_Item(event, Position(self.stream, self.offset))]
        self._live = Position(self._live.stream, self._live.offset + 1)
        return [_Item(event, self._live)]

    def size_of(self, data: _Item) -> int:
        tables = (*data.event.metrics, *data.event.fields) if isinstance(data.event, Records) else ()
        return sum(len(table.numbers) + len(table.others) for table in tables)

    def weight_of(self, data: _Item) -> int:
        return data.event.count if isinstance(data.event, Records) else 1

    async def connect(self) -> None:
        self._files = await asyncio.to_thread(Files.open, self._path, self.name)

    async def position(self) -> Position | None:
        await self.send_all()
        self._parts.clear()
        if not self.streams:
            return None
        if self._files is None:  # the server was not there yet
            await self.insist(self.connect)
        assert self._files is not None
        return self._files.position(self.streams)

    async def send(self, rows: Sequence[Row]) -> None:
        await self.in_thread(self._store, rows)

    # ---- in a thread ----

    def _store(self, rows: Sequence[Row]) -> None:
        """Write what is not in the files already."""
        assert self._files is not None, "connect() comes first"
        groups: dict[tuple[str, str, str], list[Row]] = {}
        for row in rows:
            folder = folder_of(row.data.event.run_id)
            for kind in _kinds(row.data.event):
                groups.setdefault((folder, kind, row.data.at.stream), []).append(row)
        for (folder, kind, stream), some in groups.items():
            self._store_part(self._files, folder, kind, stream, some)
        self._files.keep_position(rows[-1].data.at)

    def _store_part(self, files: Files, folder: str, kind: str, stream: str, rows: list[Row]) -> None:
        part = self._part(files, folder, kind).copy()
        new = [row for row in rows if part.add(row.data.at, row.origin.source, row.origin.sequence)]
        if not new:
            return
        make = _TABLES[kind]
        places = [(row.data.at, row.origin) for row in new]
        data = file_of(make([row.data.event for row in new], places), part.sources)
        files.put(folder, kind, stream, (new[0].data.at.offset, new[-1].data.at.offset), data)
        self._parts[folder, kind] = part

    def _part(self, files: Files, folder: str, kind: str) -> Part:
        part = self._parts.get((folder, kind))
        if part is None:
            while len(self._parts) >= _MOST_PARTS:
                del self._parts[next(iter(self._parts))]
            part = self._parts[folder, kind] = files.part(folder, kind)
        return part


def _kinds(event: EventBase) -> Sequence[str]:
    """Return the kinds of files that an event goes to."""
    if isinstance(event, Records):
        return ("records",)
    return ("events", "verdicts") if isinstance(event, Verdict) else ("events",)
