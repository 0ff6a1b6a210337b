"""Results as one self-contained HTML file: style, data and plotting library are inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec

from phase_bus import __version__
from phase_bus.aggregation.text import in_reading_order, inexact, profiling_first, row, with_overall
from phase_bus.comparison.comparison import Comparison, Word
from phase_bus.core.classes import import_extra
from phase_bus.core.printable import printable, printable_json
from phase_bus.reporting.brief import brief_cells, warnings_of
from phase_bus.reporting.comparison_figures import comparison_figures, differences
from phase_bus.reporting.comparison_text import COLUMNS as COMPARED
from phase_bus.reporting.comparison_text import cells, in_brief, side_title
from phase_bus.reporting.comparison_text import notes as comparison_notes
from phase_bus.reporting.figures import run_figures
from phase_bus.reporting.settings import run_settings, when
from phase_bus.reporting.source import PastRun
from phase_bus.reporting.sweep_figures import sweep_figures
from phase_bus.reporting.sweep_text import COLUMNS, OVERVIEW_COLUMNS, heading, notes, overview, rows
from phase_bus.reporting.theme import Figure
from phase_bus.reporting.verdicts import verdict_rows, verdicts_in_brief

_BADGES: dict[Word, str] = {
    "regressed": "bad",
    "improved": "good",
    "equivalent": "good",
    "cannot tell": "open",
}
_COLUMNS = ("count", "mean", "std", "min", "p50", "p90", "p95", "p99", "max")


def run_html(run: PastRun, comparison: Comparison | None = None) -> str:
    """Return a run's report, with a comparison in which it is the candidate if there is one.

    Raises:
        ConfigError: if Jinja2 is not installed.
    """
    summary = run.summary
    phases = with_overall(summary["phases"], summary)
    page_notes = []
    if run.by is not None:
        page_notes.append(
            f"The numbers are those that the consumer {run.by!r} published. The latencies' distribution is "
            f"not among them: 'phase-bus report {summary['run_id']} --format html' without --by has it."
        )
    if any(phase["other_values"] for phase in phases):
        page_notes.append("There are too many metrics to show: those with most values are here.")
    page_notes += inexact(summary, phases) + _notes_on_windows(summary["overall"].get("windows"))
    return _render(
        "run.html",
        run_figures(summary, run.phases, None if run.start is None else run.start.ts_ns),
        title=f"Run {summary['run_id']}",
        summary=summary,
        ended=run.end is not None,
        facts=_facts(run),
        warnings=warnings_of(run),
        verdicts=verdict_rows(run.last_verdicts),
        verdicts_in_brief=verdicts_in_brief(run.last_verdicts),
        phases=phases,
        measured_first=profiling_first(phases),
        phase_cells=brief_cells,
        columns=("metric", *_COLUMNS),
        metric_rows=_metric_rows,
        notes=page_notes,
        **({"comparison": None} if comparison is None else _compared(comparison)),
    )


def sweep_html(sweep: Mapping[str, Any]) -> str:
    """Return a sweep's report.

    Raises:
        ConfigError: if Jinja2 is not installed.
    """
    return _render(
        "sweep.html",
        sweep_figures(sweep),
        title=f"Sweep {sweep['sweep_id']}",
        sweep=sweep,
        left_out=[run for run in sweep["runs"] if run["left_out"]],
        heading=heading,
        columns=list(COLUMNS),
        overview_columns=OVERVIEW_COLUMNS,
        overview=list(overview(sweep)),
        rows=rows,
        notes=list(notes(sweep)),
        when=when,
    )


def comparison_html(comparison: Comparison) -> str:
    """Return a comparison's report.

    Raises:
        ConfigError: if Jinja2 is not installed.
    """
    sides = {"base": comparison.base, "candidate": comparison.candidate}
    return _render(
        "comparison.html",
        comparison_figures(comparison),
        title=f"{comparison.candidate.name} against {comparison.base.name}",
        badge=_BADGES[comparison.verdict],
        facts=[(name, side_title(side)) for name, side in sides.items()],
        runs=[(name, run) for name, side in sides.items() for run in side.runs],
        notes=[],
        when=when,
        **_compared(comparison),
    )


def _compared(comparison: Comparison) -> dict[str, Any]:
    """Return what the table of a comparison is made of."""
    verdict, metric, *others = COMPARED
    return {
        "comparison": comparison,
        "compared_title": f"Against {side_title(comparison.base)}",
        "compared_in_brief": in_brief(comparison),
        "compared_columns": [metric, verdict, *others],
        "compared_cells": cells,
        "compared_badges": _BADGES,
        "compared_notes": comparison_notes(comparison),
        "differences": differences(comparison),
    }


def _render(template: str, figures: Sequence[Figure], **values: Any) -> str:
    jinja2 = import_extra("jinja2", "report", "--format html: ")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("phase_bus.reporting"),
        autoescape=True,
        # A text, not what is HTML already.
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    scripts = [_uplot("uPlot.iife.min.js"), _read("page.js")] if figures else []
    style = [_read("page.css"), *([_uplot("uPlot.min.css")] if figures else [])]
    page: str = environment.get_template(template).render(
        **values,
        version=__version__,
        style="\n".join(style),
        figures=figures,
        data=_in_script({figure.key: figure for figure in figures}),
        scripts=scripts,
        # No other script runs and nothing is fetched, whatever might have got into the page.
        policy="default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src "
        + (" ".join(map(_hash, scripts)) or "'none'"),
    )
    return page


def _read(name: str) -> str:
    return files("phase_bus.reporting").joinpath("templates", name).read_text("utf-8")


def _uplot(name: str) -> str:
    """Return a file of the plotting library, which comes with the dashboard's page."""
    return files("phase_bus_consumers").joinpath("dashboard_page", name).read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _in_script(data: Any) -> str:
    """Return JSON in which nothing can end the script element around it."""
    text = printable_json(msgspec.json.encode(data).decode())
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(run: PastRun) -> list[tuple[str, str]]:
    """Return the names and texts in the head of a run's page."""
    return [*run_settings(run)[:-1], ("records", f"{run.summary['records']:,}")]  # the badge has the status


def _notes_on_windows(windows: Mapping[str, Any] | None) -> list[str]:
    if windows is None:
        return []
    notes = [f"In the plots over time percentiles are within {windows['relative_error']:.2%}."]
    if windows["unplaced"]:
        notes.append(
            f"{windows['unplaced']:,} requests have no end time, or one far from all others, "
            "and are in no plot over time."
        )
    return notes


def _metric_rows(phase: Mapping[str, Any]) -> list[list[str]]:
    """Return the title and cells of each of a phase's metrics."""
    return [row(phase["metrics"][name], _COLUMNS) for name in in_reading_order(phase["metrics"])]
