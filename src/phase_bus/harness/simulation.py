"""A synthetic benchmark run, shaped like one of AIPerf's."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from phase_bus import events
from phase_bus.core.command_line import this_process
from phase_bus.publisher.composer import RawRecord
from phase_bus.publisher.hooks import EventPublisher

_CHUNK = 64
_PENDING_LIMIT = 4096
_OUTPUT_TOKENS = 64


@dataclass(kw_only=True)
class Simulation:
    """Publishes a run of made-up requests: lognormal latencies, and errors now and then.

    The attributes are the options of ``phase-bus simulate``; ``sweep`` has what the run's start says of the
    sweep it belongs to: ``sweep_id``, ``trial``, ``label``, ``variation``.
    """

    publisher: EventPublisher = field(kw_only=False)
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
        while done < count:
            chunk = min(_CHUNK, count - done)
            errors += self._publish_records(ref, done, chunk)
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

    def _publish_records(self, ref: events.PhaseRef, first: int, count: int) -> int:
        """Publish a chunk of records; return how many of them failed."""
        failed = 0
        for record in draw_records(
            self._random, self.run_id, ref, first, count, error_rate=self.error_rate, ttft_ms=self.ttft_ms
        ):
            self.publisher.record(*record)
            failed += record[-1] is not None
        return failed


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
    """Yield made-up requests, as arguments of :meth:`~phase_bus.publisher.publisher.Publisher.record`.

    Args:
        first: the number of the first one within its phase.
        error_rate: the share that fails, 0 to 1.
        ttft_ms: the median time to the first token.
        clock: gives the Unix time in ns at which the next one ends.
    """
    failed = random.random(count) < error_rate
    ttft_ns = random.lognormal(np.log(ttft_ms * 1e6), 0.3, count).astype(np.int64).tolist()
    itl_ns = random.lognormal(np.log(2e6), 0.2, count).tolist()
    tokens = random.poisson(_OUTPUT_TOKENS, count).clip(2).tolist()
    for i in range(count):
        now_ns = clock()
        decode_ns = int(itl_ns[i] * (tokens[i] - 1))
        latency_ns = ttft_ns[i] + decode_ns
        fields = {
            "session_num": first + i,
            "x_request_id": f"{run_id}-{phase.index}-{first + i}",
            "worker_id": "worker_simulated",
            "request_start_ns": now_ns - latency_ns,
            "request_end_ns": now_ns,
            "was_cancelled": False,
        }
        if failed[i]:
            error = ("Internal Server Error", "simulated", 500)
            metrics: dict[str, Any] = {"error_request_count": 1, "error_isl": 128}
            yield run_id, phase, metrics, fields, error
            continue
        metrics = {
            "request_count": 1,
            "request_latency": latency_ns,
            "time_to_first_token": ttft_ns[i],
            "inter_token_latency": decode_ns / (tokens[i] - 1),
            "input_sequence_length": 128,
            "output_sequence_length": tokens[i],
            "output_token_count": tokens[i],
            "output_token_throughput_per_user": (tokens[i] - 1) / decode_ns * 1e9,
            "min_request_timestamp": now_ns - latency_ns,
            "max_response_timestamp": now_ns,
        }
        yield run_id, phase, metrics, fields, None
