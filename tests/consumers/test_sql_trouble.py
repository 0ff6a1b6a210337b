"""The ``sql`` consumer killed, doubled, refused, and with a database that is away or somebody else's."""

from __future__ import annotations

import asyncio
import random
import string
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
import structlog

from phase_bus.core.position import Position
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.testing import MemoryBus, make_run
from phase_bus.testing.waiting import until
from phase_bus_consumers import sql, sql_database
from phase_bus_consumers.sql import SqlSink
from phase_bus_consumers.sql_rows import Tables
from tests.support.postgres import PASSWORD, Postgres, private
from tests.support.sql import JOURNAL, check, dump, feed, running, stream

ROOT = Path(__file__).parents[2]
KILLS = 5
_FEEDER = """
import asyncio, sys
from tests.support.sql import feed, running, stream

async def main():
    async with running(sys.argv[1], batch_rows=150) as sink:
        position = (await sink.position()).offset
        print("ready", position, flush=True)
        for event in stream(300)[position:]:
            await feed(sink, [event])
            print("fed", flush=True)
        await sink.flush()

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(100)
def test_killed_at_any_moment_each_row_is_there_once(url: str) -> None:
    """SIGKILL at random moments, over and over: no row is missing, none is doubled."""
    seed = time.time_ns() % 100_000
    print(f"seed {seed}")
    moments = random.Random(seed)
    positions, code = [], -9
    while code != 0:
        feeder = subprocess.Popen(
            [sys.executable, "-c", _FEEDER, url], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert feeder.stdout is not None
        try:
            ready = feeder.stdout.readline().split()
            assert ready[:1] == ["ready"]
            positions.append(int(ready[1]))
            if len(positions) <= KILLS:
                # Every other one lives long enough to write some 50 events, so that some get on.
                for _ in range(moments.randrange(80) + 60 * (len(positions) % 2)):
                    feeder.stdout.readline()
                time.sleep(moments.uniform(0.0, 0.03))
                feeder.kill()
        finally:
            code = feeder.wait(60)
            feeder.stdout.close()
        assert code in (0, -9)
    print(f"positions {positions}")
    assert positions == sorted(positions)
    assert len({position for position in positions if position}) >= 2, "no kill was in the middle"
    check(url, stream(300))


async def test_two_of_one_name_write_each_row_once(shared_url: str) -> None:
    """A second process that was started by mistake, or because the first one seemed dead."""
    url = shared_url
    events = stream(30)
    async with running(url, batch_rows=150) as one, running(url, batch_rows=220) as two:
        await asyncio.gather(feed(one, events), feed(two, events, pause_s=0.0003))
        await asyncio.gather(one.flush(), two.flush())
        check(url, events)
        await one.flush()
    check(url, events)


async def test_two_that_start_at_once_both_find_the_tables(shared_url: str) -> None:
    """Making the tables at the same time is no error."""

    async def start() -> Position | None:
        async with running(shared_url) as sink:
            return await sink.position()

    assert await asyncio.gather(*(start() for _ in range(4))) == [Position(JOURNAL, 0)] * 4


async def test_a_server_that_is_restarted_costs_nothing(postgres: Postgres) -> None:
    """While it is away the sink waits, with the event loop free; then it goes on with all its rows."""
    url = postgres.url()
    events = stream(60)
    with structlog.testing.capture_logs() as logs:
        async with running(url, batch_rows=200) as sink:
            sink.context.log = structlog.get_logger()
            await feed(sink, events[:20])
            feeding = asyncio.create_task(feed(sink, events[20:], pause_s=0.001))
            try:
                for end in (postgres.stop, postgres.kill):
                    before = len(logs)
                    await asyncio.to_thread(end)
                    try:
                        await until(lambda count=before: len(logs) > count or feeding.done())  # type: ignore[misc]
                    finally:
                        await asyncio.to_thread(postgres.start)
                    await until(lambda: "takes rows again" in logs[-1]["event"] or feeding.done())
            finally:
                await feeding
            await sink.flush()
    check(url, events)
    assert logs
    assert PASSWORD not in str(logs)


async def test_flush_says_that_it_could_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up in time, so that the runner knows; the rows are kept for the next attempt."""
    monkeypatch.setattr("phase_bus.consumer.sink._FLUSH_S", 1.0)
    events = stream(3)
    async with running(url) as sink:
        await feed(sink, events)
        with monkeypatch.context() as broken:
            broken.setattr(sql, "upsert", lambda *_: 1 / 0)  # after rows are written
            with pytest.raises(PhaseBusError, match=r"130 rows are not delivered: .*division by zero"):
                await sink.flush()
            assert dump(url)["records"] == []
        monkeypatch.setattr("phase_bus.consumer.sink._FLUSH_S", 20.0)
        await sink.flush()
    check(url, events)


async def test_a_database_that_was_set_back_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole is never written: after a restart the rows come again."""
    events = stream(3)
    async with running(url) as sink:
        await feed(sink, events[:5])
        await sink.flush()
        tables = Tables("phase_bus_")
        with sink._engine.begin() as connection:  # type: ignore[union-attr]
            for table in tables.metadata.sorted_tables:
                connection.execute(sa.delete(table))
        await feed(sink, events[5:])
        with monkeypatch.context() as impatient:
            impatient.setattr("phase_bus.consumer.sink._FLUSH_S", 1.0)
            with pytest.raises(PhaseBusError, match=r"position 5 before, None now.*restart"):
                await sink.flush()
    async with running(url) as sink:
        await feed(sink, events)
        await sink.flush()
    check(url, events)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "not understood"),
        ("postgresql://u:hush@h:port/db", "not understood"),
        ("mysql://u@h/db", "'mysql' is not supported"),
        ("postgresql+asyncpg://u@h/db", "'postgresql.asyncpg' is not supported"),
        ("sqlite://", "in memory"),
        ("duckdb:///:memory:", "in memory"),
        ("sqlite:////dev/null/x/y.db", "cannot be used: NotADirectoryError"),
        ("postgresql://u:p@hush@h/db", "%40"),
        ("postgresql://u@/db?host=/nowhere", "No such file or directory"),
        ("postgresql://u:hush@h/db", "not given in clear; use url=env:NAME.*PGPASSWORD"),
        ("postgresql://u@h/db?password=hush", "not given in clear; use url=env:NAME.*PGPASSWORD"),
        ("env:URL_NOT_SET", "env:URL_NOT_SET.*not set"),
    ],
)
@pytest.mark.usefixtures("no_leaks")
async def test_a_url_that_is_wrong_is_told_in_one_line(text: str, told: str) -> None:
    """What is wrong and what to do, without the password."""
    with pytest.raises(ConfigError, match=told) as caught:
        await SqlSink(text).start()
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://u:hush@/db?host=/nowhere", "No such file or directory"),
        ("postgresql://u:hush@/db?host=/nowhere&password=hush&odd=hush", "invalid.*option"),
    ],
)
@pytest.mark.usefixtures("no_leaks")
async def test_a_url_with_a_password_is_in_the_environment_or_a_file(
    url: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it may be, and is in no message either."""
    monkeypatch.setenv("RESULTS_URL", url)
    private(tmp_path / "url", url + "\n")
    for where in ("env:RESULTS_URL", f"file:{tmp_path / 'url'}"):
        with pytest.raises(ConfigError, match=told) as caught:
            await SqlSink(where).start()
        assert "hush" not in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_what_the_server_refuses_is_told(postgres: Postgres, tmp_path: Path) -> None:
    """A wrong password or a missing database is reported at once: waiting does not help."""
    wrong = private(tmp_path / "passfile", "*:*:*:*:hush-hush\n")
    with pytest.raises(ConfigError, match="password authentication failed") as caught:
        await SqlSink(postgres.url(passfile=wrong)).start()
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match='"nowhere" does not exist') as caught:
        await SqlSink(postgres.url("nowhere")).start()
    assert PASSWORD not in str(caught.value)
    with pytest.raises(ConfigError, match="no password supplied; use url=env:NAME"):
        await SqlSink(postgres.url(passfile=tmp_path / "none")).start()


async def test_a_url_from_a_file_works(postgres: Postgres, tmp_path: Path) -> None:
    """With the password in it."""
    where = private(tmp_path / "url", postgres.url().replace("tester@", f"tester:{PASSWORD}@"))
    events = stream(2)
    async with running(f"file:{where}", prefix="from_file_") as sink:
        await feed(sink, events)
        await sink.flush()
        assert await sink.position() == Position(JOURNAL, events[-1][0])


async def test_what_the_database_never_takes_is_a_dead_letter(postgres: Postgres) -> None:
    """A phase whose name is too long for an index: that event is refused, all others are there."""
    bus = MemoryBus()
    bus.publish(*make_run(records=300, phases=["profiling"]))
    name = "".join(random.Random(0).choices(string.printable, k=20_000))
    bus.publish(*make_run(run_id="r2", records=10, phases=[name]))
    async with bus.consumer(SqlSink, url=postgres.url(), prefix="refused_") as running_sink:
        await running_sink.catch_up()
        await running_sink.flush()
    letters = running_sink.dead_letters
    assert letters
    assert all("index row" in letter.error for letter in letters)
    rows = dump(postgres.url(), prefix="refused_")
    assert len([row for row in rows["records"] if row["run_id"] != "r2"]) == 300
    assert len(rows["events"]) + len(letters) >= len([e for e in bus.events() if e.kind != "records"])


async def test_a_second_process_is_told_who_has_the_file(tmp_path: Path) -> None:
    """DuckDB lets one process open a file."""
    url = f"duckdb:///{tmp_path / 'x.duckdb'}"
    script = (
        "import asyncio, sys; from phase_bus_consumers.sql import SqlSink\n"
        "asyncio.run(SqlSink(sys.argv[1]).start())"
    )
    async with running(url):
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script, url], capture_output=True, text=True
        )
    last = done.stderr.splitlines()[-1]
    assert "Conflicting lock is held" in last
    assert last.endswith("end the process that has it open, or give another file with url=...")


async def test_a_server_that_is_coming_up_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that is started along with its database does not give up at once, nor wait for ever."""
    monkeypatch.setattr(sql_database, "_START_S", 0.5)
    begun_s = time.monotonic()
    with pytest.raises(ConfigError, match="refused"):
        await SqlSink("postgresql://u@127.0.0.1:1/db").start()
    assert time.monotonic() - begun_s > 0.2


async def test_a_file_or_table_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A wrong name costs nobody any data."""
    path = tmp_path / "notes.txt"
    path.write_text("notes, and so many of them that it could be a database file " * 20)
    with pytest.raises(ConfigError, match="not a database"):
        await SqlSink(f"sqlite:///{path}").start()
    assert path.read_text().startswith("notes")
    url = f"sqlite:///{tmp_path / 'other.db'}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE phase_bus_runs (run_id TEXT)"))
    engine.dispose()
    with pytest.raises(ConfigError, match=r"'phase_bus_runs' is of another version.*prefix="):
        await SqlSink(url).start()
    async with running(url, prefix="mine_"):
        pass
