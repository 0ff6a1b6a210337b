"""What each consumer has of each run, to be held against what was published, and against what was told."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct, field

from phase_bus.events import Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.source import compute
from tests.chaos.world import Run, World

BASE_LATENCY = 1_000_000
"""A record's latency is this and its number."""


class Contents(Struct):
    """What a consumer has of one run.

    Attributes:
        numbers: how often it has each record, None if it only counts and sums.
        records, latency: their number, and the sum of their latencies.
        claims: whether it says itself that this is all.
    """

    numbers: Counter[int] | None = None
    records: int = 0
    latency: float = 0.0
    claims: bool = False

    def has_all(self, run: Run) -> bool:
        """Return whether everything that was published of a run is here."""
        if self.numbers is not None:
            return set(self.numbers) == set(range(run.records))
        return self.records == run.records and self.latency == latency_of(run)


class Verdict(Struct):
    """What came out for all runs and consumers.

    Attributes:
        wrong: what was not told, or told wrongly.
        whole: how many runs each consumer has as a whole.
        told: how many it lacks something of, and said so.
        modest: how many it has as a whole although its receipt says otherwise.
    """

    wrong: list[str] = field(default_factory=list)
    whole: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    modest: Counter[str] = field(default_factory=Counter)


def latency_of(run: Run) -> float:
    """Return the sum of all latencies of a run."""
    return float(run.records * BASE_LATENCY + run.records * (run.records - 1) // 2)


def contents_of(world: World, database: str) -> dict[str, dict[str, Contents]]:
    """Return what each consumer has, by its name and the run."""
    return {
        "recording": _lines(world.directory / "recording.txt"),
        "sql": _rows(database),
        "alone": _summaries(world.directory / "alone.json"),
        "team": _summaries(world.directory / "team.json"),
    }


def judge(world: World, contents: dict[str, dict[str, Contents]], receipts: list[Receipt]) -> Verdict:
    """Hold what consumers have, and what they and the journal say, against what was published."""
    verdict = Verdict()
    last = {(receipt.consumer, receipt.run_id): receipt for receipt in receipts}
    for run in world.runs:
        said = world.said(run)
        assert said["records"] == run.records
        for name, has in contents.items():
            here = has.get(run.run_id, Contents())
            _judge_one(verdict, world, run, name, here, last.get((name, run.run_id)))
    by_id = {run.run_id: run for run in world.runs}
    for (name, _), receipt in last.items():
        for loss in receipt.lost:
            if world.was_safe(by_id[loss.run_id], name):
                verdict.wrong.append(f"{name}: tells of a loss, though nothing was cut or pruned: {loss}")
    _judge_journal(verdict, world)
    return verdict


def _says_all(receipt: Receipt) -> bool:
    """Return whether a receipt says that its own run is there as a whole."""
    return msgspec.structs.replace(receipt, lost=()).complete


def _judge_one(
    verdict: Verdict, world: World, run: Run, name: str, here: Contents, receipt: Receipt | None
) -> None:
    where = f"{name}, run {run.run_id}"
    safe = world.was_safe(run, name)
    if name == "sql" and here.numbers is not None and any(count > 1 for count in here.numbers.values()):
        verdict.wrong.append(
            f"{where}: {sum(c - 1 for c in here.numbers.values())} records are there twice"
        )
    if here.numbers is not None and not set(here.numbers) <= set(range(run.records)):
        verdict.wrong.append(f"{where}: records that nobody published")
    if here.has_all(run):
        verdict.whole[name] += 1
        if receipt is None or not _says_all(receipt):
            verdict.modest[name] += 1
            if safe:
                verdict.wrong.append(f"{where}: has all, and its receipt says {receipt}")
        elif here.numbers is None and not here.claims and safe:
            verdict.wrong.append(f"{where}: has all, and its summary does not say so")
        return
    count = here.records if here.numbers is None else len(here.numbers)
    lack = f"{where}: has {count} of {run.records}"
    if safe:
        verdict.wrong.append(f"{lack}, though nothing was cut or pruned")
    if here.claims:
        verdict.wrong.append(f"{lack}, and says that it is all")
    if receipt is not None and receipt.complete:
        verdict.wrong.append(f"{lack}, and its receipt says that it is all: {receipt}")
    elif receipt is not None and _says_all(receipt):
        verdict.wrong.append(f"{lack}, and its receipt names other losses only: {receipt}")
    elif receipt is None and not _told_otherwise(world, name, run):
        verdict.wrong.append(f"{lack}, and nobody was told")
    else:
        verdict.told[name] += 1


def _told_otherwise(world: World, name: str, run: Run) -> bool:
    """Return whether a consumer that gave no receipt of a run said in its log that something is lost."""
    log = world.log_of(name)
    return run.run_id in log or "the journal lost its end" in log or "has another journal" in log


def _judge_journal(verdict: Verdict, world: World) -> None:
    """What a report makes of the journal is all, or does not say so; and a run that ended is not lost."""
    planned = {run.run_id: run for run in world.runs}
    with JournalReader(world.bus.directory) as journal:
        verdict.wrong += journal.verify()
        rows = journal.runs()
    for row in rows:
        run = planned.get(row.run_id)
        if run is None:
            verdict.wrong.append(f"the journal has a run {row.run_id!r} that nobody published")
            continue
        report = compute(world.bus.directory, run.run_id)
        records = report.summary["records"]
        if report.is_complete and records != run.records:
            verdict.wrong.append(f"report of {run.run_id}: {records} of {run.records}, and says it is all")
        if world.was_safe(run, "") and not (report.is_complete and row.status == "completed"):
            verdict.wrong.append(f"run {run.run_id}: {row.status}, {records} of {run.records} records")


def _lines(path: Path) -> dict[str, Contents]:
    found: defaultdict[str, Contents] = defaultdict(lambda: Contents(numbers=Counter()))
    for line in path.read_text().splitlines():
        run_id, kind, numbers = line.split(" ")
        counts = found[run_id].numbers
        assert counts is not None
        if kind == "records":
            counts.update(map(int, numbers.split(",")))
    return found


def _rows(url: str) -> dict[str, Contents]:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    found: defaultdict[str, Contents] = defaultdict(lambda: Contents(numbers=Counter()))
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT run_id, session_num FROM phase_bus_records"))
        for run_id, number in rows:
            counts = found[run_id].numbers
            assert counts is not None
            counts[number] += 1
    engine.dispose()
    return found


def _summaries(path: Path) -> dict[str, Contents]:
    runs: dict[str, Any] = json.loads(path.read_text())["runs"]
    return {
        run_id: Contents(
            records=summary["records"],
            latency=summary["overall"]["metrics"].get("request_latency", {}).get("sum") or 0.0,
            claims=bool(summary["complete"]),
        )
        for run_id, summary in runs.items()
    }
