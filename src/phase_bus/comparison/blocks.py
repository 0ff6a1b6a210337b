"""The figures of a run in successive blocks of its time, for a comparison of single runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.rates import TOKEN_METRICS, Figures
from phase_bus.aggregation.units import describe
from phase_bus.comparison.measure import Measure
from phase_bus.comparison.run import values_of
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseRef

BLOCKS = 10
"""Few, so that what happens in one of them depends little on the one before."""
_END = "request_end_ns"


class Span(NamedTuple):
    """When a phase took place, Unix time in ns."""

    phase: PhaseRef
    start_ns: int
    end_ns: int


class Blocks:
    """Counts the records of some phases by the block of time in which each request ended.

    The blocks are equally long. Phases follow one another without the pauses between them.
    """

    def __init__(self, spans: Sequence[Span], measures: Sequence[Measure]) -> None:
        self._measures = measures
        self._names = {*TOKEN_METRICS["total_token_throughput"], *(measure.metric for measure in measures)}
        self._begin_ns: dict[PhaseRef, int] = {}  # Unix time at which the blocks begin for its requests
        self._total_ns = 0
        for span in spans:
            self._begin_ns[span.phase] = span.start_ns - self._total_ns
            self._total_ns += max(span.end_ns - span.start_ns, 0)
        self._requests = np.zeros(BLOCKS, dtype=np.int64)
        self._failed = np.zeros(BLOCKS, dtype=np.int64)
        self._metrics: list[dict[str, MetricState]] = [{} for _ in range(BLOCKS)]

    def update(self, batch: RecordBatch) -> None:
        """Add a batch of records; those without an end time, or of another phase, do not count."""
        begin_ns = self._begin_ns.get(batch.phase)
        if begin_ns is None or not self._total_ns:
            return
        try:
            ends_ns, rows = batch.values(_END).astype(np.int64), batch.rows(_END)
        except KeyError:
            return
        blocks = np.full(len(batch), -1)
        blocks[rows] = np.clip((ends_ns - begin_ns) * BLOCKS // self._total_ns, 0, BLOCKS - 1)
        failed = blocks[[error.row for error in batch.errors]]
        self._requests += np.bincount(blocks[blocks >= 0], minlength=BLOCKS)
        self._failed += np.bincount(failed[failed >= 0], minlength=BLOCKS)
        for name in self._names.intersection(batch.metrics):
            of_values, values = blocks[batch.rows(name)], batch.values(name)
            for block in np.unique(of_values[of_values >= 0]).tolist():
                states = self._metrics[block]
                state = states.setdefault(name, MetricState(Options(), describe(name).unit))
                state.update(values[of_values == block])

    def values(self) -> dict[str, list[float]]:
        """Return what each measure comes to in each block, as far as there is something to measure."""
        found: dict[str, list[float]] = {}
        for requests, failed, metrics in zip(
            self._requests.tolist(), self._failed.tolist(), self._metrics, strict=True
        ):
            duration_s = self._total_ns / BLOCKS / 1e9
            figures = Figures(requests=requests, failed=failed, duration_s=duration_s, metrics=metrics)
            for key, value in values_of(figures, self._measures).items():
                found.setdefault(key, []).append(value)
        return found
