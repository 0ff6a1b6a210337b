"""Databases that records are written to: by the sinks, row by row, and in bulk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb as duck
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from pymongo import MongoClient

from benchmarks.sink_load import Load, Place, Row, Work, chunks, feed
from phase_bus_consumers.mongodb import MongoSink
from phase_bus_consumers.parquet import ParquetSink
from phase_bus_consumers.sql import SqlSink
from tests.support.postgres import running_postgres
from tests.support.servers.mongodb import MongoDB

_BULK = 1000
_TYPES = {str: "text", int: "bigint", float: "double precision", bool: "boolean"}


class Server(NamedTuple):
    """A server.

    Attributes:
        count: returns how many records the server has, by the name of a turn.
    """

    url: str
    count: Callable[[str], int]


# ---- PostgreSQL ----


@contextmanager
def postgresql(_directory: str) -> Iterator[Server]:
    """Run one as it is when it is installed: what it commits is on the disk."""
    with running_postgres(fsync=True) as server:

        def count(name: str) -> int:
            with psycopg.connect(server.url()) as connection:
                row = connection.execute(f"SELECT count(*) FROM {name}_records").fetchone()  # noqa: S608
                assert row is not None
                return int(row[0])

        yield Server(server.url(), count)


@contextmanager
def sql_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink."""
    os.environ["PHASE_BUS_BENCHMARK"] = place.url
    with feed(SqlSink("env:PHASE_BUS_BENCHMARK", prefix=f"{place.name}_"), load, place.name) as work:
        yield work


@contextmanager
def committed_rows(load: Load, place: Place) -> Iterator[Work]:
    """A statement and a transaction for each row."""
    with psycopg.connect(place.url, autocommit=True) as connection:
        insert = _make_table(connection.execute, load.rows[0], place.name, "%s")

        def work() -> None:
            for row in load.rows:
                connection.execute(insert, tuple(row.values()))

        yield work


@contextmanager
def rows(load: Load, place: Place) -> Iterator[Work]:
    """A statement for each row, in one transaction."""
    with psycopg.connect(place.url) as connection:
        insert = _make_table(connection.execute, load.rows[0], place.name, "%s")
        connection.commit()

        def work() -> None:
            for row in load.rows:
                connection.execute(insert, tuple(row.values()))
            connection.commit()

        yield work


@contextmanager
def executemany(load: Load, place: Place) -> Iterator[Work]:
    """All rows in one call."""
    with psycopg.connect(place.url) as connection, connection.cursor() as cursor:
        insert = _make_table(cursor.execute, load.rows[0], place.name, "%s")
        connection.commit()

        def work() -> None:
            cursor.executemany(insert, [tuple(row.values()) for row in load.rows])
            connection.commit()

        yield work


@contextmanager
def copy_rows(load: Load, place: Place) -> Iterator[Work]:
    """COPY, of rows as they are."""
    with psycopg.connect(place.url) as connection, connection.cursor() as cursor:
        _make_table(cursor.execute, load.rows[0], place.name, "%s")
        connection.commit()

        def work() -> None:
            with cursor.copy(f"COPY {place.name}_records FROM STDIN") as copy:
                for row in load.rows:
                    copy.write_row(tuple(row.values()))
            connection.commit()

        yield work


def _make_table(execute: Callable[[Any], Any], row: Row, name: str, mark: str) -> Any:
    """Make a table for rows like this one; return the statement that inserts one."""
    columns = ", ".join(f"{column} {_TYPES[type(value)]}" for column, value in row.items())
    execute(f"CREATE TABLE {name}_records ({columns}, PRIMARY KEY (run_id, phase, session_num))")
    return f"INSERT INTO {name}_records VALUES ({', '.join([mark] * len(row))})"  # noqa: S608 - our own


# ---- DuckDB ----


@contextmanager
def duckdb(directory: str) -> Iterator[Server]:
    """A place for databases; each is a file."""

    def count(name: str) -> int:
        with duck.connect(_file(directory, name), read_only=True) as connection:
            (found,) = connection.execute(f"SELECT count(*) FROM {name}_records").fetchall()  # noqa: S608
            return int(found[0])

    yield Server(directory, count)


def _file(directory: str, name: str) -> str:
    return str(Path(directory) / f"{name}.db")


@contextmanager
def duckdb_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink."""
    url = f"duckdb:///{_file(place.url, place.name)}"
    with feed(SqlSink(url, prefix=f"{place.name}_"), load, place.name) as work:
        yield work


@contextmanager
def duckdb_rows(load: Load, place: Place) -> Iterator[Work]:
    """A statement for each row, in one transaction."""
    with duck.connect(_file(place.url, place.name)) as connection:
        insert = _make_table(connection.execute, load.rows[0], place.name, "?")

        def work() -> None:
            connection.begin()
            for row in load.rows:
                connection.execute(insert, tuple(row.values()))
            connection.commit()

        yield work


@contextmanager
def duckdb_executemany(load: Load, place: Place) -> Iterator[Work]:
    """All rows in one call."""
    with duck.connect(_file(place.url, place.name)) as connection:
        insert = _make_table(connection.execute, load.rows[0], place.name, "?")

        def work() -> None:
            connection.begin()
            connection.executemany(insert, [tuple(row.values()) for row in load.rows])
            connection.commit()

        yield work


@contextmanager
def duckdb_arrow(load: Load, place: Place) -> Iterator[Work]:
    """All rows as an Arrow table."""
    with duck.connect(_file(place.url, place.name)) as connection:
        _make_table(connection.execute, load.rows[0], place.name, "?")

        def work() -> None:
            connection.register("incoming", pa.Table.from_pylist(load.rows))
            connection.execute(f"INSERT INTO {place.name}_records SELECT * FROM incoming")  # noqa: S608

        yield work


# ---- Parquet ----


@contextmanager
def parquet(directory: str) -> Iterator[Server]:
    """A place for datasets; each is a directory."""

    def count(name: str) -> int:
        files = (Path(directory) / name).rglob("records*.parquet")
        return sum(pq.read_metadata(file).num_rows for file in files)

    yield Server(directory, count)


@contextmanager
def parquet_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink."""
    with feed(ParquetSink(str(Path(place.url) / place.name)), load, place.name) as work:
        yield work


@contextmanager
def parquet_rows(load: Load, place: Place) -> Iterator[Work]:
    """Each row is a group of the file's rows."""
    with _parquet_writer(load, place) as writer:

        def work() -> None:
            for row in load.rows:
                writer.write_table(pa.Table.from_pylist([row]))
            writer.close()

        yield work


@contextmanager
def parquet_table(load: Load, place: Place) -> Iterator[Work]:
    """All rows are one table."""
    with _parquet_writer(load, place) as writer:

        def work() -> None:
            writer.write_table(pa.Table.from_pylist(load.rows))
            writer.close()

        yield work


@contextmanager
def _parquet_writer(load: Load, place: Place) -> Iterator[Any]:
    folder = Path(place.url) / place.name
    folder.mkdir()
    with pq.ParquetWriter(folder / "records.parquet", pa.Table.from_pylist(load.rows[:1]).schema) as writer:
        yield writer


# ---- MongoDB ----


@contextmanager
def mongodb(directory: str) -> Iterator[Server]:
    """Run a server of its protocol."""
    with MongoDB(Path(directory)) as server:
        yield Server(server.url, lambda name: server.count(name, "records"))


@contextmanager
def mongodb_sink(load: Load, place: Place) -> Iterator[Work]:
    """The sink."""
    consumer = MongoSink(place.url, database=place.name, max_rows_per_s=0)
    with feed(consumer, load, place.name) as work:
        yield work


@contextmanager
def insert_one(load: Load, place: Place) -> Iterator[Work]:
    """A request for each row."""
    with _mongo_client(place) as client:
        collection = client[place.name]["records"]

        def work() -> None:
            for row in load.rows:
                collection.insert_one(dict(row))  # it adds the id to what it is given

        yield work


@contextmanager
def insert_many(load: Load, place: Place) -> Iterator[Work]:
    """A request for a thousand rows."""
    with _mongo_client(place) as client:
        collection = client[place.name]["records"]

        def work() -> None:
            for some in chunks(load.rows, _BULK):
                collection.insert_many([dict(row) for row in some])

        yield work


@contextmanager
def _mongo_client(place: Place) -> Iterator[MongoClient[dict[str, Any]]]:
    with MongoClient[dict[str, Any]](place.url, w="majority", journal=True) as client:
        client[place.name]["records"].create_index([("run_id", 1), ("phase", 1)])
        yield client
