"""Memory and CPU of the publisher, the bus and its consumers, while a run goes on at a steady rate."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import peers, shapes
from benchmarks.harness import Child, Plan, Report, Table, cpu_s, directory, run, spread
from phase_bus.events import PhaseProgress, PhaseStats
from phase_bus.publisher.publisher import Publisher
from phase_bus_consumers.aggregator import ResultsAggregator
from phase_bus_consumers.logging import PhaseLogger
from phase_bus_consumers.metrics import PhaseMetrics

QUESTION = "How much memory and CPU do the bus and its consumers take as a run goes on?"
_RATE = 4000  # records a second
_TURN_S = 0.02  # records are handed over in turns of so long, with one phase_progress event
_DURATION_S = 64.0  # in the full form
_MOMENTS = (1, 2, 4, 8, 12, 16)  # sixteenths of the run
_POOL = 1024


class Moment(NamedTuple):
    """How a process is at one moment: its resident memory in MB, and its CPU time so far in s."""

    memory_mb: float
    cpu_s: float


def main() -> Report:
    """Measure, print, return."""
    return run("resources", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    duration_s = max(_DURATION_S * plan.scale, 4.0)
    times_s = [0.0, *(duration_s * part / _MOMENTS[-1] for part in _MOMENTS)]
    with ExitStack() as stack:
        where = Path(stack.enter_context(directory()))
        address = f"ipc://{where}"
        bus = stack.enter_context(Child(peers.bus, address))
        bus.ready()
        sinks = {
            "metrics": Child(peers.consumer, PhaseMetrics, address, where / "metrics.json"),
            "logging": Child(peers.consumer, PhaseLogger, address, where / "log.txt"),
            "aggregator": Child(peers.consumer, ResultsAggregator, address, None),
        }
        for child in sinks.values():
            stack.enter_context(child).ready()
        pids = {"benchmark": os.getpid(), "bus": bus.pid, **{name: c.pid for name, c in sinks.items()}}
        with Publisher(address) as publisher:
            found = _watch(publisher, pids, times_s)
    _tell(report, found, times_s)


def _watch(publisher: Publisher, pids: dict[str, int], times_s: list[float]) -> dict[str, list[Moment]]:
    """Publish at the rate, and look at every process at the given times."""
    pool = shapes.records(_POOL)
    found: dict[str, list[Moment]] = {name: [] for name in pids}
    started_s = time.monotonic()
    sent = 0
    for until_s in times_s:
        while (now_s := time.monotonic() - started_s) < until_s:
            for metrics, fields, error in pool[: min(int(now_s * _RATE) - sent, _POOL)]:
                publisher.record(shapes.RUN_ID, shapes.PHASE, metrics, fields, error)
                sent += 1
            stats = PhaseStats(sent=sent)
            publisher.publish(PhaseProgress(run_id=shapes.RUN_ID, phase=shapes.PHASE, stats=stats))
            time.sleep(_TURN_S)
        for name, pid in pids.items():
            found[name].append(Moment(psutil.Process(pid).memory_info().rss / 1e6, cpu_s(pid)))
    return found


def _tell(report: Report, found: dict[str, list[Moment]], times_s: list[float]) -> None:
    rows = []
    for place, ((before_s, at_s), share) in enumerate(zip(pairwise(times_s), _MOMENTS, strict=True), 1):
        cells = [f"{share}x", f"{at_s:.1f}", f"{at_s * _RATE:,.0f}"]
        for moments in found.values():
            cpu = (moments[place].cpu_s - moments[place - 1].cpu_s) / (at_s - before_s)
            cells.append(f"{moments[place].memory_mb:.0f} / {cpu:.1%}")
        rows.append(cells)
    report.tables.append(
        Table(
            f"A run of {_RATE:,} records/s and {1 / _TURN_S:.0f} phase events/s",
            ["load", "s", "records", *found],
            rows,
            "Resident MB / CPU of one core since the row before. The benchmark's: with the making of the "
            "load, but no load generator.",
        )
    )
    for name, moments in found.items():
        report.figures[f"memory_{name}_growth_16x"] = spread([moments[-1].memory_mb / moments[1].memory_mb])
        busy = (moments[-1].cpu_s - moments[0].cpu_s) / (times_s[-1] * _RATE) * 1e6
        report.figures[f"cpu_{name}_us_a_record"] = spread([busy])


if __name__ == "__main__":
    main()
