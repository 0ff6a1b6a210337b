"""The SQL sink: runs, phases, events and records in SQLite or PostgreSQL, each exactly once.

The tables and rows are in ``sql_rows``, the statements in ``sql_database``.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)
from tenacity.stop import stop_base

from phase_bus import ConfigError, Consumer, EventBase, PhaseBusError, Position

try:
    import sqlalchemy as sa
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        "SQLAlchemy is missing; install it with: pip install 'phase-bus[sql]'"
    ) from _error

from phase_bus_consumers.sql_database import append, error_line, insert_missing, open_database, upsert
from phase_bus_consumers.sql_rows import Batch, Tables

_FLUSH_S = 10.0  # how long a flush tries before it fails
_MOST_WAIT_S = 5.0


class SqlSink(Consumer):
    """Write runs, phases, events and request records to SQLite or PostgreSQL, each exactly once.

    Rows and the position up to which they go are written in one transaction, so that whatever is killed
    whenever, no row is missing or doubled. An event that comes once more at another place, from a journal
    that was begun anew or lost its end, is recognised by its publisher and number. If the database cannot
    be written to, the sink tries again until it can, and takes no more events meanwhile. An event behind
    the stored offset is skipped as already stored, so a dead letter cannot be retried (``phase-bus
    dead-letters retry`` refuses to): only another database or ``prefix``, which takes the whole journal
    again, takes its event too.

    Args:
        url: the database as SQLAlchemy writes it: ``sqlite:///FILE`` or
            ``postgresql://USER:PASSWORD@HOST/DATABASE``. A password is better kept in ``PGPASSWORD`` or
            ``~/.pgpass``.
        batch_rows: rows in a transaction; fewer if a second is over first.
        prefix: the beginning of the tables' names.
    """

    def __init__(
        self,
        url: str = "sqlite:///phase-bus.db",
        batch_rows: int = 5000,
        prefix: str = "phase_bus_",
    ) -> None:
        if batch_rows < 1:
            raise ValueError(f"batch_rows must be at least 1, not {batch_rows}")
        if not re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]{0,39})?", prefix):
            raise ValueError(f"prefix must be at most 40 letters, digits and _, not {prefix!r}")
        self._url = url
        self._batch_rows = batch_rows
        self._tables = Tables(prefix)
        self._engine: sa.Engine | None = None
        self._lock = asyncio.Lock()
        self._batch = Batch("", Position("", 0))
        self._writing: Batch | None = None
        self._ranks: dict[str, int] = {}  # the order of the journal's streams
        self._sequences: dict[str, int] = {}  # the last number of each source that was looked up

    async def start(self) -> None:
        self._engine = await asyncio.to_thread(open_database, self._url, self._tables)

    async def position(self) -> Position | None:
        await self._write(stop_never)
        # Without a journal there are no offsets: the sink numbers the events itself.
        streams = self.streams or (f"live-{uuid.uuid4().hex}",)
        self._ranks = {stream: rank for rank, stream in enumerate(streams)}
        stored: Position = await self._insist(stop_after_delay(_FLUSH_S), self._stored, streams)
        self._batch = Batch(streams[0], stored)
        return stored if self.streams else None

    async def flush(self) -> None:
        await self._write(stop_after_delay(_FLUSH_S))

    async def stop(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.dispose)

    async def on_event(self, event: EventBase) -> None:
        if not self._ranks:  # against a publisher alone nobody asks for the position
            await self.position()
        last = self._batch.last
        at = Position(self.stream, self.offset) if self.stream else Position(last.stream, last.offset + 1)
        source, sequence = self.source, self.sequence
        if self._is_behind(at) or (sequence and sequence <= await self._last_sequence(source)):
            return
        self._batch.add(at, event)
        if sequence:
            self._sequences[source] = self._batch.sequences[source] = sequence
        if len(self._batch) >= self._batch_rows:
            await self._write(stop_never)

    def _is_behind(self, at: Position) -> bool:
        if at.stream not in self._ranks:  # of a bus that was started again meanwhile
            self._ranks = {stream: rank for rank, stream in enumerate(self.streams)}
        last, ranks = self._batch.last, self._ranks
        return (ranks[at.stream], at.offset) <= (ranks.get(last.stream, 0), last.offset)

    async def _last_sequence(self, source: str) -> int:
        """Return the last number of a source that is in the tables, or about to be."""
        if source not in self._sequences:
            self._sequences[source] = await self._insist(stop_never, self._sequence, source)
        return self._sequences[source]

    # ---- writing: in a thread, repeated until it succeeds ----

    async def _write(self, stop: stop_base) -> None:
        async with self._lock:
            while self._writing is not None or len(self._batch):
                if self._writing is None:
                    self._writing = self._batch
                    self._batch = Batch(self._writing.journal_id, self._writing.last)
                await self._insist(stop, self._store, self._writing)
                self._writing = None

    async def _insist(self, stop: stop_base, work: Any, argument: Any) -> Any:
        """Do blocking work in a thread, and repeat it after any error: the rows are kept."""
        retrying = AsyncRetrying(
            stop=stop,
            wait=wait_random_exponential(multiplier=0.1, max=_MOST_WAIT_S),
            retry=retry_if_exception(_may_pass),
            before_sleep=self._complain,
            reraise=True,
        )
        return await retrying(asyncio.to_thread, self._afresh, work, argument)

    def _afresh(self, work: Any, argument: Any) -> Any:
        assert self._engine is not None, "start() comes first"
        try:
            with self._engine.begin() as connection:
                return work(connection, argument)
        except Exception:
            self._engine.dispose()  # the next attempt must not get the same broken connection
            raise

    def _complain(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        self.log.warning(
            "the database did not take the rows; trying again",
            reason=error_line(error, self._url),
            attempt=state.attempt_number,
        )

    def _stored(self, connection: sa.Connection, streams: tuple[str, ...]) -> Position:
        """Return the place up to which a journal is in the tables; make its row if there is none."""
        positions = self._tables.positions
        new = {"stream": streams[0], "journal_id": streams[0], "consumer": self.name, "position": 0}
        insert_missing(connection, positions, new)
        rows = connection.execute(sa.select(positions).where(positions.c.stream.in_(streams))).all()
        for row in rows:
            if row.consumer != self.name:
                raise ConfigError(
                    f"consumer {self.name!r}: {row.consumer!r} already writes this bus's events to "
                    f"{positions.name!r} and its tables; use that name, or set another prefix=..."
                )
        latest = max(rows, key=lambda row: streams.index(row.stream))
        return Position(latest.stream, int(latest.position))

    def _sequence(self, connection: sa.Connection, source: str) -> int:
        sources = self._tables.sources
        which = sources.c.source == source
        return int(connection.scalar(sa.select(sources.c.sequence).where(which)) or 0)

    def _store(self, connection: sa.Connection, batch: Batch) -> None:
        """Write a batch and its offset, except what another process of the same name, or an attempt whose
        answer was lost, has written already."""
        tables = self._tables
        positions = tables.positions
        chosen = sa.select(positions.c.stream, positions.c.position).with_for_update()
        rows = connection.execute(chosen.where(positions.c.stream.in_(batch.reached))).all()
        stored = {row.stream: int(row.position) for row in rows}
        base = stored.get(batch.base.stream)
        if base is None or base < batch.base.offset:
            raise PhaseBusError(
                f"consumer {self.name!r}: the database has lost rows that were in it (position "
                f"{batch.base.offset} before, {base} now); restart the consumer to write them again"
            )
        if stored.get(batch.last.stream, 0) >= batch.last.offset:
            return
        append(connection, tables.events, batch.events, stored)
        append(connection, tables.records, batch.records, stored)
        upsert(connection, tables.runs, batch.runs.values())
        upsert(connection, tables.phases, batch.phases.values())
        upsert(connection, tables.summaries, batch.summaries.values())
        upsert(connection, tables.sources, _sources(batch))
        whose = {"journal_id": batch.journal_id, "consumer": self.name}
        reached = [each for each in batch.reached.items() if each[1] > stored.get(each[0], -1)]
        rows_of = [{**whose, "stream": stream, "position": offset} for stream, offset in reached]
        upsert(connection, positions, rows_of)


def _sources(batch: Batch) -> list[dict[str, Any]]:
    return [{"source": source, "sequence": number} for source, number in batch.sequences.items()]


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, ConfigError)
