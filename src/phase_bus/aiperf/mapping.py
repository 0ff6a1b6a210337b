"""From AIPerf's data to our events: pure functions, no state.

AIPerf gives its data twice: as objects handed to the plugin in process, and as JSON on its own event bus.
The Structs here name the few things we need of that JSON, each with a default, and have the attribute
names of AIPerf's objects, so that one function serves both.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from phase_bus.aiperf.request_options import request_options
from phase_bus.core.command_line import command_line, text_without_secrets, this_process
from phase_bus.events import PhaseKind, PhasePlan, PhaseRef, PhaseStats, RunStart, RunStatus

_T = TypeVar("_T")


class _Phase(Struct, frozen=True, kw_only=True):
    phase: str = "profiling"
    phase_index: int | None = None
    phase_name: str | None = None
    phase_kind: str | None = None
    total_expected_requests: int | None = None
    expected_duration_sec: float | None = None
    expected_num_sessions: int | None = None


class CreditStats(_Phase, frozen=True, kw_only=True):
    """What we need of AIPerf's ``CreditPhaseStats``; ``final_*`` is set once it cannot change."""

    start_ns: int | None = None
    sent_end_ns: int | None = None
    requests_end_ns: int | None = None
    expected_grace_period_sec: float | None = None
    final_requests_sent: int | None = None
    final_requests_completed: int | None = None
    final_requests_cancelled: int | None = None
    final_request_errors: int | None = None
    final_sent_sessions: int | None = None
    final_completed_sessions: int | None = None
    final_cancelled_sessions: int | None = None
    timeout_triggered: bool = False
    grace_period_timeout_triggered: bool = False
    was_cancelled: bool = False
    requests_sent: int = 0
    requests_completed: int = 0
    requests_cancelled: int = 0
    request_errors: int = 0
    sent_sessions: int = 0
    completed_sessions: int = 0
    cancelled_sessions: int = 0


class CreditConfig(_Phase, frozen=True, kw_only=True):
    """What we need of AIPerf's ``CreditPhaseConfig``."""

    grace_period_sec: float | None = None
    concurrency: int | None = None
    request_rate: float | None = None


class PhaseMessage(Struct, frozen=True, kw_only=True):
    """A ``credit_phase_*`` message."""

    stats: CreditStats | None = None


class ConfiguredMessage(Struct, frozen=True, kw_only=True):
    """A ``credit_phases_configured`` message."""

    configs: list[CreditConfig] = []


class StateMessage(Struct, frozen=True, kw_only=True):
    """A ``system_state_changed`` message."""

    state: str = ""


class ErrorNote(Struct, frozen=True, kw_only=True):
    """An error that AIPerf had with its results, not with a request."""

    message: str = ""
    details: Any = None


class ProfileResults(Struct, frozen=True, kw_only=True):
    """AIPerf's own results, as far as they say how the run ended."""

    records: list[msgspec.Raw] | None = None
    was_cancelled: bool = False
    incomplete_reason: str | None = None
    successful_request_count: int = 0
    error_request_count: int = 0


class Results(Struct, frozen=True, kw_only=True):
    """What ``process_records_result`` carries."""

    results: ProfileResults | None = None
    errors: list[ErrorNote] = []


class ResultsMessage(Struct, frozen=True, kw_only=True):
    """A ``process_records_result`` message."""

    results: Results | None = None


class Outcome(NamedTuple):
    """How a run ended."""

    status: RunStatus
    reason: str = ""


def decode(payload: bytes, kind: type[_T]) -> _T | None:
    """Return a message of AIPerf's event bus, or None if it cannot be decoded."""
    try:
        return msgspec.json.decode(payload, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def decode_summary(payload: bytes) -> dict[str, Any] | None:
    """Return AIPerf's final results of a ``process_records_result`` message, unchanged."""
    message = decode(payload, dict[str, Any]) or {}
    results = message.get("results")
    summary = results.get("results") if isinstance(results, dict) else None
    return summary if isinstance(summary, dict) else None


def phase_ref(source: Any) -> PhaseRef:
    """Return the phase of a phase's stats or config, or of a record's metadata.

    A record's metadata calls the kind of phase ``benchmark_phase``, the others call it ``phase``.
    """
    kind = getattr(source, "phase_kind", None)
    if kind is None:
        kind = getattr(source, "phase", None) or getattr(source, "benchmark_phase", None)
    # An enum of strings: its value, not its name.
    kind = str(getattr(kind, "value", kind)).lower()
    known: PhaseKind = "warmup" if kind == "warmup" else "profiling"
    index = getattr(source, "phase_index", None)
    if index is None:
        index = 0 if known == "warmup" else 1
    return PhaseRef(getattr(source, "phase_name", None) or known, known, index)


def phase_stats(source: Any) -> PhaseStats:
    """Return the counts of AIPerf's phase stats, from its object or a :class:`CreditStats`."""
    known = getattr(source, "__dict__", None)  # half the time of AIPerf's attribute access
    if known is None:
        known = {name: getattr(source, name) for name in _CREDIT_DEFAULTS if hasattr(source, name)}
    try:
        return _phase_stats(known)
    except KeyError:  # an AIPerf that lacks some of them: what it has, and the defaults
        return _phase_stats({**_CREDIT_DEFAULTS, **known})


_CREDIT_DEFAULTS = msgspec.structs.asdict(CreditStats())


def _phase_stats(known: Mapping[str, Any]) -> PhaseStats:
    # Written out, since this runs for every progress message. A count has a final value once it cannot
    # change any more.
    sent, completed = known["final_requests_sent"], known["final_requests_completed"]
    cancelled, errors = known["final_requests_cancelled"], known["final_request_errors"]
    begun, finished = known["final_sent_sessions"], known["final_completed_sessions"]
    cut = known["final_cancelled_sessions"]
    sent = known["requests_sent"] if sent is None else sent
    completed = known["requests_completed"] if completed is None else completed
    cancelled = known["requests_cancelled"] if cancelled is None else cancelled
    in_flight = sent - completed - cancelled
    return PhaseStats(
        sent=sent,
        completed=completed,
        cancelled=cancelled,
        errors=known["request_errors"] if errors is None else errors,
        in_flight=in_flight if in_flight > 0 else 0,
        sent_sessions=known["sent_sessions"] if begun is None else begun,
        completed_sessions=known["completed_sessions"] if finished is None else finished,
        cancelled_sessions=known["cancelled_sessions"] if cut is None else cut,
        start_ns=known["start_ns"],
        sent_end_ns=known["sent_end_ns"],
        end_ns=known["requests_end_ns"],
        expected_requests=known["total_expected_requests"],
        expected_duration_s=known["expected_duration_sec"],
        expected_sessions=known["expected_num_sessions"],
        grace_period_s=known["expected_grace_period_sec"],
        timeout_triggered=known["timeout_triggered"],
        grace_period_timeout_triggered=known["grace_period_timeout_triggered"],
        was_cancelled=known["was_cancelled"],
    )


def plan_of_credit_config(config: CreditConfig) -> PhasePlan:
    """Return the plan of a phase from AIPerf's event bus."""
    return PhasePlan(
        phase=phase_ref(config),
        expected_requests=config.total_expected_requests,
        expected_duration_s=config.expected_duration_sec,
        expected_sessions=config.expected_num_sessions,
        grace_period_s=config.grace_period_sec,
        concurrency=config.concurrency,
        request_rate=config.request_rate,
    )


def plans_of_run(run: Any) -> tuple[PhasePlan, ...]:
    """Return the plans of all phases in a run's configuration (``run.cfg.phases``)."""
    return tuple(_plan(phase, index) for index, phase in enumerate(run.cfg.phases))


def _plan(config: Any, index: int) -> PhasePlan:
    name = str(getattr(config, "name", "profiling"))
    stated = getattr(config, "kind", None) or name
    kind: PhaseKind = "warmup" if str(stated) == "warmup" else "profiling"
    return PhasePlan(
        phase=PhaseRef(name, kind, index),
        expected_requests=_whole(config, "requests"),
        expected_duration_s=_number(config, "duration"),
        expected_sessions=_whole(config, "sessions"),
        grace_period_s=_number(config, "grace_period"),
        concurrency=_whole(config, "concurrency"),
        request_rate=_number(config, "rate"),
    )


def _number(config: Any, name: str) -> float | None:
    # An option that a sweep or a ramp varies need not be a number.
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None


def _whole(config: Any, name: str) -> int | None:
    value = _number(config, name)
    return None if value is None else int(value)


def run_start(run: Any, version: str) -> RunStart:
    """Return the start of a run, from AIPerf's ``BenchmarkRun``; what cannot be read is left out."""
    return RunStart(
        run_id=str(run.benchmark_id),
        producer=f"aiperf {version}".strip(),
        models=_read(lambda: tuple(map(str, run.cfg.get_model_names())), ()),
        urls=_read(lambda: tuple(text_without_secrets(str(url)) for url in run.cfg.endpoint.urls), ()),
        sweep_id=_read(lambda: run.sweep_id, None),
        trial=_read(lambda: run.trial if run.sweep_id or run.trial else None, None),
        label=_read(lambda: run.label or None, None),
        variation=_read(
            lambda: msgspec.to_builtins(
                {"label": run.variation.label, **run.variation.values}, enc_hook=str
            ),
            {},
        ),
        options=_read(lambda: request_options(run.cfg), {}),
        **{**_read(this_process, {}), "command": _read(lambda: _command(run), "")},
    )


def _command(run: Any) -> str:
    """Return what the user typed; the process that this runs in was started by AIPerf."""
    return command_line(shlex.split(str(run.cli_command or "")))


def _read(get: Any, default: Any) -> Any:
    try:
        return get()
    except Exception:  # not there, or named differently by another AIPerf: less is known, nothing breaks
        return default


def record_fields(metadata: Any) -> Mapping[str, Any]:
    """Return a request's properties besides its metrics: at least :data:`RECORD_FIELDS`.

    It is the metadata's own dict, since this runs for every request in AIPerf's thread; the publisher's
    thread picks the fields. Nobody changes a record's metadata once it is handed over.
    """
    known: Mapping[str, Any] | None = getattr(metadata, "__dict__", None)
    if known is None:
        return {name: getattr(metadata, name) for name in RECORD_FIELDS if hasattr(metadata, name)}
    return known


RECORD_FIELDS = (
    "session_num",
    "x_request_id",
    "x_correlation_id",
    "conversation_id",
    "turn_index",
    "credit_issued_ns",
    "request_start_ns",
    "request_ack_ns",
    "request_end_ns",
    "worker_id",
    "record_processor_id",
    "was_cancelled",
)


def record_error(error: Any) -> tuple[str, str, int | None] | None:
    """Return a record's error as type, message and code, or None if it has none."""
    if error is None:
        return None
    code = getattr(error, "code", None)
    return (
        str(getattr(error, "type", None) or "Error"),
        str(getattr(error, "message", "")),
        code if isinstance(code, int) else None,
    )


def outcome_of(payload: bytes) -> Outcome:
    """Return how a run ended, by a ``process_records_result`` message."""
    message = decode(payload, ResultsMessage)
    if message is None:
        return Outcome("completed", "AIPerf's results were not understood")
    return outcome(message.results)


def outcome(results: Results | None) -> Outcome:
    """Return how a run ended, by AIPerf's own results.

    ``failed`` is what makes AIPerf 0.13 exit with 1: no results, an error of its own marked as fatal,
    or not one successful request. With results that it calls incomplete it exits with 0: they are given
    as a reason.
    """
    if results is None or (profile := results.results) is None:
        return Outcome("failed", "AIPerf had no results")
    reason = profile.incomplete_reason or ""
    if profile.was_cancelled:
        return Outcome("cancelled", reason)
    for error in results.errors:
        if isinstance(error.details, dict) and error.details.get("fatal"):
            return Outcome("failed", error.message)
    failed = profile.error_request_count
    if failed and not profile.successful_request_count:
        return Outcome("failed", f"all {failed} requests failed")
    if not profile.records:
        return Outcome("failed", reason or "AIPerf had no results")
    return Outcome("completed", reason)
