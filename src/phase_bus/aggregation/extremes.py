"""The earliest or the latest of many times, but for one far from all others: a clock may be wrong once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

SECOND_NS = 1_000_000_000
# What is kept of the times in the outermost seconds, of so many of them.
_KEPT = 8
# Times are set aside if there are no more than one of so many.
_ONE_OF = 20
# Batches that span no more seconds than these are gone through second by second, which is quicker.
_FEW = 4


class Extremes:
    """The earliest times in ns, or the latest ones. Which are kept depends on the times alone.

    Args:
        latest: whether it is the latest ones.
    """

    def __init__(self, latest: bool) -> None:
        self._latest = latest
        self._count = 0
        # By second: how many times, and the outermost of them.
        self._seconds: dict[int, tuple[int, int]] = {}

    def update(self, values: npt.NDArray[Any]) -> None:
        """Add times, shape (n,); what is negative or no number is left out."""
        if values.dtype.kind == "f":
            values = values[np.isfinite(values)].clip(-1.0, 2.0**62).astype(np.int64)
        elif values.dtype.kind != "i":
            return
        if len(values) and (low := int(np.minimum.reduce(values))) < 0:
            values = values[values >= 0]
            low = int(values.min(initial=np.iinfo(np.int64).max))
        if not len(values):
            return
        self._count += len(values)
        first = low // SECOND_NS
        if not self._latest and len(self._seconds) == _KEPT and first > max(self._seconds):
            return  # as nearly always
        high = int(np.maximum.reduce(values))
        last = high // SECOND_NS
        if first == last:
            self._add(first, len(values), high if self._latest else low)
        elif last - first < _FEW:
            for second in range(last, first - 1, -1):
                later = values >= second * SECOND_NS
                inside, values = values[later], values[~later]
                if len(inside):
                    self._add(second, len(inside), int(inside.max() if self._latest else inside.min()))
        else:
            self._add_sorted(np.sort(values))
        self._trim()

    def merge(self, others: Sequence[Extremes]) -> None:
        """Add what others have, which are left unchanged."""
        for other in others:
            self._count += other._count
            for second, (count, outermost) in other._seconds.items():
                self._add(second, count, outermost)
        self._trim()

    def outermost(self, reach_s: int | None = None, known_ns: int | None = None) -> int | None:
        """Return the earliest or latest time, None without any.

        Args:
            reach_s: leave out few times that are further than this from all others.
            known_ns: no time up to this one, on the way outwards, is too far.
        """
        seconds = sorted(self._seconds, reverse=self._latest)
        if not seconds:
            return None
        chosen, beyond = 0, 0
        for place, (second, following) in enumerate(pairwise(seconds)):
            count, outermost = self._seconds[second]
            beyond += count
            if reach_s is None or beyond * _ONE_OF > self._count:
                break
            is_known = known_ns is not None and (
                outermost <= known_ns if self._latest else outermost >= known_ns
            )
            if is_known:
                break
            if abs(second - following) > reach_s:
                chosen = place + 1
        return self._seconds[seconds[chosen]][1]

    def to_list(self) -> list[Any]:
        """Return the content for msgpack; equal content gives equal bytes."""
        return [self._count, [[second, *self._seconds[second]] for second in sorted(self._seconds)]]

    @classmethod
    def from_list(cls, latest: bool, data: Sequence[Any]) -> Extremes:
        """Return the content that :meth:`to_list` gave as ``data``."""
        extremes = cls(latest)
        extremes._count = data[0]
        extremes._seconds = {second: (count, outermost) for second, count, outermost in data[1]}
        return extremes

    def _add_sorted(self, values: npt.NDArray[np.int64]) -> None:
        seconds = values // SECOND_NS
        starts = np.flatnonzero(np.diff(seconds, prepend=-1))
        ends = np.append(starts[1:], len(values))
        outer = slice(-_KEPT, None) if self._latest else slice(0, _KEPT)
        for start, end in zip(starts[outer].tolist(), ends[outer].tolist(), strict=True):
            self._add(int(seconds[start]), end - start, int(values[end - 1 if self._latest else start]))

    def _add(self, second: int, count: int, outermost: int) -> None:
        known = self._seconds.get(second)
        if known is not None:
            count += known[0]
            outermost = max(outermost, known[1]) if self._latest else min(outermost, known[1])
        self._seconds[second] = (count, outermost)

    def _trim(self) -> None:
        while len(self._seconds) > _KEPT:
            del self._seconds[min(self._seconds) if self._latest else max(self._seconds)]
