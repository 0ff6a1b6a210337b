"""What happens in a run as OTLP log records."""

from __future__ import annotations

from typing import Any

from phase_bus import (
    Drop,
    EventBase,
    PhaseEvent,
    PhaseProgress,
    PhaseTimeout,
    RunComplete,
    RunStart,
    Verdict,
)
from phase_bus_consumers.extras import needs
from phase_bus_consumers.headline import headline
from phase_bus_consumers.otlp_values import attributes, phase_span_id, run_span_id, text, trace_id, unix_ns
from phase_bus_consumers.verdicts import severity

with needs("otlp"):
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber

_DEBUG = (SeverityNumber.SEVERITY_NUMBER_DEBUG, "DEBUG")
_INFO = (SeverityNumber.SEVERITY_NUMBER_INFO, "INFO")
_WARN = (SeverityNumber.SEVERITY_NUMBER_WARN, "WARN")
_ERROR = (SeverityNumber.SEVERITY_NUMBER_ERROR, "ERROR")

_COUNTS = ("sent", "completed", "cancelled", "errors", "in_flight")


def log_record(event: EventBase, key: str) -> LogRecord:
    """Return the log record of an event that a key names."""
    number, name = _severity(event)
    of_phase = event.phase if isinstance(event, PhaseEvent) else None
    return LogRecord(
        time_unix_nano=unix_ns(event.ts_ns),
        observed_time_unix_nano=unix_ns(event.ts_ns),
        severity_number=number,
        severity_text=name,
        event_name=f"phase_bus.{event.kind}",
        body=text(headline(event)),
        attributes=attributes({**_attributes(event), "log.record.uid": key}),
        trace_id=trace_id(event.run_id),
        span_id=phase_span_id(event.run_id, of_phase) if of_phase else run_span_id(event.run_id),
    )


def _severity(event: EventBase) -> tuple[SeverityNumber.ValueType, str]:
    match event:
        case PhaseProgress():
            return _DEBUG
        case PhaseTimeout():
            return _WARN
        case Drop():
            return _ERROR
        case Verdict():
            return {"info": _INFO, "warning": _WARN, "error": _ERROR}[severity(event)]
        case RunComplete():
            return {"completed": _INFO, "cancelled": _WARN}.get(event.status, _ERROR)
    return _INFO


def _attributes(event: EventBase) -> dict[str, Any]:
    match event:
        case PhaseEvent():
            cut = event.requests_cut if isinstance(event, PhaseTimeout) else None
            return {
                "phase_bus.phase.name": event.phase.name,
                "phase_bus.phase.kind": event.phase.kind,
                **{f"phase_bus.requests.{name}": getattr(event.stats, name) for name in _COUNTS},
                "phase_bus.requests.cut": cut,
                "phase_bus.phase.duration": event.stats.duration_s,
            }
        case RunStart():
            return {
                "phase_bus.producer": event.producer or None,
                "phase_bus.models": event.models or None,
                "phase_bus.urls": event.urls or None,
                "phase_bus.label": event.label,
                "phase_bus.sweep_id": event.sweep_id,
                "phase_bus.trial": event.trial,
            }
        case RunComplete():
            return {
                "phase_bus.status": event.status,
                "phase_bus.reason": event.reason or None,
                "phase_bus.records": event.records,
                "phase_bus.dropped_records": event.dropped_records,
            }
        case Drop():
            return {
                "phase_bus.source": event.source,
                "phase_bus.reason": event.reason,
                "phase_bus.dropped_events": min(sum(event.events.values()), (1 << 63) - 1),
                "phase_bus.dropped_records": event.records,
            }
        case Verdict():
            return {
                **of_threshold(event),
                "phase_bus.threshold.state": event.state,
                "phase_bus.threshold.final": event.final,
                "phase_bus.threshold.value": event.value,
                "phase_bus.threshold.limit": event.limit,
                "phase_bus.threshold.unit": event.unit or None,
                "phase_bus.threshold.samples": event.samples,
                "phase_bus.reason": event.reason or None,
                "phase_bus.producer": event.producer,
            }
    return {}


def of_threshold(verdict: Verdict) -> dict[str, Any]:
    """Return the attributes that say which threshold a verdict is on."""
    return {
        "phase_bus.threshold.name": verdict.threshold,
        "phase_bus.threshold.phase": verdict.phase or None,
    }
