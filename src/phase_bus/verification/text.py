"""What a verification came to, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from phase_bus.core.printable import printable
from phase_bus.core.table import FittingTable
from phase_bus.verification.measures import CPU, MEASURES
from phase_bus.verification.result import Comparison, Verification
from phase_bus.verification.trial import FELT_MODES, MODES, WHAT

_TITLES = {(measure.metric, measure.statistic): measure.title for measure in MEASURES}
_MARKS = {"same": ("=", "green"), "felt": ("!", "bold red"), "undecided": ("?", "yellow"), None: ("", "")}
_STYLES = {"not felt": "green", "not decided": "yellow", "felt": "bold red", "failed": "bold red"}


def tables(result: Verification) -> Iterator[RenderableType]:
    """Yield what is to be printed, in order."""
    machine = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    yield Text(f"{machine}; seed {result.seed}\n")
    yield _differences(result)
    yield Text(
        f"\nDifference to off in percent, [{result.confidence:.0%} confidence interval], paired by round "
        f"(n in brackets where rounds are missing).\n"
        f"= within ±{result.tolerance_pct:g} %    ! beyond it    ? reaches across it: not decided"
    )
    for mode in MODES:
        yield Text(f"{mode}: {WHAT[mode]}", style="dim")
    yield Text("")
    yield _cpu(result)
    for problem in result.problems:
        yield Text(printable(f"does not count: {problem}"), style="red")
    yield _verdict(result)


def _differences(result: Verification) -> FittingTable:
    rounds = max((c.difference.rounds for c in result.comparisons if c.difference), default=0)
    lines = []
    found = {(c.metric, c.statistic, c.mode): c for c in result.comparisons}
    for measure in (*MEASURES, CPU):
        row = {mode: found.get((measure.metric, measure.statistic, mode)) for mode in FELT_MODES}
        first = next((c for c in row.values() if c), None)
        if first is not None:
            cells = (_cell(c, rounds) for c in row.values())
            lines.append((measure.title, f"{first.off_mean:.2f} {measure.unit}", *cells))
    return _table(f"{rounds} rounds", lines)


def _cell(comparison: Comparison | None, rounds: int) -> Text:
    if comparison is None or comparison.difference is None:
        return Text("too few rounds", style="yellow")
    d = comparison.difference
    mark, style = _MARKS[comparison.decision]
    n = "" if d.rounds == rounds else f" ({d.rounds})"
    return Text(f"{d.estimate_pct:+.1f} [{d.low_pct:+.1f}, {d.high_pct:+.1f}]{n} {mark:1}", style=style)


def _cpu(result: Verification) -> FittingTable:
    lines = []
    for name in dict.fromkeys(name for mode in MODES for name in result.cpu_s[mode]):
        cells = (result.cpu_s[mode].get(name) for mode in MODES)
        lines.append((name, *("" if value is None else f"{value:.2f}" for value in cells)))
    return _table("CPU seconds a run", lines)


def _verdict(result: Verification) -> Text:
    text = Text(f"\n{result.verdict}", style=_STYLES[result.verdict])
    felt: dict[str, list[str]] = {}
    for comparison in result.comparisons:
        if comparison.decision == "felt":
            felt.setdefault(_TITLES[comparison.metric, comparison.statistic], []).append(comparison.mode)
    for title, modes in felt.items():
        text.append(f"\nbeyond ±{result.tolerance_pct:g} %: {title} ({', '.join(modes)})")
    asked = [c.decision for c in result.comparisons if c.metric != CPU.metric]
    if undecided := sum(decision in ("undecided", None) for decision in asked):
        text.append(
            f"\n{undecided} of {len(asked)} differences are not decided; "
            "more or longer rounds, or a quieter machine, may tell"
        )
    if result.interrupted:
        text.append("\ninterrupted: this is what there is")
    return text


def _table(first: str, lines: Iterable[Sequence[object]]) -> FittingTable:
    """Return a table with a first column of names, and one for each mode."""
    modes = [mode.upper() for mode in MODES]
    return FittingTable((first.upper(), *modes), lines, right=modes, folded=9)
