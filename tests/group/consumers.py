"""Consumers that are shared out between the members of a group, for tests to check afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from phase_bus.consumer.consumer import Consumer
from phase_bus.core.records import RecordBatch
from phase_bus.events import PhaseStart, Records, RunComplete, Summary


class Totals(Consumer):
    """Count the records and add up their numbers; the leader publishes the totals at the run's end."""

    group = "totals"

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}  # by run: records, and the sum of their numbers
        self.parts: dict[int, dict[str, list[int]]] = {}
        self.phases = 0
        self.forgotten: list[str] = []

    def state(self) -> bytes:
        return msgspec.msgpack.encode((self.counts, self.phases))

    def restore(self, state: bytes) -> None:
        self.counts, self.phases = msgspec.msgpack.decode(state, type=tuple[dict[str, list[int]], int])

    async def merge(self, states: Mapping[int, bytes]) -> None:
        assert self.partition is None
        assert list(states) == sorted(states)
        for partition, state in states.items():
            counts, _ = msgspec.msgpack.decode(state, type=tuple[dict[str, list[int]], int])
            self.parts[partition] = counts

    def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)
        self.counts.pop(run_id, None)

    async def on_phase_start(self, event: PhaseStart) -> None:
        assert self.partition is None
        self.phases += 1

    async def on_records(self, event: Records) -> None:
        assert self.partition == event.partition
        counts = self.counts.setdefault(event.run_id, [0, 0])
        counts[0] += event.count
        counts[1] += int(RecordBatch(event).values("n").sum())

    async def on_run_complete(self, event: RunComplete) -> None:
        assert self.partition is None
        mine = [part[event.run_id] for part in self.parts.values() if event.run_id in part]
        records, numbers = sum(count for count, _ in mine), sum(total for _, total in mine)
        result = {"records": records, "sum": numbers, "phases": self.phases}
        final = records == event.records
        self.publish(Summary(run_id=event.run_id, producer=self.name, final=final, result=result))
