"""How values are summarised: the choices a user has."""

from __future__ import annotations

from msgspec import Struct

from phase_bus.aggregation.log_bins import WINDOW_SCALE

EXACT_LIMIT = 1024
WINDOW_METRICS = (
    "request_latency",
    "time_to_first_token",
    "inter_token_latency",
    "output_token_throughput_per_user",
)


class Options(Struct, frozen=True):
    """How a state summarises values. Only states with equal options can be merged.

    Attributes:
        exact_limit: up to how many values of one metric and phase in one partition percentiles are
            exact; 8 bytes each. After merging they are exact if those of all partitions are, so with 16
            partitions up to about 16 times as many.
        window_metrics: the metrics that have windows over time; ``*`` stands for all.
        window_scale: how fine the percentiles of windows are, at most
            :data:`~phase_bus.aggregation.SCALE`. One more makes a partition's state nearly twice as large.
    """

    exact_limit: int = EXACT_LIMIT
    window_metrics: tuple[str, ...] = WINDOW_METRICS
    window_scale: int = WINDOW_SCALE
