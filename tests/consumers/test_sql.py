"""The ``sql`` consumer, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import asyncio
import math
import random
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
import structlog

from phase_bus.consumer.consumer import handlers_of, named
from phase_bus.consumer.options import build_consumer
from phase_bus.core.records import RecordBatch
from phase_bus.errors import ConfigError, OptionError, PhaseBusError, WireError
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhasePlan,
    PhaseProgress,
    PhaseRef,
    PhasesConfigured,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Records,
    RunComplete,
    RunStart,
    Summary,
)
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus_consumers import sql, sql_database
from phase_bus_consumers.sql import SqlSink
from phase_bus_consumers.sql_rows import Tables
from tests.consumers import postgres as postgres_module
from tests.consumers.postgres import PASSWORD, Postgres
from tests.helpers import until

postgres = postgres_module.postgres  # the fixture

WARMUP, PROFILING = PhaseRef("warmup", "warmup", 0), PhaseRef("profiling", "profiling", 1)
JOURNAL = "journal-1"
ROOT = Path(__file__).parents[2]
KILLS = 5
NOT_ROWS = {"positions"}


def records(first: int, count: int, phase: PhaseRef = PROFILING) -> Records:
    """Return a batch with successes and failures, whole numbers and fractions, known and other metrics."""
    builder = RecordBuilder(lists="full")
    for number in range(first, first + count):
        fields = {
            "x_request_id": f"request-{number}",
            "worker_id": f"worker-{number % 3}",
            "request_start_ns": 1_700_000_000_000_000_000 + number,
            "request_end_ns": 1_700_000_000_000_000_001 + 2 * number,
            "was_cancelled": number % 11 == 0,
            "record_processor_id": "rp",
        }
        if number % 7 == 0:
            builder.add({"error_request_count": 1}, fields, ("Timeout", f"late: {number}", 504))
            continue
        metrics = {
            "request_latency": 1000 + number,
            "inter_token_latency": number / 3,
            "output_sequence_length": number % 50,
            "request_count": 1,
            "chunks": [number, number + 1],
        }
        builder.add(metrics, fields)
    tables, field_tables, errors, _ = builder.build()
    return Records(
        run_id="r1",
        ts_ns=first,
        phase=phase,
        count=count,
        metrics=tables,
        fields=field_tables,
        errors=errors,
    )


def stream(batches: int, rows: int = 40) -> list[tuple[int, EventBase]]:
    """Return the events of a run with their offsets: the same ones at every call."""
    plans = (PhasePlan(phase=WARMUP), PhasePlan(phase=PROFILING, expected_requests=9, request_rate=2.5))
    done = PhaseStats(sent=5, completed=4, errors=1, start_ns=1, sent_end_ns=2, end_ns=3)
    events: list[EventBase] = [
        RunStart(run_id="r1", ts_ns=1, producer="test", models=("m",), variation={"c": 8}),
        PhasesConfigured(run_id="r1", ts_ns=2, phases=plans),
        PhaseStart(run_id="r1", ts_ns=3, phase=PROFILING, stats=PhaseStats(start_ns=1)),
    ]
    for number in range(batches):
        events.append(records(number * rows, rows))
        if number % 5 == 0:
            stats = PhaseStats(sent=number, start_ns=1)
            events.append(PhaseProgress(run_id="r1", ts_ns=number, phase=PROFILING, stats=stats))
    events += [
        PhaseSendingComplete(run_id="r1", ts_ns=4, phase=PROFILING, stats=PhaseStats(sent=5)),
        PhaseTimeout(run_id="r1", ts_ns=5, phase=PROFILING, stats=done, requests_cut=2),
        PhaseComplete(run_id="r1", ts_ns=5, phase=PROFILING, stats=done),
        Summary(run_id="r1", ts_ns=6, producer="a", result={"n": 1}),
        Summary(run_id="r1", ts_ns=7, producer="a", final=True, result={"n": 2}),
        RunComplete(run_id="r1", ts_ns=8, status="completed", records=batches * rows),
    ]
    return list(enumerate(events, 1))


async def feed(sink: SqlSink, events: list[tuple[int, EventBase]], pause_s: float = 0.0) -> None:
    """Hand a sink events as its runner would."""
    handlers = handlers_of(sink)
    for offset, event in events:
        sink.context.offset = offset
        await handlers.get(event.kind, handlers["*"])(event)
        await asyncio.sleep(pause_s)


@asynccontextmanager
async def running(
    url: str, name: str = "sql", journal: str = JOURNAL, **options: Any
) -> AsyncIterator[SqlSink]:
    """A sink that is started, and stopped at the end."""
    sink = SqlSink(url, **options)
    named(sink, name).context.journal_id = journal
    await sink.start()
    try:
        await sink.position()
        yield sink
    finally:
        await sink.stop()


def dump(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return all tables, in the order of their keys."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    tables = Tables("phase_bus_").metadata.sorted_tables
    try:
        with engine.connect() as connection:
            return {
                table.name.removeprefix("phase_bus_"): [
                    dict(row)
                    for row in connection.execute(
                        sa.select(table).order_by(*table.primary_key.columns)
                    ).mappings()
                ]
                for table in tables
            }
    finally:
        engine.dispose()


def plain(event: EventBase) -> Any:
    """Return an event as it comes out of JSON."""
    return msgspec.json.decode(msgspec.json.encode(event))


def check(url: str, events: list[tuple[int, EventBase]]) -> None:
    """See that every event and record is there once, with its content."""
    tables = dump(url)
    others = [(offset, event) for offset, event in events if not isinstance(event, Records)]
    assert [row["journal_offset"] for row in tables["events"]] == [offset for offset, _ in others]
    assert [row["event"] for row in tables["events"]] == [plain(e) for _, e in others]
    batches = [(offset, event) for offset, event in events if isinstance(event, Records)]
    assert len(tables["records"]) == sum(event.count for _, event in batches)
    expected = (
        (offset, row, record) for offset, event in batches for row, record in enumerate(RecordBatch(event))
    )
    for found, (offset, row, record) in zip(tables["records"], expected, strict=True):
        assert (found["journal_offset"], found["record_row"]) == (offset, row)
        assert found["x_request_id"] == record["x_request_id"]
        assert found["request_end_ns"] == record["request_end_ns"]
        assert found["was_cancelled"] == record["was_cancelled"]
        assert found["inter_token_latency"] == record.get("inter_token_latency")
        assert found["request_latency"] == record.get("request_latency")
        assert found["error_message"] == (record["error"] or {"message": None})["message"]
        assert found["metrics"].get("chunks") == record.get("chunks")
    (position,) = tables["positions"]
    assert (position["journal_id"], position["position"]) == (JOURNAL, events[-1][0])
    (run,) = tables["runs"]
    assert (run["status"], run["models"], run["started_ns"], run["ended_ns"]) == ("completed", ["m"], 1, 8)
    warmup, profiling = sorted(tables["phases"], key=lambda row: row["phase_index"])
    assert (warmup["state"], profiling["state"]) == (None, "complete")
    assert (profiling["sent"], profiling["requests_cut"], profiling["request_rate"]) == (5, 2, 2.5)
    assert [(row["final"], row["result"]) for row in tables["summaries"]] == [(True, {"n": 2})]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'new' / 'test.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    name = f"t{uuid.uuid4().hex}"
    admin = server.url().replace("postgresql:", "postgresql+psycopg:")
    engine = sa.create_engine(admin, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name} STRATEGY wal_log"))
    finally:
        engine.dispose()
    return server.url(name)


@pytest.mark.parametrize("batch_rows", [1, 100, 100_000])
async def test_a_run_is_in_the_tables(url: str, batch_rows: int, no_leaks: None) -> None:
    """All that happened is there, whatever the size of the transactions."""
    events = stream(8)
    async with running(url, batch_rows=batch_rows) as sink:
        await feed(sink, events)
        await sink.flush()
    check(url, events)


async def test_what_comes_again_is_not_written_again(url: str) -> None:
    """Repetitions are skipped, from the buffer's rows and from stored ones, also after a restart."""
    events = stream(4)
    async with running(url) as sink:
        await feed(sink, events[:6])
        await feed(sink, events[3:9])
        await sink.flush()
        await feed(sink, events[:9])
    async with running(url) as sink:
        assert await sink.position() == 9
        await feed(sink, events)
        await sink.flush()
    check(url, events)


async def test_without_flush_nothing_is_half_there(url: str) -> None:
    """What was not written is not counted in the position, and comes again."""
    events = stream(4)
    async with running(url) as sink:
        await feed(sink, events)
    assert not any(rows for name, rows in dump(url).items() if name not in NOT_ROWS)
    async with running(url) as sink:
        assert await sink.position() == 0


_FEEDER = """
import asyncio, sys
from tests.consumers.test_sql import feed, running, stream

async def main():
    async with running(sys.argv[1], batch_rows=150) as sink:
        position = await sink.position()
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


async def test_two_of_one_name_write_each_row_once(url: str) -> None:
    """A second process that was started by mistake, or because the first one seemed dead."""
    events = stream(30)
    async with running(url, batch_rows=150) as one, running(url, batch_rows=220) as two:
        await asyncio.gather(feed(one, events), feed(two, events, pause_s=0.0003))
        await asyncio.gather(one.flush(), two.flush())
        check(url, events)
        await one.flush()
    check(url, events)


async def test_two_that_start_at_once_both_find_the_tables(url: str) -> None:
    """Making the tables at the same time is no error."""

    async def start() -> int | None:
        async with running(url) as sink:
            return await sink.position()

    assert await asyncio.gather(*(start() for _ in range(4))) == [0] * 4


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
                for _ in range(2):
                    before = len(logs)
                    await asyncio.to_thread(postgres.stop)
                    try:
                        await until(lambda count=before: len(logs) > count or feeding.done())  # type: ignore[misc]
                    finally:
                        await asyncio.to_thread(postgres.start)
            finally:
                await feeding
            await sink.flush()
    check(url, events)
    assert logs
    assert PASSWORD not in str(logs)


async def test_flush_says_that_it_could_not(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up in time, for the runner to know; the rows are kept for the next time."""
    monkeypatch.setattr(sql, "_FLUSH_S", 0.2)
    events = stream(3)
    async with running(url) as sink:
        await feed(sink, events)
        with monkeypatch.context() as broken:
            broken.setattr(sql, "upsert", lambda *_: 1 / 0)  # after rows are written
            with pytest.raises(ZeroDivisionError):
                await sink.flush()
        assert dump(url)["records"] == []
        await sink.flush()
    check(url, events)


async def test_a_database_that_was_set_back_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole is never written: after a restart the rows come again."""
    monkeypatch.setattr(sql, "_FLUSH_S", 0.1)
    events = stream(3)
    async with running(url) as sink:
        await feed(sink, events[:5])
        await sink.flush()
        tables = Tables("phase_bus_")
        with sink._engine.begin() as connection:  # type: ignore[union-attr]
            for table in tables.metadata.sorted_tables:
                connection.execute(sa.delete(table))
        await feed(sink, events[5:])
        with pytest.raises(PhaseBusError, match=r"position 5 before, None now.*restart"):
            await sink.flush()
    async with running(url) as sink:
        await feed(sink, events)
        await sink.flush()
    check(url, events)


async def test_journals_are_kept_apart(url: str) -> None:
    """Offsets of another bus are others, also if the bus changes under a running consumer."""
    async with running(url, journal="a") as sink:
        await feed(sink, [(7, RunStart(run_id="r1"))])
        sink.context.journal_id = "b"
        await feed(sink, [(1, RunStart(run_id="r2")), (2, records(0, 3))])
        await sink.flush()
    tables = dump(url)
    assert [(row["journal_id"], row["position"]) for row in tables["positions"]] == [("a", 7), ("b", 2)]
    assert [(row["journal_id"], row["run_id"]) for row in tables["events"]] == [("a", "r1"), ("b", "r2")]
    assert len(tables["records"]) == 3


async def test_without_a_journal_everything_is_written(tmp_path: Path) -> None:
    """Against a publisher alone there are no offsets, and no position to go on from."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    for _ in range(2):
        async with running(url, journal="") as sink:
            assert await sink.position() is None
            await feed(sink, [(0, event) for _, event in stream(2)])
            await sink.flush()
    tables = dump(url)
    assert len(tables["records"]) == 2 * 80
    assert len({row["journal_id"] for row in tables["records"]}) == 2


async def test_another_name_needs_tables_of_its_own(url: str) -> None:
    """Two consumers would write each row twice into the same tables."""
    async with running(url, name="one"), running(url, name="two", prefix="other_"):
        with pytest.raises(ConfigError, match=r"'one' already writes.*set another prefix"):
            async with running(url, name="two"):
                pass


async def test_odd_values_are_no_obstacle(url: str) -> None:
    """What a database cannot hold is changed, not refused: or the sink would be stuck for ever."""
    builder = RecordBuilder(lists="full")
    nan = float("nan")
    builder.add({"request_latency": nan, "odd": nan}, {"x_request_id": "a\0b", "note": "c\0\\\0"})
    builder.add({"request_latency": 1.5, "odd": 2**63 - 1}, {"x_request_id": "ü\t\n\\N", "note": "\\u0000"})
    made, fields, errors, _ = builder.build()
    many = Records(run_id="r\0", phase=PhaseRef("p", index=2**70), count=2, metrics=made, fields=fields)
    several = {"request_latency": RecordBuilder("full")}
    several["request_latency"].add({"request_latency": [1, 2], "worker_id": 3}, {"session_num": "x"})
    made, fields, errors, _ = several["request_latency"].build()
    lists = Records(run_id="r2", phase=PROFILING, count=1, metrics=made, fields=fields, errors=errors)
    start = RunStart(run_id="r\0", ts_ns=2**64 - 1, producer="\0", variation={"a\0": ["\0", nan]})
    async with running(url) as sink:
        await feed(sink, [(1, start), (2, many), (3, lists)])
        await sink.flush()
    tables = dump(url)
    one, two, three = tables["records"]
    assert (one["x_request_id"], two["x_request_id"]) == ("a\ufffdb", "ü\t\n\\N")
    assert (one["fields"], two["fields"]) == ({"note": "c\ufffd\\\ufffd"}, {"note": "\\u0000"})
    assert one["request_latency"] is None or math.isnan(one["request_latency"])
    assert (two["request_latency"], one["metrics"]) == (1.5, {"odd": None})
    assert three["metrics"] == {"request_latency": [1, 2], "worker_id": 3}
    assert (three["request_latency"], three["fields"]) == (None, {"session_num": "x"})
    assert tables["events"][0]["event"]["variation"] == {"a\ufffd": ["\ufffd", None]}
    assert tables["events"][0]["ts_ns"] == 2**63 - 1


async def test_a_damaged_batch_is_refused_whole(url: str) -> None:
    """It raises, for the runner to set it aside, and leaves nothing; the next event is taken."""
    good = records(0, 5)
    short = msgspec.structs.replace(good.metrics[0], numbers=good.metrics[0].numbers[:-8])
    bad = msgspec.structs.replace(good, metrics=(short, *good.metrics[1:]))
    async with running(url) as sink:
        with pytest.raises(WireError, match="numbers"):
            await feed(sink, [(1, bad)])
        await feed(sink, [(2, good)])
        await sink.flush()
    assert [row["journal_offset"] for row in dump(url)["records"]] == [2] * 5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "not understood"),
        ("postgresql://u:hush@h:port/db", "not understood"),
        ("mysql://u:hush@h/db", "'mysql' is not supported"),
        ("postgresql+asyncpg://u:hush@h/db", "'postgresql.asyncpg' is not supported"),
        ("sqlite://", "in memory"),
        ("sqlite:////dev/null/x/y.db", "cannot be used: NotADirectoryError"),
        ("postgresql://u:p@hush@h/db", "%40"),
        ("postgresql://u:hush@/db?host=/nowhere", "No such file or directory"),
        ("postgresql://u:hush@/db?host=/nowhere&password=hush&odd=hush", "invalid.*option"),
    ],
)
@pytest.mark.usefixtures("no_leaks")
async def test_a_url_that_is_wrong_is_told_in_one_line(text: str, told: str) -> None:
    """What is wrong and what to do, without the password."""
    with pytest.raises(ConfigError, match=told) as caught:
        await SqlSink(text).start()
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_what_the_server_refuses_is_told(postgres: Postgres) -> None:
    """A wrong password, or no such database, is told at once: waiting does not help."""
    with pytest.raises(ConfigError, match="password authentication failed") as caught:
        await SqlSink(postgres.url(password="hush-hush")).start()
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match='"nowhere" does not exist') as caught:
        await SqlSink(postgres.url("nowhere")).start()
    assert PASSWORD not in str(caught.value)


async def test_a_server_that_is_coming_up_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that is started along with its database does not give up at once, nor wait for ever."""
    monkeypatch.setattr(sql_database, "_START_S", 0.5)
    begun_s = time.monotonic()
    with pytest.raises(ConfigError, match="refused"):
        await SqlSink("postgresql://u:p@127.0.0.1:1/db").start()
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


def test_options_come_as_text() -> None:
    """They are checked before anything is opened."""
    sink = build_consumer(SqlSink, "sql", {"batch_rows": "10", "prefix": ""})
    assert isinstance(sink, SqlSink)
    assert set(handlers_of(sink)) == {"records", "*"}
    for option, value in (("batch_rows", "0"), ("prefix", "a;b")):
        with pytest.raises(OptionError, match=option):
            build_consumer(SqlSink, "sql", {option: value})


def test_what_is_not_installed_is_named() -> None:
    """Without SQLAlchemy the registry's error says what to install; the same without the driver."""
    script = (
        "import asyncio, sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from phase_bus.plugins.registry import Registry\n"
        "cls = Registry.load().resolve('sql')\n"
        "asyncio.run(cls('postgresql://h/db').start())\n"
    )
    for module in ("sqlalchemy", "psycopg"):
        done = subprocess.run([sys.executable, "-c", script, module], capture_output=True, text=True)
        last = done.stderr.splitlines()[-1]
        assert "pip install 'phase-bus[sql]'" in last, done.stderr
        assert last.startswith("phase_bus.errors.")
