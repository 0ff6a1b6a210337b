"""What states are made of: packed arrays, tallies, codes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.aggregation.log_bins import SCALE, WINDOW_SCALE, bits_of, codes_of, relative_error, values_of
from phase_bus.aggregation.packing import pack_counts, pack_values, unpack_counts, unpack_values
from phase_bus.aggregation.tally import Tally

repeatable = settings(derandomize=True, deadline=None, max_examples=100, database=None)
keys = st.one_of(st.integers(-5, 300), st.integers(-(2**40), 2**40))
finite = st.floats(allow_nan=False, allow_infinity=False)


def through_msgpack(packed: list[Any]) -> list[Any]:
    result: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(packed))
    return result


@repeatable
@given(st.dictionaries(keys, st.one_of(st.integers(1, 300), st.integers(1, 2**40)), max_size=40))
def test_counts_are_read_as_they_were_written(counts: dict[int, int]) -> None:
    ordered = sorted(counts)
    numbers = [np.array(some, dtype=np.int64) for some in (ordered, [counts[key] for key in ordered])]
    read = unpack_counts(through_msgpack(pack_counts(*numbers)))
    assert [array.tolist() for array in read] == [array.tolist() for array in numbers]


def test_counts_are_packed_in_the_shorter_of_two_ways() -> None:
    def size(keys: list[int]) -> int:
        array = np.array(keys, dtype=np.int64)
        return len(msgspec.msgpack.encode(pack_counts(array, np.ones(len(keys), dtype=np.int64))))

    assert size(list(range(1000))) < 1_020
    assert size(list(range(0, 100_000, 100))) < 2_020
    assert size([0, 10**12]) < 40


@repeatable
@given(st.one_of(st.lists(finite), st.lists(st.integers(0, 2**33).map(float)), st.lists(st.just(0.5))))
def test_values_are_read_as_they_were_written(values: list[float]) -> None:
    packed = through_msgpack(pack_values(np.array(values, dtype=np.float64)))
    assert unpack_values(packed).tolist() == values


@pytest.mark.parametrize(
    ("value", "size"), [(200.0, 1), (60_000.0, 2), (3e9, 4), (0.5, 4), (-7.0, 4), (0.1, 8), (1e300, 8)]
)
def test_values_are_packed_in_a_small_type(value: float, size: int) -> None:
    assert len(pack_values(np.full(100, value))[2]) == 100 * size


@repeatable
@given(st.lists(st.lists(keys, max_size=30), max_size=5), keys, keys)
def test_a_tally_counts_like_a_counter(parts: list[list[int]], start: int, end: int) -> None:
    tally, counter = Tally(), Counter[int]()
    for part in parts:
        tally.add(np.array(part, dtype=np.int64))
        counter.update(part)
    expected = sorted(counter.items())
    assert list(zip(tally.keys.tolist(), tally.counts.tolist(), strict=True)) == expected
    rest = tally.between(start, end)
    inside = [pair for pair in expected if start <= pair[0] < end]
    assert list(zip(rest.keys, rest.counts, strict=True)) == inside
    both = Tally.union([tally, rest])
    assert int(both.counts.sum()) == int(tally.counts.sum() + rest.counts.sum())


@pytest.mark.parametrize("scale", [WINDOW_SCALE, SCALE])
@repeatable
@given(values=st.lists(finite, min_size=1))
def test_codes_keep_the_order_and_the_value_within_the_error(scale: int, values: list[float]) -> None:
    ordered = np.sort(np.array(values))
    codes = codes_of(ordered, scale=scale)
    assert (np.diff(codes) >= 0).all()
    assert codes.min() >= 0
    assert codes.max() < 1 << bits_of(scale)
    # A denormal has too few bits for that error: there it is one unit in the last place.
    bound = relative_error(scale) * np.abs(ordered) * (1 + 1e-9) + 5e-324
    assert (np.abs(values_of(codes, scale=scale) - ordered) <= bound).all()
