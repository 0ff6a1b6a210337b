"""The SQL sink's database: opening it, inserting rows, and its errors in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from phase_bus import ConfigError, PhaseBusError, RefusedRowsError, Secret, UnavailableError
from phase_bus_consumers.sql_duckdb import insert_arrow
from phase_bus_consumers.sql_rows import Tables, fit, json_text

T = TypeVar("T")

_START_S = 5.0  # how long to wait for a database that is just starting
_COMING_UP = (
    "connection refused",
    "starting up",
    "shutting down",
    "recovery mode",
    "database is locked",
)
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "sqlite": "sqlite",
    "duckdb": "duckdb",
}
_FILES = ("sqlite", "duckdb")
_URLS = "postgresql://USER@HOST/DATABASE, sqlite:///FILE or duckdb:///FILE"
_PASSWORDS = "use url=env:NAME or url=file:PATH, PGPASSWORD, or ~/.pgpass"
_SECRET_OPTIONS = ("password", "sslpassword")
_INSERTS: dict[str, Any] = {
    "postgresql": postgresql.insert,
    "duckdb": postgresql.insert,  # whose ON CONFLICT it understands
    "sqlite": sqlite.insert,
}
_LIMITS: dict[str, dict[str, Any]] = {
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "tcp_user_timeout": 30_000,
        "application_name": "phase-bus",
    },
    "sqlite": {"timeout": 30},
}
_REFUSES = ("22", "54")  # classes of errors: what a type cannot hold, and what is too large
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}


def read_url(text: str) -> sa.URL:
    """Return the database's URL, read from where it is if the text says that.

    Raises:
        ConfigError: if it is none, or has a password in clear.
    """
    if not text.startswith(("env:", "file:")):
        url = _parse(text)
        if _secrets(url):
            raise ConfigError(f"url: a password is not given in clear; {_PASSWORDS}")
        return url
    try:
        secret = Secret(text)
    except ValueError as error:
        raise ConfigError(f"url: {error}") from None
    return _parse(secret.value())


def open_database(url: sa.URL, tables: Tables) -> sa.Engine:
    """Return an engine for a database that answers and has the tables.

    Raises:
        ConfigError: if there is no such database, or it cannot be used.
    """
    engine: sa.Engine | None = None
    try:
        engine = _engine(url)
        retrying = Retrying(
            stop=stop_after_delay(_START_S),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            retry=retry_if_exception(lambda e: any(word in str(e).lower() for word in _COMING_UP)),
            reraise=True,
        )
        retrying(_prepare, engine, tables)
    except Exception as error:
        if engine is not None:
            engine.dispose()
        if isinstance(error, ModuleNotFoundError):
            extra = "duckdb" if url.drivername == "duckdb" else "sql"
            raise ConfigError(
                f"url: a driver is missing ({error}); pip install 'phase-bus[{extra}]'"
            ) from error
        if isinstance(as_ours(error, url), PhaseBusError):
            plain = url.set(drivername=url.get_backend_name(), query={})  # without possible secrets
            shown = repr(plain.render_as_string(hide_password=True))
            raise ConfigError(
                f"url: {shown} cannot be used: {error_line(error, url)}; {_remedy(error)}"
            ) from None
        raise
    return engine


def _remedy(error: Exception) -> str:
    if "lock on file" in str(error):  # DuckDB's
        return "end the process that has it open, or give another file with url=..."
    if "no password supplied" in str(error):
        return _PASSWORDS
    if "connection refused" in str(error).lower():
        return f"start the server first: at its own start, the sink waits for it for {_START_S:g} s only"
    return "give another with url=..."


def _parse(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # their messages may have the password
        raise ConfigError(f"url: not understood; write it as {_URLS}") from None
    kind, _, driver = url.drivername.partition("+")
    if kind not in _DRIVERS or driver not in ("", _DRIVERS[kind].partition("+")[2]):
        raise ConfigError(f"url: {url.drivername!r} is not supported; use {_URLS}")
    if "@" in (url.host or ""):
        raise ConfigError("url: more than one @; write an @ in a password as %40")
    if kind in _FILES and url.database in (None, "", ":memory:"):
        raise ConfigError(f"url: a database in memory is gone at the end; name a file, {kind}:///FILE")
    return url.set(drivername=_DRIVERS[kind])


def _engine(url: sa.URL) -> sa.Engine:
    defaults = _LIMITS.get(url.get_backend_name(), {})
    arguments = {name: value for name, value in defaults.items() if name not in url.query}
    if url.drivername in _FILES:
        Path(str(url.database)).parent.mkdir(exist_ok=True)
    engine = sa.create_engine(
        url,
        pool_size=1,
        max_overflow=0,
        connect_args=arguments,
        json_serializer=json_text,
        hide_parameters=True,
    )
    if url.drivername == "sqlite":
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions: we do
    connection.execute("PRAGMA journal_mode = WAL").close()
    # A power cut may take the last transactions, never a part of one: their events come again.
    connection.execute("PRAGMA synchronous = NORMAL").close()


def _prepare(engine: sa.Engine, tables: Tables) -> None:
    """Make the tables that are missing, and check the others.

    Raises:
        ConfigError: if a table lacks one of our columns.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # two processes making one table: one fails
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x70686173)))
        tables.metadata.create_all(connection)
        inspector = sa.inspect(connection)
        for table in tables.metadata.sorted_tables:
            there = {column["name"] for column in inspector.get_columns(table.name)}
            missing = [column.name for column in table.c if column.name not in there]
            if missing:
                raise ConfigError(
                    f"table {table.name!r} is of another version or program (it has no column "
                    f"{missing[0]!r}); set another prefix=..."
                )


def append(connection: sa.Connection, table: sa.Table, pieces: Iterator[pa.Table]) -> None:
    """Insert rows by the fastest way that the database has."""
    first = next(pieces, None)
    if first is None:
        return
    pieces = chain([first], pieces)
    name = connection.dialect.identifier_preparer.format_table(table)
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        statement = str(sa.insert(table).compile(dialect=connection.dialect))
        for rows in pieces:
            columns = [column.to_pylist() for column in rows.columns]
            connection.exec_driver_sql(statement, list(zip(*columns, strict=True)))
    elif connection.dialect.name == "duckdb":
        for rows in pieces:
            insert_arrow(driver, name, rows)
    else:
        with driver.cursor() as cursor, cursor.copy(f"COPY {name} FROM STDIN") as copy:
            for text in _made_ahead(map(_copy_text, pieces)):
                copy.write(text)


def _made_ahead(pieces: Iterator[T]) -> Iterator[T]:
    """Yield pieces; while one is in use, a thread makes the next one."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, pieces, None)
        while (piece := coming.result()) is not None:
            coming = thread.submit(next, pieces, None)
            yield piece


def _copy_text(rows: pa.Table) -> memoryview:
    """Return rows in the text format of PostgreSQL's COPY, made column by column."""
    columns = [_escaped(column.combine_chunks()) for column in rows.columns]
    lines = pc.binary_join_element_wise(*columns, "\t", null_handling="replace", null_replacement="\\N")
    lines = pc.binary_join_element_wise(lines, "", "\n")
    return memoryview(lines.buffers()[2])[: pc.sum(pc.binary_length(lines)).as_py()]


def _escaped(column: pa.Array) -> pa.Array:
    texts = column.cast(pa.string())
    if column.type == pa.string():
        data = (column.buffers()[2] or pa.py_buffer(b"")).to_pybytes()
        for character, escape in _ESCAPES.items():
            if character.encode() in data:
                texts = pc.replace_substring(texts, character, escape)
    return texts


def insert_missing(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Insert a row unless its key exists."""
    insert = _INSERTS[connection.dialect.name](table)
    connection.execute(insert.on_conflict_do_nothing(), row)


def upsert(connection: sa.Connection, table: sa.Table, rows: Iterable[dict[str, Any]]) -> None:
    """Insert or update rows; None leaves what was there."""
    full = [{column.name: fit(row.get(column.name)) for column in table.c} for row in rows]
    if full:
        insert = _INSERTS[connection.dialect.name](table)
        news = {c.name: sa.func.coalesce(insert.excluded[c.name], c) for c in table.c if not c.primary_key}
        connection.execute(insert.on_conflict_do_update(index_elements=table.primary_key, set_=news), full)


def as_ours(error: Exception, url: sa.URL) -> Exception:
    """Return what a sink says of an error of the database or its driver; any other as it is."""
    cause = getattr(error, "orig", None) or error
    if not isinstance(error, sa.exc.SQLAlchemyError | OSError) and not _of_driver(cause):
        return error
    kind = RefusedRowsError if str(getattr(cause, "sqlstate", ""))[:2] in _REFUSES else UnavailableError
    return kind(error_line(error, url))


def _of_driver(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("psycopg", "sqlite3", "_duckdb", "duckdb")


def error_line(error: BaseException, url: sa.URL) -> str:
    """Return an error in one line, without the URL's password."""
    cause = getattr(error, "orig", None) or error
    text = " ".join(str(cause).split())
    for secret in _secrets(url):
        text = text.replace(secret, "***")
    return f"{type(error).__name__}: {text}"


def _secrets(url: sa.URL) -> list[str]:
    found = [url.password, *(url.query.get(name) for name in _SECRET_OPTIONS)]
    return [secret for secret in found if isinstance(secret, str) and secret]
