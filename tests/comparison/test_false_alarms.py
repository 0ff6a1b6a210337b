"""How often a difference is found that is not there, and one that is: the benchmark, with a fixed seed."""

from __future__ import annotations

from statistics import fmean

import numpy as np
import pytest

from benchmarks.verdicts import MACHINES, comparisons, draw, is_alarm

COMPARISONS = 1000


@pytest.mark.slow
def test_equal_sides_differ_in_at_most_5_percent_and_slower_ones_are_found() -> None:
    usual = next(machine for machine in MACHINES if machine.name == "usual")
    drawn = draw(usual, 6 * COMPARISONS, np.random.default_rng(5))
    few = [is_alarm(found) for found in comparisons(drawn, (3, 3))]
    assert len(few) == COMPARISONS
    assert fmean(few) <= 0.05
    assert fmean(is_alarm(found) for found in comparisons(drawn, (5, 5))) <= 0.05
    slower = [found.verdict == "regressed" for found in comparisons(drawn, (5, 5), factor=1.05)]
    assert fmean(slower) >= 0.9
