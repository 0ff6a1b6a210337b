"""Prometheus' families of series: their names, and the buckets of classic histograms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple, TypeAlias
from zlib import crc32

from msgspec import Struct

from phase_bus import printable
from phase_bus.aggregation import (
    ExponentialHistogram,
    base_unit,
    describe,
    edge,
    nearest_edges,
)

_MAX_METRICS = 100
_LONGEST = 200  # characters of a label's value

# Names that say more than AIPerf's do: the base unit follows.
_STEMS = {
    "request_latency": "request_duration",
    "input_sequence_length": "request_input",
    "output_sequence_length": "request_output",
}
# Of each request 1 or nothing, which other series tell.
_TOLD = {"request_count", "error_request_count"}
# What a histogram's name must not end with, since its series, or those of others, do.
_RESERVED = re.compile(r"_(total|created|info|bucket|sum|count)$")
# Series of our own, and the families that OpenMetrics makes of counters.
_TAKEN = {
    "phase_bus_runs_in_progress",
    "phase_bus_requests_sent",
    "phase_bus_requests_in_flight",
    "phase_bus_phase_progress_ratio",
    "phase_bus_requests",
    "phase_bus_request_errors",
    "phase_bus_requests_cancelled",
    "phase_bus_input_tokens",
    "phase_bus_output_tokens",
    "phase_bus_threshold_passed",
    "phase_bus_threshold_value",
    "phase_bus_threshold_limit",
}

# Where the buckets of classic histograms end, about: they have the nearest edges of our own bins.
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0),
)
_RATIOS = (
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    *(0.1 * n for n in range(1, 11)),
    1.5,
    2.0,
    5.0,
    10.0,
    100.0,
)
_BOUNDS: dict[str, tuple[float, ...]] = {
    "seconds": _SECONDS,
    "seconds_per_image": _SECONDS,
    "ratio": _RATIOS,
    "tokens": tuple(2.0**power for power in range(21)),
    "bytes": tuple(2.0**power for power in range(6, 31)),
}
_OTHER_BOUNDS = tuple(digits * 10.0**power for power in range(-2, 6) for digits in (1.0, 2.0, 5.0))

Labels: TypeAlias = tuple[tuple[str, str], ...]
Value: TypeAlias = float | ExponentialHistogram
FamilyKind: TypeAlias = Literal["counter", "gauge", "histogram"]


class Named(NamedTuple):
    """What all series of one name have: name, kind, and what it is, for people.

    The name is that of the series: a counter's ends with ``_total``.
    """

    name: str
    kind: FamilyKind
    help: str


class Family(Struct, frozen=True):
    """All series of one name, each with its labels and value."""

    of: Named
    samples: list[tuple[Labels, Value]]


def labels_of(**values: str | int | None) -> Labels:
    """Return labels, without those that are None."""
    return tuple((name, label_text(str(value))) for name, value in values.items() if value is not None)


def label_text(text: str) -> str:
    """Return a text as a label has it: in one line, and not too long."""
    return printable(text)[:_LONGEST]


def family_of(metric: str) -> Named:
    """Return what a metric becomes: a histogram, or a counter where it counts requests.

    Its name has the base unit, and is valid.
    """
    info = describe(metric)
    unit = base_unit(info.unit).name
    stem = re.sub(r"[^a-zA-Z0-9_]+", "_", _STEMS.get(metric, metric)).strip("_")
    if unit == "requests":
        return Named(f"phase_bus_{stem.removesuffix('_count')}_total", "counter", f"{info.title}.")
    if unit == "ratio":
        stem = stem.removesuffix("_pct")
    name = f"phase_bus_{stem}"
    if unit and not name.endswith(f"_{unit}"):
        name = f"{name}_{unit}"
    if _RESERVED.search(name) or name in _TAKEN:
        name = f"{name}_values"
    in_unit = f", in {unit.replace('_', ' ')}" if unit else ""
    return Named(name, "histogram", f"{label_text(info.title)}{in_unit}.")


def families_of(metrics: Iterable[str]) -> dict[str, Named]:
    """Return what metrics become, by metric; AIPerf's come first if there are too many."""
    chosen: dict[str, Named] = {}
    names: set[str] = set()
    wanted = set(metrics) - _TOLD
    for metric in sorted(wanted, key=lambda name: (describe(name).title == name, name))[:_MAX_METRICS]:
        family = family_of(metric)
        if family.name in names:  # unlike metrics stay unlike, as "a.b" and "a_b"
            family = family._replace(name=f"{family.name}_{crc32(metric.encode()):08x}")
        chosen[metric] = family
        names.add(family.name)
    return dict(sorted(chosen.items()))


def classic_buckets(histogram: ExponentialHistogram) -> list[tuple[float, int]]:
    """Return up to where the buckets of a classic histogram go, and how many values are up to there.

    The counts are exact, since each bound is an edge of a bin.
    """
    edges = _edges_of(histogram.unit)
    return list(zip(map(edge, edges), histogram.below(edges), strict=True))


@cache
def _edges_of(unit: str) -> list[int]:
    return nearest_edges(_BOUNDS.get(unit, _OTHER_BOUNDS))
