"""The modes of a verification, and the order in which they take their turns."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

Mode: TypeAlias = Literal["off", "on", "stalled", "killed"]

MODES: tuple[Mode, ...] = get_args(Mode)
FELT_MODES = MODES[1:]  # those that are held against the first
WHAT = {
    "off": "no bus, the plugin disabled",
    "on": "bus and consumers, as 'phase-bus exec' runs them",
    "stalled": "the first consumer suspended from before the run to its end",
    "killed": "the first consumer killed in the middle of the profiling phase",
}


def orders(seed: int) -> Iterator[tuple[Mode, ...]]:
    """Yield the order of the modes for one round after the other, without end, drawn from a seed.

    Four rounds together are a balanced Latin square: each mode is once first, second, third and last,
    and comes once right after each other mode, so that neither its place in the round nor what the mode
    before left behind favours one. Which mode has which role in the square, and the order of its rows,
    are drawn anew for each four rounds.

    Source: E. J. Williams, "Experimental designs balanced for the estimation of residual effects of
    treatments", Australian Journal of Scientific Research A 2 (1949).
    """
    drawn = random.Random(seed)
    while True:
        modes = drawn.sample(MODES, len(MODES))
        rows = _williams(len(MODES))
        drawn.shuffle(rows)
        for row in rows:
            yield tuple(modes[index] for index in row)


def _williams(size: int) -> list[list[int]]:
    """Return the Williams square of an even size, row by row."""
    first = [0]
    for step in range(1, size):
        # 0, 1, -1, 2, -2, ...: all differences of neighbours are different, modulo an even size.
        first.append((step + 1) // 2 if step % 2 else -(step // 2))
    return [[(entry + row) % size for entry in first] for row in range(size)]
