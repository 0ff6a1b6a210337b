"""The PostgreSQL that tests use, and a proxy before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.postgres import Postgres
from tests.support.servers.tcp_faults import TcpProxy


def rows(server: Postgres, table: str) -> int:
    with psycopg.connect(server.url()) as connection:
        query = sql.SQL("select count(*) from {}").format(sql.Identifier(table))
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[0])


def test_rows_survive_a_kill(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url()) as connection:
        connection.execute("create table survives as select * from generate_series(1, 100) as n")
        connection.commit()
        postgres.kill()
        assert not postgres.runs
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    postgres.start()
    assert rows(postgres, "survives") == 100


def test_an_answer_is_lost_after_the_commit(
    postgres: Postgres, tcp_proxy: Callable[[Path], TcpProxy]
) -> None:
    proxy = tcp_proxy(postgres.socket)
    with psycopg.connect(postgres.url(port=proxy.port)) as connection:
        connection.execute("create table lost as select * from generate_series(1, 10) as n")
        proxy.lose_answers(when=b"COMMIT")
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    assert rows(postgres, "lost") == 10


def test_a_copy_is_cut_in_the_middle(postgres: Postgres, tcp_proxy: Callable[[Path], TcpProxy]) -> None:
    proxy = tcp_proxy(postgres.socket)
    connecting = psycopg.connect(postgres.url(port=proxy.port))
    # Not as a context manager of its own, which would commit on what may not know yet that it is cut.
    with closing(connecting) as connection, connection.cursor() as cursor:
        connection.execute("create table cut (n int)")
        connection.commit()
        proxy.cut_after(100_000)
        with pytest.raises(psycopg.OperationalError), cursor.copy("copy cut from stdin") as copy:
            copy.write(b"1\n" * 1_000_000)
    assert proxy.counts["cut"] == 1
    assert rows(postgres, "cut") == 0


def test_a_server_that_is_gone_is_told(tcp_proxy: Callable[[int], TcpProxy]) -> None:
    proxy = tcp_proxy(1)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(f"postgresql://tester:x@127.0.0.1:{proxy.port}/postgres")
    assert proxy.counts["unreachable"] >= 1
