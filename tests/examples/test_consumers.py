"""The examples that are consumers, on the in-memory bus, and in processes as their docstrings say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from examples import latency_histogram, record_archive
from examples.record_archive import RecordArchive
from phase_bus.errors import OptionError
from phase_bus.testing import MemoryBus, make_records, make_run, run_consumer
from tests.examples.commands import ROOT, command_of
from tests.support.workplace import Workplace


def rows(directory: Path) -> list[dict[str, Any]]:
    """Return what is archived, file by file."""
    files = sorted(directory.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


async def test_the_archive_has_every_row_once(tmp_path: Path) -> None:
    """In files of the size asked for."""
    run = await run_consumer(RecordArchive, *make_run(records=100), directory=tmp_path, batch_rows=64)
    assert run.receipt.complete
    found = rows(tmp_path)
    assert [(row["phase"], row["session_num"]) for row in found] == [
        (phase, number) for phase in ("warmup", "profiling") for number in range(100)
    ]
    sizes = [len(file.read_text().splitlines()) for file in sorted(tmp_path.iterdir())]
    assert sizes == [64, 68, 64, 4]


async def test_the_archive_survives_crashes(phase_bus_memory: MemoryBus, tmp_path: Path) -> None:
    """Wherever a process ends, the next one adds what is missing, and nothing twice."""
    for number in range(6):
        phase_bus_memory.publish(make_records([{"n": 3 * number + row} for row in range(3)]))
        consumer = phase_bus_memory.consumer(RecordArchive, directory=tmp_path, batch_rows=5, name="a")
        async with consumer as run:
            await run.catch_up()
            if number % 2:
                assert await run.flush()
            await run.crash()
    await phase_bus_memory.run_consumer(RecordArchive, directory=tmp_path, name="a")
    assert [row["n"] for row in rows(tmp_path)] == list(range(18))


async def test_what_the_archive_could_not_write_is_written_later(
    phase_bus_memory: MemoryBus, tmp_path: Path
) -> None:
    """The rows stay in memory until they are in a file."""
    phase_bus_memory.publish(make_records(3))
    directory = tmp_path / "archive"
    async with phase_bus_memory.consumer(RecordArchive, directory=directory) as run:
        await run.catch_up()
        directory.rmdir()
        assert not await run.flush()
        directory.mkdir()
    assert len(rows(directory)) == 3


async def test_the_archive_refuses_empty_batches() -> None:
    """Options are checked."""
    with pytest.raises(OptionError, match="at least 1"):
        await run_consumer(RecordArchive, directory="x", batch_rows=0)


@pytest.mark.slow
def test_the_groups_command(workplace: Workplace) -> None:
    """The line of its docstring, and beside it the aggregator, which comes to the same number."""
    (workplace.directory / "examples").symlink_to(ROOT / "examples")
    line = command_of(latency_histogram.__doc__)
    line[line.index("--") : line.index("--")] = ["--with", "aggregator:output=summary.json"]
    done = workplace.finish(workplace.start(*line))
    assert done.returncode == 0, done.stderr
    counted = [int(count) for count in re.findall(r"up to \d+ us=(\d+)", done.stderr)]
    (run,) = workplace.json("summary.json")["runs"].values()
    succeeded = sum(phase["requests"] - phase["failed"] for phase in run["phases"])
    assert sum(counted) == succeeded > 1900


@pytest.mark.slow
def test_the_archives_command(workplace: Workplace) -> None:
    """The line of its docstring, in a directory from which the examples can be imported."""
    (workplace.directory / "examples").symlink_to(ROOT / "examples")
    done = workplace.finish(workplace.start(*command_of(record_archive.__doc__)))
    assert done.returncode == 0, done.stderr
    assert len(rows(workplace.directory / "archive")) == 2050
