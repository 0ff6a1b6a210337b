"""A small load generator that calls hooks and processors itself, with or without a bus.

The example plugin's four classes run inside this process, called as an orchestrator calls them: hooks as
a phase goes, processors with its results when it is over. With a bus there is one hook more, which
publishes; the same four classes can then run as processes of their own, and come to the same::

    python examples/orchestrator.py in-process

    phase-bus exec --with hook:example_logging:log_file=phases.log \\
        --with hook:example_metrics_collector:output_file=phases.json \\
        --with processor:example_metrics \\
        --with processor:example_results_aggregator:output_file=results.json -- \\
        python examples/orchestrator.py in-process

It leaves ``phases.log``, ``phases.json``, ``metrics.json`` and ``results.json`` in the directory it is
given. Its requests are made up: waits of a few milliseconds, some of which fail.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phase_bus import (
    ADDRESS_VARIABLE,
    PhaseKind,
    PhaseLifecycleHook,
    PhaseRef,
    PhaseStats,
    Publisher,
    PublisherHook,
)
from phase_bus_consumers import (
    ExampleLoggingHook,
    ExampleMetricsCollectorHook,
    ExampleMetricsProcessor,
    ExampleResultsAggregator,
)

PHASES = [("warmup", 10), ("profiling", 200)]
CONCURRENCY = 8


class Tracker:
    """Counts the requests of a phase; what hooks are given."""

    def __init__(self, expected_requests: int) -> None:
        self.sent = self.completed = self.errors = 0
        self._expected_requests = expected_requests
        self._start_ns = time.time_ns()
        self.sent_end_ns: int | None = None
        self.end_ns: int | None = None

    def create_stats(self) -> PhaseStats:
        """Return the counts at this moment."""
        return PhaseStats(
            sent=self.sent,
            completed=self.completed,
            errors=self.errors,
            in_flight=self.sent - self.completed,
            start_ns=self._start_ns,
            sent_end_ns=self.sent_end_ns,
            end_ns=self.end_ns,
            expected_requests=self._expected_requests,
        )


class Orchestrator:
    """Runs phases one after another and tells hooks and processors of them."""

    def __init__(
        self,
        hooks: Sequence[PhaseLifecycleHook],
        processors: dict[str, Any],
        publisher: Publisher | None = None,
        run_id: str = "",
    ) -> None:
        self.hooks = hooks
        self.processors = processors
        self.results: dict[str, list[dict[str, Any]]] = {}  # what each processor made of each phase
        self._publisher = publisher
        self._run_id = run_id
        self._random = random.Random(0)

    async def run(self) -> None:
        """Run all phases."""
        for index, (name, requests) in enumerate(PHASES):
            kind: PhaseKind = "warmup" if name == "warmup" else "profiling"
            await self._run_phase(PhaseRef(name, kind, index), requests)

    async def _run_phase(self, phase: PhaseRef, requests: int) -> None:
        tracker = Tracker(requests)
        results: list[dict[str, Any]] = []
        slots = asyncio.Semaphore(CONCURRENCY)
        await self._tell("on_phase_start", phase, tracker)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(requests):
                await slots.acquire()
                tracker.sent += 1
                tasks.create_task(self._request(phase, tracker, results, slots))
            tracker.sent_end_ns = time.time_ns()
            await self._tell("on_phase_sending_complete", phase, tracker)
        tracker.end_ns = time.time_ns()
        await self._tell("on_phase_complete", phase, tracker)
        for name, processor in self.processors.items():
            outcome = await processor.process(results)
            self.results.setdefault(name, []).append({"phase": phase.name, "metrics": outcome.metrics})

    async def _request(
        self, phase: PhaseRef, tracker: Tracker, results: list[dict[str, Any]], slots: asyncio.Semaphore
    ) -> None:
        began_ns = time.perf_counter_ns()
        await asyncio.sleep(self._random.uniform(0.001, 0.005))
        latency_ns = time.perf_counter_ns() - began_ns
        failed = self._random.random() < 0.05
        tracker.completed += 1
        tracker.errors += failed
        slots.release()
        error = ("ServerError", "made up", 500) if failed else None
        result = {"phase": phase.name, "latency_ms": latency_ns / 1e6, "status": "success"}
        if error is not None:
            result |= {"status": "error", "error": {"type": error[0]}}
        results.append(result)
        if self._publisher is not None:
            self._publisher.record(self._run_id, phase, {"request_latency": latency_ns}, {}, error)

    async def _tell(self, method: str, phase: PhaseRef, tracker: Tracker) -> None:
        for hook in self.hooks:
            await getattr(hook, method)(phase, tracker)


async def orchestrate(directory: Path, publisher: Publisher | None) -> None:
    """Run the benchmark with the four classes in this process, and the publisher beside them if any."""
    hooks: list[PhaseLifecycleHook] = [
        ExampleLoggingHook(log_file=directory / "phases.log"),
        ExampleMetricsCollectorHook(output_file=directory / "phases.json"),
    ]
    processors = {
        "metrics": ExampleMetricsProcessor(),
        "aggregator": ExampleResultsAggregator(output_file=directory / "results.json"),
    }
    publishing = None
    if publisher is not None:
        publishing = PublisherHook(publisher, producer="orchestrator")
        hooks.append(publishing)
    orchestrator = Orchestrator(hooks, processors, publisher, publishing.run_id if publishing else "")
    await orchestrator.run()
    if publishing is not None:
        publishing.complete()
    (directory / "metrics.json").write_text(json.dumps(orchestrator.results["metrics"], indent=2))


def main() -> None:
    """Run the benchmark; publish it if the environment names a bus."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", type=Path, help="where to leave the results")
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    if os.environ.get(ADDRESS_VARIABLE):
        with Publisher() as publisher:
            asyncio.run(orchestrate(directory, publisher))
    else:
        asyncio.run(orchestrate(directory, None))


if __name__ == "__main__":
    main()
