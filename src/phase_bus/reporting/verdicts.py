"""Verdicts on a run's thresholds, as rows, text, Markdown, JUnit's XML and a document for JSON.

All of them say the same in the same words. What was measured, and the limit, are in the units that people
read; only the document has those of the bus.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from rich.console import RenderableType
from rich.text import Text

from phase_bus.aggregation.text import plain_text
from phase_bus.aggregation.units import format_number, readable_unit
from phase_bus.core.printable import printable
from phase_bus.core.table import FittingTable
from phase_bus.core.wire import decode_event
from phase_bus.events import EventBase, RunComplete, Verdict
from phase_bus.journal.reader import JournalReader

STYLES = {"passed": "green", "failed": "bold red", "unknown": "yellow"}
NO_FINAL = "there is no final verdict: whoever judged did not live to give one"

_E = TypeVar("_E", bound=EventBase)
_WIDTH = 80
_SPARE = ("SAMPLES", "BY", "LIMIT")  # the threshold says the limit, too
_DIGITS = 9  # that tell two numbers apart which look the same with fewer
_NO_XML = re.compile("[\ufffe\uffff]")
_ENDING_ZEROS = re.compile(r"\.0+$|(?<=\.\d)0+$")
_MARKDOWN = re.compile(r"([\\`*_\[\]#|<>~&@$])")


class VerdictRow(Struct, frozen=True, kw_only=True):
    """A verdict as people read it.

    Attributes:
        run_id: the run, empty if there was none.
        threshold: the expression.
        state: ``passed``, ``failed`` or ``unknown``; with ``so far`` if it is not the final one.
        passed: whether that is a pass, which only a final one is.
        measured, limit: with their unit; ``-`` for none.
        samples: how many requests, or values of a metric, it was judged by.
        reason: what else there is to say, empty for nothing.
        producer: who judged.
    """

    run_id: str
    threshold: str
    state: str
    passed: bool
    measured: str
    limit: str
    samples: str
    reason: str
    producer: str

    @property
    def is_open(self) -> bool:
        """Whether it may still be a pass in the end, or no longer."""
        return self.state in ("passed so far", "unknown so far")

    @property
    def details(self) -> str:
        """The row after its threshold and state, as words."""
        measured = "nothing measured" if self.measured == "-" else f"{self.measured} measured"
        parts = [measured, *(() if self.limit == "-" else (f"limit {self.limit}",))]
        parts.append(f"{self.samples} {'sample' if self.samples == '1' else 'samples'}")
        return ", ".join(parts) + (f"; {self.reason}" if self.reason else "")


def last_verdicts(verdicts: Iterable[Verdict], *, over: bool = True) -> list[Verdict]:
    """Return the last verdict of each producer on each threshold of each run, as they came first.

    Args:
        verdicts: any, in the order of the journal.
        over: whether the runs are over: one that is not final is then ``unknown``, and no pass.
    """
    last: dict[tuple[str, str, str], Verdict] = {}
    for verdict in verdicts:
        last[verdict.run_id, verdict.threshold, verdict.producer] = verdict
    return [_unjudged(verdict) if over and not verdict.final else verdict for verdict in last.values()]


def _unjudged(verdict: Verdict) -> Verdict:
    return msgspec.structs.replace(verdict, state="unknown", final=True, reason=NO_FINAL)


def all_passed(verdicts: Sequence[Verdict]) -> bool:
    """Return whether there are verdicts, and each is final and a pass."""
    return bool(verdicts) and all(map(_is_pass, verdicts))


def _is_pass(verdict: Verdict) -> bool:
    return verdict.final and verdict.state == "passed"


def verdict_rows(verdicts: Iterable[Verdict]) -> list[VerdictRow]:
    """Return verdicts as people read them."""
    return [_row(verdict) for verdict in verdicts]


def describe_verdict(verdict: Verdict) -> str:
    """Return a verdict in a line: the threshold, its state, and by what."""
    row = _row(verdict)
    return f"{quoted(row.threshold)} {verdict.state}: {row.details}"


def quoted(threshold: str) -> str:
    """Return a threshold so that what follows is not read as part of it: ``..., abort failed``."""
    return f"'{threshold}'"


def ended_because(reader: JournalReader, run_id: str) -> str:
    """Return why a run ended early, if a threshold that ends a run had failed before; else nothing.

    Raises:
        JournalError, WireError: if the journal cannot be read.
    """
    causes = [found for found in _told(reader, run_id, Verdict) if is_abort(found[1])]
    ends = [found for found in _told(reader, run_id, RunComplete) if not found[1].running] if causes else []
    if not ends or ends[-1][1].status == "completed":
        return ""
    before = (verdict for offset, verdict in causes if offset < ends[-1][0])
    return next((f"ended because {describe_verdict(verdict)}" for verdict in before), "")


def _told(reader: JournalReader, run_id: str, kind: type[_E]) -> list[tuple[int, _E]]:
    """Return the events of a kind of a run, with their offsets."""
    entries = reader.entries_of(run_id, kind.kind)
    found = ((entry.offset, decode_event(entry.topic, entry.payload)) for entry in entries)
    return [(offset, event) for offset, event in found if isinstance(event, kind)]


def is_abort(verdict: Verdict) -> bool:
    """Return whether a verdict is one that ends the run."""
    return verdict.abort and verdict.state == "failed" and not verdict.final


def verdict_table(verdicts: Iterable[Verdict]) -> FittingTable:
    """Return verdicts on one run as a table for the terminal; what there is to say is below a threshold."""
    rows = verdict_rows(verdicts)
    columns = ["VERDICT", "THRESHOLD", "MEASURED", "LIMIT", "SAMPLES"]
    if len({row.producer for row in rows}) > 1:
        columns.append("BY")
    lines = []
    for row in rows:
        threshold = Text(printable(row.threshold))
        if row.reason:
            threshold.append(f"\n  {printable(row.reason)}", "dim")
        state = Text(row.state, STYLES[row.state.split()[0]])
        lines.append((state, threshold, row.measured, row.limit, row.samples, row.producer))
    return FittingTable(columns, lines, spare=_SPARE, right=("MEASURED", "LIMIT", "SAMPLES"))


def verdicts_in_brief(verdicts: Sequence[Verdict]) -> str:
    """Return how many thresholds passed, in words."""
    passed = sum(verdict.state == "passed" for verdict in verdicts)
    if not verdicts:
        return "no threshold was judged"
    if len(verdicts) == 1:
        return f"the threshold {'is ' * (verdicts[0].state == 'unknown')}{verdicts[0].state}"
    if passed == len(verdicts):
        return "both thresholds passed" if passed == 2 else f"all {passed} thresholds passed"
    named = [
        f"{count} {state}"
        for state in ("failed", "unknown")
        if (count := sum(verdict.state == state for verdict in verdicts))
    ]
    return f"{passed} of {len(verdicts)} thresholds passed, {', '.join(named)}"


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts as text of at most 80 columns without colour, a table for each run."""
    parts: list[RenderableType] = []
    for run_id, of_run in by_run(verdicts).items():
        parts += [run_title(run_id), verdict_table(of_run), ""]
    return plain_text([*parts, f"{verdicts_in_brief(verdicts)}."], width=_WIDTH)


def run_title(run_id: str) -> str:
    """Return what stands above the verdicts on a run."""
    return f"Thresholds of run {run_id}:" if run_id else "Thresholds, without a run:"


def by_run(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Return verdicts by the run that they are about."""
    runs: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        runs.setdefault(verdict.run_id, []).append(verdict)
    return runs


def verdicts_markdown(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts as a table in Markdown, for a pull request; no name in it is taken for markup."""
    runs = by_run(verdicts)
    several = len(runs) > 1
    columns = ["run"] * several + ["verdict", "threshold", "measured", "limit", "samples", ""]
    sides = [":--"] * several + [":--", ":--", "--:", "--:", "--:", ":--"]
    of_run = f" of run {markdown_code(next(iter(runs)))}" if len(runs) == 1 and "" not in runs else ""
    lines = [f"**Thresholds{of_run}: {verdicts_in_brief(verdicts)}**", ""]
    lines += [markdown_line(columns), markdown_line(sides)]
    for row in verdict_rows(verdicts):
        cells = [markdown_code(row.run_id) if row.run_id else "none"] * several
        cells += [row.state if row.passed else f"**{row.state}**", markdown_code(row.threshold)]
        lines.append(
            markdown_line([*cells, *map(markdown_text, (row.measured, row.limit, row.samples, row.reason))])
        )
    return "\n".join(lines) + "\n"


def markdown_line(cells: Iterable[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def markdown_text(text: str) -> str:
    """Return a text of which nothing is markup in Markdown."""
    return _MARKDOWN.sub(r"\\\1", printable(text))


def markdown_code(text: str) -> str:
    """Return a text as code of Markdown, in which nobody is mentioned and nothing linked."""
    text = printable(text)
    fence = "`" * (max((len(each) for each in re.findall("`+", text)), default=0) + 1)
    pad = " " if text[:1] in "` " or text[-1:] in "` " else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def verdicts_junit(verdicts: Sequence[Verdict]) -> str:
    """Return verdicts as JUnit's XML: a suite for each run, a test case for each threshold.

    Neither a suite's nor a case's name has the run's id in it, so that CI finds the cases of an earlier
    pipeline again; it is a property. What is unknown is a failure.
    """
    top = ET.Element("testsuites", {"name": "phase-bus", **_counts(verdicts)})
    runs = by_run(verdicts)
    for number, (run_id, of_run) in enumerate(runs.items(), 1):
        name = "thresholds" if len(runs) == 1 else f"thresholds.run{number}"
        ended = datetime.fromtimestamp(max(v.ts_ns for v in of_run) // 10**9, UTC)
        when = f"{ended:%Y-%m-%dT%H:%M:%S}"
        suite = ET.SubElement(top, "testsuite", {"name": name, "timestamp": when, **_counts(of_run)})
        properties = ET.SubElement(suite, "properties")
        ET.SubElement(properties, "property", name="run_id", value=xml_text(run_id))
        several = len({verdict.producer for verdict in of_run}) > 1
        for row in verdict_rows(of_run):
            by = f" ({row.producer})" if several else ""
            case = ET.SubElement(
                suite, "testcase", name=xml_text(row.threshold + by), classname=name, time="0"
            )
            if row.passed:
                ET.SubElement(case, "system-out").text = xml_text(row.details)
            else:
                failure = ET.SubElement(case, "failure", type=row.state, message=xml_text(row.details))
                failure.text = xml_text(
                    f"{quoted(row.threshold)} {row.state}: {row.details}; run {row.run_id or 'none'}"
                )
    return xml_document(top)


def _counts(verdicts: Sequence[Verdict]) -> dict[str, str]:
    failures = sum(not _is_pass(verdict) for verdict in verdicts)
    return {
        "tests": str(len(verdicts)),
        "failures": str(failures),
        "errors": "0",
        "skipped": "0",
        "time": "0",
    }


def xml_document(top: ET.Element) -> str:
    """Return an element, with all in it, as a document."""
    ET.indent(top)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(top, encoding="unicode")}\n'


def xml_text(text: str) -> str:
    """Return a text without what XML cannot have."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", printable(text))


def verdicts_document(verdicts: Sequence[Verdict], changes: Sequence[Verdict] = ()) -> dict[str, Any]:
    """Return verdicts for JSON, in the raw units of the bus.

    Args:
        verdicts: the last ones.
        changes: all that came before, if that is to be told too.
    """
    return {
        "version": 1,
        "passed": all_passed(verdicts),
        "verdicts": [msgspec.to_builtins(verdict) for verdict in verdicts],
        "changes": [msgspec.to_builtins(verdict) for verdict in changes],
    }


def _row(verdict: Verdict) -> VerdictRow:
    measured, limit = _numbers(verdict)
    return VerdictRow(
        run_id=verdict.run_id,
        threshold=verdict.threshold,
        state=verdict.state if verdict.final else f"{verdict.state} so far",
        passed=_is_pass(verdict),
        measured=measured,
        limit=limit,
        samples=f"{verdict.samples:,}",
        reason=verdict.reason,
        producer=verdict.producer,
    )


def _numbers(verdict: Verdict) -> tuple[str, str]:
    """Return what was measured and the limit, which look different if they are."""
    unit, factor = readable_unit(verdict.unit)
    value, limit = (None if each is None else each * factor for each in (verdict.value, verdict.limit))
    shown = format_number
    if value is not None and limit is not None and value != limit and shown(value) == shown(limit):
        shown = _precisely
    unit = f" {unit.replace('/sec', '/s')}" if unit else ""
    measured = "-" if value is None else f"{shown(value)}{unit}"
    return measured, "-" if limit is None else f"{_ENDING_ZEROS.sub('', shown(limit))}{unit}"


def _precisely(value: float) -> str:
    return f"{value:,.{_DIGITS}g}"
