"""Statistics of a run's records in bounded memory, mergeable without a change of the result."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phase_bus import front_door

if TYPE_CHECKING:  # with 'as', which makes each name ours for type checkers too
    from phase_bus.aggregation.exponential import Buckets as Buckets
    from phase_bus.aggregation.exponential import ExponentialHistogram as ExponentialHistogram
    from phase_bus.aggregation.exponential import edge as edge
    from phase_bus.aggregation.exponential import nearest_edges as nearest_edges
    from phase_bus.aggregation.log_bins import SCALE as SCALE
    from phase_bus.aggregation.log_bins import WINDOW_SCALE as WINDOW_SCALE
    from phase_bus.aggregation.metric import MetricState as MetricState
    from phase_bus.aggregation.options import EXACT_LIMIT as EXACT_LIMIT
    from phase_bus.aggregation.options import WINDOW_METRICS as WINDOW_METRICS
    from phase_bus.aggregation.options import Options as Options
    from phase_bus.aggregation.phase import PhaseState as PhaseState
    from phase_bus.aggregation.sketch import RELATIVE_ERROR as RELATIVE_ERROR
    from phase_bus.aggregation.sketch import LogHistogram as LogHistogram
    from phase_bus.aggregation.state import RunState as RunState
    from phase_bus.aggregation.summary import RunResult as RunResult
    from phase_bus.aggregation.summary import summarize as summarize
    from phase_bus.aggregation.text import render_text as render_text
    from phase_bus.aggregation.units import BaseUnit as BaseUnit
    from phase_bus.aggregation.units import MetricInfo as MetricInfo
    from phase_bus.aggregation.units import base_unit as base_unit
    from phase_bus.aggregation.units import describe as describe
    from phase_bus.aggregation.units import readable as readable
    from phase_bus.aggregation.units import readable_unit as readable_unit
    from phase_bus.aggregation.windows import WindowHistogram as WindowHistogram

__getattr__, __dir__, __all__ = front_door(
    __name__,
    {
        "exponential": "Buckets ExponentialHistogram edge nearest_edges",
        "log_bins": "SCALE WINDOW_SCALE",
        "metric": "MetricState",
        "options": "EXACT_LIMIT Options WINDOW_METRICS",
        "phase": "PhaseState",
        "sketch": "LogHistogram RELATIVE_ERROR",
        "state": "RunState",
        "summary": "RunResult summarize",
        "text": "render_text",
        "units": "BaseUnit MetricInfo base_unit describe readable readable_unit",
        "windows": "WindowHistogram",
    },
)
