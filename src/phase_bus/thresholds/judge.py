"""Judges a run: what each threshold comes to, second by second, at the events of the run.

A run is judged at each of its events that are no records, for every second that is over since the last
one. What is counted then follows from the journal alone: all records before the event, in cells that do
not depend on who counted them (:mod:`~phase_bus.thresholds.cells`). So one process, a group, and a journal
that is read later come to the same verdicts at the same offsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct, field

from phase_bus.aggregation.limits import MAX_PHASES
from phase_bus.aggregation.metric import least, most
from phase_bus.aggregation.state import in_order
from phase_bus.core.wire import decode_event
from phase_bus.events import (
    BEGIN_NO_RUN,
    EventBase,
    PhaseComplete,
    PhaseEvent,
    PhaseRef,
    PhaseSendingComplete,
    Records,
    RunComplete,
    Verdict,
)
from phase_bus.journal.reader import JournalReader
from phase_bus.thresholds.cells import (
    Key,
    Needs,
    Part,
    PartitionCells,
    Parts,
    limit_values,
    merge_into,
    seconds,
)
from phase_bus.thresholds.measure import Measure, is_per_second, measure, measure_saturation, united
from phase_bus.thresholds.standing import Assessment, Standing, assess
from phase_bus.thresholds.threshold import BaselineLimit, Saturation, Threshold, unit_of

_SECOND_NS = 1_000_000_000
_LONGEST_GAP_S = 600  # whose seconds are judged one by one; of longer ones those that have records
_STEPPED_BACK_S = 5  # a clock that is set back by more than this is followed
_ALL = 1 << 62


class Span(Struct):
    """When a phase took place by its events, in Unix ns: start, last request sent, last answer."""

    start_ns: int | None = None
    sent_end_ns: int | None = None
    end_ns: int | None = None


_Cell: TypeAlias = tuple[int, Key, Parts]
"""A cell, with its partition."""


class _Closing(Struct):
    """An event of the run that is no record: what came before it is to be judged.

    Attributes:
        number, offset: its event number and its place in the journal.
        end: the run's end, if it is that.
    """

    number: int
    offset: int
    ts_ns: int
    phase: PhaseRef | None = None
    span: Span = field(default_factory=Span)
    end: RunComplete | None = None


class _Saved(Struct):
    standings: list[Standing]
    spans: list[tuple[PhaseRef, Span]]
    pending: list[_Closing]
    parts: dict[int, Any]
    clock_s: int | None
    consumed: int
    edge_s: int
    own_number: int
    skipped: int
    has_gap: bool
    end: tuple[RunComplete, int] | None
    judged_records: int


class RunJudge:
    """Judges one run.

    Args:
        thresholds: with limits that are numbers.
        producer: who judges.
        alone: whether all events come by :meth:`take`; else those of partitions come by :meth:`merge`.
    """

    def __init__(
        self, run_id: str, thresholds: Sequence[Threshold], producer: str, *, alone: bool = True
    ) -> None:
        self.run_id = run_id
        self._thresholds = list(thresholds)
        self._producer = producer
        self._alone = alone
        self._needs = Needs.of(thresholds)
        self._parts: dict[int, PartitionCells] = {}
        self._standings = [Standing() for _ in self._thresholds]
        self._spans: dict[PhaseRef, Span] = {}
        self._pending: list[_Closing] = []
        self._clock_s: int | None = None  # the last second that was judged
        self._consumed = self._edge_s = 0  # cells of lower numbers and earlier seconds are judged
        self._own_number = 0  # instead of event numbers, without a journal
        self._merged_offset = 0
        self._skipped = 0  # events at which nothing could be judged
        self._has_gap = False  # whether there were seconds that could not be judged one by one
        self._end: tuple[RunComplete, int] | None = None  # with its offset
        self._judged_records = -1  # how many there were at the last final verdict
        # What was judged so far, by phase: all of it, and by second what a window may still need.
        self._total: Parts = {}
        self._counts: dict[int, dict[tuple[PhaseRef, str], int]] = {}
        self._recent: dict[int, Parts] = {}

    @property
    def records(self) -> int:
        """How many records are known."""
        return sum(cells.records for cells in self._parts.values())

    @property
    def ended(self) -> bool:
        """Whether the run has ended, as far as is known."""
        return self._end is not None

    def take(self, event: EventBase, number: int, offset: int) -> list[Verdict]:
        """Take in an event of the run, and return what changes.

        Args:
            number: how many events of the journal up to this one are no records; 0 without a journal.
            offset: its place in the journal.
        """
        if isinstance(event, Records):
            cells = self._parts.get(event.partition)
            if cells is None:
                cells = self._parts[event.partition] = PartitionCells(self._needs, lasting=False)
            cells.take(event, number or self._own_number)
            return self._late_final()
        if event.kind in BEGIN_NO_RUN or (isinstance(event, RunComplete) and event.running):
            return []
        self._own_number += 1
        closing = _Closing(number or self._own_number, offset, event.ts_ns)
        if isinstance(event, PhaseEvent):
            stats = event.stats
            sent_end_ns, end_ns = stats.sent_end_ns, stats.end_ns
            if isinstance(event, PhaseSendingComplete | PhaseComplete) and sent_end_ns is None:
                sent_end_ns = event.ts_ns
            closing.phase = event.phase
            closing.span = Span(stats.start_ns or event.ts_ns, sent_end_ns, end_ns)
        if isinstance(event, RunComplete):
            closing.end = event
        self._pending.append(closing)
        # In a group a run's end comes only when all partitions have come to it.
        return self._advance(_ALL if self._alone or closing.end is not None else self._merged_offset)

    def merge(self, parts: Mapping[int, PartitionCells], offset: int) -> list[Verdict]:
        """Take over what partitions have come to, up to an offset at least; return what changes."""
        are_new = not parts.keys() <= self._parts.keys()  # also all of them, after a restart
        self._parts.update(parts)
        self._merged_offset = offset
        folded = [cells.base_key.number for cells in parts.values() if cells.base_key]
        is_too_late = any(number >= self._consumed for number in folded)
        self._has_gap |= is_too_late
        if are_new or is_too_late:
            self._count_anew()
        return self._advance(offset) + self._late_final()

    # ---- time ----

    def _advance(self, offset: int) -> list[Verdict]:
        verdicts: list[Verdict] = []
        while self._pending and self._pending[0].offset <= offset:
            verdicts += self._close(self._pending.pop(0))
        return verdicts

    def _late_final(self) -> list[Verdict]:
        """Give the final verdict again when records come after the run's end."""
        if self._end is None or self._judged_records == (records := self.records):
            return []
        end, offset = self._end
        if records < end.records:
            return []
        return self._close(_Closing(self._consumed, offset, end.ts_ns, end=end))

    def _close(self, closing: _Closing) -> list[Verdict]:
        """Judge what lies before an event of the run."""
        if self._end is not None:
            self._end = None
            self._count_anew()  # without what was counted after the end
        phase = closing.phase
        if phase is not None and (phase in self._spans or len(self._spans) < MAX_PHASES):
            span = self._spans.setdefault(phase, Span())
            span.start_ns = span.start_ns if span.start_ns is not None else closing.span.start_ns
            span.sent_end_ns = closing.span.sent_end_ns or span.sent_end_ns
            span.end_ns = closing.span.end_ns or span.end_ns
        number = _ALL if closing.end is not None else closing.number
        base = max((c.base_key.number for c in self._parts.values() if c.base_key), default=-1)
        if number <= base and number > self._consumed:
            self._skipped += 1  # what was counted before it cannot be told from what came after it
            return []
        closing_s = closing.ts_ns // _SECOND_NS
        edge_s = max(self._edge_s, closing_s)
        cells = self._unjudged(number, _ALL if closing.end is not None else edge_s)
        verdicts: list[Verdict] = []
        for second, due in self._by_second(closing_s, cells):
            self._count(due)
            verdicts += self._judge(second, closing.offset)
        self._consumed, self._edge_s = max(self._consumed, closing.number), edge_s
        self._let_go()
        if closing.end is not None:
            self._end = (closing.end, closing.offset)
            verdicts += self._conclude(closing.end, closing.offset)
        return verdicts

    def _is_judged(self, key: Key) -> bool:
        return key.number < self._consumed and key.second < self._edge_s

    def _unjudged(self, number: int, edge_s: int) -> list[_Cell]:
        """Return the cells of lower numbers and earlier seconds that are not judged yet, in order.

        The second in which an event lies is not over with it, so that its cells wait for the next one.
        """
        cells: list[_Cell] = [
            (partition, key, parts)
            for partition, part in sorted(self._parts.items())
            for key, parts in part.before(number)
            if key.second < edge_s and not self._is_judged(key)
        ]
        cells.sort(key=lambda cell: (cell[1], cell[0]))
        return cells

    def _by_second(self, closing_s: int, cells: list[_Cell]) -> Iterator[tuple[int, list[_Cell]]]:
        """Yield the seconds before an event's, each with the cells that are counted from then on.

        What is left after the last of them is counted without being judged.
        """
        clock_s = self._clock_s
        if clock_s is None:
            clock_s = min([closing_s, *(key.second for _, key, _ in cells)]) - 1
        if closing_s < clock_s - _STEPPED_BACK_S:
            clock_s = closing_s - 2
        for second in self._due(clock_s + 1, closing_s, cells):
            self._clock_s = second
            yield second, [cell for cell in cells if cell[1].second <= second]
            cells = [cell for cell in cells if cell[1].second > second]
        self._count(cells)

    def _due(self, first_s: int, closing_s: int, cells: list[_Cell]) -> list[int]:
        """Return the seconds to be judged: all, but of a long gap those only whose windows have records.

        A clock that jumps ahead leaves a gap without any; a publisher that tells no progress leaves none.
        """
        gap_end_s = closing_s - _LONGEST_GAP_S
        due = set(range(max(first_s, gap_end_s), closing_s))
        for second in {key.second for _, key, _ in cells if key.second < gap_end_s}:
            due.update(range(max(second, first_s), min(second + self._needs.window_s + 1, gap_end_s)))
        return sorted(due)

    def _count(self, cells: Sequence[_Cell]) -> None:
        by_second: dict[int, list[Parts]] = {}
        for _, key, parts in cells:
            by_second.setdefault(key.second, []).append(parts)
        for second, some in by_second.items():
            new: Parts = {}
            merge_into(new, some)
            merge_into(self._total, [new])
            if self._needs.window_s:
                merge_into(self._recent.setdefault(second, {}), [new])
        for partition, _, parts in cells:
            limit_values(self._total, parts, self._counts.setdefault(partition, {}))

    def _count_anew(self) -> None:
        """Count all that was judged once more: after a restart, or when old cells are kept no more."""
        self._total, self._counts, self._recent = {}, {}, {}
        for partition, cells in sorted(self._parts.items()):
            merge_into(self._total, [cells.base])
            limit_values(self._total, cells.base, self._counts.setdefault(partition, {}))
            judged = [cell for cell in cells.before(self._consumed) if self._is_judged(cell[0])]
            self._count([(partition, key, parts) for key, parts in judged])

    def _let_go(self) -> None:
        if self._clock_s is None:
            return
        oldest_s = self._clock_s - self._needs.window_s
        for second in [second for second in self._recent if second <= oldest_s]:
            del self._recent[second]
        if self._alone:
            for cells in self._parts.values():
                cells.fold(self._consumed, oldest_s)

    # ---- judging ----

    def _judge(self, second: int, offset: int) -> list[Verdict]:
        """Return what changes with a second."""
        verdicts = []
        for threshold, standing in zip(self._thresholds, self._standings, strict=True):
            spans = self._spans_of(threshold.phase)
            if not spans and not self._parts_of(threshold.phase):
                continue
            if threshold.over_s is None:
                now = assess(threshold, self._measure(threshold, spans, second))
            else:
                found = self._window(threshold, spans, second)
                if found is None:
                    continue
                now = assess(threshold, found)
                standing.note_window(threshold, now, _taken_s(spans, second))
            if standing.settle(now.state, second, threshold.for_s):
                verdicts.append(self._verdict(threshold, now, (second + 1) * _SECOND_NS, offset))
        return verdicts

    def _measure(self, threshold: Threshold, spans: Sequence[Span], second: int | None) -> Measure:
        """Return what a threshold's quantity comes to up to a second, or in the end."""
        parts = self._parts_of(threshold.phase)
        if not parts:
            return Measure(None, 0)
        part = united(parts)
        return measure(threshold.quantity, part, _duration_s(spans, part, second))

    def _window(self, threshold: Threshold, spans: Sequence[Span], second: int) -> Measure | None:
        """Return what it comes to in the window that ends with a second; None if that is not a full one."""
        width_s = seconds(threshold.over_s)
        running = [span for span in spans if span.start_ns is not None]
        if not running:
            return None
        span = max(running, key=lambda span: span.start_ns or 0)
        over_ns = least(span.sent_end_ns, span.end_ns)
        end_ns = (second + 1) * _SECOND_NS
        assert span.start_ns is not None
        if end_ns - span.start_ns < width_s * _SECOND_NS or (over_ns is not None and end_ns > over_ns):
            return None
        if isinstance(threshold.quantity, Saturation):
            half_s = max(width_s // 2, 1)
            first = self._in_window(threshold, second - 2 * half_s, second - half_s)
            last = self._in_window(threshold, second - half_s, second)
            return measure_saturation(threshold.quantity, first, last, threshold.at_least)
        part = united(self._in_window(threshold, second - width_s, second).values())
        found = measure(threshold.quantity, part, float(width_s))
        if not found.samples and threshold.at_least <= 1 and is_per_second(threshold.quantity):
            return Measure(0.0, 1)  # that nothing came in all this time is something that is known
        return found

    def _in_window(self, threshold: Threshold, after_s: int, to_s: int) -> Parts:
        """Return what was published after one second and up to another."""
        found: Parts = {}
        recent = (self._recent.get(second, {}) for second in range(after_s + 1, to_s + 1))
        wanted = ({p: part for p, part in each.items() if _is_of(threshold.phase, p)} for each in recent)
        merge_into(found, wanted)
        return found

    def _parts_of(self, phase: str) -> list[Part]:
        return [self._total[ref] for ref in in_order(self._total) if _is_of(phase, ref)]

    def _spans_of(self, phase: str) -> list[Span]:
        return [span for ref, span in self._spans.items() if _is_of(phase, ref)]

    # ---- the end ----

    def _conclude(self, end: RunComplete, offset: int) -> list[Verdict]:
        """Return the final verdicts."""
        records = self._judged_records = self.records
        lack = _lack(end, records)
        verdicts = []
        for threshold, standing in zip(self._thresholds, self._standings, strict=True):
            spans = self._spans_of(threshold.phase)
            if threshold.over_s is not None:
                state, found, reason = standing.conclude_windows(threshold)
            else:
                now = assess(threshold, self._measure(threshold, spans, None))
                state, found, reason = standing.conclude(threshold, now)
            if not spans and not self._parts_of(threshold.phase):
                reason = f"the run had no phase {threshold.phase!r}"
            if lack and state == "passed":
                state, reason = "unknown", lack
            if self._has_gap and threshold.over_s is not None and state == "passed":
                state, reason = "unknown", "not every window could be judged"
            if self._skipped:
                told = f"not judged at {self._skipped:,} events, while who judges was away"
                reason = f"{reason}; {told}" if reason else told
            last = Assessment(state, found, reason)
            verdicts.append(self._verdict(threshold, last, end.ts_ns, offset, final=True))
        return verdicts

    def _verdict(
        self, threshold: Threshold, now: Assessment, ts_ns: int, offset: int, *, final: bool = False
    ) -> Verdict:
        assert not isinstance(threshold.limit, BaselineLimit)
        return Verdict(
            run_id=self.run_id,
            ts_ns=ts_ns,
            producer=self._producer,
            threshold=threshold.text,
            phase=threshold.phase,
            state=now.state,
            final=final,
            value=now.found.value,
            limit=threshold.limit,
            unit=unit_of(threshold.quantity),
            samples=now.found.samples,
            offset=offset,
            reason=now.reason,
            abort=threshold.abort,
        )

    # ---- what outlives a process ----

    def saved(self) -> Any:
        """Return the content, for msgpack; in a group without what the partitions keep."""
        return _Saved(
            self._standings,
            [(phase, self._spans[phase]) for phase in in_order(self._spans)],
            self._pending,
            {number: cells.to_dict() for number, cells in sorted(self._parts.items())}
            if self._alone
            else {},
            self._clock_s,
            self._consumed,
            self._edge_s,
            self._own_number,
            self._skipped,
            self._has_gap,
            self._end,
            self._judged_records,
        )

    def restore(self, data: Any) -> None:
        """Go on from what :meth:`saved` gave, decoded from msgpack."""
        saved = msgspec.convert(data, _Saved)
        self._standings, self._spans, self._pending = saved.standings, dict(saved.spans), saved.pending
        self._parts = {
            number: PartitionCells.from_dict(cells, self._needs, lasting=False)
            for number, cells in saved.parts.items()
        }
        self._clock_s, self._consumed, self._edge_s = saved.clock_s, saved.consumed, saved.edge_s
        self._own_number, self._skipped = saved.own_number, saved.skipped
        self._has_gap = saved.has_gap
        self._end, self._judged_records = saved.end, saved.judged_records
        self._count_anew()


def judge_journal(
    reader: JournalReader, run_id: str, thresholds: Sequence[Threshold], producer: str = "check"
) -> list[Verdict]:
    """Return the verdicts on a run of a journal: each change, in order, then the final ones.

    Args:
        thresholds: with limits that are numbers.
    """
    judge = RunJudge(run_id, thresholds, producer)
    verdicts = []
    for entry in reader.entries(run_id):
        event = decode_event(entry.topic, entry.payload)
        if event is not None:
            verdicts += judge.take(event, entry.event_number, entry.offset)
    return verdicts


def _taken_s(spans: Sequence[Span], second: int) -> float | None:
    """Return how long the last of some phases had taken at the end of a second."""
    start_ns = most(*(span.start_ns for span in spans))
    return None if start_ns is None else (second + 1) - start_ns / 1e9


def _duration_s(spans: Sequence[Span], part: Part, second: int | None) -> float | None:
    """Return how long phases have taken up to the end of a second, or in the end (None), in seconds.

    By their events, as far as these say it, else by their successful requests.
    """
    starts = [span.start_ns for span in spans]
    ends = [span.end_ns for span in spans]
    start_ns = least(*starts) if starts and None not in starts else None
    end_ns = most(*ends) if ends and None not in ends else None
    if second is not None and start_ns is not None:
        now_ns = (second + 1) * _SECOND_NS
        end_ns = now_ns if end_ns is None else min(end_ns, now_ns)
    if start_ns is None or end_ns is None:
        start_ns, end_ns = part.state.first_success_ns, part.state.last_success_ns
    if start_ns is None or end_ns is None or end_ns <= start_ns:
        return None
    return (end_ns - start_ns) / 1e9


def _lack(end: RunComplete, records: int) -> str:
    """Return what keeps a run from having been judged as what it was to be, in words; empty for nothing."""
    if records != end.records:
        return f"{records:,} of the run's {end.records:,} records are here"
    if end.dropped or end.dropped_records:
        return f"the run's publisher dropped {end.dropped_records:,} records"
    if end.status == "lost":
        return "the run was lost: its publisher may have had more"
    if end.status != "completed":
        what = "failed" if end.status == "failed" else "was cancelled"
        return f"the run {what}, so that not all of it took place"
    return ""


def _is_of(word: str, phase: PhaseRef) -> bool:
    return word in (phase.kind, phase.name)
