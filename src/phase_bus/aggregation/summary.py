"""From a run's state to the document that people and other consumers read, and to a text report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.state import RunState, Span
from phase_bus.aggregation.units import describe
from phase_bus.events import RunComplete

# AIPerf's list.
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)

# What stands first in the text report; the other metrics follow by name.
_FIRST = (
    "request_latency",
    "time_to_first_token",
    "time_to_second_token",
    "inter_token_latency",
    "output_token_throughput_per_user",
    "output_sequence_length",
    "input_sequence_length",
)
# The text report's head says these already.
_SAID = ("request_count", "error_request_count")
_COLUMNS = ("mean", "std", "min", "p50", "p90", "p99", "max")
_WIDTH = 100


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

    ``phases`` has an entry a phase, in order, and ``overall`` one over all of them, each with:

    - ``requests``, ``successful``, ``failed`` and ``cancelled``, the latter being among the failed
      ones as in AIPerf; requests that were cut at the end of the grace period bring no record and
      are in none of these. ``success_rate`` and ``error_rate`` are fractions of ``requests``, None
      without any (AIPerf's ``request_error_rate`` is in percent). ``errors``: type, code, count.
    - ``duration_s``: from the phase's start to its last answer, as its events say, or without
      these (``duration_from`` is then ``records``) from the first successful request's start to the
      last one's answer. ``benchmark_duration_s`` is always the latter, AIPerf's ``benchmark_duration``.
    - ``request_throughput`` (successful requests), ``input_token_throughput``,
      ``output_token_throughput`` and ``total_token_throughput`` (of successful requests), all a
      second of ``duration_s``, as AIPerf defines them. Over all phases, pauses between them count.
    - ``metrics``: by name ``title``, ``unit``, ``count`` of values, ``set_aside`` (NaN or infinite,
      in no other number), ``sum``, ``mean`` (AIPerf's ``avg``), ``std`` (of the population, as
      AIPerf's), ``min``, ``max``, ``p1`` to ``p99``, and ``exact``: whether the percentiles are
      exact or from a sketch. A failed request only brings metrics such as ``error_isl``, so
      latencies are those of successes; AIPerf's ``adj_*``, which count a failure as infinitely
      slow, are not computed. AIPerf exports the ``sum`` of counters such as ``request_count``.
    - ``windows``: the phase over time, by the requests' end, or None where records bring no
      ``request_end_ns``: see :meth:`~phase_bus.aggregation.windows.Windows.columns`.

    Args:
        state: the run's state, which stays as it is.
        final: whether everything the run published is in it.
        end: the run's end, once it is known: it says how many records were to come.
        recent_windows: tell only so many windows over time, the last ones.
    """
    phases = state.phases(recent_windows)
    overall = state.overall(phases, recent_windows)
    overall_span = state.overall_span(phase.phase for phase in phases)
    expected = None if end is None else end.records
    return {
        "version": 1,
        "run_id": state.run_id,
        "status": "running" if end is None else end.status,
        "final": final,
        "complete": final,
        "records": state.records,
        "expected_records": expected,
        "missing_records": None if expected is None else max(expected - state.records, 0),
        "dropped": {} if end is None else dict(end.dropped),
        "relative_error": state.options.relative_error,
        "phases": [_phase(phase, state.spans.get(phase.phase, Span())) for phase in phases],
        "overall": _phase(overall, overall_span),
    }


def render_text(summary: Mapping[str, Any], *, brief: bool = False) -> str:
    """Return a summary as text of at most 100 columns without colour, latencies in ms.

    Args:
        summary: what :func:`summarize` returned.
        brief: leave out warm-up phases, and the metrics that few people look at.
    """
    out = StringIO()
    console = Console(file=out, width=_WIDTH, color_system=None, force_terminal=False)
    for line in _headline(summary):
        console.print(line, markup=False, highlight=False)
    phases = [phase for phase in summary["phases"] if not (brief and phase["kind"] == "warmup")]
    if len(phases) > 1:
        phases.append(summary["overall"])
    for phase in phases:
        console.print()
        for line in _phase_lines(phase):
            console.print(line, markup=False, highlight=False)
        if phase["metrics"]:
            console.print(_table(phase["metrics"], brief))
    if any(not m["exact"] for phase in phases for m in phase["metrics"].values()):
        error = summary["relative_error"]
        console.print(f"~ percentiles within {error:.2%} (too many values to keep)", markup=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _phase(state: PhaseState, span: Span) -> dict[str, Any]:
    successful = state.requests - state.failed
    benchmark_s = _span_s(state.first_success_ns, state.last_success_ns)
    phase_s = _span_s(span.start_ns, span.end_ns)
    duration_s = benchmark_s if phase_s is None else phase_s
    tokens_in = _total(state.metrics.get("input_sequence_length"))
    tokens_out = _total(state.metrics.get("output_sequence_length"))
    both = None if tokens_in is None or tokens_out is None else tokens_in + tokens_out
    return {
        "name": state.phase.name,
        "kind": state.phase.kind,
        "index": state.phase.index,
        "requests": state.requests,
        "successful": successful,
        "failed": state.failed,
        "cancelled": state.cancelled,
        "success_rate": _rate(successful, state.requests),
        "error_rate": _rate(state.failed, state.requests),
        "errors": _errors(state),
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
        "first_request_ns": state.first_request_ns,
        "last_request_ns": state.last_request_ns,
        "duration_s": duration_s,
        "duration_from": "records" if phase_s is None else "phase",
        "benchmark_duration_s": benchmark_s,
        "request_throughput": _rate(successful, duration_s),
        "input_token_throughput": _rate(tokens_in, duration_s),
        "output_token_throughput": _rate(tokens_out, duration_s),
        "total_token_throughput": _rate(both, duration_s),
        "metrics": {name: _metric(name, state.metrics[name]) for name in sorted(state.metrics)},
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
        "count": settled.count,
        "set_aside": settled.set_aside,
        "sum": settled.sum,
        "mean": settled.mean,
        "std": settled.std,
        "min": settled.min,
        "max": settled.max,
        **{f"p{p}": value for p, value in zip(PERCENTILES, values, strict=True)},
        "exact": settled.exact,
    }


def _errors(state: PhaseState) -> list[dict[str, Any]]:
    """Return the errors, the most frequent first."""
    ordered = sorted(state.errors.items(), key=lambda e: (-e[1], e[0][0], str(e[0][1])))
    return [{"type": kind, "code": code, "count": count} for (kind, code), count in ordered]


def _total(state: MetricState | None) -> float | None:
    return None if state is None else state.sum


def _rate(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _span_s(start_ns: int | None, end_ns: int | None) -> float | None:
    if start_ns is None or end_ns is None or end_ns <= start_ns:
        return None
    return (end_ns - start_ns) / 1e9


def _headline(summary: Mapping[str, Any]) -> Iterable[str]:
    kind = "final" if summary["final"] else "not final"
    yield f"Run {summary['run_id']}: {summary['status']}, {summary['records']:,} records ({kind})"
    if summary["missing_records"]:
        missing, expected = summary["missing_records"], summary["expected_records"]
        yield f"INCOMPLETE: {missing:,} of {expected:,} published records did not arrive"
    if summary["dropped"]:
        dropped = sum(summary["dropped"].values())
        yield f"INCOMPLETE: the publisher had to drop {dropped:,} events"


def _phase_lines(phase: Mapping[str, Any]) -> Iterable[str]:
    yield f"== {phase['name']} =="
    rate = phase["success_rate"]
    yield (
        f"Requests: {phase['requests']:,}, successful: {phase['successful']:,}"
        + ("" if rate is None else f" ({rate:.2%})")
        + f", failed: {phase['failed']:,}, of these cancelled: {phase['cancelled']:,}"
    )
    if phase["duration_s"] is not None:
        parts = [f"Duration: {phase['duration_s']:,.2f} s"]
        for key, unit in (("request", "requests/s"), ("output_token", "output tokens/s")):
            value = phase[f"{key}_throughput"]
            if value is not None:
                parts.append(f"{value:,.2f} {unit}")
        yield ", ".join(parts)
    for error in phase["errors"]:
        code = "" if error["code"] is None else f" ({error['code']})"
        yield f"  {error['count']:,} x {error['type']}{code}"


def _table(metrics: Mapping[str, Mapping[str, Any]], brief: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, width=_WIDTH)
    table.add_column("metric", ratio=1, overflow="fold")
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    order = {name: place for place, name in enumerate(_FIRST)}
    shown = [name for name in metrics if name not in _SAID and (name in order or not brief)]
    for name in sorted(shown, key=lambda n: (order.get(n, len(order)), n)):
        table.add_row(*_row(metrics[name]))
    return table


def _row(metric: Mapping[str, Any]) -> list[str]:
    unit, factor = ("ms", 1e-6) if metric["unit"] == "ns" else (metric["unit"], 1.0)
    title = metric["title"] + (f" ({unit})" if unit else "")
    cells = []
    for column in _COLUMNS:
        value = metric[column]
        mark = "~" if column.startswith("p") and not metric["exact"] else ""
        cells.append("-" if value is None else mark + _number(value * factor))
    return [title.replace("[", "\\["), *cells]


def _number(value: float) -> str:
    """Return a number in at most nine characters."""
    size = abs(value)
    if 0 < size < 0.01 or size >= 1e7:
        return f"{value:.2e}"
    return f"{value:,.{2 if size < 1e3 else 1 if size < 1e5 else 0}f}"
