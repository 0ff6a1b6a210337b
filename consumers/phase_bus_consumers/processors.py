"""The example plugin's result processors: from the requests of a phase to its metrics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from phase_bus.files import write_whole

Result = Mapping[str, Any]

_PERCENTILES = (50, 90, 95, 99)


class ProcessingResult(Struct, frozen=True):
    """What a processor made of results.

    Attributes:
        success: whether it could process them.
        record_count: how many results it was given.
        metrics: what it calculated, None if it could not.
        error: why it could not, None if it could.
        output_file: what it wrote, if it wrote a file.
    """

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
        percentiles: which percentiles of the latency, each above 0 and up to 100.
    """

    def __init__(self, percentiles: Sequence[float] = _PERCENTILES) -> None:
        if not all(0 < p <= 100 for p in percentiles):
            raise ValueError(f"percentiles must be above 0 and up to 100: {list(percentiles)}")
        self.percentiles = tuple(percentiles)

    async def process(self, results: Sequence[Result]) -> ProcessingResult:
        """Return the metrics of the results; a result that is no such dict makes it unsuccessful."""
        try:
            metrics = self._metrics(results)
        except (AttributeError, TypeError, ValueError) as error:
            return ProcessingResult(False, len(results), error=f"bad result: {error}")
        return ProcessingResult(True, len(results), metrics)

    def _metrics(self, results: Sequence[Result]) -> dict[str, Any]:
        total = len(results)
        successes = [result for result in results if _failure(result) is None]
        latencies = sorted(
            float(latency)
            for result in successes
            if (latency := result.get("latency_ms")) is not None and math.isfinite(latency)
        )
        rate = len(successes) / total if total else 0.0
        return {
            "request_counts": {
                "total": total,
                "successful": len(successes),
                "failed": total - len(successes),
            },
            "success_rate": rate,
            "error_rate": 1.0 - rate if total else 0.0,
            "errors": dict(Counter(f for r in results if (f := _failure(r)) is not None)),
            "latency_ms": self._latency(latencies),
        }

    def _latency(self, latencies: list[float]) -> dict[str, float]:
        if not latencies:
            return {}
        return {
            "count": len(latencies),
            "min": latencies[0],
            "max": latencies[-1],
            "mean": math.fsum(latencies) / len(latencies),
            **{f"p{p:g}": nearest_rank(latencies, p) for p in self.percentiles},
        }


class ExampleResultsAggregator:
    """Metrics of each phase and of all phases together.

    Args:
        output_file: a JSON file to write them to, None for none. Its directory is created.
        processor: what calculates the metrics; by default an :class:`ExampleMetricsProcessor`.
    """

    def __init__(
        self,
        output_file: str | Path | None = None,
        processor: ExampleMetricsProcessor | None = None,
    ) -> None:
        self.output_file = None if output_file is None else Path(output_file)
        self.processor = processor or ExampleMetricsProcessor()

    async def process(self, phases: Mapping[str, Sequence[Result]]) -> ProcessingResult:
        """Return ``{"phases": {name: metrics}, "overall": metrics}`` for the results by phase."""
        everything = [result for results in phases.values() for result in results]
        overall = await self.processor.process(everything)
        if not overall.success:
            return overall
        metrics = {
            "phases": {n: (await self.processor.process(r)).metrics for n, r in phases.items()},
            "overall": overall.metrics,
        }
        if self.output_file is not None:
            try:
                self.output_file.parent.mkdir(parents=True, exist_ok=True)
                write_whole(self.output_file, _json(metrics))
            except OSError as error:
                return ProcessingResult(False, len(everything), metrics, f"cannot write: {error}")
        path = None if self.output_file is None else str(self.output_file)
        return ProcessingResult(True, len(everything), metrics, output_file=path)


def nearest_rank(ordered: Sequence[float], percentile: float) -> float:
    """Return the least of the values, in ascending order, that ``percentile`` % do not exceed."""
    return ordered[max(math.ceil(percentile / 100.0 * len(ordered)), 1) - 1]


def _failure(result: Result) -> str | None:
    """Return why a request failed, None if it did not."""
    error = result.get("error")
    if error:
        return str(error.get("type", "error") if isinstance(error, Mapping) else error)
    status = result.get("status")
    return None if status in (None, "success") else str(status)


def _json(metrics: Mapping[str, Any]) -> str:
    return msgspec.json.format(msgspec.json.encode(metrics)).decode()
