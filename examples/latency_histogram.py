"""A group consumer: its work on the request records is shared out among processes.

In a clone of the repository:

    phase-bus exec --with examples.latency_histogram:LatencyHistogram \
        --workers examples.latency_histogram:LatencyHistogram=2 -- phase-bus simulate
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeAlias

import msgspec
import numpy as np

from phase_bus import Consumer, RecordBatch, Records, RunComplete, Summary

Histogram: TypeAlias = dict[int, int]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Histogram]).decode


class LatencyHistogram(Consumer):
    """Count request latencies by powers of two of microseconds.

    Each partition of the records has an instance of this class, which counts. The leader, one more
    instance, has the other events: it adds up what the partitions have counted and publishes it.
    """

    group = "latency-histogram"

    def __init__(self) -> None:
        self.counts: dict[str, Histogram] = {}  # by run: how many, by the power of two
        self.parts: dict[int, dict[str, Histogram]] = {}  # the leader's: the same, by partition

    # ---- on the instance of a partition ----

    async def on_records(self, event: Records) -> None:
        batch = RecordBatch(event)
        if "request_latency" in batch.metrics:
            powers = np.log2(np.maximum(batch.values("request_latency") / 1000, 1)).astype(int)
            histogram = self.counts.setdefault(event.run_id, {})
            for power, count in zip(*np.unique(powers, return_counts=True), strict=True):
                histogram[int(power)] = histogram.get(int(power), 0) + int(count)

    def state(self) -> bytes:
        return _encode(self.counts)

    def restore(self, state: bytes) -> None:
        self.counts = _decode(state)

    def forget(self, run_id: str) -> None:
        self.counts.pop(run_id, None)

    # ---- on the leader ----

    async def merge(self, states: Mapping[int, bytes]) -> None:
        for partition, state in states.items():
            self.parts[partition] = _decode(state)

    async def on_run_complete(self, event: RunComplete) -> None:
        total: Counter[int] = Counter()
        for part in (*self.parts.values(), self.counts):  # its own, where it runs without a group
            total.update(part.get(event.run_id, {}))
        result = {f"up to {2 ** (power + 1)} us": total[power] for power in sorted(total)}
        self.log.info("latencies", run=event.run_id, **result)
        self.publish(Summary(run_id=event.run_id, producer=self.name, final=True, result=result))
