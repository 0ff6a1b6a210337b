"""The aggregator: statistics of every metric, per phase and over all phases, while a run goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus import (
    ConfigError,
    Consumer,
    OutputFile,
    PhaseEvent,
    Records,
    RunComplete,
    RunStart,
    Summary,
)
from phase_bus.aggregation import (
    EXACT_LIMIT,
    WINDOW_METRICS,
    Options,
    RunResult,
    RunState,
    render_text,
)
from phase_bus_consumers.run_files import KEPT_RUNS, Pace, Pieces

# While a run goes on, its summary has only the last windows over time, since it is published every second
# and stays in the journal.
_RECENT_WINDOWS = 60
# How many finished runs are remembered, so that their late events are not taken for a new run.
_REMEMBERED = 100
# How many runs are kept that ended, but not with everything or as lost: more of them may still come.
_KEPT_ENDED = 50


class _Run(RunResult):
    """A run that goes on, or may still."""

    summarized_s: float | None = None  # when its summary was last made, monotonic
    changed = True  # whether it has changed since then
    restored = False  # whether it is from a checkpoint: in a group, still without its records


class _Saved(Struct):
    runs: list[tuple[dict[str, Any], RunComplete | None]]
    done: list[str]


class ResultsAggregator(Consumer):
    """Aggregate request records into statistics per phase and over all phases.

    Publishes ``summary`` events while a run goes on and at its end, and writes the same to files. The
    summary is ``final`` only if as many records were counted as the run announced at its end; if records
    come late, it is published and written again.

    In a group, the instance of a partition only counts; the leader merges, publishes and writes. The
    result is the same to the last bit, no matter who counted which partition.

    Args:
        output: the JSON file, ``{"runs": {run_id: summary}, "runs_left_out": 0}``; always complete. Runs
            that are already in it stay. None for no file.
        text: a text report, None for no file. It covers the runs that this consumer has seen on its bus,
            including those from before a restart that it remembers, but not earlier ones that are in
            ``output``.
        interval_s: the shortest time between two summaries of a run that is going on, in seconds.
        exact_limit: up to how many values per metric, phase and partition the percentiles are exact.
        window_metrics: metrics that have percentiles over time, separated by commas; ``*`` for all.
        keep_runs: how many runs the files hold, the latest ones; they say how many were left out.
    """

    def __init__(
        self,
        output: Path | None = Path("phase-bus-summary.json"),
        text: Path | None = None,
        interval_s: float = 1.0,
        exact_limit: int = EXACT_LIMIT,
        window_metrics: str = ",".join(WINDOW_METRICS),
        keep_runs: int = KEPT_RUNS,
    ) -> None:
        if keep_runs < 1:
            raise ValueError(f"keep_runs must be at least 1, not {keep_runs}")
        if interval_s < 0 or exact_limit < 0:
            raise ValueError("interval_s and exact_limit must not be negative")
        self.output = output
        self.text = text
        self.keep_runs = keep_runs
        self.interval_s = interval_s
        names = sorted({name.strip() for name in window_metrics.split(",")} - {""})
        self._options = Options(exact_limit, tuple(names))
        self._runs: dict[str, _Run] = {}
        self._done: dict[str, None] = {}  # finished runs, the oldest first
        self._latest: str | None = None  # the last one, kept until another begins: it may go on
        self._summaries: dict[str, dict[str, Any]] = {}
        self._left_out = 0  # runs that are no longer among these
        self._pieces, self._pace = Pieces(), Pace()
        self._changed = False  # whether the files are behind these
        self._urgent = False  # whether they lack the end of a run
        self._json_file: OutputFile | None = None
        self._text_file: OutputFile | None = None

    async def start(self) -> None:
        if self.partition is not None:
            return
        if self.output is not None:
            self._json_file = self.open_output(self.output, "output")
            self._summaries, self._left_out = _read_runs(self.output)
            if self._summaries:
                self.log.info(
                    "earlier runs stay in the file", output=str(self.output), runs=len(self._summaries)
                )
        if self.text is not None:
            if self.output is not None and self.text.resolve() == self.output.resolve():
                raise ConfigError(f"text: {str(self.text)!r} is the file of 'output' too; give another one")
            self._text_file = self.open_output(self.text, "text")

    async def flush(self) -> None:
        if self.partition is None:
            for run in self._runs.values():
                if run.changed and self._due(run):
                    self._summarize(run)
                    await asyncio.sleep(0)
            if self._urgent or self._pace.due:
                self._write()

    async def stop(self) -> None:
        # In a group another may lead by now, whose files are newer.
        if self.partition is None and not self.leads:
            for run in self._runs.values():
                if run.changed:
                    self._summarize(run)
            self._write()

    def state(self) -> bytes:
        # In a group, the partitions keep the records' statistics.
        runs = []
        for run in self._runs.values():
            state = run.state.without_parts() if self.leads else run.state
            runs.append((state.to_dict(), run.end))
        return msgspec.msgpack.encode(_Saved(runs, list(self._done)))

    def restore(self, state: bytes) -> None:
        saved = msgspec.msgpack.decode(state, type=_Saved)
        self._done = dict.fromkeys(saved.done)
        for document, end in saved.runs:
            run = _Run(RunState.from_dict(document))
            run.end = end
            run.changed, run.restored = False, True
            self._runs[run.state.run_id] = run

    async def merge(self, states: Mapping[int, bytes]) -> None:
        changed = {}
        for partition in sorted(states):
            saved = msgspec.msgpack.decode(states[partition], type=_Saved)
            for document, _ in saved.runs:
                run_id = document["run_id"]
                if run_id not in self._done:
                    changed[run_id] = self._run(run_id)
                    changed[run_id].state.replace_parts(RunState.from_dict(document))
            await asyncio.sleep(0)  # with many runs all this takes long: heartbeats have their turns
        for run in changed.values():
            run.check_end()
            self._advance(run)
            await asyncio.sleep(0)

    def forget(self, run_id: str) -> None:
        self._runs.pop(run_id, None)
        self._latest = None if self._latest == run_id else self._latest
        self._done[run_id] = None
        if len(self._done) > _REMEMBERED:
            del self._done[next(iter(self._done))]

    async def on_run_start(self, event: RunStart) -> None:
        if event.run_id not in self._done:
            self._run(event.run_id)

    async def on_records(self, event: Records) -> None:
        if event.run_id in self._done:
            self.log.warning(
                "records came after the run's end, when its statistics were let go of; they are not "
                "counted, and 'phase-bus report' gives the whole run",
                run_id=event.run_id,
            )
            return
        run = self._run(event.run_id)
        run.take(event)
        if self.partition is None:
            self._advance(run)

    async def on_run_complete(self, event: RunComplete) -> None:
        if event.run_id in self._done:
            self._end_again(event)
            return
        run = self._run(event.run_id)
        run.take(event)
        if not run.final:
            self.log.warning(
                "the summary is not complete",
                run_id=event.run_id,
                records=run.state.records,
                expected_records=event.records,
            )
        self._finish(run)

    def _run(self, run_id: str) -> _Run:
        run = self._runs.get(run_id)
        if run is None:
            if self._latest is not None:
                self.forget(self._latest)
            run = self._runs[run_id] = _Run(RunState(run_id, self._options))
        return run

    async def _take_times(self, event: PhaseEvent) -> None:
        if event.run_id not in self._done:
            run = self._run(event.run_id)
            run.take(event)
            self._advance(run)

    on_phase_start = on_phase_progress = on_phase_complete = _take_times

    def _advance(self, run: _Run) -> None:
        """Publish what has changed, if it is due."""
        run.changed = True
        if run.end is not None:
            if run.final:
                self._finish(run)
        elif self._due(run):
            self._publish_summary(run)

    def _due(self, run: _Run) -> bool:
        """Return whether the interval since a run's last summary, or since its first event, is over."""
        now_s = time.monotonic()
        if run.summarized_s is None:
            run.summarized_s = now_s
        return now_s - run.summarized_s >= self.interval_s

    def _summarize(self, run: _Run) -> dict[str, Any]:
        known = self._summaries.get(run.state.run_id)
        if run.restored and run.end is not None and known and known["records"] > run.state.records:
            run.changed = False
            return known  # somebody else led the group then, and had all of it
        summary = run.summary(_RECENT_WINDOWS if run.end is None else None)
        self._summaries[run.state.run_id] = summary
        self._changed = True
        run.changed, run.summarized_s = False, time.monotonic()
        return summary

    def _publish_summary(self, run: _Run) -> None:
        summary = self._summarize(run)
        run_id = run.state.run_id
        self.publish(Summary(run_id=run_id, producer=self.name, final=run.final, result=summary))
        self._urgent = self._urgent or run.end is not None

    def _finish(self, run: _Run) -> None:
        """Publish the result at a run's end, and let go of the run unless more of it may come: of one that
        was lost, or is not complete, or, as far as memory goes, of the last one."""
        self._publish_summary(run)
        if run.final and run.end is not None and run.end.status != "lost":
            if self.leads:  # the partitions let go of it too
                self.forget(run.state.run_id)
            else:
                self._latest = run.state.run_id
        ended = [run_id for run_id, run in self._runs.items() if run.end is not None]
        for run_id in ended[:-_KEPT_ENDED]:
            self.log.warning("an old run is let go of that was lost or incomplete", run_id=run_id)
            self.forget(run_id)

    def _end_again(self, end: RunComplete) -> None:
        """Say of a run that went on after its statistics were let go of that its summary is not whole."""
        run_id = end.run_id
        known = self._summaries.get(run_id) or RunResult(RunState(run_id, self._options)).summary()
        missing = max(end.records - known["records"], 0)
        if not missing and known["status"] == end.status:
            return
        self.log.warning("the run went on after its end", run_id=run_id, missing_records=missing)
        result = {
            **known,
            "status": end.status,
            "final": False,
            "complete": False,
            "expected_records": end.records,
            "missing_records": missing,
            "dropped": dict(end.dropped),
            "dropped_records": end.dropped_records,
        }
        self._summaries[run_id], self._changed = result, True
        self.publish(Summary(run_id=run_id, producer=self.name, final=False, result=result))
        self._urgent = True

    def _write(self) -> None:
        self._leave_out_old()
        if not self._changed:
            return
        began_s = time.monotonic()
        if self._json_file is not None:
            self._json_file.replace(self._pieces.file(self._summaries, self._left_out))
        if self._text_file is not None:
            seen = self._done.keys() | self._runs.keys()
            mine = [summary for run_id, summary in self._summaries.items() if run_id in seen]
            earlier = [f"{self._left_out:,} earlier runs are left out\n"] if self._left_out else []
            self._text_file.replace("\n".join([*earlier, *map(render_text, mine)]))
        self._changed = self._urgent = False
        self._pace.wrote(began_s)

    def _leave_out_old(self) -> None:
        """Let go of the oldest summaries beyond the number to keep, but for runs that go on."""
        over = len(self._summaries) - self.keep_runs
        if over > 0:
            for run_id in sorted(self._summaries, key=self._runs.__contains__)[:over]:
                del self._summaries[run_id]
            self._left_out += over


class _File(Struct):
    runs: dict[str, dict[str, Any]]
    runs_left_out: int = 0


def _read_runs(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the summaries by run that an earlier process wrote to a file, and how many it left out.

    Raises:
        ConfigError: if the file holds something else.
    """
    content = path.read_bytes() if path.is_file() else b""
    if not content.strip():
        return {}, 0
    try:
        file = msgspec.json.decode(content, type=_File)
        runs = {run_id: run for run_id, run in file.runs.items() if run["version"] == 1}
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError) as error:
        raise ConfigError(
            f"output: {str(path)!r} exists and holds no summaries of ours; "
            "give another file with output=..., or remove this one"
        ) from error
    return runs, file.runs_left_out
