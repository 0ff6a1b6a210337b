"""Windows over time: the right numbers in the right window, however records come and states are merged."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.aggregation import windows as windows_module
from phase_bus.aggregation.log_bins import WINDOW_ERROR
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.windows import MAX_WINDOWS, Group, Windows
from phase_bus.core.records import RecordBatch
from phase_bus.core.values import ListMode
from phase_bus.events import PhaseRef, Records
from phase_bus.publisher.record_builder import RecordBuilder

T0_S = 1_795_354_391
METRIC = "request_latency"
BOUND = WINDOW_ERROR * (1 + 1e-9)

repeatable = settings(derandomize=True, deadline=None, max_examples=60, database=None)
# Seconds after T0 at which a request ended, and its latency; no latency is a failure, no time none.
requests = st.lists(
    st.tuples(
        st.one_of(st.none(), st.floats(0, 30), st.floats(0, 5_000)),
        st.one_of(st.none(), st.floats(), st.sampled_from([0.0, -3.5, 7e6, 5e-324, 1.7e308])),
    ),
    max_size=30,
)


def batch_of(rows: list[tuple[Any, Any]], lists: ListMode = "summary") -> RecordBatch:
    builder = RecordBuilder(lists)
    for at_s, value in rows:
        end_ns = None if at_s is None else T0_S * 10**9 + round(at_s * 1e9)
        error = ("TimeoutError", "", None) if value is None else None
        builder.add({} if value is None else {METRIC: value}, {"request_end_ns": end_ns}, error)
    metrics, fields, errors, _ = builder.build()
    event = Records(
        run_id="r", phase=PhaseRef("p"), count=len(rows), metrics=metrics, fields=fields, errors=errors
    )
    return RecordBatch(event)


def windows_of(*parts: list[tuple[Any, Any]], options: Options = Options()) -> Windows:  # noqa: B008 - frozen
    windows = Windows(options)
    for rows in parts:
        windows.update(batch_of(rows))
    return windows


def columns_of(*parts: list[tuple[Any, Any]]) -> dict[str, Any]:
    columns = windows_of(*parts).columns()
    assert columns is not None
    return columns


def encoded(windows: Windows) -> bytes:
    return msgspec.msgpack.encode(windows.to_dict())


def read_again(windows: Windows) -> Windows:
    return Windows.from_dict(msgspec.msgpack.decode(encoded(windows)), Options())


def merged(*parts: Windows) -> Windows:
    result = read_again(parts[0])
    result.merge(*parts[1:])
    return result


def test_requests_failures_and_percentiles_are_in_the_window_of_the_requests_end() -> None:
    columns = columns_of([(0.2, 100.0), (0.9, 300.0), (1.0, None), (3.5, 50.0), (3.6, None), (None, 1.0)])
    assert columns["width_s"] == 1.0
    assert columns["start_ns"] == T0_S * 10**9
    assert columns["requests"] == [2, 1, 0, 2]
    assert columns["failed"] == [0, 1, 0, 1]
    assert columns["throughput"] == [2.0, 0.0, 0.0, 1.0]
    assert columns["unplaced"] == 1
    metric = columns["metrics"][METRIC]
    assert metric["count"] == [2, 0, 0, 1]
    assert metric["p50"] == [pytest.approx(200.0, rel=BOUND), None, None, pytest.approx(50.0, rel=BOUND)]
    assert metric["p99"] == [pytest.approx(298.0, rel=BOUND), None, None, pytest.approx(50.0, rel=BOUND)]
    assert msgspec.json.decode(msgspec.json.encode(columns)) == columns


@pytest.mark.parametrize(
    "shape", ["lognormal", "bimodal", "heavy-tailed", "both signs", "zeros", "integers"]
)
def test_percentiles_are_within_the_error_of_the_exact_ones(shape: str) -> None:
    rng = np.random.default_rng(5)
    values = {
        "lognormal": rng.lognormal(17, 1, 4_000),
        "bimodal": np.concatenate([rng.normal(1e6, 1e4, 3_000), rng.normal(3e9, 1e7, 1_000)]),
        "heavy-tailed": (rng.pareto(0.7, 4_000) + 1) * 1e3,
        "both signs": rng.normal(0, 1e6, 4_000),
        "zeros": np.where(rng.random(4_000) < 0.3, 0.0, rng.lognormal(10, 1, 4_000)),
        "integers": rng.integers(1, 10**10, 4_000),
    }[shape]
    at_s = rng.uniform(0, 4, 4_000)
    metric = columns_of(list(zip(at_s.tolist(), values.tolist(), strict=True)))["metrics"][METRIC]
    for window in range(4):
        inside = values[(at_s >= window) & (at_s < window + 1)]
        assert metric["count"][window] == len(inside)
        for name, p in (("p50", 50), ("p99", 99)):
            exact = np.percentile(inside, p)
            near = np.percentile(inside, p, method="higher"), np.percentile(inside, p, method="lower")
            slack = max(map(abs, near)) if near[1] < 0 < near[0] else abs(exact)
            assert abs(metric[name][window] - exact) <= slack * BOUND


def test_late_records_are_counted_in_the_right_window() -> None:
    on_time = [(n / 10, 10.0 + n) for n in range(100)]
    late, rest = on_time[::7], [row for n, row in enumerate(on_time) if n % 7]
    windows = windows_of(rest)
    assert windows.columns() is not None  # somebody has looked before they came
    windows.update(batch_of(late[::-1]))
    assert encoded(windows) == encoded(windows_of(on_time))


@repeatable
@given(requests, st.lists(st.integers(0, 30), max_size=4), st.booleans())
def test_neither_batches_nor_readers_nor_checkpoints_leave_a_trace(
    rows: list[tuple[Any, Any]], cuts: list[int], look: bool
) -> None:
    windows = Windows()
    edges = [0, *sorted(cuts), len(rows)]
    for start, end in pairwise(edges):
        windows.update(batch_of(rows[start:end]))
        if look:
            windows.columns()
            windows = read_again(windows)
    assert encoded(windows) == encoded(windows_of(rows)) == encoded(windows_of(rows[::-1]))


@repeatable
@given(requests, requests, requests)
def test_merging_is_exactly_associative_and_commutative(
    a: list[tuple[Any, Any]], b: list[tuple[Any, Any]], c: list[tuple[Any, Any]]
) -> None:
    x, y, z = windows_of(a), windows_of(b), windows_of(c)
    before = [encoded(w) for w in (x, y, z)]
    whole = encoded(windows_of(a, b, c))
    assert encoded(merged(x, y, z)) == whole
    assert encoded(merged(x, merged(y, z))) == whole
    assert encoded(merged(merged(z, y), x)) == whole
    assert [encoded(w) for w in (x, y, z)] == before


@repeatable
@given(requests, requests, st.integers(1, 40))
def test_the_recent_windows_are_the_end_of_all_windows(
    a: list[tuple[Any, Any]], b: list[tuple[Any, Any]], recent: int
) -> None:
    groups = [Group([windows_of(a), windows_of(b)])]
    everything = Windows.for_reading(Options(), groups).columns()
    last = Windows.for_reading(Options(), groups, recent).columns()
    if everything is None:
        assert last is None
        return
    assert last is not None
    assert (last["width_s"], last["unplaced"]) == (everything["width_s"], everything["unplaced"])
    for name in ("requests", "failed", "throughput"):
        assert last[name] == everything[name][-recent:]
    end_ns = [c["start_ns"] + len(c["requests"]) * c["width_s"] * 1e9 for c in (last, everything)]
    assert end_ns[0] == end_ns[1]
    for name, metric in everything["metrics"].items():
        assert last["metrics"][name] == {key: column[-recent:] for key, column in metric.items()}


def test_windows_double_their_width_when_they_become_too_many() -> None:
    start_s = -(T0_S % 8)  # so that the windows of all widths begin here
    assert columns_of([(start_s, 1.0), (start_s + MAX_WINDOWS - 1, 1.0)])["width_s"] == 1.0
    assert columns_of([(start_s, 1.0), (start_s + MAX_WINDOWS, 1.0)])["width_s"] == 2.0
    rows = [(start_s + n, float(1 + n % 5)) for n in range(4 * MAX_WINDOWS)]
    columns = columns_of(rows[::2], rows[1::2])
    assert columns["width_s"] == 4.0
    assert columns["start_ns"] == (T0_S + start_s) * 10**9
    assert columns["requests"] == [4] * MAX_WINDOWS
    assert columns["throughput"] == [1.0] * MAX_WINDOWS
    wide, narrow = windows_of(rows), windows_of(rows[:100])
    assert (
        encoded(merged(wide, narrow))
        == encoded(merged(narrow, wide))
        == encoded(windows_of(rows, rows[:100]))
    )


def test_windows_begin_at_whole_multiples_of_their_width() -> None:
    columns = columns_of([(n, 1.0) for n in range(0, 10 * MAX_WINDOWS, 7)])
    assert columns["start_ns"] % (columns["width_s"] * 1e9) == 0
    assert len(columns["requests"]) <= MAX_WINDOWS


def test_memory_does_not_grow_with_the_length_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows_module, "MAX_WINDOWS", 50)
    rng = np.random.default_rng(1)
    windows, sizes = Windows(), []
    for hour in range(24):
        at_s, values = rng.uniform(hour * 3600, hour * 3600 + 3600, 500), rng.uniform(1.0, 1.3, 500)
        windows.update(batch_of(list(zip(at_s.tolist(), values.tolist(), strict=True))))
        sizes.append(len(encoded(windows)))
    columns = windows.columns()
    assert columns is not None
    assert len(columns["requests"]) <= 50
    assert max(sizes) < 50 * 10 * 2  # windows, bins, bytes
    assert sizes[-1] < 2 * sizes[3]


@pytest.mark.parametrize("at_s", [-T0_S - 1.0, -T0_S, None, math.nan, math.inf, -math.inf])
def test_a_time_that_is_none_is_unplaced(at_s: float | None) -> None:
    windows = Windows()
    builder = RecordBuilder()
    end: Any = at_s if at_s is None or not math.isfinite(at_s) else round((T0_S + at_s) * 1e9)
    builder.add({METRIC: 5}, {"request_end_ns": end})
    builder.add({METRIC: 7}, {"request_end_ns": T0_S * 10**9})
    metrics, fields, _, _ = builder.build()
    windows.update(
        RecordBatch(Records(run_id="r", phase=PhaseRef("p"), count=2, metrics=metrics, fields=fields))
    )
    result = windows.columns()
    assert result is not None
    assert (result["requests"], result["unplaced"], result["metrics"][METRIC]["count"]) == ([1], 1, [1])


def test_without_any_time_there_are_no_windows() -> None:
    windows = windows_of([(None, 5.0)] * 3)
    assert windows.columns() is None
    assert windows.unplaced == 3
    assert merged(windows, windows).columns() is None


def test_strange_values_are_in_no_window() -> None:
    columns = columns_of([(0.1, math.nan), (0.2, math.inf), (0.3, 4.0)])
    assert (columns["requests"], columns["metrics"][METRIC]["count"]) == ([3], [1])


def test_which_metrics_have_windows_is_a_choice() -> None:
    builder = RecordBuilder("full")
    builder.add({"mine": 3, METRIC: 5, "chunks": [1, 2, 3], "model": "m"}, {"request_end_ns": T0_S * 10**9})
    metrics, fields, _, _ = builder.build()
    batch = RecordBatch(Records(run_id="r", phase=PhaseRef("p"), count=1, metrics=metrics, fields=fields))
    for wanted, expected in (
        (("mine", "model", "nothing"), ["mine"]),
        (("*",), ["mine", METRIC]),  # a list has none
        ((), []),
    ):
        windows = Windows(Options(window_metrics=wanted))
        windows.update(batch)
        result = windows.columns()
        assert result is not None
        assert sorted(result["metrics"]) == sorted(expected)
