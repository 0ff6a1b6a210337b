"""Statistics of a run's records in bounded memory, mergeable without a change of the result."""

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.options import Options
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.sketch import DDSketch
from phase_bus.aggregation.state import RunState
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
