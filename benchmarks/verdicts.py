"""How often does `phase-bus compare` find a difference that is not there, and how often one that is?

Made-up runs on three machines, with whatever makes real ones hard to compare: requests that depend on those
before them (first-order autoregressive, 0.9 from one to the next), times to the first token with a Pareto
tail, a load that is closed, so that throughput follows latency, errors whose rate is another one in each
run, and a factor that all latencies of a run share. A run's figures are computed with numpy, apart from
phase-bus; what they say is what `phase_bus.comparison` makes of them, with its own measures and margins.

``python -m benchmarks.verdicts`` takes some minutes; the seed is fixed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.signal import lfilter
from scipy.special import stdtrit

from benchmarks.harness import Plan, Report, Spread, Table, run
from phase_bus.comparison import (
    DEFAULT_MEASURES,
    Compared,
    Comparison,
    Measure,
    MeasuredRun,
    Side,
    Word,
    compare,
)
from phase_bus.comparison.blocks import BLOCKS

QUESTION = "How often does compare find a difference that is not there, and how often one that is?"

_Array = npt.NDArray[np.float64]

_SEED = 14
_COMPARISONS = 1000
_REQUESTS = 1000
_IN_FLIGHT = 16
_SIDES = ((3, 3), (5, 5), (10, 10))
_UNEVEN = ((5, 1), (10, 3))
_DIFFERENCES_PCT = (1.0, 2.0, 5.0, 10.0)
_POWER_OF = Measure("request_latency", "p50", "lower")
_LATENCIES = [measure.key for measure in DEFAULT_MEASURES if measure.unit == "ns"]
_AT_ONCE = 500  # runs that are drawn together
_POWERS = 400  # comparisons for each power
_BY_OTHERS = 400
_RESAMPLED = 2000
_SAID: tuple[Word, ...] = ("regressed", "improved", "equivalent", "cannot tell")


class Machine(NamedTuple):
    """What runs are drawn on.

    Attributes:
        spread: the standard deviation, between runs, of the factor that the latencies of a run share.
        wander: that of the load which a run's requests depend on, within the run.
        heavy: whether that factor has heavy tails (Student's t with 4 degrees of freedom).
    """

    name: str
    spread: float
    wander: float
    heavy: bool


MACHINES = (
    Machine("steady", 0.002, 0.03, heavy=False),
    Machine("usual", 0.01, 0.1, heavy=False),
    Machine("noisy", 0.03, 0.3, heavy=True),
)


class Drawn(NamedTuple):
    """Made-up runs: each measure's values, shape (runs,), and in a run's blocks, shape (runs, blocks)."""

    values: dict[str, _Array]
    blocks: dict[str, _Array]
    latencies: _Array  # of each request, shape (runs, requests), in ns

    def __len__(self) -> int:
        return len(self.latencies)

    def run(self, number: int, factor: float = 1.0) -> MeasuredRun:
        """Return a run, with all its latencies multiplied by a factor."""
        return MeasuredRun(
            run_id=f"{number}{'' if factor == 1.0 else 'x'}",
            journal="",
            requests=_REQUESTS,
            values={key: float(v[number]) * _scaled(key, factor) for key, v in self.values.items()},
            blocks={key: (v[number] * _scaled(key, factor)).tolist() for key, v in self.blocks.items()},
        )


def _scaled(key: str, factor: float) -> float:
    """Return what a value is multiplied by if latencies are by a factor."""
    return 1.0 if key == "error_rate" else factor if key in _LATENCIES else 1 / factor


def draw(machine: Machine, runs: int, random: np.random.Generator) -> Drawn:
    """Draw runs."""
    pieces = [_draw(machine, min(_AT_ONCE, runs - first), random) for first in range(0, runs, _AT_ONCE)]
    return Drawn(
        {key: np.concatenate([piece.values[key] for piece in pieces]) for key in pieces[0].values},
        {key: np.concatenate([piece.blocks[key] for piece in pieces]) for key in pieces[0].blocks},
        np.concatenate([piece.latencies for piece in pieces]),
    )


def _draw(machine: Machine, runs: int, random: np.random.Generator) -> Drawn:
    shape = (runs, _REQUESTS)
    shared, first, later = (_between_runs(machine, runs, random) for _ in range(3))
    load = _wandering(0.9, shape, random) * machine.wander
    ttft = 30e6 * np.exp(shared + first / 2 + load + 0.2 * random.standard_normal(shape))
    ttft *= np.where(random.random(shape) < 0.02, 1 + random.pareto(1.8, shape), 1.0)
    itl = 2e6 * np.exp(shared + later / 2 + 0.3 * load + 0.1 * random.standard_normal(shape))
    tokens = random.poisson(64, shape).clip(2)
    latency = ttft + itl * (tokens - 1)
    rate = np.exp(random.normal(math.log(0.005), 0.4, (runs, 1)))
    failed = random.random(shape) < rate
    columns = {"request_latency": latency, "time_to_first_token": ttft, "inter_token_latency": itl}
    whole = (runs, 1, _REQUESTS)
    parts = (runs, BLOCKS, _REQUESTS // BLOCKS)
    return Drawn(
        {key: found[:, 0] for key, found in _figures(columns, tokens, failed, whole).items()},
        _figures(columns, tokens, failed, parts),
        latency,
    )


def _figures(
    columns: dict[str, _Array],
    tokens: npt.NDArray[Any],
    failed: npt.NDArray[np.bool_],
    shape: tuple[int, ...],
) -> dict[str, _Array]:
    """Return each measure of the requests, cut into pieces that are the last axis of a shape."""
    found: dict[str, _Array] = {}
    for name, column in columns.items():
        p50, p99 = np.percentile(column.reshape(shape), (50, 99), axis=-1)
        found[f"{name}:p50"], found[f"{name}:p99"] = p50, p99
    seconds = columns["request_latency"].reshape(shape).sum(-1) / 1e9 / _IN_FLIGHT
    found["request_throughput"] = shape[-1] / seconds
    found["output_token_throughput"] = tokens.reshape(shape).sum(-1) / seconds
    found["error_rate"] = failed.reshape(shape).mean(-1)
    return found


def _between_runs(machine: Machine, runs: int, random: np.random.Generator) -> _Array:
    """Return the logarithm of a factor for each run, shape (runs, 1)."""
    drawn = (
        random.standard_t(4, (runs, 1)) / math.sqrt(2)
        if machine.heavy
        else random.standard_normal((runs, 1))
    )
    return drawn * machine.spread


def _wandering(memory: float, shape: tuple[int, int], random: np.random.Generator) -> _Array:
    """Return rows of numbers of variance 1, each of which depends on the one before."""
    noise = random.standard_normal(shape)
    noise[:, 0] /= math.sqrt(1 - memory**2)
    made: _Array = lfilter([1.0], [1.0, -memory], noise, axis=1) * math.sqrt(1 - memory**2)
    return made


def comparisons(drawn: Drawn, sides: tuple[int, int], factor: float = 1.0) -> Iterator[Comparison]:
    """Yield comparisons of so many runs a side, each run in one only; the candidate's are slower."""
    base, candidate = sides
    for start in range(0, len(drawn) - base - candidate + 1, base + candidate):
        middle = start + base
        yield compare(
            Side("base", tuple(drawn.run(n) for n in range(start, middle))),
            Side("candidate", tuple(drawn.run(n, factor) for n in range(middle, middle + candidate))),
            DEFAULT_MEASURES,
        )


def is_alarm(found: Comparison) -> bool:
    """Return whether it says of anything that it differs."""
    return bool(found.count("regressed") or found.count("improved"))


def _found(found: Comparison) -> bool:
    """Return whether it says that the latency regressed."""
    return any(
        f"{each.metric}:{each.statistic}" == _POWER_OF.key and each.verdict == "regressed"
        for each in found.metrics
    )


# ---- what else could be done with the same runs: logarithms, of shape (comparisons, runs, measures) ----


def _welch(one: _Array, other: _Array, level: float) -> tuple[_Array, _Array]:
    """Return the ends of Welch's intervals, which pool no spread."""
    n, estimate = one.shape[1], other.mean(1) - one.mean(1)
    of_means = one.var(1, ddof=1) / n, other.var(1, ddof=1) / n
    total = of_means[0] + of_means[1]
    freedom = total**2 / ((of_means[0] ** 2 + of_means[1] ** 2) / (n - 1))
    half = stdtrit(freedom, 1 - level / 2) * np.sqrt(total)
    return estimate - half, estimate + half


def _resampled(one: _Array, other: _Array) -> Iterator[tuple[_Array, _Array, _Array]]:
    """Yield for each comparison its runs, resampled, of each side: shape (times, runs, measures)."""
    random, runs = np.random.default_rng(_SEED), one.shape[1]
    picked = random.integers(0, runs, (2, _RESAMPLED, runs))
    for number in range(len(one)):
        yield one[number][picked[0]], other[number][picked[1]], other[number].mean(0) - one[number].mean(0)


def _bootstrap(one: _Array, other: _Array, level: float) -> tuple[_Array, _Array]:
    """Return the ends of percentile bootstrap intervals over runs."""
    ends = [
        np.quantile(theirs.mean(1) - ours.mean(1), [level / 2, 1 - level / 2], axis=0)
        for ours, theirs, _ in _resampled(one, other)
    ]
    return np.array([low for low, _ in ends]), np.array([high for _, high in ends])


def _bootstrap_t(one: _Array, other: _Array, level: float) -> tuple[_Array, _Array]:
    """Return the ends of studentized bootstrap intervals over runs."""
    n = one.shape[1]
    errors = np.sqrt((one.var(1, ddof=1) + other.var(1, ddof=1)) / n)
    ends = []
    for (ours, theirs, estimate), error in zip(_resampled(one, other), errors, strict=True):
        resampled = np.sqrt((ours.var(1, ddof=1) + theirs.var(1, ddof=1)) / n)
        with np.errstate(divide="ignore", invalid="ignore"):  # the same run throughout has no spread
            away = np.nan_to_num(
                (theirs.mean(1) - ours.mean(1) - estimate) / resampled, posinf=1e9, neginf=-1e9
            )
        low, high = np.quantile(away, [level / 2, 1 - level / 2], axis=0)
        ends.append((estimate - high * error, estimate - low * error))
    return np.array([low for low, _ in ends]), np.array([high for _, high in ends])


_OTHERS = {
    "percentile bootstrap over runs": _bootstrap,
    "studentized bootstrap over runs": _bootstrap_t,
    "Welch's t": _welch,
}


def _others(drawn: Drawn, runs: int, count: int) -> dict[str, tuple[float, float]]:
    """Return by method the share of false alarms, and half the width of the median's interval in %."""
    keys = [key for key in drawn.values if key != "error_rate"]
    logs = np.log(np.column_stack([drawn.values[key] for key in keys]))
    count = min(count, len(drawn) // (2 * runs))
    sides = logs[: count * 2 * runs].reshape(count, 2, runs, len(keys))
    found = {}
    for name, method in _OTHERS.items():
        low, high = method(sides[:, 0], sides[:, 1], 0.05 / len(keys))
        alarms = ((low > 0) | (high < 0)).any(1).mean()
        half = np.median((high - low)[:, keys.index(_POWER_OF.key)]) / 2
        found[name] = float(alarms), 100 * float(half)
    return found


def _requests_alarm(drawn: Drawn, runs: int) -> float:
    """Return how often requests, taken for independent, show a difference of their mean latency."""
    logs = np.log(drawn.latencies)
    count = len(drawn) // (2 * runs)
    sides = logs[: count * 2 * runs].reshape(count, 2, -1)
    estimate = sides[:, 1].mean(1) - sides[:, 0].mean(1)
    error = np.sqrt(sides.var(2).sum(1) / sides.shape[2])
    return float((np.abs(estimate) > 1.96 * error).mean())


def _within_alarm(drawn: Drawn) -> float:
    """Return how often the intervals within single runs, if they were believed, would show a difference."""
    found = list(comparisons(drawn, (1, 1)))
    return sum(any(_excludes_zero(each) for each in one.metrics) for one in found) / len(found)


def _excludes_zero(each: Compared) -> bool:
    return each.low_pct is not None and each.high_pct is not None and not each.low_pct <= 0 <= each.high_pct


# ---- the report ----


def main() -> Report:
    """Measure, print, return."""
    return run("verdicts", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    random = np.random.default_rng(_SEED)
    most = max(sum(sides) for sides in _SIDES)
    alarms, powers, words = [], [], []
    both = (*_SIDES, *_UNEVEN)
    shares = []
    for machine in MACHINES:
        drawn = draw(machine, most * plan.count(_COMPARISONS), random)
        shown = [f"{np.log(drawn.values[key]).std() * 100:.1f}" for key in _LATENCIES[:2]]
        row = [machine.name, *shown]
        for sides in both:
            found = list(islice(comparisons(drawn, sides), plan.count(_COMPARISONS)))
            share = sum(map(is_alarm, found)) / len(found)
            shares.append(share)
            row.append(f"{share:.1%}")
            if sides in _SIDES:
                told = [
                    sum(each.count(word) for each in found) / len(found) / len(DEFAULT_MEASURES)
                    for word in _SAID
                ]
                words.append([machine.name, str(sides[0]), *(f"{part:.1%}" for part in told)])
        alarms.append(row)
        for sides in _SIDES:
            row = [machine.name, str(sides[0])]
            for percent in _DIFFERENCES_PCT:
                slower = islice(comparisons(drawn, sides, 1 + percent / 100), plan.count(_POWERS))
                hits = [(_found(each), bool(each.count("regressed"))) for each in slower]
                row.append(" / ".join(f"{sum(of) / len(hits):.0%}" for of in zip(*hits, strict=True)))
            powers.append(row)
        if machine.name == "usual":
            report.tables.append(_table_of_others(drawn, plan))
    report.figures["verdicts_false_alarms"] = Spread(statistics.fmean(shares), min(shares), max(shares))
    names = [f"{base}" if base == candidate else f"{base} and {candidate}" for base, candidate in both]
    header = ["machine", "spread of p50 %", "of p99 %", *(f"{name} runs" for name in names)]
    note = (
        f"The share of comparisons of equal sides, of {plan.count(_COMPARISONS):,} each, in which any of "
        f"{len(DEFAULT_MEASURES)} measures is said to have regressed or improved, by the runs of a side. "
        "The spreads are those of the latency between runs."
    )
    report.tables.insert(0, Table("False alarms", header, alarms, note))
    header = ["machine", "runs a side", *(f"{percent:g} % slower" for percent in _DIFFERENCES_PCT)]
    note = "How often the median latency is said to have regressed / any measure is."
    report.tables.insert(1, Table("Power", header, powers, note))
    header = ["machine", "runs a side", *_SAID]
    report.tables.insert(2, Table("What is said of equal sides", header, words, "Shares of all measures."))
    report.notes.append(
        f"A run has {_REQUESTS:,} requests. What is sure to lie within the margin of 2 % is called "
        "equivalent, be it as sure to be slower: a difference of 1 or 2 % is therefore not found more "
        "often the more runs there are."
    )


def _table_of_others(drawn: Drawn, plan: Plan) -> Table:
    count = plan.count(_BY_OTHERS)
    columns = []
    for runs, _ in _SIDES:
        found = _others(drawn, runs, count)
        columns.append({name: _cell(*of) for name, of in found.items()})
        ours = list(islice(comparisons(drawn, (runs, runs)), count))
        half = np.median([_half_width(each) for each in ours])
        columns[-1]["compare: pooled t"] = _cell(sum(map(is_alarm, ours)) / len(ours), float(half))
        columns[-1]["requests as repetitions, one measure"] = f"{_requests_alarm(drawn, runs):.1%}"
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    rows.append(["one run a side, by blocks within it", f"{_within_alarm(drawn):.1%}", "", ""])
    note = (
        f"False alarms in {count:,} comparisons, and half the width of the median latency's interval, on "
        "the machine 'usual'. All intervals but that of requests are corrected for the number of measures. "
        "The one within single runs is shown by compare, and never believed."
    )
    return Table(
        "Other methods on the same runs",
        ["method", *(f"{runs} runs a side" for runs, _ in _SIDES)],
        rows,
        note,
    )


def _cell(alarms: float, half_pct: float) -> str:
    return f"{alarms:.1%}, " + (f"±{half_pct:.1f} %" if half_pct < 1000 else "no bound")


def _half_width(found: Comparison) -> float:
    """Return half the width of the interval of the median latency, in percent."""
    (each,) = (one for one in found.metrics if f"{one.metric}:{one.statistic}" == _POWER_OF.key)
    assert each.low_pct is not None
    assert each.high_pct is not None
    return (each.high_pct - each.low_pct) / 2


if __name__ == "__main__":
    main()
