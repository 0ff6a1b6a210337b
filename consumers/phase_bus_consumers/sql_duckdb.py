"""DuckDB for SQLAlchemy, as far as the SQL sink needs it: its SQL is PostgreSQL's, its driver is not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.base import PGCompiler, PGDDLCompiler, PGDialect, PGTypeCompiler

from phase_bus_consumers.sql_rows import APPENDED

_COLUMNS = sa.text("SELECT column_name FROM duckdb_columns() WHERE table_name = :table")


class _Compiler(PGCompiler):
    def for_update_clause(self, select: Any, **kw: Any) -> str:  # noqa: ARG002
        return ""  # one process has the file


class _DDLCompiler(PGDDLCompiler):
    def visit_primary_key_constraint(self, constraint: Any, **kw: Any) -> Any:
        if constraint.table.info.get(APPENDED):
            return None  # its index would have to fit into memory, and nothing is looked up by it
        return super().visit_primary_key_constraint(constraint, **kw)  # type: ignore[no-untyped-call]


class _TypeCompiler(PGTypeCompiler):
    def visit_JSON(self, type_: Any, **kw: Any) -> str:  # noqa: ARG002, N802
        return "JSON"


class DuckDBDialect(PGDialect):
    """DuckDB, in this process."""

    name = "duckdb"
    driver = "duckdb"
    statement_compiler = _Compiler
    ddl_compiler = _DDLCompiler
    type_compiler_cls = _TypeCompiler
    default_paramstyle = "qmark"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> Any:
        import duckdb

        return duckdb

    def create_connect_args(self, url: sa.URL) -> Any:
        return (url.database,), dict(url.query)

    def initialize(self, _connection: sa.Connection) -> None:
        """Ask the server nothing: there is none."""

    def do_begin(self, dbapi_connection: Any) -> None:
        dbapi_connection.begin()

    def do_rollback(self, dbapi_connection: Any) -> None:
        with suppress(self.loaded_dbapi.TransactionException):  # after a commit there is none
            dbapi_connection.rollback()

    def has_table(self, connection: sa.Connection, table_name: str, *_: Any, **_options: Any) -> bool:
        return bool(self.get_columns(connection, table_name))

    def get_columns(self, connection: sa.Connection, table_name: str, *_: Any, **_options: Any) -> Any:
        return [
            {"name": name, "type": sa.types.NullType()}
            for name in connection.scalars(_COLUMNS, {"table": table_name})
        ]


registry.register("duckdb", __name__, DuckDBDialect.__name__)


def insert_arrow(connection: Any, name: str, rows: pa.Table) -> None:
    """Append the rows of an Arrow table, whose columns are in the order of the table's."""
    connection.register("phase_bus_incoming", rows)
    try:
        connection.execute(f"INSERT INTO {name} SELECT * FROM phase_bus_incoming")  # noqa: S608
    finally:
        connection.unregister("phase_bus_incoming")
