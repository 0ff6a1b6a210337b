"""From a run's events and state to the document that people and other consumers read."""

from __future__ import annotations

from typing import Any

from phase_bus.aggregation.limits import LISTED_ERRORS, LISTED_METRICS
from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.rates import RATES, Figures, is_per_second
from phase_bus.aggregation.sketch import RELATIVE_ERROR
from phase_bus.aggregation.state import RunState, Span
from phase_bus.aggregation.units import describe
from phase_bus.core.records import RecordBatch
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseProgress,
    PhaseStart,
    Records,
    RunComplete,
)

# AIPerf's list.
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_OF_METRIC = ("count", "set_aside", "sum", "mean", "std", "min", "max")


class RunResult:
    """The result of a run's events, whether they come live or from a journal.

    Attributes:
        end: the run's end, None while it goes on: also again after it had ended, or seemed lost.
    """

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.end: RunComplete | None = None

    @property
    def final(self) -> bool:
        """Whether as many records were counted as the run announced at its end."""
        return self.end is not None and self.state.records == self.end.records

    def take(self, event: EventBase) -> None:
        """Add an event; most kinds do not change the result."""
        if isinstance(event, Records):
            self.state.update(RecordBatch(event))
            self.check_end()
        elif isinstance(event, RunComplete):
            self.end = None if event.running else event
        elif isinstance(event, PhaseStart | PhaseProgress | PhaseComplete):
            span = self.state.span(event.phase)
            span.start_ns = span.start_ns if event.stats.start_ns is None else event.stats.start_ns
            span.end_ns = span.end_ns if event.stats.end_ns is None else event.stats.end_ns

    def check_end(self) -> None:
        """Forget the end if more records are counted than it announced: the run goes on."""
        if self.end is not None and self.state.records > self.end.records:
            self.end = None

    def summary(self, recent_windows: int | None = None) -> dict[str, Any]:
        """Return the document of :func:`summarize`."""
        return summarize(self.state, final=self.final, end=self.end, recent_windows=recent_windows)


def summarize(
    state: RunState,
    *,
    final: bool = False,
    end: RunComplete | None = None,
    recent_windows: int | None = None,
) -> dict[str, Any]:
    """Return a run's summary, ready for JSON.

    Numbers are in the raw units of the bus, named by each metric's ``unit``: latencies are in ``ns``,
    so divide by 1e6 to compare them with AIPerf's export, which is in ms; every other unit is the
    export's. (The text report shows ms.)

    ``final`` says that everything is counted that the run's end announced; ``complete``, that this is also
    everything there ever was: the publishers dropped nothing (``dropped`` events by topic, and
    ``dropped_records`` in them), and none of them vanished.

    ``phases`` has an entry for each phase, in order, and ``overall`` is one over all of them, each with:

    - ``requests``, ``successful``, ``failed`` and ``cancelled``; cancelled requests count as failed
      too, as in AIPerf; requests that were cut at the end of the grace period have no record and
      are in none of these. ``success_rate`` and ``error_rate`` are fractions of ``requests``, None
      without any (AIPerf's ``request_error_rate`` is in percent). ``errors``: type, code, count, the
      most frequent first; ``other_errors``: how many failed requests are of other types.
    - ``duration_s``: from the phase's start to its last answer by its events, or without these
      (``duration_from`` is then ``records``) from the first successful request's start to the last
      one's answer. ``benchmark_duration_s`` is always the latter, AIPerf's ``benchmark_duration``. A few
      times that are far from all others do not count there.
    - ``request_throughput`` (successful requests), ``input_token_throughput``,
      ``output_token_throughput`` and ``total_token_throughput`` (of successful requests), all per
      second of ``duration_s``, as AIPerf defines them. Over all phases, pauses between them count.
    - ``metrics``: by name ``title``, ``unit``, ``count`` of values, ``set_aside`` (left out as NaN,
      infinite or beyond 1e250), ``sum``, ``mean`` (AIPerf's ``avg``), ``std`` (of the population, as
      AIPerf's), ``min``, ``max``, ``p1`` to ``p99``, and ``exact``: whether the percentiles are exact or
      from a sketch. A failed request only has metrics such as ``error_isl``, so latencies are those of
      successful ones; AIPerf's ``adj_*``, which count a failure as infinitely slow, are not computed.
      AIPerf exports the ``sum`` of counters such as ``request_count``. Of too many metrics those with
      most values are here; ``other_values`` counts the values of the others.
    - ``windows``: the phase over time, by the requests' end, or None if records have no
      ``request_end_ns``: see :meth:`~phase_bus.aggregation.windows.Windows.columns`.

    Args:
        state: the run's state, which is left unchanged.
        final: whether everything the run published is in it.
        end: the run's end, once it is known: it says how many records to expect.
        recent_windows: include only this many windows over time, the last ones.
    """
    phases = state.phases(recent_windows)
    overall = state.overall(phases, recent_windows)
    overall_span = state.overall_span(phase.phase for phase in phases)
    expected = None if end is None else end.records
    dropped = {} if end is None else dict(end.dropped)
    dropped_records = 0 if end is None else end.dropped_records
    status = "running" if end is None else end.status
    return {
        "version": 1,
        "run_id": state.run_id,
        "status": status,
        "final": final,
        "complete": final and status != "lost" and not dropped and not dropped_records,
        "records": state.records,
        "expected_records": expected,
        "missing_records": None if expected is None else max(expected - state.records, 0),
        "dropped": dropped,
        "dropped_records": dropped_records,
        "relative_error": RELATIVE_ERROR,
        "phases": [_phase(phase, state.spans.get(phase.phase, Span())) for phase in phases],
        "overall": _phase(overall, overall_span),
    }


def _phase(state: PhaseState, span: Span) -> dict[str, Any]:
    successful = state.requests - state.failed
    benchmark_s = _span_s(state.first_success_ns, state.last_success_ns)
    phase_s = _span_s(span.start_ns, span.end_ns)
    duration_s = benchmark_s if phase_s is None else phase_s
    figures = Figures(
        requests=state.requests, failed=state.failed, duration_s=duration_s, metrics=state.metrics
    )
    metrics = dict(sorted(state.metrics.items(), key=lambda item: (-item[1].count, item[0])))
    left_out = list(metrics)[LISTED_METRICS:]
    other_values = state.other_values + sum(metrics.pop(name).count for name in left_out)
    errors = _errors(state)
    other_errors = state.other_errors + sum(error["count"] for error in errors[LISTED_ERRORS:])
    return {
        "name": state.phase.name,
        "kind": state.phase.kind,
        "index": state.phase.index,
        "requests": state.requests,
        "successful": successful,
        "failed": state.failed,
        "cancelled": state.cancelled,
        **{name: figures.rate(name) for name in ("success_rate", "error_rate")},
        "errors": errors[:LISTED_ERRORS],
        "other_errors": other_errors,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "first_request_ns": state.first_request_ns,
        "last_request_ns": state.last_request_ns,
        "duration_s": duration_s,
        "duration_from": "records" if phase_s is None else "phase",
        "benchmark_duration_s": benchmark_s,
        **{name: figures.rate(name) for name in RATES if is_per_second(name)},
        "metrics": {name: _metric(name, metrics[name]) for name in sorted(metrics)},
        "other_values": other_values,
        "windows": _windows(state),
    }


def _windows(state: PhaseState) -> dict[str, Any] | None:
    windows = state.windows.columns()
    if windows is not None:
        for name, columns in windows["metrics"].items():
            columns["unit"] = describe(name).unit
    return windows


def _metric(name: str, state: MetricState) -> dict[str, Any]:
    info = describe(name)
    settled = state.settled()
    values = settled.percentiles(PERCENTILES) if settled.count else [None] * len(PERCENTILES)
    return {
        "title": info.title,
        "unit": info.unit,
        **{name: getattr(settled, name) for name in _OF_METRIC},
        **{f"p{p}": value for p, value in zip(PERCENTILES, values, strict=True)},
        "exact": settled.exact,
    }


def _errors(state: PhaseState) -> list[dict[str, Any]]:
    """Return the errors, the most frequent first."""
    ordered = sorted(state.errors.items(), key=lambda e: (-e[1], e[0][0], str(e[0][1])))
    return [{"type": kind, "code": code, "count": count} for (kind, code), count in ordered]


def _span_s(start_ns: int | None, end_ns: int | None) -> float | None:
    if start_ns is None or end_ns is None or end_ns <= start_ns:
        return None
    return (end_ns - start_ns) / 1e9
