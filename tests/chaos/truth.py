"""What each consumer has of each run, to be held against what was published, and against what was told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import Struct, field

from phase_bus.events import Loss, Receipt, RunComplete, Summary
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.source import compute
from tests.chaos.publish import EVENTS_A_PHASE
from tests.chaos.world import Run, World

_BASE_LATENCY = 1_000_000  # a record's latency is this and its number
# The phase events that ``metrics`` lists, and their places among those of a phase.
_LISTED = {
    "phase_start": 0,
    "phase_sending_complete": EVENTS_A_PHASE - 2,
    "phase_complete": EVENTS_A_PHASE - 1,
}


class Contents(Struct):
    """What a consumer has of one run.

    Attributes:
        numbers: how often it has each record, None if it does not tell them apart.
        events: likewise for phase events.
        batches: how many different events with records it has, None if it does not tell.
        records, latency: the number of records, and the sum of their latencies, if it has only these.
        status: how the run ended as far as it knows; empty if it does not say.
        claims: whether it says itself that this is all.
    """

    numbers: Counter[int] | None = None
    events: Counter[int] | None = None
    batches: int | None = None
    records: int = 0
    latency: float = 0.0
    status: str = ""
    claims: bool = False

    def has_all(self, run: Run, name: str) -> bool:
        """Return whether everything of a run that this consumer is to have is here."""
        if self.events is not None and set(self.events) != events_of(run, name):
            return False
        if self.numbers is not None:
            return set(self.numbers) == set(range(run.records))
        if self.events is not None:
            return True
        return self.records == run.records and self.latency == latency_of(run)

    @property
    def record_count(self) -> int:
        """How many different records are here."""
        return self.records if self.numbers is None else len(self.numbers)


class Verdict(Struct):
    """What came out for all runs and consumers.

    Attributes:
        wrong: what was not told, or told wrongly.
        whole: how many runs each consumer has as a whole.
        told: how many it lacks something of, and said so.
        modest: how many it has as a whole although its receipt says otherwise.
        safe: how many of which nothing may be missing, as nothing was cut or pruned unread.
    """

    wrong: list[str] = field(default_factory=list)
    whole: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    modest: Counter[str] = field(default_factory=Counter)
    safe: Counter[str] = field(default_factory=Counter)


def latency_of(run: Run) -> float:
    """Return the sum of all latencies of a run."""
    return float(run.records * _BASE_LATENCY + run.records * (run.records - 1) // 2)


def events_of(run: Run, name: str) -> set[int]:
    """Return the numbers of the phase events that a consumer is to have."""
    if name != "metrics":
        return set(range(run.phase_events))
    return {phase * EVENTS_A_PHASE + place for phase in range(run.phases) for place in _LISTED.values()}


def contents_of(world: World, database: str) -> dict[str, dict[str, Contents]]:
    """Return what each consumer has, by its name and the run."""
    return {
        "recording": _lines(world.directory / "recording.txt"),
        "sql": _rows(database),
        "metrics": _listed(world.directory / "metrics.json"),
        "alone": _summaries(world.directory / "alone.json"),
        "team": _summaries(world.directory / "team.json"),
    }


def judge(world: World, contents: dict[str, dict[str, Contents]], receipts: list[Receipt]) -> Verdict:
    """Hold what consumers have, and what they and the journal say, against what was published.

    Args:
        receipts: all that there were, in the order of their times.
    """
    verdict = Verdict()
    last = {(receipt.consumer, receipt.run_id): receipt for receipt in receipts}
    losses: dict[tuple[str, str], list[Loss]] = {}
    for receipt in receipts:
        for loss in receipt.lost:
            losses.setdefault((receipt.consumer, loss.run_id), []).append(loss)
    for run in world.runs:
        said = world.said(run)
        assert said == {"records": run.records, "phase_events": run.phase_events, "dropped": {}}
        for name, has in contents.items():
            nothing = Contents(Counter(), Counter()) if name in ("recording", "sql") else Contents()
            here = has.get(run.run_id, nothing)
            key = (name, run.run_id)
            _judge_one(verdict, world, run, name, here, last.get(key), losses.get(key, []))
    _judge_journal(verdict, world)
    return verdict


def _says_all(receipt: Receipt) -> bool:
    """Return whether a receipt says that its own run is there as a whole."""
    return msgspec.structs.replace(receipt, lost=()).complete


def _judge_one(
    verdict: Verdict,
    world: World,
    run: Run,
    name: str,
    here: Contents,
    receipt: Receipt | None,
    losses: list[Loss],
) -> None:
    def wrong(what: str) -> None:
        verdict.wrong.append(f"{name}, run {run.run_id}: {what}")

    safe = world.was_safe(run, name)
    verdict.safe[name] += safe
    _judge_numbers(wrong, run, name, here)
    if receipt is not None:
        _judge_counts(wrong, run, here, receipt)
    if safe and losses:
        wrong(f"tells of a loss, though nothing was cut or pruned: {losses}")
    if safe and here.status not in ("", "completed"):
        wrong(f"it is {here.status!r}, though its publisher came back and completed it")
    if here.has_all(run, name):
        verdict.whole[name] += 1
        if receipt is None or not _says_all(receipt):
            verdict.modest[name] += 1
            if safe:
                wrong(f"has all, and its receipt says {receipt}")
        elif name in ("alone", "team") and not here.claims and safe:
            wrong("has all, and its summary does not say so")
        return
    lack = f"has {here.record_count} of {run.records} records, {len(here.events or ())} phase events"
    if safe:
        wrong(f"{lack}, though nothing was cut or pruned")
    if here.claims:
        wrong(f"{lack}, and says that it is all")
    if world.was_cut(run) and here.status == "lost":
        # A cut took the end that the run's publisher gave it. Everybody is told that the run is lost, and
        # nobody can know how much of it there was: the receipt is for what was known of it.
        verdict.told[name] += 1
    elif receipt is not None and receipt.complete:
        wrong(f"{lack}, and its receipt says that it is all: {receipt}")
    elif receipt is not None and _says_all(receipt) and not losses:
        wrong(f"{lack}, and its receipt names other losses only: {receipt}")
    elif receipt is None and not losses and not _told_otherwise(world, name, run):
        wrong(f"{lack}, and nobody was told")
    else:
        verdict.told[name] += 1
    missing = run.records - here.record_count
    if losses and name in ("recording", "sql") and not world.was_cut(run):
        told = sum(loss.records for loss in losses)
        if told < missing:
            wrong(f"lacks {missing} records, and tells of {told}")


def _judge_numbers(wrong: Callable[[str], None], run: Run, name: str, here: Contents) -> None:
    """Nothing that nobody published, and nothing twice where it is to be there once."""
    for what, counts, wanted in (
        ("records", here.numbers, set(range(run.records))),
        ("phase events", here.events, events_of(run, name)),
    ):
        if counts is not None and not set(counts) <= wanted:
            wrong(f"{what} that nobody published: {sorted(set(counts) - wanted)[:5]}")
        if counts is not None and name == "sql" and counts.total() > len(counts):
            wrong(f"{counts.total() - len(counts)} {what} are there twice")
    if here.record_count > run.records:
        wrong(f"{here.record_count} records of {run.records}")


def _judge_counts(wrong: Callable[[str], None], run: Run, here: Contents, receipt: Receipt) -> None:
    """A receipt claims no more than there is, and knows of no more than was published."""
    handled: Counter[str] = Counter()
    published: Counter[str] = Counter()
    for topic, counts in receipt.topics.items():
        kind = topic.partition(".")[0]
        handled[kind] += counts.handled
        published[kind] += counts.published or 0
    told = Counter({kind: published[kind] for kind in _LISTED})
    if any(count > run.phases for count in told.values()):
        wrong(f"its receipt knows of more phases than the {run.phases} there were: {told}")
    if here.batches is not None and handled["records"] > here.batches:
        wrong(f"its receipt says that it handled {handled['records']} batches; it has {here.batches}")
    if here.events is not None:
        for kind, place in _LISTED.items():
            count = sum(number % EVENTS_A_PHASE == place for number in here.events)
            if handled[kind] > count:
                wrong(f"its receipt says that it handled {handled[kind]} {kind}; it has {count}")


def _told_otherwise(world: World, name: str, run: Run) -> bool:
    """Return whether a consumer that gave no receipt of a run said in its log that something is lost.

    One that was started again after its journal was cut, or had not come to that place, cannot know: there
    it is the bus that says so.
    """
    log = world.log_of(name)
    if world.was_cut(run) and "it has lost its end, or it is another one" in world.bus.log.read_text():
        return True
    if run.run_id in log:
        return True
    if world.was_pruned_unread(run, name) and any(cut_s > run.started_s for cut_s in world.cuts):
        return True  # the bus said it, and the journal's note of it was cut before the consumer came
    return world.was_cut(run) and ("the journal lost its end" in log or "has another journal" in log)


def _judge_journal(verdict: Verdict, world: World) -> None:
    """What a report makes of the journal is all, or does not say so; and a run that ended is not lost."""
    planned = {run.run_id: run for run in world.runs}
    with JournalReader(world.bus.directory) as journal:
        verdict.wrong += journal.verify()
        rows = journal.runs()
        ends = {row.run_id: journal.events(row.run_id, RunComplete) for row in rows}
        summaries = {row.run_id: journal.events(row.run_id, Summary) for row in rows}
    for row in rows:
        run = planned.get(row.run_id)
        if run is None and row.status == "unknown":
            continue  # the bus says that it refused something of it
        if run is None:
            verdict.wrong.append(f"the journal has a run {row.run_id!r} that nobody published")
            continue

        def wrong(what: str, run_id: str = row.run_id) -> None:
            verdict.wrong.append(f"run {run_id} in the journal: {what}")

        report = compute(world.bus.directory, run.run_id)
        records = report.summary["records"]
        if report.is_complete and records != run.records:
            wrong(f"the report has {records} records of {run.records}, and says it is all")
        if ends[run.run_id] and ends[run.run_id][-1].status == "completed" != row.status:
            wrong(f"it was completed, and is {row.status}")
        if world.was_safe(run, "") and not (report.is_complete and row.status == "completed"):
            wrong(f"{row.status}, {records} of {run.records} records")
        for summary in summaries[run.run_id]:
            counted = summary.result["records"]
            if summary.result["complete"] and counted != run.records:
                wrong(f"{summary.producer} says that {counted} records of {run.records} are all")


def _lines(path: Path) -> dict[str, Contents]:
    found: dict[str, Contents] = {}
    batches: dict[str, set[int]] = {}
    for line in path.read_text().splitlines():
        run_id, kind, text = line.split(" ")
        here = found.setdefault(run_id, Contents(Counter(), Counter()))
        assert here.numbers is not None
        assert here.events is not None
        if kind == "run_complete":
            here.status = text
            continue
        numbers = [int(number) for number in text.split(",") if number]
        if kind == "records":
            here.numbers.update(numbers)
            batches.setdefault(run_id, set()).add(numbers[0])
        else:
            here.events.update(numbers)
    for run_id, here in found.items():
        here.batches = len(batches.get(run_id, ()))
    return found


def _rows(url: str) -> dict[str, Contents]:
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    found: dict[str, Contents] = {}

    def ask(text: str) -> Iterable[Any]:
        for run_id, *row in connection.execute(sa.text(text)):
            yield found.setdefault(run_id, Contents(Counter(), Counter(), 0)), *row

    with engine.connect() as connection:
        for here, number in ask("SELECT run_id, session_num FROM phase_bus_records"):
            here.numbers[number] += 1
        batches = "SELECT run_id, count(DISTINCT (stream, stream_offset)) FROM phase_bus_records GROUP BY 1"
        for here, count in ask(batches):
            here.batches = count
        for here, event in ask("SELECT run_id, event FROM phase_bus_events WHERE kind LIKE 'phase\\_%'"):
            here.events[event["stats"]["completed"]] += 1
        for here, status in ask("SELECT run_id, status FROM phase_bus_runs WHERE status IS NOT NULL"):
            here.status = status
    engine.dispose()
    return found


def _listed(path: Path) -> dict[str, Contents]:
    runs: dict[str, Any] = json.loads(path.read_text())["runs"]
    found = {}
    for run_id, run in runs.items():
        events = Counter(
            int(name.removeprefix("phase-")) * EVENTS_A_PHASE + _LISTED[moment["kind"]]
            for name, phase in run["phases"].items()
            for moment in phase["events"]
        )
        found[run_id] = Contents(events=events, status=run["status"])
    return found


def _summaries(path: Path) -> dict[str, Contents]:
    runs: dict[str, Any] = json.loads(path.read_text())["runs"]
    return {
        run_id: Contents(
            records=summary["records"],
            latency=summary["overall"]["metrics"].get("request_latency", {}).get("sum") or 0.0,
            status=summary["status"],
            claims=bool(summary["complete"]),
        )
        for run_id, summary in runs.items()
    }
