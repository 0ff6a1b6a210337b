"""What is known of a run that is compared: its figures, and what has to be the same in all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from phase_bus.aggregation.metric import MetricState
from phase_bus.aggregation.phase import PhaseState
from phase_bus.aggregation.rates import Figures
from phase_bus.comparison.measure import Measure
from phase_bus.events import PhasePlan, RunStart

Aspect: TypeAlias = Literal["producer", "model", "endpoint", "options", "load", "incomplete", "receipts"]
"""In what runs may not be comparable: what makes the load, what is under test, how it is asked; and what
a run lacks."""

_OF_PLAN = {
    "expected_requests": "requests",
    "expected_duration_s": "duration in s",
    "expected_sessions": "sessions",
    "concurrency": "concurrency",
    "request_rate": "request rate",
}


class MeasuredRun(Struct, frozen=True, kw_only=True):
    """A run with the figures of its profiling phases.

    Attributes:
        journal: the file of the journal that it was read from.
        started_ns: Unix time in ns of its start, None if that is not known.
        traits: by aspect, what has to be the same in all runs that are compared.
        faults: by aspect, what it lacks, in words.
        requests: how many requests there were.
        values: what each measure came to, by its key.
        inexact: the keys of those that are percentiles from a sketch, as there are too many values to keep.
        blocks: the same within successive blocks of its time, for a run that is compared on its own.
    """

    run_id: str
    journal: str
    started_ns: int | None = None
    traits: dict[Aspect, dict[str, str]] = {}
    faults: dict[Aspect, str] = {}
    requests: int = 0
    values: dict[str, float] = {}
    inexact: tuple[str, ...] = ()
    blocks: dict[str, list[float]] = {}


def is_measured(kind: str) -> bool:
    """Return whether the requests of phases of a kind count: a warm-up is none of them."""
    return kind != "warmup"


def figures_of(summary: Mapping[str, Any], phases: Sequence[PhaseState]) -> Figures:
    """Return the figures of a run's profiling phases, from its summary and the states of all its phases.

    Of several phases the durations are added up: the pauses between them do not count.
    """
    metrics: dict[str, MetricState] = {}
    requests, failed, durations = 0, 0, []
    for told, state in zip(summary["phases"], phases, strict=True):
        if is_measured(told["kind"]) and state.requests:
            requests, failed = requests + state.requests, failed + state.failed
            durations.append(told["duration_s"])
            for name, values in state.metrics.items():
                metrics.setdefault(name, MetricState(values.options, values.unit)).merge(values)
    known = [duration for duration in durations if duration is not None]
    return Figures(
        requests=requests,
        failed=failed,
        duration_s=sum(known) if known and len(known) == len(durations) else None,
        metrics=metrics,
    )


def values_of(figures: Figures, measures: Sequence[Measure]) -> dict[str, float]:
    """Return what each measure comes to, by its key, as far as there is something to measure."""
    found = {measure.key: measure.of(figures) for measure in measures}
    return {key: value for key, value in found.items() if value is not None}


def inexact_of(figures: Figures, measures: Sequence[Measure]) -> tuple[str, ...]:
    """Return the keys of the measures whose values are percentiles from a sketch."""
    percentiles = (measure for measure in measures if measure.statistic.startswith("p"))
    found = ((measure.key, figures.metrics.get(measure.metric)) for measure in percentiles)
    return tuple(key for key, state in found if state is not None and not state.exact)


def traits_of(start: RunStart | None, plans: Sequence[PhasePlan]) -> dict[Aspect, dict[str, str]]:
    """Return what must not differ between the runs of a comparison, in words, from a run's start and plan.

    Of an endpoint's address it is the path: host and port say which build is under test.
    """
    measured = [plan for plan in plans if is_measured(plan.phase.kind)]
    load = {
        f"{plan.phase.name}: {word}": f"{value:g}"
        for plan in measured
        for name, word in _OF_PLAN.items()
        if (value := getattr(plan, name)) is not None
    }
    if start is None:
        return {"load": load}
    return {
        "producer": {"": start.producer},
        "model": {"": ", ".join(sorted(start.models))},
        "endpoint": {"": ", ".join(sorted({_path(url) for url in start.urls}))},
        "options": {key: msgspec.json.encode(value).decode() for key, value in start.options.items()},
        "load": load,
    }


def _path(url: str) -> str:
    try:
        return urlsplit(url if "://" in url else f"//{url}").path.rstrip("/") or "/"
    except ValueError:  # no address: taken as it is
        return url
