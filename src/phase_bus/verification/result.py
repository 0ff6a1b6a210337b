"""What a verification came to, as a document for JSON."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from phase_bus import __version__
from phase_bus.verification.intervals import CONFIDENCE, Decision, Interval, difference
from phase_bus.verification.measures import CPU, MEASURES, Measure, load_psutil
from phase_bus.verification.session import Session
from phase_bus.verification.trial import FELT_MODES, MODES, Mode, Run

Verdict: TypeAlias = Literal["not felt", "not decided", "felt", "failed"]


class Comparison(Struct, frozen=True, kw_only=True):
    """One figure of one mode, held against ``off``: means in ``unit`` over the rounds that have both.

    Attributes:
        difference: None for fewer than two rounds.
        decision: what the interval says of the tolerance; None if it is not judged, or has no interval.
    """

    mode: Mode
    metric: str
    statistic: str
    unit: str
    off_mean: float
    mode_mean: float
    difference: Interval | None
    decision: Decision | None


class Verification(Struct, frozen=True, kw_only=True):
    """What a verification came to.

    Attributes:
        version: of this form.
        command: without its directory for results.
        consumers: the first is the one that was suspended or killed.
        verdict: ``failed`` if a run did not count; else ``felt`` if an interval lies beyond the tolerance;
            else ``not decided`` if one reaches across it or is missing; else ``not felt``.
        problems: which runs did not count, and why.
        cpu_s: for each mode the mean CPU time by process, in seconds.
        runs: every run, the warm-up's included.
    """

    version: int = 1
    command: tuple[str, ...]
    consumers: tuple[str, ...]
    seed: int
    tolerance_pct: float
    confidence: float
    machine: dict[str, Any]
    rounds_wanted: int
    interrupted: bool
    verdict: Verdict
    problems: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    cpu_s: dict[str, dict[str, float]]
    runs: tuple[Run, ...]


def conclude(session: Session, tolerance_pct: float) -> Verification:
    """Return what a session's runs come to."""
    counted = [run for run in session.runs if run.round > 0]
    comparisons = tuple(_comparisons(counted, tolerance_pct))
    problems = tuple(f"round {run.round}, {run.mode}: {run.problem}" for run in counted if run.problem)
    return Verification(
        command=session.command,
        consumers=tuple(consumer.title for consumer in session.config.consumers),
        seed=session.seed,
        tolerance_pct=tolerance_pct,
        confidence=CONFIDENCE,
        machine=_machine(),
        rounds_wanted=session.rounds,
        interrupted=session.interrupted,
        verdict=_verdict(comparisons, problems),
        problems=problems,
        comparisons=comparisons,
        cpu_s={mode: _cpu_s([run for run in counted if run.mode == mode]) for mode in MODES},
        runs=tuple(session.runs),
    )


def _comparisons(runs: Sequence[Run], tolerance_pct: float) -> list[Comparison]:
    by_round: dict[int, dict[Mode, Run]] = {}
    for run in runs:
        if not run.problem:
            by_round.setdefault(run.round, {})[run.mode] = run
    found = []
    for measure in (*MEASURES, CPU):
        for mode in FELT_MODES:
            key = measure.key
            rounds = [m for m in by_round.values() if "off" in m and mode in m]
            both = [(m["off"].values, m[mode].values) for m in rounds]
            pairs = [(off[key], value[key]) for off, value in both if key in off and key in value]
            if pairs:
                found.append(_compare(measure, mode, pairs, tolerance_pct))
    return found


def _compare(
    measure: Measure, mode: Mode, pairs: Sequence[tuple[float, float]], tolerance_pct: float
) -> Comparison:
    interval = difference(pairs)
    return Comparison(
        mode=mode,
        metric=measure.metric,
        statistic=measure.statistic,
        unit=measure.unit,
        off_mean=statistics.fmean(off for off, _ in pairs),
        mode_mean=statistics.fmean(value for _, value in pairs),
        difference=interval,
        decision=None if interval is None or measure is CPU else interval.decide(tolerance_pct),
    )


def _verdict(comparisons: Sequence[Comparison], problems: Sequence[str]) -> Verdict:
    decisions = [c.decision for c in comparisons if c.metric != CPU.metric]
    if problems:
        return "failed"
    if "felt" in decisions:
        return "felt"
    modes = {c.mode for c in comparisons}
    if "undecided" in decisions or None in decisions or modes != set(FELT_MODES):
        return "not decided"
    return "not felt"


def _cpu_s(runs: Sequence[Run]) -> dict[str, float]:
    names = dict.fromkeys(name for run in runs for name in run.cpu_s)
    return {name: statistics.fmean(run.cpu_s[name] for run in runs if name in run.cpu_s) for name in names}


def _machine() -> dict[str, Any]:
    try:
        aiperf = metadata.version("aiperf")
    except metadata.PackageNotFoundError:  # it may be installed elsewhere
        aiperf = None
    return {
        "system": platform.platform(),
        "cpus": load_psutil().cpu_count(),
        "python": platform.python_version(),
        "phase_bus": __version__,
        "aiperf": aiperf,
    }
