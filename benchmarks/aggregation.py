"""Values a second that one core aggregates, and with what error and memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks import shapes
from benchmarks.harness import Plan, Report, Table, alternate, installed, ratios, run, spread
from phase_bus.aggregation.options import WINDOW_METRICS, Options
from phase_bus.aggregation.sketch import DDSketch
from phase_bus.aggregation.state import RunState
from phase_bus.aggregation.summary import summarize
from phase_bus.events import Records
from phase_bus.record_builder import RecordBuilder
from phase_bus.records import RecordBatch
from phase_bus.wire import decode_event, encode_event, topic_of

QUESTION = "How many values a second does a core aggregate, how exactly, in how much memory?"
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_ERROR = 0.005
_PARTITIONS = 16
_OPTIONS = Options()
_NO_WINDOWS = Options(window_metrics=())
# Of the state whose size is measured: its metrics, and its records a second.
_METRICS = 25
_RATE = 100
_START_NS = 1_795_354_391_000_000_000


def main() -> Report:
    """Measure, print, return."""
    return run("aggregation", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    _speed(plan, report)
    _merges(plan, report)
    _memory(report)


def _latencies(count: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).lognormal(np.log(50e6), 0.6, count)


def _speed(plan: Plan, report: Report) -> None:
    full, large = _batches(256), _batches(2048)
    column = _latencies(plan.count(2_000_000))
    # Enough for every partition to be far beyond the exact limit, which only a run's beginning is not.
    small, big = max(plan.count(1600), 640), max(plan.count(200), 80)
    sides: dict[str, Callable[[], float]] = {
        "run_state_256": lambda: _run_state(full, small),
        "run_state_no_windows": lambda: _run_state(full, small, _NO_WINDOWS),
        "run_state_decoded": lambda: _decoded(full, small),
        "run_state_2048": lambda: _run_state(large, big),
        "sketch_256": lambda: _sketch(column[: plan.count(512_000)], 256),
        "sketch_4096": lambda: _sketch(column, 4096),
    }
    package = _package(column[: plan.count(100_000)])
    if package is not None:
        sides["ddsketch"] = package
    values = alternate(sides, plan)
    titles = {
        "run_state_256": "RunState.update, AIPerf-shaped batches of 256",
        "run_state_no_windows": "the same, without percentiles over time",
        "run_state_decoded": "with decoding the event",
        "run_state_2048": "RunState.update, batches of 2,048",
        "sketch_256": "our DDSketch.update, columns of 256",
        "sketch_4096": "our DDSketch.update, columns of 4,096",
        "ddsketch": "the ddsketch package, value by value",
    }
    rows = []
    errors = _errors(plan.count(200_000))
    for name, some in values.items():
        report.figures[f"{name}_values_per_s"] = spread(some)
        cells = [titles[name], spread(some).show(1e6)]
        cells.append(ratios(some, values["ddsketch"]).show() if "ddsketch" in values else "-")
        error = errors.get("package" if name == "ddsketch" else "ours")
        cells.append("-" if error is None else f"{error:.3%}")
        rows.append(cells)
    report.tables.append(
        Table(
            "Values a second of CPU, on one core",
            ["what", "million values/s", "of ddsketch's", "largest error p50..p99.9"],
            rows,
            f"Bound on the error: {_ERROR:.1%}; against numpy.percentile of lognormal latencies.",
        )
    )
    report.figures["sketch_error"] = spread([errors["ours"]])
    if package is None:
        report.notes.append("The ddsketch package is not installed: that side is missing.")


def _batches(size: int) -> list[RecordBatch]:
    """Return one batch a partition."""
    events = [shapes.batch(size, seed=seed) for seed in range(4)]
    return [
        RecordBatch(msgspec.structs.replace(events[n % len(events)], partition=n))
        for n in range(_PARTITIONS)
    ]


def _run_state(batches: list[RecordBatch], count: int, options: Options = _OPTIONS) -> float:
    state = RunState(shapes.RUN_ID, options)
    before_s = time.process_time()
    for number in range(count):
        state.update(batches[number % len(batches)])
    spent_s = time.process_time() - before_s
    return count * _values(batches[0]) / spent_s


def _decoded(batches: list[RecordBatch], count: int) -> float:
    encoded = [(topic_of(batch.event), encode_event(batch.event)) for batch in batches]
    state = RunState(shapes.RUN_ID)
    before_s = time.process_time()
    for number in range(count):
        event = decode_event(*encoded[number % len(encoded)])
        state.update(RecordBatch(event))  # type: ignore[arg-type]
    spent_s = time.process_time() - before_s
    return count * _values(batches[0]) / spent_s


def _values(batch: RecordBatch) -> int:
    return sum(len(batch.values(name)) for name in batch.metrics)


def _sketch(column: npt.NDArray[np.float64], width: int) -> float:
    sketch = DDSketch(_ERROR)
    before_s = time.process_time()
    for start in range(0, len(column), width):
        sketch.update(column[start : start + width])
    return len(column) / (time.process_time() - before_s)


def _package(column: npt.NDArray[np.float64]) -> Callable[[], float] | None:
    package = installed("ddsketch")
    if package is None:
        return None
    values = column.tolist()

    def side() -> float:
        add = package.DDSketch(_ERROR).add
        before_s = time.process_time()
        for value in values:
            add(value)
        return len(values) / (time.process_time() - before_s)

    return side


def _errors(count: int) -> dict[str, float]:
    column = _latencies(count, seed=1)
    exact = np.quantile(column, QUANTILES)
    ours = DDSketch(_ERROR)
    ours.update(column)
    found = {"ours": float(np.max(np.abs(ours.quantiles(QUANTILES) / exact - 1.0)))}
    package = installed("ddsketch")
    if package is None:
        return found
    theirs = package.DDSketch(_ERROR)
    for value in column.tolist():
        theirs.add(value)
    got = np.array([theirs.get_quantile_value(q) for q in QUANTILES], dtype=np.float64)
    return {**found, "package": float(np.max(np.abs(got / exact - 1.0)))}


def _merges(plan: Plan, report: Report) -> None:
    """Merging 16 partitions of a run into a summary, as the leader of a group does."""
    whole = RunState(shapes.RUN_ID)
    for batch in _batches(256) * 8:
        whole.update(batch)

    def merge() -> float:
        before_s = time.process_time()
        summarize(whole)
        return (time.process_time() - before_s) * 1e3

    found = spread(alternate({"merge": merge}, plan)["merge"])
    report.figures["merge_16_ms"] = found
    report.notes.append(f"A summary of 16 partitions, 2,048 records each: {found.show()} ms.")


def _memory(report: Report) -> None:
    """The size of a partition's state while exact, and at 1, 4 and 16 times the records beyond that."""
    pool = [_lognormal(seed) for seed in range(4)]
    rows, growth = [], []
    for records in (1024, 62_464, 249_856, 999_424):
        sizes = [_size(pool, records, options) for options in (_OPTIONS, _NO_WINDOWS)]
        growth.append(sizes[1])
        rows.append([f"{records:,}", *(f"{size / 1024:,.0f}" for size in sizes)])
    report.figures["memory_growth_16x"] = spread([growth[3] / growth[1]])
    report.tables.append(
        Table(
            f"Size of one partition's state, {_METRICS} metrics of lognormal values",
            ["records", "KiB", "KiB without percentiles over time"],
            rows,
            f"{_RATE} records a second; four metrics have percentiles over time, in 600 windows at most.",
        )
    )


def _size(pool: list[Records], records: int, options: Options) -> int:
    state = RunState(shapes.RUN_ID, options)
    for first in range(0, records, 1024):
        builder = RecordBuilder()
        for row in range(first, first + 1024):
            builder.add({}, {"request_end_ns": _START_NS + row * 1_000_000_000 // _RATE})
        event = msgspec.structs.replace(pool[first // 1024 % len(pool)], fields=builder.build()[1])
        state.update(RecordBatch(event))
    return len(msgspec.msgpack.encode(state.to_dict()))


def _lognormal(seed: int) -> Records:
    """Return 1,024 records in whose metrics no two values are equal: the worst case."""
    builder = RecordBuilder()
    names = [*WINDOW_METRICS, *(f"metric_{n}" for n in range(_METRICS - len(WINDOW_METRICS)))]
    columns = [_latencies(1024, seed=seed * _METRICS + n).tolist() for n in range(_METRICS)]
    for values in zip(*columns, strict=True):
        builder.add(dict(zip(names, values, strict=True)), {})
    return Records(run_id=shapes.RUN_ID, phase=shapes.PHASE, count=1024, metrics=builder.build()[0])


if __name__ == "__main__":
    main()
