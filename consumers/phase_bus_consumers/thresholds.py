"""The ``thresholds`` consumer: whether runs keep to what is asked of them, told as ``verdict`` events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus import (
    Consumer,
    EventBase,
    PhaseEvent,
    PhasesConfigured,
    Records,
    RunComplete,
    RunStart,
    Verdict,
)
from phase_bus.thresholds import Needs, PartitionCells, RunJudge, parse_thresholds, resolve_all

# How many runs are remembered: ended ones, and in all.
_KEPT_ENDED, _KEPT = 20, 200


class _Saved(Struct):
    """What the checkpoint keeps: what the leader knows of each run, or a partition's cells of it."""

    thresholds: list[str]
    runs: dict[str, Any]


class Thresholds(Consumer):
    """Judge whether runs keep to thresholds, and publish each change and the final verdicts.

    In a group, the instance of a partition only counts; the leader judges. The verdicts are the same, no
    matter who counted which partition.

    Args:
        thresholds: what runs must meet, such as ``profiling time_to_first_token p99 < 500 ms``.
        abort_on_failure: ask for the run to be ended as soon as a threshold fails.
    """

    def __init__(self, thresholds: list[str], abort_on_failure: bool = False) -> None:
        if not thresholds:
            raise ValueError("thresholds: none is given; give one such as 'error_rate < 1 %'")
        self._thresholds = list(parse_thresholds(thresholds, abort=abort_on_failure))
        self._needs = Needs.of(self._thresholds)
        self._runs: dict[str, RunJudge] = {}
        self._cells: dict[str, PartitionCells] = {}  # by run, in the instance of a partition

    async def start(self) -> None:
        if self.partition is None:
            self._thresholds = resolve_all(self._thresholds)

    # ---- the instance of a partition ----

    async def on_records(self, event: Records) -> None:
        if self.partition is None:
            self._take(event)
            return
        cells = self._cells.get(event.run_id)
        if cells is None:
            cells = self._cells[event.run_id] = PartitionCells(self._needs, lasting=True)
        cells.take(event, self.event_number)

    def forget(self, run_id: str) -> None:
        self._cells.pop(run_id, None)

    # ---- who judges ----

    async def merge(self, states: Mapping[int, bytes]) -> None:
        found: dict[str, dict[int, PartitionCells]] = {run_id: {} for run_id in self._runs}
        for partition, state in states.items():
            for run_id, cells in self._saved_runs(state).items():
                decoded = PartitionCells.from_dict(cells, self._needs, lasting=True)
                found.setdefault(run_id, {})[partition] = decoded
        for run_id, parts in found.items():
            self._tell(self._run(run_id).merge(parts, self.merged_offset))

    async def on_run_start(self, event: RunStart) -> None:
        self._take(event)

    async def on_phases_configured(self, event: PhasesConfigured) -> None:
        self._take(event)

    async def _take_phase(self, event: PhaseEvent) -> None:
        self._take(event)

    on_phase_start = on_phase_progress = on_phase_sending_complete = _take_phase
    on_phase_timeout = on_phase_complete = _take_phase

    async def on_run_complete(self, event: RunComplete) -> None:
        self._take(event)
        self._let_go()

    def state(self) -> bytes:
        if self.partition is not None:
            runs = {run_id: cells.to_dict() for run_id, cells in self._cells.items()}
        else:
            runs = {run_id: judge.saved() for run_id, judge in self._runs.items()}
        return msgspec.msgpack.encode(_Saved(self._texts, runs))

    def restore(self, state: bytes) -> None:
        for run_id, saved in self._saved_runs(state).items():
            if self.partition is not None:
                self._cells[run_id] = PartitionCells.from_dict(saved, self._needs, lasting=True)
            else:
                self._run(run_id).restore(saved)

    def _saved_runs(self, state: bytes) -> dict[str, Any]:
        """Return what a state has of each run; nothing if it was for other thresholds."""
        kept = msgspec.msgpack.decode(state, type=_Saved)
        if kept.thresholds == self._texts:
            return kept.runs
        if kept.runs:  # what was counted for others is of no use to these
            self.log.warning("other thresholds than before: a run that goes on is not judged as a whole")
        return {}

    @property
    def _texts(self) -> list[str]:
        return [threshold.text for threshold in self._thresholds]

    def _take(self, event: EventBase) -> None:
        self._tell(self._run(event.run_id).take(event, self.event_number, self.offset))

    def _run(self, run_id: str) -> RunJudge:
        judge = self._runs.get(run_id)
        if judge is None:
            judge = RunJudge(run_id, self._thresholds, self.name, alone=not self.leads)
            self._runs[run_id] = judge
        return judge

    def _tell(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            self.publish(verdict)

    def _let_go(self) -> None:
        """Let go of the oldest runs: ended ones that more of may come, and those whose end never came."""
        ended = [run_id for run_id, judge in self._runs.items() if judge.ended]
        for run_id in [*ended[:-_KEPT_ENDED], *list(self._runs)[:-_KEPT]]:
            self._runs.pop(run_id, None)
