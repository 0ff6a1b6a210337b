"""The ``parquet`` consumer: what is in its files, after kills and in other places too."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from phase_bus.consumer.consumer import named
from phase_bus.core.position import Lineage, Position, Segment
from phase_bus.core.records import RecordBatch
from phase_bus.errors import ConfigError
from phase_bus.events import EventBase, PhaseRef, Records, RunComplete, RunStart
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus.testing import MemoryBus, make_run
from phase_bus_consumers.parquet import ParquetSink
from tests.support.sql import feed, plain, stream

ROOT = Path(__file__).parents[2]
STREAM = "0123456789abcdef" * 2
RUN = ds.partitioning(pa.schema([("run_id", pa.string())]), flavor="hive")


def read(path: Path | str, kind: str, filesystem: Any = None) -> list[dict[str, Any]]:
    """Return the rows of all files of a kind, in the order of the journal."""
    files = filesystem or fsspec.filesystem("file")
    names = sorted(files.glob(f"{path}/run_id=*/{kind}-*.parquet"))
    schemas = [pq.read_schema(files.open(name)) for name in names]
    schema = pa.unify_schemas([*schemas, RUN.schema], promote_options="permissive")
    dataset = ds.dataset(names, schema=schema, filesystem=files, partitioning=RUN)
    rows: list[dict[str, Any]] = dataset.to_table().to_pylist()
    return sorted(rows, key=lambda row: (row["stream_offset"], row.get("record_row")))


def start(path: Path | str, name: str = "parquet", **options: Any) -> ParquetSink:
    sink = ParquetSink(str(path), **options)
    named(sink, name).context.lineage = Lineage([Segment(STREAM, 1)])
    return sink


async def finish(sink: ParquetSink) -> None:
    sink.context.stopping = True
    await sink.flush()
    await sink.stop()


def check(rows: list[dict[str, Any]], events: list[tuple[int, EventBase]]) -> None:
    """See that every record is there once, with its content."""
    expected = [
        (offset, row, record)
        for offset, event in events
        if isinstance(event, Records)
        for row, record in enumerate(RecordBatch(event))
    ]
    assert len(rows) == len(expected)
    for found, (offset, row, record) in zip(rows, expected, strict=True):
        assert (found["stream_offset"], found["record_row"], found["run_id"]) == (offset, row, "r1")
        for name in ("x_request_id", "request_latency", "inter_token_latency", "chunks", "was_cancelled"):
            assert found[name] == record.get(name)
        assert found["error_message"] == (record["error"] or {"message": None})["message"]


@pytest.mark.parametrize("batch_rows", [100, 100_000])
async def test_a_run_is_in_the_files(tmp_path: Path, batch_rows: int, no_leaks: None) -> None:
    """Records as columns, all else as JSON; named by stream and offsets, and by the run."""
    events = stream(8)
    sink = start(tmp_path / "data", batch_rows=batch_rows)
    await sink.start()
    assert await sink.position() == Position(STREAM, 0)
    await feed(sink, events)
    await sink.flush()  # the run's end is there
    check(read(tmp_path / "data", "records"), events)
    others = [event for _, event in events if not isinstance(event, Records)]
    found = read(tmp_path / "data", "events")
    assert [msgspec.json.decode(row["event"]) for row in found] == [plain(event) for event in others]
    names = [file.name for file in (tmp_path / "data" / "run_id=r1").iterdir()]
    assert any(name.startswith("records-01234567-0000000000") for name in names)
    assert len(names) == (2 if batch_rows > 1000 else len(names))
    assert await sink.position() == Position(STREAM, events[-1][0])
    await sink.stop()


async def test_what_comes_again_is_not_written_again(tmp_path: Path) -> None:
    """However batches are cut then, and also if the position was not kept."""
    events = stream(8)
    for rows, until in ((100, 9), (250, 13), (70, len(events))):
        sink = start(tmp_path, batch_rows=rows)
        await sink.start()
        await feed(sink, events[:until])
        await finish(sink)
        (tmp_path / "_phase_bus.json").unlink()
    check(read(tmp_path, "records"), events)
    assert len(read(tmp_path, "events")) == sum(not isinstance(event, Records) for _, event in events)


async def test_an_event_at_another_place_is_known_by_its_publisher(tmp_path: Path) -> None:
    """After a journal has lost its end, its publisher sends again what is in the files already."""
    events = stream(4)
    for name, base in ((STREAM, 0), ("f" * 32, 100)):
        sink = start(tmp_path)
        sink.context.lineage = Lineage([Segment(name, 1)])
        await sink.start()
        for offset, event in events[: 5 if not base else None]:
            sink.context.event = (b"p" * 16, offset)
            await feed(sink, [(base + offset, event)])
        await finish(sink)
    assert len(read(tmp_path, "records")) == 4 * 40


_FEEDER = """
import asyncio, sys
from tests.consumers.test_parquet import finish, start
from tests.support.sql import feed, stream

async def main():
    sink = start(sys.argv[1], batch_rows=int(sys.argv[2]))
    await sink.start()
    position = (await sink.position()).offset
    print("ready", position, flush=True)
    for event in stream(300)[position:]:
        await feed(sink, [event])
        print("fed", flush=True)
    await finish(sink)

asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.chaos
def test_killed_at_any_moment_each_row_is_there_once(tmp_path: Path) -> None:
    """SIGKILL at random moments, with batches of another size each time; nothing half done stays."""
    seed = time.time_ns() % 100_000
    print(f"seed {seed}")
    moments = random.Random(seed)
    positions, code = [], -9
    while code != 0:
        rows = str(moments.choice([90, 150, 333]))
        feeder = subprocess.Popen(
            [sys.executable, "-c", _FEEDER, str(tmp_path), rows],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert feeder.stdout is not None
        try:
            ready = feeder.stdout.readline().split()
            assert ready[:1] == ["ready"]
            positions.append(int(ready[1]))
            if len(positions) <= 5:
                for _ in range(moments.randrange(40) + 30):
                    feeder.stdout.readline()
                time.sleep(moments.uniform(0.0, 0.02))
                feeder.kill()
        finally:
            code = feeder.wait(60)
            feeder.stdout.close()
    assert positions == sorted(positions)
    assert len(set(positions)) >= 3, "no kill was in the middle"
    check(read(tmp_path, "records"), stream(300))
    assert not list(tmp_path.rglob("*.tmp"))


async def test_files_of_other_columns_are_one_dataset(tmp_path: Path) -> None:
    """A metric that comes later, and one that is whole here and a fraction there."""
    builder = RecordBuilder("full")
    sink = start(tmp_path, batch_rows=1)
    await sink.start()
    records: list[dict[str, Any]] = [{"a": 1, "phase": 7}, {"a": 1.5, "b": 2}, {"b": 3, "l": [1, 2]}]
    for number, metrics in enumerate(records, 1):
        builder.add(metrics, {"x_request_id": f"id-{number}"})
        made, fields, errors, _ = builder.build()
        event = Records(
            run_id="007/ü", phase=PhaseRef("p"), count=1, metrics=made, fields=fields, errors=errors
        )
        await feed(sink, [(number, event)])
    await finish(sink)
    rows = read(tmp_path, "records")
    assert [(row["a"], row["b"], row["l"], row["phase_"]) for row in rows] == [
        (1, None, None, 7),
        (1.5, 2, None, None),
        (None, 3, [1, 2], None),
    ]
    assert {row["run_id"] for row in rows} == {"007/ü"}
    query = (
        f"SELECT run_id, sum(a), sum(b) FROM read_parquet('{tmp_path}/*/records-*.parquet', "  # noqa: S608
        "union_by_name=true, hive_partitioning=true, hive_types={'run_id': VARCHAR}) GROUP BY 1"
    )
    with duckdb.connect() as connection:
        assert connection.execute(query).fetchall() == [("007/ü", 2.5, 5)]


async def test_types_that_do_not_fit_together_become_text(tmp_path: Path) -> None:
    builder = RecordBuilder("full")
    sink = start(tmp_path)
    await sink.start()
    for number, value in enumerate([1, "x", [1, 2], True], 1):
        builder.add({"odd": value}, {})
        made, fields, errors, _ = builder.build()
        event = Records(
            run_id="r", phase=PhaseRef("p"), count=1, metrics=made, fields=fields, errors=errors
        )
        await feed(sink, [(number, event)])
    await finish(sink)
    assert [row["odd"] for row in read(tmp_path, "records")] == ["1", "x", "[1,2]", "1"]


@pytest.mark.parametrize("scheme", ["memory", "file"])
async def test_a_url_of_fsspec(tmp_path: Path, scheme: str) -> None:
    """In memory, as in an object store, files are put whole."""
    url = f"{scheme}://{tmp_path}/{uuid.uuid4().hex}"
    files = fsspec.filesystem(scheme)
    events = stream(8)
    for until in (6, len(events)):
        sink = start(url, batch_rows=100)
        await sink.start()
        position = await sink.position()
        assert position is not None
        await feed(sink, events[position.offset : until])
        await finish(sink)
    check(read(url.partition("://")[2], "records", files), events)
    # A place whose files do not appear whole: what is no whole file is written again.
    newest = max(files.glob(f"{url.partition('://')[2]}/run_id=r1/records-*"))
    files.pipe_file(newest, b"PAR1 and no more")
    sink = start(url, batch_rows=100)
    await sink.start()
    await feed(sink, events)
    await finish(sink)
    check(read(url.partition("://")[2], "records", files), events)


async def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, and nothing half done stays."""
    monkeypatch.setattr("phase_bus.consumer.patience._back_off", lambda *_: 0.0)
    failures = 3

    def sync(handle: int) -> None:
        nonlocal failures
        failures -= "records-" in str(Path(f"/proc/self/fd/{handle}").readlink())
        if 0 <= failures < 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("phase_bus_consumers.parquet_files.os.fsync", sync)
    bus = MemoryBus()
    bus.publish(*make_run(records=1000, phases=["profiling"]))
    outcome = await bus.run_consumer(ParquetSink, path=str(tmp_path), batch_rows=200)
    assert outcome.receipt.complete
    assert failures < 0
    assert len(read(tmp_path, "records")) == 1000
    assert not list(tmp_path.rglob("*.tmp"))


async def test_runs_are_kept_apart(tmp_path: Path) -> None:
    """One batch may have events of several; each is written where it belongs."""
    bus = MemoryBus()
    for run_id in ("a", "..", "x=y/z"):
        bus.publish(*make_run(run_id=run_id, records=100, phases=["profiling"]))
    outcome = await bus.run_consumer(ParquetSink, path=str(tmp_path))
    rows = read(tmp_path, "records")
    assert outcome.receipt.complete
    assert {row["run_id"]: sum(r["run_id"] == row["run_id"] for r in rows) for row in rows} == {
        "a": 100,
        "..": 100,
        "x=y/z": 100,
    }
    assert len({row["key"] for row in rows}) == 300


async def test_a_run_whose_id_makes_no_folder_is_a_dead_letter(tmp_path: Path) -> None:
    sink = start(tmp_path)
    await sink.start()
    with pytest.raises(ValueError, match="too long"):
        await feed(sink, [(1, RunStart(run_id="x" * 250))])
    await feed(sink, [(2, RunComplete(run_id="y", status="completed"))])
    await finish(sink)
    assert [row["run_id"] for row in read(tmp_path, "events")] == ["y"]


async def test_what_cannot_be_used_is_told(tmp_path: Path) -> None:
    """In one line, without a secret."""
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    await start(tmp_path / "mine", "one").start()
    for path, told in (
        (f"{tmp_path}/file", "File exists; give another|cannot be used"),
        (f"{tmp_path}/no/such", "No such file"),
        (f"{tmp_path}/mine", "'one' already writes to"),
        ("nonsense://x", "cannot be used: Protocol not known"),
        ("ftp://me:hush@host/x", "not given in clear"),
    ):
        with pytest.raises(ConfigError, match=told) as caught:
            await start(path, "two").start()
        assert "hush" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_its_library_is_named() -> None:
    script = "import sys; sys.modules['pyarrow'] = None\nimport phase_bus_consumers.parquet"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'phase-bus[parquet]'" in done.stderr.splitlines()[-1]
