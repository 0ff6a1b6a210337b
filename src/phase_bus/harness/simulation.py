"""A synthetic benchmark run, shaped like one of AIPerf's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from phase_bus import events
from phase_bus.core.columns import rows_of
from phase_bus.core.command_line import this_process
from phase_bus.core.packing import Error
from phase_bus.publisher.composer import RawRecord
from phase_bus.publisher.hooks import ColumnPublisher

_CHUNK, _CHUNK_S = 512, 0.05  # what is published at once: so many records, or those of so much time
_PENDING_LIMIT = 1024
_INPUT_TOKENS, _OUTPUT_TOKENS = 128, 64
_ERROR = ("Internal Server Error", "simulated", 500)


@dataclass(kw_only=True)
class Simulation:
    """Publishes a run of made-up requests: lognormal latencies, and errors now and then.

    The attributes are the options of ``phase-bus simulate``; ``sweep`` has what the run's start says of the
    sweep it belongs to: ``sweep_id``, ``trial``, ``label``, ``variation``.
    """

    publisher: ColumnPublisher = field(kw_only=False)
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    requests: int = 2000
    rate: float = 500.0
    warmup: int = 50
    error_rate: float = 0.01
    progress_s: float = 0.5
    seed: int = 0
    ttft_ms: float = 30.0
    sweep: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)

    def run(self) -> None:
        """Publish the whole run; returns when the last event is handed to the publisher.

        Raises:
            KeyboardInterrupt, SystemExit: if the user or a signal ends it; the run ends as cancelled.
        """
        try:
            self._run()
        except (KeyboardInterrupt, SystemExit):
            self.publisher.complete_run(self.run_id, "cancelled", "interrupted")
            raise
        self.publisher.complete_run(self.run_id, "completed")

    def _run(self) -> None:
        publish, run_id = self.publisher.publish, self.run_id
        publish(
            events.RunStart(
                run_id=run_id,
                producer="phase-bus simulate",
                models=("simulated",),
                **this_process(),
                **self.sweep,
            )
        )
        counts: dict[events.PhaseKind, int] = {"warmup": self.warmup} if self.warmup else {}
        counts["profiling"] = self.requests
        plans = tuple(
            events.PhasePlan(
                phase=events.PhaseRef(kind, kind, index),
                expected_requests=count or None,
                request_rate=self.rate or None,
            )
            for index, (kind, count) in enumerate(counts.items())
        )
        publish(events.PhasesConfigured(run_id=run_id, phases=plans))
        for plan in plans:
            self._run_phase(plan.phase, plan.expected_requests or 0)

    def _run_phase(self, ref: events.PhaseRef, count: int) -> None:
        publish = self.publisher.publish
        started_s = shown_s = time.monotonic()
        stats = events.PhaseStats(start_ns=time.time_ns(), expected_requests=count or None)
        publish(events.PhaseStart(run_id=self.run_id, phase=ref, stats=stats))
        done = errors = 0
        ended_ns = time.time_ns()
        most = max(1, min(_CHUNK, int(self.rate * _CHUNK_S))) if self.rate else _CHUNK
        while done < count:
            chunk = min(most, count - done)
            began_ns, ended_ns = ended_ns, time.time_ns()
            drawn = draw_columns(
                self._random,
                self.run_id,
                ref,
                done,
                np.linspace(began_ns, ended_ns, chunk + 1)[1:].astype(np.int64),
                error_rate=self.error_rate,
                ttft_ms=self.ttft_ms,
            )
            self.publisher.records(self.run_id, ref, *drawn)
            errors += len(drawn.errors)
            done += chunk
            self._pace(started_s, done)
            stats = msgspec.structs.replace(stats, sent=done, completed=done, errors=errors)
            if time.monotonic() - shown_s >= self.progress_s:
                shown_s = time.monotonic()
                publish(events.PhaseProgress(run_id=self.run_id, phase=ref, stats=stats))
        stats = msgspec.structs.replace(stats, sent_end_ns=time.time_ns())
        publish(events.PhaseSendingComplete(run_id=self.run_id, phase=ref, stats=stats))
        stats = msgspec.structs.replace(stats, end_ns=time.time_ns())
        publish(events.PhaseComplete(run_id=self.run_id, phase=ref, stats=stats))

    def _pace(self, started_s: float, done: int) -> None:
        if self.rate:
            time.sleep(max(0.0, started_s + done / self.rate - time.monotonic()))
        while self.publisher.pending > _PENDING_LIMIT:  # a simulation may wait; a benchmark may not
            time.sleep(0.001)


class Drawn(NamedTuple):
    """Made-up requests, as arguments of :meth:`~phase_bus.publisher.publisher.Publisher.records`."""

    metrics: Mapping[str, npt.NDArray[Any]]
    fields: dict[str, Any]
    errors: dict[int, Error]


def draw_columns(
    random: np.random.Generator,
    run_id: str,
    phase: events.PhaseRef,
    first: int,
    ends_ns: npt.NDArray[np.int64],
    *,
    error_rate: float = 0.0,
    ttft_ms: float = 30.0,
) -> Drawn:
    """Return made-up requests, one for each Unix time in ns at which one ends.

    Args:
        first: the number of the first one within its phase.
        error_rate: the share that fails, 0 to 1.
        ttft_ms: the median time to the first token.
    """
    count = len(ends_ns)
    failed = random.random(count) < error_rate
    ttft_ns = random.lognormal(np.log(ttft_ms * 1e6), 0.3, count).astype(np.int64)
    itl_ns = random.lognormal(np.log(2e6), 0.2, count)
    tokens = random.poisson(_OUTPUT_TOKENS, count).clip(2)
    decode_ns = (itl_ns * (tokens - 1)).astype(np.int64)
    starts_ns = ends_ns - (ttft_ns + decode_ns)
    fields = {
        "session_num": np.arange(first, first + count),
        "x_request_id": [f"{run_id}-{phase.index}-{number}" for number in range(first, first + count)],
        "worker_id": ["worker_simulated"] * count,
        "request_start_ns": starts_ns,
        "request_end_ns": ends_ns,
        "was_cancelled": np.zeros(count, np.bool_),
    }
    metrics = {
        "request_count": np.ones(count, np.int64),
        "request_latency": ttft_ns + decode_ns,
        "time_to_first_token": ttft_ns,
        "inter_token_latency": decode_ns / (tokens - 1),
        "input_sequence_length": np.full(count, _INPUT_TOKENS),
        "output_sequence_length": tokens,
        "output_token_count": tokens,
        "output_token_throughput_per_user": (tokens - 1) / decode_ns * 1e9,
        "min_request_timestamp": starts_ns,
        "max_response_timestamp": ends_ns,
    }
    if not failed.any():
        return Drawn(metrics, fields, {})
    of_failed = {
        "error_request_count": np.ones(count, np.int64),
        "error_isl": np.full(count, _INPUT_TOKENS),
    }
    masked = {name: np.ma.masked_array(values, failed) for name, values in metrics.items()} | {
        name: np.ma.masked_array(values, ~failed) for name, values in of_failed.items()
    }
    return Drawn(masked, fields, dict.fromkeys(np.flatnonzero(failed).tolist(), _ERROR))


def draw_records(
    random: np.random.Generator,
    run_id: str,
    phase: events.PhaseRef,
    first: int,
    count: int,
    *,
    error_rate: float = 0.0,
    ttft_ms: float = 30.0,
    clock: Callable[[], int] = time.time_ns,
) -> Iterator[RawRecord]:
    """Yield the same, as arguments of :meth:`~phase_bus.publisher.publisher.Publisher.record`.

    Args:
        clock: gives the Unix time in ns at which the next one ends.
    """
    ends_ns = np.array([clock() for _ in range(count)], np.int64)
    drawn = draw_columns(random, run_id, phase, first, ends_ns, error_rate=error_rate, ttft_ms=ttft_ms)
    rows = zip(rows_of(drawn.metrics, count), rows_of(drawn.fields, count), strict=True)
    for row, (metrics, fields) in enumerate(rows):
        known = {name: value for name, value in metrics.items() if value is not None}
        yield run_id, phase, known, fields, drawn.errors.get(row)
