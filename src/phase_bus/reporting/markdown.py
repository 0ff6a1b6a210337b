"""Results as Markdown, for a pull request: a brief table first, the settings folded below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from phase_bus.aggregation.text import inexact, profiling_first, with_overall
from phase_bus.reporting.brief import brief_cells, warnings_of
from phase_bus.reporting.settings import run_settings
from phase_bus.reporting.source import PastRun
from phase_bus.reporting.sweep_text import OVERVIEW_COLUMNS, notes, overview
from phase_bus.reporting.verdicts import markdown_code, markdown_line, markdown_text, verdicts_markdown

_OF_PHASE = ("phase", "requests", "successful", "failed", "duration, s", "requests/s", "output tokens/s")
_OF_TIMES = ("latency p50, ms", "latency p99, ms", "TTFT p50, ms", "TTFT p99, ms", "ITL p50, ms")


def run_markdown(run: PastRun) -> str:
    """Return a run's result as Markdown; no name in it is taken for markup."""
    summary = run.summary
    phases = with_overall(profiling_first(summary["phases"]), summary)
    told = f"{summary['status']}, {summary['records']:,} records"
    lines = [
        f"**Run {markdown_code(summary['run_id'])}: {told}**",
        "",
        *(f"- {markdown_text(warning)}" for warning in warnings_of(run)),
        "",
    ]
    if phases:
        lines += _table(
            (*_OF_PHASE, *_OF_TIMES), ([phase["name"], *brief_cells(phase)] for phase in phases)
        )
        lines += ["", *map(markdown_text, inexact(summary, phases))]
    if run.verdicts:
        lines += ["", verdicts_markdown(run.last_verdicts)]
    lines += ["", "<details><summary>Settings</summary>", "", markdown_line(("setting", "value"))]
    lines.append(markdown_line((":--", ":--")))
    for title, text in run_settings(run):
        lines.append(markdown_line((title, markdown_code(text))))
    return _joined([*lines, "", "</details>"])


def sweep_markdown(sweep: Mapping[str, Any]) -> str:
    """Return the overview of a sweep's variations as Markdown; no name in it is taken for markup."""
    runs = sweep["runs"]
    lines = [f"**Sweep {markdown_code(sweep['sweep_id'])}: {len(runs)} runs**", ""]
    for run in runs:
        if run["left_out"]:
            lines.append(
                f"- left out: run {markdown_code(run['run_id'])}, {markdown_text(run['left_out'])}"
            )
    lines.append("")
    lines += _table(OVERVIEW_COLUMNS, overview(sweep))
    return _joined([*lines, "", *(f"- {markdown_text(note)}" for note in notes(sweep))])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    made = [markdown_line(columns), markdown_line([":--", *["--:"] * (len(columns) - 1)])]
    for name, *cells in rows:
        made.append(markdown_line([markdown_code(name), *map(markdown_text, cells)]))
    return made


def _joined(lines: Iterable[str]) -> str:
    """Return lines as a text, without two empty ones in a row."""
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept).rstrip() + "\n"
