"""The SQL sink: runs, phases, events and records in PostgreSQL, SQLite or DuckDB, each exactly once.

The tables and rows are in ``sql_rows``, the statements in ``sql_database``.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from phase_bus import ConfigError, EventBase, PhaseBusError, Position, RecordBatch, Records, Row, Sink
from phase_bus_consumers.extras import needs

with needs("sql"):
    import sqlalchemy as sa

    from phase_bus_consumers.sql_database import (
        append,
        as_ours,
        insert_missing,
        open_database,
        read_url,
        upsert,
    )
    from phase_bus_consumers.sql_rows import Batch, News, Tables

T = TypeVar("T")

_FLUSH_S = 10.0  # how long the place of the last row is asked for before that fails


class SqlSink(Sink):
    """Write runs, phases, events and request records to PostgreSQL, SQLite or DuckDB, each exactly once.

    Rows and the position up to which they go are written in one transaction, so that no row is missing or
    doubled, whatever is killed and whenever. An event that comes again at another place, from a new
    journal or one that lost its end, is recognised by its publisher and number. An event behind the
    stored position is skipped as already stored, so a dead letter cannot be retried (``phase-bus
    dead-letters retry`` refuses): to get its event, use another database or ``prefix``, which reads the
    whole journal again.

    Args:
        url: the database, ``postgresql://USER@HOST/DATABASE``, ``sqlite:///FILE`` or ``duckdb:///FILE``; or
            where that is written, ``env:NAME`` or ``file:PATH``. Only there it may have a password in it;
            else that is in ``PGPASSWORD`` or ``~/.pgpass``.
        batch_rows: rows in a transaction, about; fewer if a second is over first.
        prefix: the prefix of the tables' names.
        batch_bytes: bytes in a transaction, about.
        max_rows_per_s: rows a second, at most; 0 for no limit.
    """

    def __init__(
        self,
        url: str = "sqlite:///phase-bus.db",
        batch_rows: int = 50_000,
        prefix: str = "phase_bus_",
        batch_bytes: int = 32 << 20,
        max_rows_per_s: float = 0.0,
        **limits: Any,
    ) -> None:
        super().__init__(
            batch_rows=batch_rows, batch_bytes=batch_bytes, max_rows_per_s=max_rows_per_s, **limits
        )
        if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]{0,39})?", prefix):
            raise ValueError(f"prefix must be at most 40 letters, digits and _, not {prefix!r}")
        self._url = url
        self._tables = Tables(prefix)
        self._engine: sa.Engine | None = None
        self._live = Position(f"live-{uuid.uuid4().hex}", 0)  # without a journal it numbers events itself
        self._stored: dict[str, int] = {}  # the offset up to which a stream is known to be in the tables

    def rows(self, event: EventBase) -> Sequence[News]:
        if self.stream:
            at = Position(self.stream, self.offset)
        else:
            at = self._live = Position(self._live.stream, self._live.offset + 1)
        if isinstance(event, Records):
            RecordBatch(event).check()
        return [News(event, at, self._streams[0], self.source, self.sequence)]

    def size_of(self, data: News) -> int:
        tables = (*data.event.metrics, *data.event.fields) if isinstance(data.event, Records) else ()
        return sum(len(table.numbers) + len(table.others) for table in tables)

    def weight_of(self, data: News) -> int:
        return data.event.count if isinstance(data.event, Records) else 1

    async def connect(self) -> None:
        self._engine = await asyncio.to_thread(open_database, read_url(self._url), self._tables)

    async def position(self) -> Position | None:
        await self.send_all()
        rows = await self.insist(lambda: self._transact(self._positions, self._streams), _FLUSH_S)
        for row in rows:
            if row.consumer != self.name:
                table = self._tables.positions.name
                raise ConfigError(
                    f"consumer {self.name!r}: {row.consumer!r} already writes this bus's events to "
                    f"{table!r} and its tables; use that name, or set another prefix=..."
                )
        self._stored = {row.stream: int(row.position) for row in rows}
        latest = max(self._stored, key=self._streams.index)
        return Position(latest, self._stored[latest]) if self.streams else None

    async def send(self, rows: Sequence[Row]) -> None:
        self._stored |= await self._transact(self._store, [row.data for row in rows])

    async def stop(self) -> None:
        await super().stop()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.dispose)

    @property
    def _streams(self) -> tuple[str, ...]:
        return self.streams or (self._live.stream,)

    # ---- in a thread ----

    async def _transact(self, work: Callable[[sa.Connection, Any], T], argument: Any) -> T:
        """Do work in a transaction."""
        return await self.in_thread(self._in_transaction, work, argument)

    def _in_transaction(self, work: Callable[[sa.Connection, Any], T], argument: Any) -> T:
        assert self._engine is not None, "connect() comes first"
        try:
            with self._engine.begin() as connection:
                return work(connection, argument)
        except Exception as error:
            self._engine.dispose()  # the next attempt must not get the same broken connection
            raise as_ours(error, self._engine.url) from error

    def _positions(self, connection: sa.Connection, streams: tuple[str, ...]) -> Sequence[Any]:
        """Return how far a journal's streams are in the tables; make a row if there is none."""
        positions = self._tables.positions
        new = {"stream": streams[0], "journal_id": streams[0], "consumer": self.name, "position": 0}
        insert_missing(connection, positions, new)
        return connection.execute(sa.select(positions).where(positions.c.stream.in_(streams))).all()

    def _store(self, connection: sa.Connection, news: list[News]) -> dict[str, int]:
        """Write what is not in the tables already, by another process of the same name or an attempt whose
        answer was lost; return how far the streams are there now."""
        tables = self._tables
        positions, sources = tables.positions, tables.sources
        streams = {each.at.stream for each in news} | self._stored.keys()
        rows = connection.execute(
            sa.select(positions.c.stream, positions.c.position)
            .where(positions.c.stream.in_(streams))
            .with_for_update()
        ).all()
        stored = {row.stream: int(row.position) for row in rows}
        self._check(stored)
        known = connection.execute(
            sa.select(sources).where(sources.c.source.in_({each.source for each in news}))
        )
        batch = Batch(stored, {row.source: int(row.sequence) for row in known})
        for each in news:
            batch.add(each)
        append(connection, tables.events, batch.events())
        append(connection, tables.verdicts, batch.verdicts())
        append(connection, tables.records, batch.records())
        upsert(connection, tables.runs, batch.runs.values())
        upsert(connection, tables.phases, batch.phases.values())
        upsert(connection, tables.summaries, batch.summaries.values())
        upsert(connection, sources, batch.new_sources())
        upsert(connection, positions, batch.new_positions(self.name))
        return batch.positions

    def _check(self, stored: dict[str, int]) -> None:
        for stream, offset in self._stored.items():
            now = stored.get(stream)
            if now is None or now < offset:
                raise PhaseBusError(
                    f"consumer {self.name!r}: the database has lost rows that were in it (position "
                    f"{offset} before, {now} now); restart the consumer to write them again"
                )
