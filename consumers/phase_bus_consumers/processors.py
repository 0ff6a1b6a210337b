"""The example plugin's result processors: they compute metrics from the requests of a phase."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus import ConfigError, OutputFile

Result = Mapping[str, Any]

_BAD = (AttributeError, TypeError, ValueError)  # what a malformed result raises
_PERCENTILES = (50, 90, 95, 99)
_KINDS, _KIND_CHARACTERS, _OTHER = 100, 200, "other"  # of failures; more kinds than these are "other"


class ProcessingResult(Struct, frozen=True):
    """A processor's result; without success ``metrics`` may be None, and ``error`` says why."""

    success: bool
    record_count: int = 0
    metrics: dict[str, Any] | None = None
    error: str | None = None
    output_file: str | None = None


class ExampleMetricsProcessor:
    """Counts, success rate and latency percentiles of one phase's requests.

    A result is a dict with ``latency_ms`` and, if the request failed, a true ``error`` or a ``status``
    other than ``success``. Latencies are those of the successful requests that have one; percentiles
    are by nearest rank.

    Args:
        percentiles: the percentiles of the latency, each above 0 and up to 100.
    """

    def __init__(self, percentiles: Sequence[float] = _PERCENTILES) -> None:
        if not all(0 < p <= 100 for p in percentiles):
            raise ValueError(f"percentiles must be above 0 and up to 100: {list(percentiles)}")
        self.percentiles = tuple(percentiles)

    async def process(self, results: Sequence[Result]) -> ProcessingResult:
        """Return the metrics of the results; a result that is not such a dict makes it unsuccessful."""
        try:
            tally = _Tally(results)
        except _BAD as error:
            return ProcessingResult(False, len(results), error=f"bad result: {error}")
        return ProcessingResult(True, len(results), tally.metrics(self.percentiles))


class _Tally:
    """The counts of results, and their latencies, 8 bytes each."""

    def __init__(self, results: Iterable[Result] = ()) -> None:
        self.total = 0
        self.failures: Counter[str] = Counter()
        self.latencies = array("d")
        for result in results:
            self.add(result)

    def add(self, result: Result) -> None:
        """Count a result, or raise one of _BAD if it is malformed."""
        failure = _failure(result)
        latency = result.get("latency_ms")
        if failure is not None:
            self._fail(failure[:_KIND_CHARACTERS], 1)
        elif latency is not None and math.isfinite(latency):
            self.latencies.append(float(latency))
        self.total += 1

    def update(self, other: _Tally) -> None:
        """Add another tally."""
        self.total += other.total
        for failure, count in other.failures.items():
            self._fail(failure, count)
        self.latencies.extend(other.latencies)

    def _fail(self, failure: str, count: int) -> None:
        known = failure in self.failures or len(self.failures) < _KINDS
        self.failures[failure if known else _OTHER] += count

    def metrics(self, percentiles: Sequence[float]) -> dict[str, Any]:
        """Return the metrics."""
        failed = self.failures.total()
        rate = (self.total - failed) / self.total if self.total else 0.0
        return {
            "request_counts": {
                "total": self.total,
                "successful": self.total - failed,
                "failed": failed,
            },
            "success_rate": rate,
            "error_rate": failed / self.total if self.total else 0.0,
            "errors": dict(self.failures),
            "latency_ms": self._latency(percentiles),
        }

    def _latency(self, percentiles: Sequence[float]) -> dict[str, float]:
        ordered = sorted(self.latencies)
        if not ordered:
            return {}
        return {
            "count": len(ordered),
            "min": ordered[0],
            "max": ordered[-1],
            "mean": math.fsum(ordered) / len(ordered),
            **{f"p{p:g}": nearest_rank(ordered, p) for p in percentiles},
        }


class ExampleResultsAggregator:
    """Metrics of each phase and of all phases together.

    Phases may be given one after another, as they complete, or all at once.

    Args:
        output_file: a JSON file to write them to, None for none. Its directory is created.
        processor: has the percentiles to calculate; by default those of :class:`ExampleMetricsProcessor`.
    """

    def __init__(
        self,
        output_file: str | Path | None = None,
        processor: ExampleMetricsProcessor | None = None,
    ) -> None:
        self.output_file = None if output_file is None else Path(output_file)
        self.percentiles = (processor or ExampleMetricsProcessor()).percentiles
        self._phases: dict[str, _Tally] = {}

    async def process(self, results: Sequence[Result] | Mapping[str, Sequence[Result]]) -> ProcessingResult:
        """Return ``{"phases": {name: metrics}, "overall": metrics}`` for all the phases so far.

        Args:
            results: the results of one phase or several, each naming its ``phase``, which are added to
                the phases before; or the results of all phases by name, which replace them.
        """
        try:
            self._take(results)
        except _BAD as error:
            return ProcessingResult(False, len(results), error=f"bad result: {error}")
        overall = _Tally()
        for tally in self._phases.values():
            overall.update(tally)
        metrics = {
            "phases": {name: tally.metrics(self.percentiles) for name, tally in self._phases.items()},
            "overall": overall.metrics(self.percentiles),
        }
        if self.output_file is None:
            return ProcessingResult(True, overall.total, metrics)
        try:
            file = OutputFile.of_process(self.output_file, "output_file")
            file.replace(msgspec.json.format(msgspec.json.encode(metrics)).decode())
        except (OSError, ConfigError) as error:
            return ProcessingResult(False, overall.total, metrics, f"cannot write: {error}")
        return ProcessingResult(True, overall.total, metrics, output_file=str(self.output_file))

    def _take(self, results: Sequence[Result] | Mapping[str, Sequence[Result]]) -> None:
        if isinstance(results, Mapping):
            self._phases = {}
            self._phases = {name: _Tally(of_phase) for name, of_phase in results.items()}
        else:
            phases: dict[str, _Tally] = {}
            for result in results:
                phases.setdefault(str(result.get("phase", "")), _Tally()).add(result)
            self._phases |= phases


def nearest_rank(ordered: Sequence[float], percentile: float) -> float:
    """Return the smallest of the ascending values that ``percentile`` % of them do not exceed."""
    return ordered[max(math.ceil(percentile / 100.0 * len(ordered)), 1) - 1]


def _failure(result: Result) -> str | None:
    """Return why a request failed, None if it did not."""
    error = result.get("error")
    if error:
        return str(error.get("type", "error") if isinstance(error, Mapping) else error)
    status = result.get("status")
    return None if status in (None, "success") else str(status)
