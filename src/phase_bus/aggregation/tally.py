"""Counts of integers that are far apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phase_bus.aggregation.packing import IntArray

_NONE: IntArray = np.empty(0, dtype=np.int64)


class Tally:
    """How often each of some integers was added: the ascending keys, and a count for each.

    It suits keys that grow with time: only what lies beyond the smallest new key is sorted again.
    """

    def __init__(self, keys: IntArray = _NONE, counts: IntArray = _NONE) -> None:
        self._keys, self._counts = keys, counts  # of which the first _size are used
        self._size = len(keys)

    @classmethod
    def of(cls, keys: IntArray, counts: IntArray) -> Tally:
        """Return a tally of keys in any order, shape (n,), and the count of each."""
        return cls(*_sums(keys, counts))

    @classmethod
    def union(cls, tallies: Sequence[Tally]) -> Tally:
        """Return the sum of tallies, at least one."""
        return cls.of(
            np.concatenate([tally.keys for tally in tallies]),
            np.concatenate([tally.counts for tally in tallies]),
        )

    @property
    def keys(self) -> IntArray:
        """The ascending keys."""
        return self._keys[: self._size]

    @property
    def counts(self) -> IntArray:
        """How often each key was counted."""
        return self._counts[: self._size]

    def add(self, keys: IntArray) -> None:
        """Count keys in any order, shape (n,), each once."""
        if not len(keys):
            return
        ordered = np.sort(keys)
        starts = _starts(ordered)
        keys, counts = ordered[starts], np.diff(starts, append=len(ordered))
        start = int(np.searchsorted(self.keys, keys[0]))
        if start < self._size:
            keys, counts = _sums(
                np.concatenate([self._keys[start : self._size], keys]),
                np.concatenate([self._counts[start : self._size], counts]),
            )
        self._size = start + len(keys)
        if self._size > len(self._keys):
            room = np.empty(2 * self._size - start, dtype=np.int64)
            self._keys = np.concatenate([self._keys[:start], room])
            self._counts = np.concatenate([self._counts[:start], room])
        self._keys[start : self._size], self._counts[start : self._size] = keys, counts

    def between(self, first: int, end: int) -> Tally:
        """Return a tally of the keys from ``first`` on that are below ``end``."""
        start, stop = np.searchsorted(self.keys, [first, end])
        return Tally(self.keys[start:stop].copy(), self.counts[start:stop].copy())


def _starts(ordered: IntArray) -> IntArray:
    """Return where each new number begins in an ascending array that is not empty."""
    new = np.empty(len(ordered), dtype=np.bool_)
    new[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return np.flatnonzero(new)


def _sums(keys: IntArray, counts: IntArray) -> tuple[IntArray, IntArray]:
    """Return keys in ascending order without repetitions, with their counts summed."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")  # quick where it is made of ascending pieces
    keys = keys[order]
    starts = _starts(keys)
    return keys[starts], np.add.reduceat(counts[order], starts)
