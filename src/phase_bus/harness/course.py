"""How a phase goes from second to second: its rate, and percentiles of its latencies."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_RECENT = 10  # steps that percentiles are taken over
_KEPT = 500  # steps that a curve may have
_LEVELS = "▁▂▃▄▅▆▇█"

Parts: TypeAlias = Sequence[npt.NDArray[np.float64]]


class Course:
    """The last steps of a phase, about a second each."""

    def __init__(self, names: Iterable[str]) -> None:
        self.rates: deque[float] = deque(maxlen=_KEPT)
        self.medians: dict[str, deque[float]] = {name: deque(maxlen=_KEPT) for name in names}
        self._recent: dict[str, deque[npt.NDArray[np.float64]]] = {
            name: deque(maxlen=_RECENT) for name in self.medians
        }
        self._percentiles: dict[str, tuple[float, float] | None] = dict.fromkeys(self.medians)

    def add(self, requests: int, elapsed_s: float, latencies: Mapping[str, Parts]) -> None:
        """Add a step: how many requests ended in how many seconds, with which latencies."""
        self.rates.append(requests / elapsed_s)
        for name, parts in latencies.items():
            values = np.concatenate([np.empty(0), *parts])
            self._recent[name].append(values)
            self.medians[name].append(float(np.median(values)) if len(values) else np.nan)
            self._percentiles[name] = _percentiles(np.concatenate([*self._recent[name]]))

    def rate(self) -> float | None:
        """Return the requests a second of late, None before the first step."""
        recent = list(self.rates)[-_RECENT // 2 :]
        return sum(recent) / len(recent) if recent else None

    def percentiles(self, name: str) -> tuple[float, float] | None:
        """Return median and 99th percentile of late, None if there is nothing."""
        return self._percentiles[name]


def _percentiles(values: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    if not len(values):
        return None
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99)


def curve(values: Iterable[float], width: int) -> str:
    """Return the last values as a line of bars from 0 to the highest one; NaN is a gap."""
    shown = list(values)[-width:] if width > 0 else []
    top = max((value for value in shown if value > 0), default=1.0)
    last = len(_LEVELS) - 1
    return "".join(" " if value != value else _LEVELS[round(value / top * last)] for value in shown)
