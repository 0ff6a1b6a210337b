"""Whether one side of runs is slower than another, and how sure that is."""

from phase_bus.comparison.comparison import Compared, Comparison, LeftOut, Side, Word, compare
from phase_bus.comparison.difference import ASPECTS, Difference, NotComparableError
from phase_bus.comparison.measure import DEFAULT_MEASURES, Measure, parse_measures
from phase_bus.comparison.run import Aspect, MeasuredRun

__all__ = [
    "ASPECTS",
    "DEFAULT_MEASURES",
    "Aspect",
    "Compared",
    "Comparison",
    "Difference",
    "LeftOut",
    "Measure",
    "MeasuredRun",
    "NotComparableError",
    "Side",
    "Word",
    "compare",
    "parse_measures",
]
