"""Journals of made-up runs, written without a bus or a publisher: any length of time in a moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from phase_bus.core.wire import Header, encode_event, topic_of
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseKind,
    PhaseRef,
    PhaseStart,
    PhaseStats,
    RecordError,
    Records,
    RunComplete,
    RunStart,
    RunStatus,
    Summary,
    Table,
)
from phase_bus.journal.rows import Entry
from phase_bus.journal.writer import Journal

T0 = 1_795_354_391_000_000_000
_SOURCE = b"p" * 16
_BATCH = 1000


@dataclass
class Phase:
    """A phase of a made-up run: requests at even distances, lognormal latencies."""

    name: str
    seconds: float
    requests: int
    latency_ms: float = 100.0
    sigma: float = 0.3
    error_rate: float = 0.0
    kind: PhaseKind = "profiling"
    pause_s: float = 0.0


@dataclass
class Made:
    """A made-up run."""

    run_id: str
    phases: list[Phase] = field(default_factory=list)
    status: RunStatus | None = "completed"
    reason: str = ""
    missing: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    start_ns: int = T0
    more: list[EventBase] = field(default_factory=list)

    def events(self) -> Iterator[EventBase]:
        """Yield the run's events in order."""
        random = np.random.default_rng(self.seed)
        yield RunStart(run_id=self.run_id, ts_ns=self.start_ns, **{"producer": "made up 1.0", **self.start})
        now_ns, records = self.start_ns, 0
        for index, phase in enumerate(self.phases):
            now_ns += int(phase.pause_s * 1e9)
            ref = PhaseRef(phase.name, phase.kind, index)
            stats = PhaseStats(start_ns=now_ns)
            yield PhaseStart(run_id=self.run_id, ts_ns=now_ns, phase=ref, stats=stats)
            yield from self._records(ref, phase, now_ns, random)
            records += phase.requests
            end_ns = now_ns + int(phase.seconds * 1e9)
            stats = PhaseStats(start_ns=now_ns, end_ns=end_ns)
            yield PhaseComplete(run_id=self.run_id, ts_ns=end_ns, phase=ref, stats=stats)
            now_ns = end_ns
        yield from self.more
        if self.status is not None:
            yield RunComplete(
                run_id=self.run_id,
                ts_ns=now_ns,
                status=self.status,
                reason=self.reason,
                records=records + self.missing,
                dropped=self.dropped,
            )

    def _records(
        self, ref: PhaseRef, phase: Phase, start_ns: int, random: np.random.Generator
    ) -> Iterator[Records]:
        distance_ns = phase.seconds * 1e9 / max(phase.requests, 1)
        for number, first in enumerate(range(0, phase.requests, _BATCH)):
            count = min(_BATCH, phase.requests - first)
            end_ns = start_ns + ((np.arange(first, first + count) + 0.5) * distance_ns).astype(np.int64)
            failed = np.flatnonzero(random.random(count) < phase.error_rate)
            good = np.setdiff1d(np.arange(count), failed)
            ttft_ns = random.lognormal(np.log(phase.latency_ms * 2e5), phase.sigma, len(good))
            itl_ns = random.lognormal(np.log(phase.latency_ms * 8e3), phase.sigma, len(good))
            latency_ns = (ttft_ns + 100 * itl_ns).astype(np.int64)
            rows = None if len(good) == count else good
            metrics = {
                "request_latency": latency_ns,
                "time_to_first_token": ttft_ns.astype(np.int64),
                "inter_token_latency": itl_ns,
                "output_token_throughput_per_user": 1e9 / itl_ns,
                "output_sequence_length": np.full(len(good), 101),
                "input_sequence_length": np.full(len(good), 128),
                "min_request_timestamp": end_ns[good] - latency_ns,
                "max_response_timestamp": end_ns[good],
            }
            starts_ns = end_ns.copy()
            starts_ns[good] -= latency_ns
            yield Records(
                run_id=self.run_id,
                ts_ns=int(end_ns[-1]),
                phase=ref,
                partition=number % 16,
                count=count,
                metrics=_tables(metrics, rows),
                fields=_tables({"request_start_ns": starts_ns, "request_end_ns": end_ns}, None),
                errors=tuple(RecordError(int(row), "Internal Server Error", "no", 500) for row in failed),
            )


# A run whose every text would do harm if it were taken for markup.
HOSTILE = Made(
    "<script>alert(1)</script>",
    [Phase("<b>ph</b><script>alert(2)</script>", 5, 100, error_rate=0.1)],
    status="lost",
    reason="<img src=http://evil.example/x onerror=alert(5)>",
    missing=5,
    start={
        "models": ("</script><script>alert(3)</script>",),
        "urls": ("javascript:alert(1)", "http://x/?a=1&b=2"),
        "label": "<svg onload=alert(4)>",
        "variation": {"</style>": "<a href=http://evil.example/>"},
    },
)


def a_summary(run_id: str, producer: str, result: dict[str, Any], *, final: bool = True) -> Summary:
    """Return a summary as a consumer publishes it."""
    return Summary(run_id=run_id, ts_ns=T0, producer=producer, final=final, result=result)


def write_journal(directory: Path, *runs: Made) -> Path:
    """Write runs, one after the other, into a new journal; return its directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with Journal(directory) as journal:
        numbers = {"offset": 0, "event_number": 0}
        for run in runs:
            with journal.transaction():
                journal.append([_entry(event, numbers) for event in run.events()])
                last_ns = max(event.ts_ns for event in run.events() if not isinstance(event, Records))
                ended_ns = None if run.status is None else last_ns
                journal.note_run(run.run_id, run.status or "running", run.start_ns, ended_ns, "made up 1.0")
    return directory


def sweep_of(
    sweep_id: str, values: Iterable[int], trials: int = 3, requests: int = 300, key: str = "concurrency"
) -> list[Made]:
    """Return the runs of a sweep over one parameter, slower with a greater one."""
    return [
        Made(
            f"{sweep_id}-{value}-{trial}",
            [
                Phase("warmup", 1.0, 20, kind="warmup"),
                Phase("profiling", 10.0 + trial / 10, requests, 50.0 * value, 0.3, 0.01),
            ],
            start={
                "sweep_id": sweep_id,
                "trial": trial,
                "label": f"run_{trial + 1:04d}",  # as AIPerf does: it tells the trial
                "variation": {"label": f"{key}={value}", key: value},
                "models": ("made-up",),
            },
            seed=100 * value + trial,
            start_ns=T0 + (100 * value + trial) * 60_000_000_000,
        )
        for value in values
        for trial in range(trials)
    ]


def _entry(event: EventBase, numbers: dict[str, int]) -> Entry:
    records = event.count if isinstance(event, Records) else 0
    numbers["offset"] += 1
    numbers["event_number"] += not isinstance(event, Records)
    header = Header(
        _SOURCE, numbers["offset"], numbers["offset"], records, numbers["offset"], numbers["event_number"]
    )
    return Entry(
        **numbers,
        topic=topic_of(event),
        header=header.pack(),
        payload=encode_event(event),
        run_id=event.run_id,
        kind=event.kind,
        source=_SOURCE,
        source_seq=numbers["offset"],
        records=records,
        ts_ns=event.ts_ns,
    )


def _tables(
    columns: dict[str, np.ndarray[Any, Any]], rows: np.ndarray[Any, Any] | None
) -> tuple[Table, ...]:
    """Return numpy columns as the one table that records of one shape make."""
    count = len(next(iter(columns.values())))
    if not count:
        return ()
    words = [
        (column if column.dtype.kind == "f" else column.astype("<i8")).view("<i8")
        for column in columns.values()
    ]
    return (
        Table(
            names=tuple(columns),
            types="".join("f" if column.dtype.kind == "f" else "i" for column in columns.values()),
            count=count,
            numbers=memoryview(np.column_stack(words).tobytes()),
            rows=None if rows is None else memoryview(rows.astype("<u4").tobytes()),
        ),
    )
