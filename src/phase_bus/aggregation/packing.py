"""Compact encodings of arrays, for states that are written to the journal every second.

Equal content gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def pack_counts(keys: IntArray, counts: IntArray) -> list[Any]:
    """Return ascending keys, shape (n,), and how often each was counted (at least once) for msgpack.

    That is the first key and either each key's count and distance to the key before, or a count for
    every key from the first to the last, whichever is shorter.
    """
    if not len(keys):
        return []
    first, span = int(keys[0]), int(keys[-1] - keys[0]) + 1
    packed = _pack_whole(counts)
    distances = _pack_whole(np.diff(keys))
    if span * packed[0] > len(packed[1]) + len(distances[1]):
        return [first, *packed, *distances]
    dense = np.zeros(span, dtype=np.int64)
    dense[keys - first] = counts
    return [first, *_pack_whole(dense)]


def unpack_counts(packed: Sequence[Any]) -> tuple[IntArray, IntArray]:
    """Return the keys and counts that :func:`pack_counts` packed."""
    if not packed:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    first, counts = int(packed[0]), _unpack_whole(packed[1:3])
    if len(packed) > 3:
        return np.concatenate([[first], first + np.cumsum(_unpack_whole(packed[3:]))]), counts
    places = np.flatnonzero(counts)
    return places + first, counts[places]


def pack_values(values: FloatArray) -> list[Any]:
    """Return finite numbers, shape (n,), for msgpack, in the smallest type that holds them exactly."""
    values = values + 0.0  # -0.0 becomes 0.0
    if len(values) and values.min() >= 0.0 and values.max() < 2**32 and (values == np.floor(values)).all():
        return ["u", *_pack_whole(values.astype(np.int64))]
    with np.errstate(over="ignore"):
        single = values.astype("<f4")
    if (single == values).all():
        return ["f", 4, single.tobytes()]
    return ["f", 8, values.astype("<f8").tobytes()]


def unpack_values(packed: Sequence[Any]) -> FloatArray:
    """Return the numbers that :func:`pack_values` packed."""
    kind, size, data = packed
    return np.frombuffer(data, f"<{kind}{size}").astype(np.float64)


def _pack_whole(numbers: IntArray) -> list[Any]:
    """Return non-negative whole numbers as the size of each in bytes, and the bytes."""
    largest = int(numbers.max()) if len(numbers) else 0
    size = next(size for size in (1, 2, 4, 8) if largest < 1 << 8 * size)
    return [size, numbers.astype(f"<u{size}").tobytes()]


def _unpack_whole(packed: Sequence[Any]) -> IntArray:
    size, data = packed
    return np.frombuffer(data, f"<u{size}").astype(np.int64)
