"""Statistics of a run's records in bounded memory, mergeable without a change of the result."""

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.options import EXACT_LIMIT, WINDOW_METRICS, Options
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.sketch import RELATIVE_ERROR, DDSketch
from phase_bus.aggregation.state import RunState
from phase_bus.aggregation.summary import RunResult, summarize
from phase_bus.aggregation.text import render_text

__all__ = [
    "EXACT_LIMIT",
    "RELATIVE_ERROR",
    "WINDOW_METRICS",
    "DDSketch",
    "MetricState",
    "Options",
    "PhaseState",
    "RunResult",
    "RunState",
    "render_text",
    "summarize",
]
