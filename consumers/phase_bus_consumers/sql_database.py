"""The SQL sink's database: opening it, inserting rows, and its errors in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from phase_bus import ConfigError
from phase_bus_consumers.sql_rows import Row, Tables, fit, json_text

_INSTALL = "pip install 'phase-bus[sql]'"
_START_S = 5.0  # how long to wait for a database that is just starting
_COMING_UP = (
    "connection refused",
    "starting up",
    "shutting down",
    "recovery mode",
    "database is locked",
)
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg", "sqlite": "sqlite"}
_INSERTS: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
_LIMITS = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 30_000}


def open_database(text: str, tables: Tables) -> sa.Engine:
    """Return an engine for a database that answers and has the tables.

    Raises:
        ConfigError: if there is no such database, or it cannot be used.
    """
    url = _parse(text)
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
            raise ConfigError(f"url: a driver is missing ({error}); {_INSTALL}") from error
        if not isinstance(error, sa.exc.SQLAlchemyError | OSError):
            raise
        shown = repr(url.set(query={}).render_as_string(hide_password=True))  # without possible secrets
        raise ConfigError(
            f"url: {shown} cannot be used: {error_line(error, text)}; give another with url=..."
        ) from None
    return engine


def _parse(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # their messages may have the password
        raise ConfigError(
            "url: not understood; write it as sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    kind, _, driver = url.drivername.partition("+")
    if kind not in _DRIVERS or driver not in ("", "psycopg" if kind != "sqlite" else "pysqlite"):
        raise ConfigError(
            f"url: {url.drivername!r} is not supported; use sqlite:///FILE or postgresql://HOST/DATABASE"
        )
    if "@" in (url.host or ""):
        raise ConfigError("url: more than one @; write an @ in a password as %40")
    if kind == "sqlite" and url.database in (None, "", ":memory:"):
        raise ConfigError("url: a database in memory is gone at the end; name a file, sqlite:///FILE")
    return url.set(drivername=_DRIVERS[kind])


def _engine(url: sa.URL) -> sa.Engine:
    arguments: dict[str, Any] = {"timeout": 30}
    if url.drivername != "sqlite":
        defaults = {**_LIMITS, "application_name": "phase-bus"}
        arguments = {name: value for name, value in defaults.items() if name not in url.query}
    engine = sa.create_engine(
        url,
        pool_size=1,
        max_overflow=0,
        connect_args=arguments,
        json_serializer=json_text,
        hide_parameters=True,
    )
    if url.drivername == "sqlite":
        Path(str(url.database)).parent.mkdir(exist_ok=True)
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


def append(connection: sa.Connection, table: sa.Table, rows: list[Row], after: Mapping[str, int]) -> None:
    """Insert the rows whose offset is beyond that of its stream, by the fastest way the database has."""
    if after and rows and rows[0][1] <= after.get(rows[0][0], 0):
        rows = [row for row in rows if row[1] > after.get(row[0], 0)]
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(str(sa.insert(table).compile(dialect=connection.dialect)), rows)
        return
    quote = connection.dialect.identifier_preparer
    names = ", ".join(quote.quote(column.name) for column in table.c)
    driver: Any = connection.connection.driver_connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {quote.format_table(table)} ({names}) FROM STDIN") as copy,
    ):
        for row in rows:
            copy.write_row(row)


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


def error_line(error: BaseException | None, url: str) -> str:
    """Return an error in one line, without the URL's password."""
    text = " ".join(str(getattr(error, "orig", None) or error).split())
    try:
        secrets = [sa.make_url(url).password, sa.make_url(url).query.get("password")]
    except (sa.exc.ArgumentError, ValueError):
        return text
    for secret in secrets:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return f"{type(error).__name__}: {text}"
