"""Each sink, against the library that it stands on: used naively, a row at a time, and in its bulk call."""

from __future__ import annotations

import itertools
import multiprocessing
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import NamedTuple

import pytest

from benchmarks import sink_databases as databases
from benchmarks import sink_documents as documents
from benchmarks import sink_series as series
from benchmarks.harness import (
    Child,
    Plan,
    Report,
    Table,
    alternate,
    directory,
    ratios,
    run,
    spread,
    wait_for,
)
from benchmarks.sink_load import RECORDS_PER_S, Play, Turn, player

QUESTION = "How many records a second does each sink write, beside what its library does with plain rows?"
_NOTES = (
    "The sinks get messages as a bus sends them, in batches of 256, to decode and to number, and end "
    "with all of it acknowledged; their limit of rows a second is off. The other sides get plain dicts "
    "that are there already, and do nothing against what goes wrong: no retry, no key by which a "
    "repetition is recognised. Slow ones get fewer records. Every turn ends with the server's own "
    "count, which must be that of the records.",
    "Where CPU takes much less than the whole time, it is waited for the server, which has the second "
    "core of this machine. PostgreSQL waits for the disk at each commit, as it does when it is "
    "installed, and so does SecantusDB, which is not MongoDB; OpenSearch's interface is answered by a "
    "program that keeps all in memory, Splunk's and OTLP's by Python of the tests. Rates against these "
    "say little of the real ones; CPU a record does.",
    "`sql` commits every 20,000 records together with its position, and has a wider table than the "
    "plain sides: the place in the journal as its primary key, and columns for errors and for other "
    "metrics. The plain sides have one transaction, but for the one that commits each row.",
    "The sinks that send figures count all ten metrics of a record in bins 0.5 % wide; the plain sides "
    "count seven in 30 buckets. One request in a hundred of `otlp` is a span, too.",
    "`alerting`, `logging` and `aggregator` are not here: they send no records.",
)
_ARRIVED_S = 10.0
_TURN_S = 100.0


class Side(NamedTuple):
    """One way to write the records.

    Attributes:
        part: of the records it gets so many, so that a slow one's turn is not long.
    """

    name: str
    play: Play
    part: float = 1.0


class System(NamedTuple):
    """Where records are written to, by the sink, row by row, and in bulk."""

    name: str
    records: int
    server: Callable[[str], AbstractContextManager[databases.Server]]
    sides: Sequence[Side]


SYSTEMS = (
    System(
        "PostgreSQL",
        200_000,
        databases.postgresql,
        (
            Side("`sql`", databases.sql_sink),
            Side("psycopg: `execute` a row, committed", databases.committed_rows, 0.02),
            Side("psycopg: `execute` a row, one transaction", databases.rows, 0.1),
            Side("psycopg: `executemany`", databases.executemany, 0.2),
            Side("psycopg: `COPY` with `write_row`", databases.copy_rows),
        ),
    ),
    System(
        "DuckDB",
        200_000,
        databases.duckdb,
        (
            Side("`sql`", databases.duckdb_sink),
            Side("duckdb: `execute` a row, one transaction", databases.duckdb_rows, 0.01),
            Side("duckdb: `executemany`", databases.duckdb_executemany, 0.01),
            Side("duckdb: `INSERT` of `Table.from_pylist`", databases.duckdb_arrow),
        ),
    ),
    System(
        "Parquet",
        200_000,
        databases.parquet,
        (
            Side("`parquet`", databases.parquet_sink),
            Side("pyarrow: `write_table` of a row", databases.parquet_rows, 0.01),
            Side("pyarrow: `write_table` of `Table.from_pylist`", databases.parquet_table),
        ),
    ),
    System(
        "MongoDB's protocol (SecantusDB)",
        10_000,
        databases.mongodb,
        (
            Side("`mongodb`", databases.mongodb_sink),
            Side("pymongo: `insert_one`", databases.insert_one, 0.1),
            Side("pymongo: `insert_many`, 1,000 at a time", databases.insert_many),
        ),
    ),
    System(
        "OpenSearch's interface (osmem)",
        5_000,
        documents.opensearch,
        (
            Side("`elasticsearch`", documents.elasticsearch_sink),
            Side("a request a document", documents.document_requests, 0.2),
            Side("`_bulk` with `json.dumps`, 5,000 at a time", documents.bulk_requests),
        ),
    ),
    System(
        "Splunk's collector (the tests' own)",
        40_000,
        documents.collector,
        (
            Side("`splunk`, until all is acknowledged", documents.splunk_sink),
            Side("a request an event", documents.event_requests, 0.05),
            Side("`json.dumps`, 1,000 events a request", documents.events_requests),
        ),
    ),
    System(
        "Prometheus that scrapes",
        200_000,
        series.scraped,
        (
            Side("`prometheus`", series.endpoint),
            Side("prometheus_client: `Histogram.observe`", series.observe, 0.2),
            Side("a loop with `bisect` and lists", series.bucket_loop, 0.5),
        ),
    ),
    System(
        "Prometheus that is written to",
        100_000,
        series.prometheus,
        (
            Side("`remote_write`", series.remote_write_sink),
            Side("a request a record, its metrics as samples", series.write_records, 0.01),
            Side("`Histogram.observe`, all series each second", series.write_seconds, 0.2),
        ),
    ),
    System(
        "OTLP over HTTP",
        100_000,
        series.otlp_receiver,
        (
            Side("`otlp`", series.otlp_sink),
            Side("a request a record, its metrics as histograms", series.export_records, 0.01),
            Side("a loop with `bisect` and lists, all series each 5 s", series.export_intervals, 0.5),
        ),
    ),
)


def main() -> Report:
    """Measure, print, return."""
    return run("sinks", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    multiprocessing.set_forkserver_preload([each.__name__ for each in (databases, documents, series)])
    rows: list[list[str]] = []
    for system in SYSTEMS:
        try:
            rows.extend(_compare(system, plan, report))
        except pytest.skip.Exception as skipped:  # how the tests' servers say that they are not installed
            report.notes.append(f"{system.name}: not measured, {skipped}")
    report.tables.append(
        Table(
            f"A run of {RECORDS_PER_S:,} requests/s, as fast as it goes; each side in a process of its own",
            [
                "what",
                "records",
                "records/s",
                "of the sink's rate",
                "CPU, µs a record",
                "CPU, of the time",
                "MiB",
            ],
            rows,
            "**Bold**: the system, then its sink. CPU and memory (by how much it grew, at most) are those "
            "of the process that sends, not the server's.",
        )
    )
    report.notes.extend(_NOTES)


class _Forked(Child):
    """A process that has all libraries already: to load them takes longer than a turn."""

    context = multiprocessing.get_context("forkserver")


class _Player:
    """A side at work; each turn ends with the server's own count."""

    def __init__(self, child: Child, count: int, server: databases.Server, prefix: str) -> None:
        self.count = count
        self.turns: list[Turn] = []
        self._child, self._server = child, server
        self._names = (f"{prefix}{number}" for number in itertools.count())

    def turn(self) -> float:
        """Let it write its records; return records/s."""
        name = next(self._names)
        self._child.connection.send(name)
        if not self._child.connection.poll(_TURN_S):
            raise RuntimeError(f"{name}: the turn takes longer than {_TURN_S:g} s")
        turn: Turn = self._child.connection.recv()
        self.turns.append(turn)
        found = turn.found

        def all_there() -> bool:
            nonlocal found
            found = self._server.count(name)
            return found >= self.count

        if found is None:
            wait_for(all_there, _ARRIVED_S, 0.05)
        if found != self.count:
            raise RuntimeError(f"{name}: {found} of {self.count} records are there")
        return self.count / turn.took_s


def _compare(system: System, plan: Plan, report: Report) -> list[list[str]]:
    """Let the sides of one system take turns; return their rows of the table."""
    with ExitStack() as stack:
        server = stack.enter_context(system.server(stack.enter_context(directory())))
        players: dict[str, _Player] = {}
        children = []
        for number, side in enumerate(system.sides):
            count = max(int(plan.count(system.records) * side.part), 100)
            children.append(stack.enter_context(_Forked(player, side.play, count, server.url)))
            players[side.name] = _Player(children[-1], count, server, "abcdefg"[number])
        for child in children:
            child.ready()
        values = alternate({name: each.turn for name, each in players.items()}, plan)
    first, *_ = values
    key = "".join(filter(str.isalnum, system.name.partition(" (")[0].lower()))
    report.figures[f"sink_{key}_records_per_s"] = spread(values[first])
    rows = [[f"**{system.name}**", *[""] * 6]]
    for number, (name, each) in enumerate(players.items()):
        share = ratios(values[name], values[first])
        if number:
            report.figures[f"sink_{key}_plain_{number}"] = share
        rows.append([name, f"{each.count:,}", spread(values[name]).show(), share.show(), *_costs(each)])
    return rows


def _costs(player: _Player) -> list[str]:
    turns = player.turns[1:]  # as the first one is not counted
    of_record = spread(turn.cpu_s / player.count * 1e6 for turn in turns)
    busy = spread(turn.cpu_s / turn.took_s for turn in turns)
    memory = max(map(operator.attrgetter("memory_mib"), turns))
    return [of_record.show(), f"{busy.median:.0%}", f"{memory:,.0f}"]


if __name__ == "__main__":
    main()
