"""The order of the modes: balanced, and the same for the same seed."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from phase_bus.verification.session import orders
from phase_bus.verification.trial import MODES


@pytest.mark.parametrize("seed", range(20))
def test_four_rounds_are_balanced(seed: int) -> None:
    """Each mode is once at each place, and comes once right after each other one."""
    rounds = list(itertools.islice(orders(seed), 12))
    for four in (rounds[:4], rounds[4:8], rounds[8:]):
        places = Counter((place, mode) for order in four for place, mode in enumerate(order))
        assert set(places.values()) == {1}
        assert len(places) == 16
        neighbours = Counter(pair for order in four for pair in itertools.pairwise(order))
        assert set(neighbours.values()) == {1}
        assert len(neighbours) == 12


def test_a_seed_gives_the_order() -> None:
    """The same seed gives the same rounds, and seeds differ."""
    first = {seed: tuple(itertools.islice(orders(seed), 4)) for seed in range(10)}
    assert all(tuple(itertools.islice(orders(seed), 4)) == rounds for seed, rounds in first.items())
    assert len(set(first.values())) > 5
    assert all(sorted(order) == sorted(MODES) for rounds in first.values() for order in rounds)
