"""The questions that the guides to the databases and files ask, asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from phase_bus import Verdict
from phase_bus.testing import MemoryBus, make_event, make_run
from phase_bus_consumers.parquet import ParquetSink
from phase_bus_consumers.sql import SqlSink

GUIDES = Path(__file__).parents[2] / "docs" / "guide" / "sinks"


def blocks(guide: str, language: str) -> list[str]:
    text = (GUIDES / guide).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def bus() -> MemoryBus:
    bus = MemoryBus()
    *run, end = make_run(records=500, phases=["profiling"], error_rate=0.1)
    bus.publish(*run, make_event(Verdict, run_id=end.run_id, final=True, state="failed"), end)
    return bus


async def test_queries_of_the_tables(url: str, bus: MemoryBus) -> None:
    outcome = await bus.run_consumer(SqlSink, url=url)
    assert outcome.receipt.complete
    queries = blocks("sql.md", "sql")
    if url.startswith("sqlite"):  # it has no percentiles
        queries = [query for query in queries if "percentile" not in query]
    assert len(queries) >= 2
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        answers = [connection.execute(sa.text(query)).all() for query in queries]
    engine.dispose()
    assert all(answers)
    assert answers[-1][0][-2:] == (500, 500)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_readers_of_the_files(
    tmp_path: Path, bus: MemoryBus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await bus.run_consumer(ParquetSink, path=str(tmp_path / "results"), batch_rows=100)
    monkeypatch.chdir(tmp_path)
    programs = blocks("parquet.md", "python")
    assert len(programs) == 2
    for program in programs:
        exec(compile(program, "parquet.md", "exec"), {})
    assert capsys.readouterr().out.count("500") >= 2
