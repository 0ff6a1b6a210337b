"""A run as an OTLP trace: a span of its own, one for each phase, and one for some of the requests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from phase_bus import PhaseComplete, PhaseEvent, RecordBatch, Records, RunComplete
from phase_bus_consumers.extras import needs
from phase_bus_consumers.otlp_runs import Phase, Run, cells, number
from phase_bus_consumers.otlp_values import (
    attributes,
    phase_span_id,
    request_span_id,
    run_span_id,
    trace_id,
    unix_ns,
)

with needs("otlp"):
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_OK = Status(code=Status.STATUS_CODE_OK)
_STATUS_CODES = range(100, 600)  # of HTTP
_LONGEST_MESSAGE = 1000  # characters
_COLUMNS = (
    "request_start_ns",
    "request_end_ns",
    "time_to_first_token",
    "input_sequence_length",
    "output_sequence_length",
    "x_request_id",
    "conversation_id",
    "was_cancelled",
)


def run_span(run: Run, end: RunComplete) -> Span:
    """Return the span of a run that has ended."""
    span = _span(run.run_id, run_span_id(run.run_id), "run", run.first_ns, end.ts_ns)
    start = run.start
    known = {
        "phase_bus.status": end.status,
        "phase_bus.records": end.records,
        "phase_bus.dropped_records": end.dropped_records,
        "phase_bus.producer": start and (start.producer or None),
        "phase_bus.models": start and (start.models or None),
        "phase_bus.urls": start and (start.urls or None),
        "phase_bus.label": start and start.label,
        "phase_bus.sweep_id": start and start.sweep_id,
        "phase_bus.trial": start and start.trial,
    }
    span.attributes.extend(attributes(known))
    span.status.CopyFrom(_OK if end.status == "completed" else _failed(end.reason or end.status))
    return span


def phase_span(run: Run, phase: Phase, event: PhaseEvent | RunComplete) -> Span:
    """Return the span of a phase, given its end, or that of the run if that came first."""
    ended = isinstance(event, PhaseComplete)
    end_ns = event.stats.end_ns if isinstance(event, PhaseComplete) else None
    identity = phase_span_id(run.run_id, phase.ref)
    span = _span(run.run_id, identity, f"phase {phase.ref.name}", phase.start_ns, end_ns or event.ts_ns)
    span.parent_span_id = run_span_id(run.run_id)
    known: dict[str, Any] = {
        "phase_bus.phase.name": phase.ref.name,
        "phase_bus.phase.kind": phase.ref.kind,
    }
    if isinstance(event, PhaseComplete):
        for name in ("sent", "completed", "cancelled", "errors"):
            known[f"phase_bus.requests.{name}"] = getattr(event.stats, name)
    span.attributes.extend(attributes(known))
    for mark in phase.marks:
        span.events.add(time_unix_nano=unix_ns(mark.ts_ns), name=mark.name)
    timed_out = any(mark.name == "phase_bus.phase_timeout" for mark in phase.marks)
    if timed_out:
        span.status.CopyFrom(_failed("requests were unanswered when the grace period was over"))
    else:
        span.status.CopyFrom(_OK if ended else _failed("it did not complete"))
    return span


def request_spans(
    event: Records, batch: RecordBatch, key: str, share: float, common: Mapping[str, Any]
) -> Iterator[Span]:
    """Yield the spans of some of a batch's requests, always the same ones.

    Args:
        key: names the event.
        share: how many of all requests have a span, 0 to 1.
        common: attributes of all of them.
    """
    rows = chosen(key, len(batch), share).tolist()
    if not rows:
        return
    errors = {error.row: error for error in batch.errors}
    parent = phase_span_id(event.run_id, event.phase)
    name = " ".join(str(common[part]) for part in _NAMES if common.get(part))
    of_all = attributes(common)
    for row, values in cells(batch, _COLUMNS, rows).items():
        start_ns, end_ns = number(values["request_start_ns"]), number(values["request_end_ns"])
        if start_ns is None or end_ns is None:
            continue
        span = _span(event.run_id, request_span_id(f"{key}-{row}"), name, start_ns, end_ns)
        span.kind = Span.SPAN_KIND_CLIENT
        span.parent_span_id = parent
        error = errors.get(row)
        first_ns = number(values["time_to_first_token"])
        code = error.code if error is not None and error.code in _STATUS_CODES else None
        known = {
            "gen_ai.usage.input_tokens": _whole(values["input_sequence_length"]),
            "gen_ai.usage.output_tokens": _whole(values["output_sequence_length"]),
            "gen_ai.response.time_to_first_chunk": None if first_ns is None else first_ns / 1e9,
            "gen_ai.conversation.id": values["conversation_id"],
            "phase_bus.request.id": values["x_request_id"],
            "phase_bus.request.cancelled": True if values["was_cancelled"] else None,
            "error.type": error and (error.type or "_OTHER"),
            "http.response.status_code": code,
        }
        span.attributes.extend(of_all)
        span.attributes.extend(attributes(known))
        if error is not None:
            span.status.CopyFrom(_failed(error.message or error.type))
        yield span


_NAMES = ("gen_ai.operation.name", "gen_ai.request.model")


def chosen(key: str, count: int, share: float) -> npt.NDArray[np.int64]:
    """Return which of the rows 0 to ``count - 1`` of an event are in a sample, by its key alone."""
    seed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest())
    # SplitMix64: G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", 2014.
    bits = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return np.flatnonzero((bits >> np.uint64(11)) * 2.0**-53 < share)


def _span(run_id: str, identity: bytes, name: str, start_ns: float, end_ns: float) -> Span:
    start_ns = unix_ns(start_ns)
    return Span(
        trace_id=trace_id(run_id),
        span_id=identity,
        name=name,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=start_ns,
        end_time_unix_nano=max(unix_ns(end_ns), start_ns),
    )


def _failed(message: str) -> Status:
    return Status(code=Status.STATUS_CODE_ERROR, message=message[:_LONGEST_MESSAGE])


def _whole(value: Any) -> int | None:
    known = number(value)
    return None if known is None else int(known)
