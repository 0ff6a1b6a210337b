"""What is sent: events of given sizes, and records of AIPerf's shape, made from ``data/aiperf.json``.

That file holds a successful and a failed record and a phase's stats as the real AIPerf 0.13.0 sent them,
without the headers in their traces.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from phase_bus.aiperf.mapping import RECORD_FIELDS
from phase_bus.core.wire import encode_event
from phase_bus.events import Event, PhasePlan, PhaseRef, PhasesConfigured, Records
from phase_bus.publisher.record_builder import RecordBuilder

RUN_ID = "3f2a5c7e9b1d"
PHASE = PhaseRef("profiling", "profiling", 1)
SIZES = {"200 B": 200, "2 KiB": 2048, "64 KiB": 65536}


class Record(NamedTuple):
    """The arguments of ``Publisher.record`` for one request."""

    metrics: dict[str, Any]
    fields: dict[str, Any]
    error: tuple[str, str, int | None] | None


@cache
def fixture() -> Mapping[str, Any]:
    """Return the content of ``data/aiperf.json``."""
    data = Path(__file__).with_name("data") / "aiperf.json"
    decoded: dict[str, Any] = msgspec.json.decode(data.read_bytes())
    return decoded


def payloads(count: int, *, errors: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Return records as AIPerf writes them, each with latencies and ids of its own."""
    draw = random.Random(seed)
    return [_payload(i, draw, failed=draw.random() < errors) for i in range(count)]


def records(count: int, *, errors: float = 0.0, seed: int = 0) -> list[Record]:
    """Return records as the plugin hands them to ``Publisher.record``."""
    return [_record(payload) for payload in payloads(count, errors=errors, seed=seed)]


def batch(count: int, *, seed: int = 0, run_id: str = RUN_ID) -> Records:
    """Return an event with a batch of records."""
    builder = RecordBuilder()
    for record in records(count, seed=seed):
        builder.add(*record)
    metrics, fields, errors, _ = builder.build()
    return Records(run_id=run_id, phase=PHASE, count=count, metrics=metrics, fields=fields, errors=errors)


def event_of_size(size: int) -> Event:
    """Return a typed event that takes about so many bytes on the wire: a plan of phases, or a batch."""
    if size <= 1024:
        return _padded(size)
    if size <= 16384:
        return _plan(size)
    rows = 16
    while len(encode_event(batch(rows))) < size:
        rows += 4
    return batch(rows)


def _padded(size: int) -> Event:
    """Return a plan of one phase; the least that there is takes 206 bytes."""
    least = len(encode_event(_one_phase("")))
    return _one_phase("p" * max(size - least, 1))


def _one_phase(name: str) -> Event:
    return PhasesConfigured(run_id=RUN_ID, phases=(PhasePlan(phase=PhaseRef(name, "profiling", 0)),))


def _plan(size: int) -> Event:
    plans: list[PhasePlan] = []
    while True:
        phase = PhaseRef(f"step_{len(plans):02d}", "profiling", len(plans))
        plan = PhasePlan(phase=phase, expected_requests=1000, concurrency=64, grace_period_s=30.0)
        event = PhasesConfigured(run_id=RUN_ID, phases=(*plans, plan))
        if len(encode_event(event)) > size and plans:
            return PhasesConfigured(run_id=RUN_ID, phases=tuple(plans))
        plans.append(plan)


def _payload(number: int, draw: random.Random, *, failed: bool) -> dict[str, Any]:
    source = fixture()["failure" if failed else "success"]
    payload: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(source))
    metadata, metrics = payload["metadata"], payload["metrics"]
    metadata.update(
        session_num=number,
        phase_index=PHASE.index,
        phase_name=PHASE.name,
        phase_kind=PHASE.kind,
        benchmark_phase=PHASE.kind,
    )
    for name in ("x_request_id", "x_correlation_id", "conversation_id"):
        bits = f"{draw.getrandbits(128):032x}"
        metadata[name] = f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:]}"
    shift_ns = number * 1_000_000
    for name, value in metadata.items():
        if name.endswith("_ns") and value is not None:
            metadata[name] = value + shift_ns
    factor = draw.lognormvariate(0.0, 0.4)
    for name, value in metrics.items():
        metrics[name] = _varied(name, value, factor, shift_ns)
    return payload


def _varied(name: str, value: Any, factor: float, shift_ns: int) -> Any:
    if name.endswith("_timestamp"):
        return value + shift_ns
    if isinstance(value, list):
        return [int(part * factor) for part in value]
    if isinstance(value, float):
        return value * factor
    return int(value * factor) if value > 1000 else value


def _record(payload: Mapping[str, Any]) -> Record:
    metadata, error = payload["metadata"], payload["error"]
    return Record(
        payload["metrics"],
        {name: metadata[name] for name in RECORD_FIELDS},
        None if error is None else (error["type"], error["message"], error["code"]),
    )
