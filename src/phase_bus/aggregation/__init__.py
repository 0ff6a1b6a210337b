"""Statistics of a run's records in bounded memory, mergeable without a change of the result."""

from phase_bus.aggregation.metric import MetricState, Options
from phase_bus.aggregation.sketch import DDSketch
from phase_bus.aggregation.state import PhaseState, RunState
from phase_bus.aggregation.summary import render_text, summarize

__all__ = [
    "DDSketch",
    "MetricState",
    "Options",
    "PhaseState",
    "RunState",
    "render_text",
    "summarize",
]
