"""A comparison as text, Markdown and JUnit's XML, and the words and cells that all forms share."""

from __future__ import annotations

import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterable

from phase_bus.aggregation.sketch import RELATIVE_ERROR
from phase_bus.aggregation.text import plain_text
from phase_bus.aggregation.units import format_number, readable_unit
from phase_bus.comparison.comparison import Compared, Comparison, Side, Word
from phase_bus.comparison.intervals import MOST_RUNS
from phase_bus.core.printable import printable
from phase_bus.core.table import FittingTable
from phase_bus.reporting.verdicts import markdown_code, markdown_line, markdown_text, xml_document, xml_text

COLUMNS = ("verdict", "metric", "base", "candidate", "difference", "interval")
_WORDS: tuple[Word, ...] = ("regressed", "improved", "equivalent", "cannot tell")
_WIDTH = 80
_BEYOND = 1000.0  # percent that nobody tells apart
_NAMED = 3  # runs of a side


def allowed(comparison: Comparison) -> list[str]:
    """Return in what the runs are not comparable, and were compared all the same."""
    return [f"Not comparable, and compared all the same: {each.text}." for each in comparison.allowed]


def comparison_text(comparison: Comparison, width: int = _WIDTH) -> str:
    """Return a comparison as text without colour, the verdict first; sentences in at most 80 columns."""
    sentences = min(width, _WIDTH)
    return plain_text(
        [
            *heading(comparison, sentences),
            "",
            table(comparison),
            "",
            *wrapped([*allowed(comparison), *notes(comparison)], sentences),
        ],
        width=width,
    )


def heading(comparison: Comparison, width: int = _WIDTH) -> list[str]:
    """Return the lines above the table."""
    base, candidate = side_title(comparison.base), side_title(comparison.candidate)
    return wrapped([in_brief(comparison), f"BASE {base}", f"CANDIDATE {candidate}"], width)


def in_brief(comparison: Comparison) -> str:
    """Return the verdict with what it is made of, in a sentence."""
    total = len(comparison.metrics)
    counts = {word: comparison.count(word) for word in _WORDS}
    (first, count), *others = ((word, count) for word, count in counts.items() if count)
    told = "".join(f", {count} {_of_several(word)}" for word, count in others)
    metrics = "metric" if total == 1 else "metrics"
    return f"{comparison.verdict.upper()}: {count} of {total} {metrics} {_of_several(first)}{told}."


def _of_several(word: Word) -> str:
    """Return the verdict on metrics as said of them."""
    return "inconclusive" if word == "cannot tell" else word


def side_title(side: Side) -> str:
    """Return a side's name, with its runs."""
    ids = [run.run_id for run in side.runs]
    if ids == [side.name]:
        return f"{side.name}: 1 run"
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return f"{side.name}: {_runs(len(ids))} ({', '.join(ids[:_NAMED])}{more})"


def cells(each: Compared) -> list[str]:
    """Return what was measured: verdict, metric, both values, difference and interval."""
    _, factor = readable_unit(each.unit)
    unit = " pt" if each.in_points else " %"
    interval = "-"
    if each.low_pct is not None and each.high_pct is not None:
        interval = f"{_percent(each.low_pct)} to {_percent(each.high_pct)}{unit}"
    return [
        each.verdict,
        titled(each),
        format_number(each.base_value * factor),
        format_number(each.candidate_value * factor),
        f"{_percent(each.difference_pct)}{unit}",
        interval,
    ]


def titled(each: Compared) -> str:
    """Return what a measure is called, with the unit that people read it in."""
    unit, _ = readable_unit(each.unit)
    return each.title if not unit or each.title.endswith("/s") else f"{each.title}, {unit}"


def table(comparison: Comparison) -> FittingTable:
    """Return the measures as a table for the terminal."""
    columns = [column.upper() for column in COLUMNS]
    return FittingTable(
        columns,
        map(cells, comparison.metrics),
        whole=("INTERVAL",),
        spare=("BASE", "CANDIDATE"),
        right=columns[2:],
        folded=12,
    )


def _notes_on_sketches(comparison: Comparison) -> list[str]:
    runs = [*comparison.base.runs, *comparison.candidate.runs]
    if not any(run.inexact for run in runs):
        return []
    return [
        f"Percentiles of so many requests are within {RELATIVE_ERROR:.2%}: the intervals allow for that."
    ]


def notes(comparison: Comparison) -> list[str]:
    """Return what else has to be known to read the table, a sentence or two each."""
    found = [f"Not compared: {each.metric}, as {each.reason}." for each in comparison.left_out]
    found += _notes_on_sketches(comparison)
    if any(each.within_runs for each in comparison.metrics):
        return [*found, *_notes_on_single_runs(comparison)]
    total = len(comparison.metrics)
    together = "" if total == 1 else f", all {total} together"
    found.append(
        f"The intervals hold with {comparison.confidence:.0%} confidence{together}; a run counts once, "
        f"however many requests it has. Equivalent: the whole interval is within {_margins(comparison)}."
    )
    for name, side in (("base", comparison.base), ("candidate", comparison.candidate)):
        if len(side.runs) == 1:
            found.append(
                f"The {name} is one run, which shows no spread of its own: that of the other side is taken "
                "for it."
            )
    if alike := [each.title for each in comparison.metrics if _is_alike(each)]:
        found.append(
            f"All runs of a side have the very same {', '.join(alike)}, as if they were copies of one: "
            "that tells nothing."
        )
    return found + _more_runs(comparison)


def wrapped(lines: Iterable[str], width: int = _WIDTH) -> list[str]:
    """Return lines that are folded, further ones indented; what has no space in it stays whole."""
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            printable(line), width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        or [""]
    ]


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison as a table in Markdown, for a pull request; no name in it is taken for markup."""
    sides = [":--", ":--", "--:", "--:", "--:", "--:"]
    base, candidate = (markdown_code(side.name) for side in (comparison.base, comparison.candidate))
    lines = [
        f"**{markdown_text(in_brief(comparison))}** {candidate} ({_runs(len(comparison.candidate.runs))}) "
        f"against {base} ({_runs(len(comparison.base.runs))})",
        "",
        markdown_line(COLUMNS),
        markdown_line(sides),
    ]
    for each in comparison.metrics:
        word, *rest = map(markdown_text, cells(each))
        lines.append(markdown_line([f"**{word}**" if each.verdict == "regressed" else word, *rest]))
    lines += ["", *(f"- {markdown_text(note)}" for note in [*allowed(comparison), *notes(comparison)])]
    return "\n".join(lines) + "\n"


def comparison_junit(comparison: Comparison) -> str:
    """Return a comparison as JUnit's XML, a test case for each measure.

    What regressed is a failure; what cannot be told, or is not compared, is skipped.
    """
    skipped = comparison.count("cannot tell") + len(comparison.left_out)
    counts = {
        "tests": str(len(comparison.metrics) + len(comparison.left_out)),
        "failures": str(comparison.count("regressed")),
        "errors": "0",
        "skipped": str(skipped),
        "time": "0",
    }
    top = ET.Element("testsuites", {"name": "phase-bus", **counts})
    suite = ET.SubElement(top, "testsuite", {"name": "compare", **counts})
    properties = ET.SubElement(suite, "properties")
    for name, side in (("base", comparison.base), ("candidate", comparison.candidate)):
        ET.SubElement(properties, "property", name=name, value=xml_text(side_title(side)))
    for each in comparison.metrics:
        name = f"{each.metric}:{each.statistic}" if each.statistic else each.metric
        case = ET.SubElement(suite, "testcase", name=xml_text(name), classname="compare", time="0")
        said = xml_text(_in_words(each))
        match each.verdict:
            case "regressed":
                ET.SubElement(case, "failure", type=each.verdict, message=said)
            case "cannot tell":
                ET.SubElement(case, "skipped", message=said)
            case _:
                ET.SubElement(case, "system-out").text = said
    for left in comparison.left_out:
        case = ET.SubElement(suite, "testcase", name=xml_text(left.metric), classname="compare", time="0")
        ET.SubElement(case, "skipped", message=xml_text(f"not compared: {left.reason}"))
    return xml_document(top)


def _in_words(each: Compared) -> str:
    word, title, base, candidate, difference, interval = cells(each)
    return f"{title} {word}: {base} to {candidate}, {difference} ({interval})"


def _notes_on_single_runs(comparison: Comparison) -> list[str]:
    return [
        "One run a side: how much two runs of the same build differ is not known, so nothing is told "
        "apart. It takes two runs of one side at least; five of each are a good start.",
        "The intervals are those within the runs, by blocks of their time: so uncertain is each run by "
        f"itself, with {comparison.confidence:.0%} confidence. Runs differ by more, often by far.",
    ]


def _margins(comparison: Comparison) -> str:
    """Return the margins, the most frequent one first, the others with what they are for."""
    by_margin: dict[str, list[str]] = {}
    for each in comparison.metrics:
        unit = "points" if each.in_points else "%"
        by_margin.setdefault(f"{each.margin_pct:g} {unit}", []).append(each.title)
    (first, _), *others = sorted(by_margin.items(), key=lambda item: -len(item[1]))
    told = "".join(f"; {margin} for {' and '.join(titles)}" for margin, titles in others)
    return f"{first}{told}"


def _more_runs(comparison: Comparison) -> list[str]:
    """Return how many more runs would settle what is inconclusive."""
    untold = [e for e in comparison.metrics if e.verdict == "cannot tell" and not _is_alike(e)]
    known = [(each.runs_to_tell, each.title) for each in untold if each.runs_to_tell is not None]
    lines = []
    if known:
        (least, first), (most, last) = min(known), max(known)
        sides = len(comparison.base.runs), len(comparison.candidate.runs)
        if sides[0] == sides[1]:
            told = f"about {_runs(least - sides[0], 'more ')} per side would settle {first}"
            most -= sides[0]
        else:
            told = f"about {_runs(least)} on each side would settle {first}"
        if len(known) > 1:
            told += f", and {most} {'all of them' if len(known) == len(untold) else last}"
        lines.append(f"If the differences are what they seem, {told}.")
    if far := [each.title for each in untold if each.runs_to_tell is None]:
        lines.append(f"It would take more than {MOST_RUNS} runs per side to settle {', '.join(far)}.")
    return lines


def _is_alike(each: Compared) -> bool:
    """Return whether there is an interval of no width, which tells nothing."""
    return each.verdict == "cannot tell" and each.low_pct is not None and each.low_pct == each.high_pct


def _runs(count: int, which: str = "") -> str:
    return f"{count} {which}run{'' if count == 1 else 's'}"


def _percent(value: float) -> str:
    if abs(value) >= _BEYOND:
        return f">{_BEYOND:+.0f}"
    return f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.2f}"
