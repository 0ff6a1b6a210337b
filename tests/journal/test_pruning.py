"""Old runs go, the rest stays, and a model that says what is left."""

from __future__ import annotations

import math
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from phase_bus.events import Receipt
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry, Head, Limits
from phase_bus.journal.writer import Journal
from tests.support.bundles import add_bundle, singles_of
from tests.support.entries import _S, _SOURCE, Log, dead_letter_at, read_all


def fill(
    journal: Journal, log: Log, run_id: str, ended_s: int | None, size: int = 10, count: int = 5
) -> None:
    """Append a run's events, and note how it is."""
    kinds = ("phase_start", "records", "receipt")
    journal.append([log.entry(kinds[i % 3], run_id, bytes(size)) for i in range(count)])
    ended_ns = None if ended_s is None else ended_s * _S
    journal.note_run(run_id, "running" if ended_s is None else "completed", log.offset, ended_ns, "p")


def pruned(journal: Journal, now_ns: int, budget_s: float = math.inf) -> list[str]:
    """Prune; return which runs are gone."""
    return [row.run_id for row in journal.prune(now_ns, budget_s)]


def test_the_oldest_finished_runs_go_first(tmp_path: Path) -> None:
    """Over the number of runs: as they were taken in, never one going on, and all that belongs to them."""
    log = Log()
    with Journal(tmp_path, Limits(max_runs=2)) as journal:
        for run_id, ended_s in (("a", None), ("b", 30), ("c", 20), ("d", 40)):
            fill(journal, log, run_id, ended_s)
        for offset, run_id in ((6, "b"), (16, "d")):
            dead_letter_at(journal, "x", offset, run_id)
        assert pruned(journal, 50 * _S) == ["b", "c"]
        assert [run.run_id for run in journal.runs()] == ["a", "d"]
        assert read_all(journal) == [e for e in log.entries if e.run_id in "ad"]
        assert [letter.run_id for letter in journal.dead_letters()] == ["d"]
        assert journal.events("b", Receipt) == []
        assert pruned(journal, 50 * _S) == []
        assert journal.verify() == []


def test_old_runs_go_and_the_head_stays(tmp_path: Path) -> None:
    """With everything pruned the numbers go on where they were, after a restart too."""
    log = Log()
    with Journal(tmp_path, Limits(max_age_s=10)) as journal:
        fill(journal, log, "a", -86400)
        assert log.entries[4].kind == "records", "the last one that is no receipt, taken in at 5 s"
        assert pruned(journal, 15 * _S) == []
        assert pruned(journal, 15 * _S + 1) == ["a"]
        assert read_all(journal) == []
    head = Head(log.offset, log.event_number)
    with Journal(tmp_path) as journal:
        assert (journal.head, journal.info().head) == (head, head)
        assert journal.last_seqs() == {_SOURCE: log.offset}
        assert journal.verify() == []
        journal.append([log.entry(run_id="b")])
        assert [e.offset for e in read_all(journal)] == [head.offset + 1]
        assert journal.verify() == []


def test_pruning_by_size_gives_the_space_back(tmp_path: Path) -> None:
    """The file shrinks to the limit, and not further than it has to."""
    log = Log()
    with Journal(tmp_path, Limits(max_bytes=9 << 19)) as journal:
        for i in range(10):
            fill(journal, log, f"r{i}", i, size=100_000, count=10)
        assert pruned(journal, 10 * _S) == [f"r{i}" for i in range(6)]
        assert len(read_all(journal)) == 40
    assert (tmp_path / FILE_NAME).stat().st_size <= 9 << 19


def test_pruning_that_ran_out_of_time_goes_on_later(tmp_path: Path) -> None:
    """A half-deleted run is no longer listed, does no harm, and goes with the next call."""
    log = Log()
    with Journal(tmp_path, Limits(max_runs=1)) as journal:
        fill(journal, log, "a", 1, count=2000)
        fill(journal, log, "b", 2)
        assert pruned(journal, _S, budget_s=0) == []
        assert [run.run_id for run in journal.runs()] == ["b"]
        assert journal.verify() == []
    with Journal(tmp_path, Limits(max_runs=1)) as journal:
        assert pruned(journal, _S) == ["a"]
        assert read_all(journal) == log.entries[2000:]
        assert journal.verify() == []


def test_a_run_that_a_consumer_has_not_read_is_held_back(tmp_path: Path) -> None:
    """Whatever number and age say, until it is read; what it does not take holds nothing."""
    log = Log()
    with Journal(tmp_path, Limits(max_runs=1, max_age_s=3)) as journal:
        for run_id in "abc":
            fill(journal, log, run_id, 1)
        journal.see({"slow": (), "ends": ("run_complete.",)}, 15 * _S)
        journal.commit("slow", journal.lineage.position(3))
        journal.commit("ends", journal.lineage.position(0))
        assert pruned(journal, 20 * _S) == []
        assert journal.held == ["a", "b", "c"]
        journal.commit("slow", journal.lineage.position(5))
        assert pruned(journal, 20 * _S) == ["a"]
        journal.commit("slow", journal.lineage.position(12))
        assert pruned(journal, 20 * _S) == ["b"]
        assert journal.held == ["c"]
        assert journal.unread_runs() == []
        journal.commit("slow", journal.lineage.position(15))
        assert pruned(journal, 20 * _S) == ["c"]


def test_what_is_held_back_pushes_nothing_out(tmp_path: Path) -> None:
    """Runs that are held come on top: the newest are not pruned in their place."""
    log = Log()
    with Journal(tmp_path, Limits(max_runs=2)) as journal:
        for run_id in "abc":
            fill(journal, log, run_id, 1)
        journal.see({"ends": ("phase_start.b", "phase_start.c")}, 15 * _S)
        journal.commit("ends", journal.lineage.position(0))
        for run_id in "de":
            fill(journal, log, run_id, 1)
        assert pruned(journal, 30 * _S) == ["a"]
        assert journal.held == ["b", "c"]
        fill(journal, log, "f", 1)
        assert pruned(journal, 30 * _S) == ["d"]


def test_a_consumer_that_is_not_seen_holds_nothing_back(tmp_path: Path) -> None:
    """After the time stated; unless the clock cannot be relied upon."""
    log = Log()
    limits = Limits(max_runs=1, max_absence_s=100)
    with Journal(tmp_path, limits) as journal:
        for run_id in "abc":
            fill(journal, log, run_id, 1)
        journal.see({"gone": ()}, 10 * _S)
        journal.commit("gone", journal.lineage.position(7))
        assert pruned(journal, 110 * _S) == ["a"], "that was read"
        assert journal.prune(10**9 * _S, by_age=False) == []
        assert pruned(journal, 111 * _S) == ["b"]
        (lost,) = journal.unread_runs()
        assert (lost.consumer, lost.run_id, lost.events, lost.records) == ("gone", "b", 3, 7)


def test_beyond_the_bound_a_run_goes_and_the_loss_is_kept(tmp_path: Path) -> None:
    """By size: what a consumer, and the slowest of a group's shares, had not read, and no more goes."""
    log = Log()
    limits = Limits(max_bytes=1 << 20, max_unread_bytes=5 << 18)
    with Journal(tmp_path, limits) as journal:
        for i in range(6):
            fill(journal, log, f"r{i}", i, size=100_000, count=5)
        journal.see({"slow": (), "group": ("records.",)}, 1)
        journal.commit("slow", journal.lineage.position(2))
        journal.commit("group/events", journal.lineage.position(30))
        journal.commit("group/03", journal.lineage.position(6))
        journal.commit("group/04", journal.lineage.position(0))  # nothing is in this partition
        gone = journal.prune(10 * _S)
        assert [row.run_id for row in gone] == ["r0", "r1"]
        assert journal.held == ["r2", "r3", "r4"], "without these the limit would hold"
        lost = [(u.consumer, u.run_id, u.events, u.records) for u in journal.unread_runs()]
        assert lost == [("slow", "r0", 3, 7), ("slow", "r1", 5, 14), ("group", "r1", 2, 14)]
        assert [u for row in gone for u in row.unread] == journal.unread_runs()
    with JournalReader(tmp_path) as reader:
        (first, second) = reader.pruned_runs()
        assert (first.number, first.run_id, first.last_offset) == (1, "r0", 5)
        assert {name: (t.events, t.records, t.last_offset) for name, t in first.topics.items()} == {
            "phase_start.r0$": (2, 0, 4),
            "records.03.r0$": (2, 14, 5),
            "receipt.r0$": (1, 0, 3),
        }
        assert reader.pruned_runs(after=5) == [second]
        assert reader.pruned_runs(after=0, until=5) == [first]
        assert reader.prunings == 2
        assert reader.verify() == []


def test_a_run_that_comes_again_is_told_of_by_itself(tmp_path: Path) -> None:
    """What is told of the second run of an id is not what was lost of the first."""
    log = Log()
    with Journal(tmp_path, Limits(max_bytes=0, max_unread_bytes=0)) as journal:
        journal.see({"slow": ()}, 1)
        journal.commit("slow", journal.lineage.position(0))
        for count in (5, 2):
            fill(journal, log, "r", 1, count=count)
            ((lost,),) = (row.unread for row in journal.prune(10 * _S))
            assert (lost.consumer, lost.run_id, lost.events) == ("slow", "r", count)
        assert [each.events for each in journal.unread_runs()] == [5, 2]


def test_the_table_of_what_is_gone_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest are kept; the count of all is right."""
    monkeypatch.setattr("phase_bus.journal.writer.KEPT_PRUNED_RUNS", 3)
    log = Log()
    with Journal(tmp_path, Limits(max_runs=0)) as journal:
        for i in range(5):
            fill(journal, log, f"r{i}", i)
        pruned(journal, 0)
        assert [run.run_id for run in journal.pruned_runs()] == ["r2", "r3", "r4"]
        assert journal.prunings == 5


def test_a_clock_that_was_wrong_takes_nothing_away(tmp_path: Path) -> None:
    """What was taken in at a time that is still to come is not old, and order does not go by time."""
    with Journal(tmp_path, Limits(max_age_s=10, max_runs=2)) as journal:
        times = {"ahead": 10**6, "a": 100, "behind": 1, "b": 103}
        for offset, (run_id, ts_s) in enumerate(times.items(), 1):
            entry = Log(Head(offset - 1, offset - 1)).entry(run_id=run_id)._replace(ts_ns=ts_s * _S)
            journal.append([entry])
            journal.note_run(run_id, "completed", 0, 0, "p")
        assert [row.run_id for row in journal.prune(105 * _S, by_age=False)] == ["ahead", "a"]
        assert pruned(journal, 105 * _S) == ["behind"]
        assert pruned(journal, 50 * _S) == [], "it was put back"


def test_dead_letters_that_go_with_a_run_are_counted(tmp_path: Path) -> None:
    """They were still to be looked at by somebody."""
    log = Log()
    with Journal(tmp_path, Limits(max_runs=0)) as journal:
        fill(journal, log, "a", 1)
        dead_letter_at(journal, "x", 1, "a")
        dead_letter_at(journal, "y", 1, "a")
        (row,) = journal.prune(0)
        assert row.dead_letters == 2
        assert journal.dead_letters() == []


class JournalModel(RuleBasedStateMachine):
    """A journal beside a plain list that must hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="pb-"))
        self.limits = Limits(max_runs=3, max_age_s=20)
        self.journal = Journal(self.directory, self.limits)
        self.log = Log()
        self.ended: dict[str, int | None] = {}
        self.later_s = 0
        self.place: int | None = None  # of a consumer

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.directory)

    @rule(
        events=st.lists(
            st.tuples(
                st.sampled_from(["phase_start", "phase_progress", "records"]),
                st.integers(0, 5),
                st.lists(st.binary(max_size=40), min_size=1, max_size=5),
            ),
            max_size=8,
        )
    )
    def append(self, events: list[tuple[str, int, list[bytes]]]) -> None:
        events = [e for e in events if self.ended.get(f"r{e[1]}") is None]
        self.ended.update({f"r{number}": None for _, number, _ in events})
        self.journal.append([self._row(kind, f"r{n}", payloads) for kind, n, payloads in events])

    def _row(self, kind: str, run_id: str, payloads: list[bytes]) -> Entry:
        if len(payloads) > 1 and kind != "records":
            return add_bundle(self.log, payloads, kind, run_id)
        return self.log.entry(kind, run_id, payloads[0])

    @precondition(lambda self: None in self.ended.values())
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.later_s += 3
        run_id = data.draw(st.sampled_from([r for r, ended in self.ended.items() if ended is None]))
        self.ended[run_id] = max(e.offset for e in self.log.entries if e.run_id == run_id)
        self.journal.note_run(run_id, "failed", 0, 7, "p")

    @rule(share=st.floats(0, 1))
    def commit(self, share: float) -> None:
        self.place = int(share * (self.log.offset + 1))
        self.journal.commit("c", self.journal.lineage.position(self.place))

    @rule()
    def prune(self) -> None:
        expected, held = [], 0
        now_s = self.log.offset + self.later_s  # an event is taken in at the second of its offset
        for last, run_id in sorted((last, r) for r, last in self.ended.items() if last is not None):
            if len(self.ended) - held <= self.limits.max_runs and now_s - last <= self.limits.max_age_s:
                continue
            if self.place is not None and self.place < last:
                held += 1  # on top of what the limit allows
                continue
            expected.append(run_id)
            del self.ended[run_id]
        self.log.entries = [e for e in self.log.entries if e.run_id not in expected]
        assert pruned(self.journal, now_s * _S) == expected

    @rule()
    def refuse(self) -> None:
        log = Log(self.journal.head)
        with pytest.raises(ValueError, match="instead of"):
            self.journal.append([log.entry(run_id="new"), log.entry()._replace(event_number=0)])

    @rule()
    def reopen(self) -> None:
        self.journal.close()
        self.journal = Journal(self.directory, self.limits)

    @rule(
        share=st.floats(0, 1),
        records=st.booleans(),
        limit=st.integers(1, 10),
        limit_bytes=st.integers(0, 600),
        run=st.none() | st.integers(0, 6),
        until=st.none() | st.integers(0, 60),
        partition=st.none() | st.just(3),
        kinds=st.sampled_from([(), ("phase_start",), ("phase_progress", "records")]),
    )
    def read(
        self,
        share: float,
        records: bool,
        limit: int,
        limit_bytes: int,
        run: int | None,
        until: int | None,
        partition: int | None,
        kinds: tuple[str, ...],
    ) -> None:
        after = int(share * (self.log.offset + 1))
        wanted: list[Entry] = []
        for e in self.log.entries:
            if e.offset <= after or (until is not None and e.offset > until):
                continue
            if (e.kind == "records" and not records and partition is None) or (
                run is not None and e.run_id != f"r{run}"
            ):
                continue
            if (kinds and e.kind not in kinds) or (partition is not None and e.kind != "records"):
                continue
            wanted.append(e)
        expected: list[Entry] = []
        size = 0
        for e in wanted:
            size += len(e.topic) + len(e.header) + len(e.payload)
            if len(expected) == limit or (expected and size > limit_bytes):
                break
            expected.append(e)
        run_id = None if run is None else f"r{run}"
        found = partial(
            self.journal.read, records=records, run_id=run_id, until=until, partition=partition, kinds=kinds
        )
        assert found(after, limit=limit, limit_bytes=limit_bytes) == expected
        whole: list[Entry] = []
        while rows := found(after, limit=limit, limit_bytes=limit_bytes, bundled=True):
            after = rows[-1].offset
            whole += [event for row in rows for event in singles_of(row)]
        assert whole == wanted

    @invariant()
    def holds_the_same(self) -> None:
        assert self.journal.head == Head(self.log.offset, self.log.event_number)
        assert {run.run_id for run in self.journal.runs()} == set(self.ended)
        assert self.journal.info().events == len(self.log.entries)

    @rule()
    def verify(self) -> None:
        assert self.journal.verify() == []


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
