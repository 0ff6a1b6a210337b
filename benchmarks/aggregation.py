"""Values a second that one core aggregates, and with what error and memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks import shapes
from benchmarks.harness import Plan, Report, Table, alternate, ratios, run, spread
from benchmarks.sketches import OURS, PACKAGES, QUANTILES, Sketch, others
from phase_bus.aggregation.options import WINDOW_METRICS, Options
from phase_bus.aggregation.sketch import RELATIVE_ERROR, LogHistogram
from phase_bus.aggregation.state import RunState
from phase_bus.aggregation.summary import summarize
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event, encode_event, topic_of
from phase_bus.events import Records
from phase_bus.publisher.record_builder import RecordBuilder

QUESTION = "How many values a second does a core aggregate, how exactly, in how much memory?"
_PARTITIONS = 16
_OPTIONS = Options()
_NO_WINDOWS = Options(window_metrics=())
_MERGED = 10_000  # values in each of the sketches that are merged
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
    full, large = batches_of(256), batches_of(2048)
    column = _latencies(plan.count(2_000_000))
    # Enough for every partition to be far beyond the exact limit, which only a run's beginning is not.
    small, big = max(plan.count(1600), 640), max(plan.count(200), 80)
    sides: dict[str, Callable[[], float]] = {
        "run_state_256": lambda: values_per_s(full, small),
        "run_state_no_windows": lambda: values_per_s(full, small, _NO_WINDOWS),
        "run_state_decoded": lambda: _decoded(full, small),
        "run_state_2048": lambda: values_per_s(large, big),
        "sketch_256": lambda: _sketch(column[: plan.count(512_000)], 256),
        "sketch_4096": lambda: _sketch(column, 4096),
    }
    few = column[: plan.count(100_000)]
    sides.update({other.key: partial(_speed_of, other, few) for other in others()})
    values = alternate(sides, plan)
    titles = {
        "run_state_256": "RunState.update, AIPerf-shaped batches of 256",
        "run_state_no_windows": "the same, without percentiles over time",
        "run_state_decoded": "with decoding the event",
        "run_state_2048": "RunState.update, batches of 2,048",
        "sketch_256": "our LogHistogram.update, columns of 256",
        "sketch_4096": "our LogHistogram.update, columns of 4,096",
        **{other.key: other.title for other in others()},
    }
    rows = []
    errors = {sketch.key: _error_of(sketch, plan.count(200_000)) for sketch in (OURS, *others())}
    for name, some in values.items():
        report.figures[f"{name}_values_per_s"] = spread(some)
        cells = [titles[name], spread(some).show(1e6)]
        cells.append(ratios(some, values["ddsketch"]).show() if "ddsketch" in values else "-")
        rows.append([*cells, f"{errors.get(name, errors[OURS.key]):.3%}"])
    report.tables.append(
        Table(
            "Values a second of CPU, on one core",
            ["what", "million values/s", "of ddsketch's", "largest error p50..p99.9"],
            rows,
            f"Bound on the error: {RELATIVE_ERROR:.2%}; against numpy.percentile of lognormal latencies.",
        )
    )
    report.figures["sketch_error"] = spread([errors[OURS.key]])
    if missing := sorted({*PACKAGES} - {other.package for other in others()}):
        report.notes.append(f"Not installed, so missing: {', '.join(missing)} (the extra `bench`).")


def batches_of(size: int) -> list[RecordBatch]:
    """Return one batch a partition."""
    events = [shapes.batch(size, seed=seed) for seed in range(4)]
    return [
        RecordBatch(msgspec.structs.replace(events[n % len(events)], partition=n))
        for n in range(_PARTITIONS)
    ]


def values_per_s(batches: list[RecordBatch], count: int, options: Options = _OPTIONS) -> float:
    """Return how many values a second of CPU a state takes in, of so many batches."""
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
    sketch = LogHistogram("ns")
    before_s = time.process_time()
    for start in range(0, len(column), width):
        sketch.update(column[start : start + width])
    return len(column) / (time.process_time() - before_s)


def _speed_of(sketch: Sketch, column: npt.NDArray[np.float64]) -> float:
    values = sketch.prepare(column)
    made = sketch.make()
    before_s = time.process_time()
    sketch.update(made, values)
    return len(column) / (time.process_time() - before_s)


def _error_of(sketch: Sketch, count: int) -> float:
    """Return the largest relative error of some quantiles of lognormal latencies."""
    column = _latencies(count, seed=1)
    made = sketch.make()
    sketch.update(made, sketch.prepare(column))
    found = np.asarray(sketch.quantiles(made, QUANTILES), dtype=np.float64)
    return float(np.max(np.abs(found / np.quantile(column, QUANTILES) - 1.0)))


def _merges(plan: Plan, report: Report) -> None:
    """Merging 16 sketches of one metric, and 16 partitions of a run into a summary, as a leader does."""
    sketches = (OURS, *others())
    values = alternate({sketch.key: partial(_merge_of, sketch) for sketch in sketches}, plan)
    rows = []
    for sketch in sketches:
        found = spread(values[sketch.key])
        report.figures[f"merge_{sketch.key}_us"] = found
        rows.append([sketch.title, found.show(), ratios(values[sketch.key], values[OURS.key]).show()])
    report.tables.append(
        Table(
            f"Merging {_PARTITIONS} sketches of {_MERGED:,} values each",
            ["what", "µs a sketch", "of ours"],
            rows,
        )
    )
    whole = state_of(8)
    found = spread(alternate({"merge": partial(summary_ms, whole)}, plan)["merge"])
    report.figures["merge_16_ms"] = found
    report.notes.append(f"A summary of 16 partitions, 2,048 records each: {found.show()} ms.")


def state_of(times: int) -> RunState:
    """Return the state of a run whose 16 partitions have so many batches of 256 each."""
    state = RunState(shapes.RUN_ID)
    for batch in batches_of(256) * times:
        state.update(batch)
    return state


def summary_ms(state: RunState) -> float:
    """Return how much CPU time a summary takes, in ms."""
    before_s = time.process_time()
    summarize(state)
    return (time.process_time() - before_s) * 1e3


def _merge_of(sketch: Sketch) -> float:
    parts = []
    for seed in range(_PARTITIONS):
        parts.append(sketch.make())
        sketch.update(parts[-1], sketch.prepare(_latencies(_MERGED, seed)))
    whole = sketch.make()
    before_s = time.process_time()
    for part in parts:
        sketch.merge(whole, part)
    return (time.process_time() - before_s) / _PARTITIONS * 1e6


def _memory(report: Report) -> None:
    """The size of a partition's state while exact, and at 1, 4 and 16 times the records beyond that."""
    pool = [_lognormal(seed) for seed in range(4)]
    states = [RunState(shapes.RUN_ID, options) for options in (_OPTIONS, _NO_WINDOWS)]
    rows, growth = [], []
    done = 0
    for records in (1024, 62_464, 249_856, 999_424):
        while done < records:
            batch = _timed(pool[done // 1024 % len(pool)], done)
            for state in states:
                state.update(batch)
            done += 1024
        sizes = [len(msgspec.msgpack.encode(state.to_dict())) for state in states]
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


def _timed(event: Records, first: int) -> RecordBatch:
    """Return a batch with the times of the records from a given one on."""
    builder = RecordBuilder()
    for row in range(first, first + event.count):
        builder.add({}, {"request_end_ns": _START_NS + row * 1_000_000_000 // _RATE})
    return RecordBatch(msgspec.structs.replace(event, fields=builder.build()[1]))


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
