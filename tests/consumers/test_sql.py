"""The ``sql`` consumer, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from phase_bus.consumer.consumer import handlers_of
from phase_bus.consumer.options import build_consumer
from phase_bus.core.position import Lineage, Position, Segment
from phase_bus.errors import ConfigError, OptionError, WireError
from phase_bus.events import (
    PhaseRef,
    Records,
    RunStart,
)
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus_consumers.sql import SqlSink
from tests.support.sql import JOURNAL, NOT_ROWS, PROFILING, check, dump, feed, records, running, stream


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
        assert await sink.position() == Position(JOURNAL, 9)
        await feed(sink, events)
        await sink.flush()
    check(url, events)


async def test_without_flush_nothing_is_half_there(url: str) -> None:
    """The checkpoint does not cover what was not written, so it comes again."""
    events = stream(4)
    async with running(url) as sink:
        await feed(sink, events)
    assert not any(rows for name, rows in dump(url).items() if name not in NOT_ROWS)
    async with running(url) as sink:
        assert await sink.position() == Position(JOURNAL, 0)


async def test_journals_are_kept_apart(url: str) -> None:
    """Offsets of another bus are others, also if the bus changes under a running consumer."""
    async with running(url, journal="a") as sink:
        await feed(sink, [(7, RunStart(run_id="r1"))])
        sink.context.lineage = Lineage([Segment("b", 1)])
        await sink.position()
        await feed(sink, [(1, RunStart(run_id="r2")), (2, records(0, 3))])
        await sink.flush()
    tables = dump(url)
    assert [(row["stream"], row["position"]) for row in tables["positions"]] == [("a", 7), ("b", 2)]
    assert [(row["stream"], row["run_id"]) for row in tables["events"]] == [("a", "r1"), ("b", "r2")]
    assert len(tables["records"]) == 3


async def test_without_a_journal_everything_is_written(tmp_path: Path) -> None:
    """Against a publisher alone there are no offsets, and no checkpoint to go on from."""
    url = f"sqlite:///{tmp_path / 'test.db'}"
    for _ in range(2):
        async with running(url, journal="") as sink:
            assert await sink.position() is None
            await feed(sink, [(0, event) for _, event in stream(2)])
            await sink.flush()
    tables = dump(url)
    assert len(tables["records"]) == 2 * 80
    assert len({row["stream"] for row in tables["records"]}) == 2


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
    """It raises, so that the runner dead-letters it, and leaves nothing behind; the next event is taken."""
    good = records(0, 5)
    short = msgspec.structs.replace(good.metrics[0], numbers=good.metrics[0].numbers[:-8])
    bad = msgspec.structs.replace(good, metrics=(short, *good.metrics[1:]))
    async with running(url) as sink:
        with pytest.raises(WireError, match="numbers"):
            await feed(sink, [(1, bad)])
        await feed(sink, [(2, good)])
        await sink.flush()
    assert [row["stream_offset"] for row in dump(url)["records"]] == [2] * 5


def test_options_come_as_text() -> None:
    """They are checked before anything is opened."""
    sink = build_consumer(SqlSink, "sql", {"batch_rows": "10", "prefix": ""})
    assert isinstance(sink, SqlSink)
    assert set(handlers_of(sink)) == {"*"}  # events of all kinds, records too
    for option, value in (("batch_rows", "0"), ("prefix", "a;b")):
        with pytest.raises(OptionError, match=option):
            build_consumer(SqlSink, "sql", {option: value})


def test_what_is_not_installed_is_named() -> None:
    """Without SQLAlchemy the registry's error says what to install; the same without a driver."""
    script = (
        "import asyncio, sys\n"
        "sys.modules[sys.argv[1]] = None\n"
        "from phase_bus.plugins.registry import Registry\n"
        "cls = Registry.load().class_of('consumer', 'sql')\n"
        "asyncio.run(cls(sys.argv[2] + ':///x').start())\n"
    )
    for module, kind, extra in (
        ("sqlalchemy", "sqlite", "sql"),
        ("psycopg", "postgresql", "sql"),
        ("duckdb", "duckdb", "duckdb"),
    ):
        done = subprocess.run([sys.executable, "-c", script, module, kind], capture_output=True, text=True)
        last = done.stderr.splitlines()[-1]
        assert f"pip install 'phase-bus[{extra}]'" in last, done.stderr
        assert last.startswith("phase_bus.errors.")
