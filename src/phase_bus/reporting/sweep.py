"""The runs of one sweep taken together: the statistics of repeated trials of each variation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.units import describe
from phase_bus.core.classes import import_extra
from phase_bus.events import RunStart
from phase_bus.reporting.source import PastRun

CONFIDENCE = 0.95

# The statistics of each metric, over the trials and over all their requests pooled.
STATISTICS = ("mean", "p50", "p99")
_POOLED = ("p50", "p90", "p95", "p99")
_METRICS = (
    "request_latency",
    "time_to_first_token",
    "inter_token_latency",
    "output_token_throughput_per_user",
)
# The numbers of a phase as a whole in its summary: title and unit.
_RATES = {
    "request_throughput": ("Request Throughput", "requests/s"),
    "output_token_throughput": ("Output Token Throughput", "tokens/s"),
    "error_rate": ("Error Rate", "fraction"),
}


class Sweep:
    """Collects the runs of a sweep, one at a time, so that none has to be kept in memory.

    With ``warmup``, warm-up phases count too.

    Raises:
        ConfigError: if scipy is not installed.
    """

    def __init__(self, sweep_id: str, *, warmup: bool = False) -> None:
        self.sweep_id = sweep_id
        self._warmup = warmup
        self._runs: list[dict[str, Any]] = []
        self._variations: dict[bytes, _Variation] = {}
        import_extra("scipy.special", "report", "--sweep: ")  # before any run is read

    def add(self, journal: Path | str, run: PastRun) -> None:
        """Add a run; one that is not complete is listed but not counted.

        Raises:
            ValueError: if the run's start, which says what it varies, is not known.
        """
        if run.start is None:
            raise ValueError("a run of a sweep has a start")
        key, name = identify(run.start)
        variation = self._variations.setdefault(key, _Variation(name, run.start.variation))
        left_out = None if run.is_complete else why_left_out(run)
        self._runs.append(
            {
                "run_id": run.start.run_id,
                "variation": name,
                "trial": run.start.trial,
                "label": run.start.label,
                "started_ns": run.start.ts_ns,
                "status": run.summary["status"],
                "records": run.summary["records"],
                "left_out": left_out,
                "journal": str(journal),
            }
        )
        if left_out is None:
            variation.add(run, self._warmup)
        else:
            variation.left_out += 1

    def document(self) -> dict[str, Any]:
        """Return the result, ready for JSON.

        - ``runs``: each with its variation, trial and status, and in ``left_out`` why it is not counted,
          None if it is.
        - ``variations``: the different parameters, with ``trials``, how many runs count, and
          ``left_out``, how many do not; then for each of the ``phases`` the ``metrics``: in
          ``statistics`` the trials' values (``value`` for a rate, else ``mean``, ``p50`` and ``p99``)
          summarised, and in ``pooled`` the metric over the requests of all trials.
        - A statistic has ``n`` (trials that have it), ``mean``, ``std`` (of the sample), the ends of
          the confidence interval of the mean by Student's t, ``ci95_low`` and ``ci95_high``, None for
          fewer than two trials, and the trials' ``values``. The interval ends where the quantity does: at
          0, as none of these can be negative, and that of a fraction at 1.

        Units are the raw ones of the bus: latencies are in ``ns``.
        """
        return {
            "version": 1,
            "sweep_id": self.sweep_id,
            "confidence": CONFIDENCE,
            "runs": self._runs,
            "variations": [v.document() for v in _ordered(self._variations.values())],
        }


def identify(start: RunStart) -> tuple[bytes, str]:
    """Return a key and a name for a run's variation: its parameters.

    Only without any parameters the run's label counts: AIPerf's names the trial.
    """
    varied = start.variation
    if not varied:
        return msgspec.json.encode(start.label), start.label or "no variation"
    named = varied.get("label") or ", ".join(f"{key}={value}" for key, value in varied.items())
    return msgspec.json.encode(varied, order="deterministic"), str(named)


class _Phase:
    """One phase over the trials of one variation: each statistic's values by metric, and pooled metrics."""

    def __init__(self, name: str, kind: str) -> None:
        self._name = name
        self._kind = kind
        self._values: dict[str, dict[str, list[float]]] = {}
        self._pooled: dict[str, MetricState] = {}

    def add(self, summary: Mapping[str, Any], metrics: Mapping[str, MetricState]) -> None:
        for rate in _RATES:
            self._add(rate, "value", summary[rate])
        for name in [name for name in _METRICS if name in metrics]:
            for statistic in STATISTICS:
                self._add(name, statistic, summary["metrics"][name][statistic])
            state = metrics[name]
            self._pooled.setdefault(name, MetricState(state.options, state.unit)).merge(state)

    def document(self) -> dict[str, Any]:
        metrics = {name: self._metric(name, values) for name, values in self._values.items()}
        return {"name": self._name, "kind": self._kind, "metrics": metrics}

    def _add(self, metric: str, statistic: str, value: float | None) -> None:
        if value is not None:
            self._values.setdefault(metric, {}).setdefault(statistic, []).append(value)

    def _metric(self, name: str, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        info = describe(name)
        title, unit = _RATES.get(name, (info.title, info.unit))
        return {
            "title": title,
            "unit": unit,
            "statistics": {statistic: _over_trials(found, unit) for statistic, found in values.items()},
            "pooled": _pooled(self._pooled[name]) if name in self._pooled else None,
        }


class _Variation:
    """The trials of one variation."""

    def __init__(self, name: str, varied: Mapping[str, Any]) -> None:
        self.name = name
        self.varied = {key: value for key, value in varied.items() if key != "label"}
        self.trials = 0
        self.left_out = 0
        self._phases: dict[str, _Phase] = {}

    def add(self, run: PastRun, warmup: bool) -> None:
        assert run.phases is not None
        self.trials += 1
        for summary, state in zip(run.summary["phases"], run.phases, strict=True):
            if summary["kind"] == "warmup" and not warmup:
                continue
            phase = self._phases.setdefault(summary["name"], _Phase(summary["name"], summary["kind"]))
            phase.add(summary, state.metrics)

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "variation": self.varied,
            "trials": self.trials,
            "left_out": self.left_out,
            "phases": [phase.document() for phase in self._phases.values()],
        }


def student_t(n: int) -> float:
    """Return the quantile of Student's t for the two-sided interval of a mean over n values.

    Raises:
        ConfigError: if scipy is not installed.
    """
    return float(import_extra("scipy.special", "report").stdtrit(n - 1, (1 + CONFIDENCE) / 2))


def mean_half_width(values: Sequence[float]) -> float:
    """Return half the width of the confidence interval of a mean, over two values or more."""
    return student_t(len(values)) * statistics.stdev(values) / math.sqrt(len(values))


def _over_trials(values: Sequence[float], unit: str) -> dict[str, Any]:
    n, mean = len(values), statistics.fmean(values)
    std = statistics.stdev(values) if n > 1 else None
    half = mean_half_width(values) if n > 1 else None
    # Student's t knows of no bounds; a value beyond one, by a clock that was set, is not hidden by it.
    least, most = min(0.0, *values), max(1.0, *values) if unit == "fraction" else math.inf
    return {
        "n": n,
        "mean": mean,
        "std": std,
        "ci95_low": None if half is None else max(mean - half, least),
        "ci95_high": None if half is None else min(mean + half, most),
        "values": list(values),
    }


def _pooled(state: MetricState) -> dict[str, Any]:
    percentiles = {name: state.percentile(float(name[1:])) for name in _POOLED}
    return {
        "count": state.count,
        "mean": state.mean,
        "min": state.min,
        **percentiles,
        "max": state.max,
        "exact": state.exact,
    }


def why_left_out(run: PastRun) -> str:
    """Return what a run lacks that is not complete."""
    summary = run.summary
    reasons = []
    if summary["status"] == "running":
        reasons.append("still running")
    elif summary["status"] != "completed":
        reason = run.end.reason if run.end else ""
        reasons.append(f"{summary['status']}: {reason}" if reason else summary["status"])
    if summary["missing_records"]:
        reasons.append(f"{summary['missing_records']:,} of {summary['expected_records']:,} records missing")
    if summary["dropped_records"]:
        reasons.append(f"{summary['dropped_records']:,} records dropped by the publisher")
    elif summary["dropped"]:
        reasons.append(f"{sum(summary['dropped'].values()):,} events dropped by the publisher")
    if run.damage:
        reasons.append(run.damage)
    return "; ".join(reasons) or "more records than its end announced"


def _ordered(variations: Iterable[_Variation]) -> list[_Variation]:
    """Return variations sorted by their parameters if these are numbers, else in the order of the runs."""
    found = list(variations)
    numbers = all(isinstance(value, int | float) for v in found for value in v.varied.values())
    if numbers and len({tuple(v.varied) for v in found}) == 1:
        return sorted(found, key=lambda v: tuple(v.varied.values()))
    return found
