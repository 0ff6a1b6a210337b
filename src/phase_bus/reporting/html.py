"""Results as one self-contained HTML file: style, data and plotting library are inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

import msgspec

from phase_bus import __version__
from phase_bus.aggregation.text import cell, in_reading_order, inexact, losses, row, with_overall
from phase_bus.aggregation.units import format_number
from phase_bus.core.classes import import_extra
from phase_bus.core.printable import printable, printable_json
from phase_bus.events import span_s
from phase_bus.reporting.figures import LATENCY, run_figures
from phase_bus.reporting.source import PastRun
from phase_bus.reporting.sweep_figures import sweep_figures
from phase_bus.reporting.sweep_text import COLUMNS, OVERVIEW, heading, notes, overview, rows
from phase_bus.reporting.theme import Figure

_COLUMNS = ("count", "mean", "std", "min", "p50", "p90", "p95", "p99", "max")
_IN_PHASES = (
    (LATENCY, "p50"),
    (LATENCY, "p99"),
    ("time_to_first_token", "p50"),
    ("time_to_first_token", "p99"),
    ("inter_token_latency", "p50"),
)


def run_html(run: PastRun) -> str:
    """Return a run's report.

    Raises:
        ConfigError: if plotly or Jinja2 is not installed.
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
        run_figures(summary, run.phases),
        title=f"Run {summary['run_id']}",
        summary=summary,
        ended=run.end is not None,
        facts=_facts(run),
        warnings=_warnings(run),
        phases=phases,
        phase_cells=_phase_cells,
        columns=("metric", *_COLUMNS),
        metric_rows=_metric_rows,
        notes=page_notes,
    )


def sweep_html(sweep: Mapping[str, Any]) -> str:
    """Return a sweep's report.

    Raises:
        ConfigError: if plotly or Jinja2 is not installed.
    """
    return _render(
        "sweep.html",
        sweep_figures(sweep),
        title=f"Sweep {sweep['sweep_id']}",
        sweep=sweep,
        left_out=[run for run in sweep["runs"] if run["left_out"]],
        heading=heading,
        columns=list(COLUMNS),
        overview_columns=["variation", "trials", *(title for _, _, title in OVERVIEW)],
        overview=list(overview(sweep)),
        rows=rows,
        notes=list(notes(sweep)),
        when=_when,
    )


def _render(template: str, figures: Sequence[Figure], **values: Any) -> str:
    jinja2 = import_extra("jinja2", "report", "--format html: ")
    plotly = import_extra("plotly.offline", "report", "--format html: ")
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
    scripts = [plotly.get_plotlyjs(), _read("page.js")] if figures else []
    page: str = environment.get_template(template).render(
        **values,
        version=__version__,
        style=_read("page.css"),
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


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _in_script(data: Any) -> str:
    """Return JSON in which nothing can end the script element around it."""
    text = printable_json(msgspec.json.encode(data).decode())
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(run: PastRun) -> list[tuple[str, str]]:
    """Return the names and texts in the head of a run's page."""
    start, summary = run.start, run.summary
    facts = []
    if start is not None:
        lasted_s = span_s(start.ts_ns, run.end.ts_ns if run.end else None)
        varied = ", ".join(f"{key}={value}" for key, value in start.variation.items())
        facts += [
            ("started", _when(start.ts_ns)),
            ("ended", _when(run.end.ts_ns) if run.end else "not yet"),
            ("duration", "" if lasted_s is None else f"{lasted_s:,.1f} s"),
            ("load by", start.producer),
            ("models", ", ".join(start.models)),
            ("endpoints", ", ".join(start.urls)),
            ("label", start.label or ""),
            ("variation", varied),
            ("sweep", start.sweep_id or ""),
            ("trial", "" if start.trial is None else str(start.trial)),
        ]
    facts.append(("records", f"{summary['records']:,}"))
    return [(name, value) for name, value in facts if value]


def _warnings(run: PastRun) -> list[str]:
    """Return what a reader must know before reading any number."""
    summary = run.summary
    warnings = []
    if run.end is None:
        warnings.append("The run has not ended: these are the numbers so far.")
    elif summary["status"] != "completed" or run.end.reason:
        reason = f": {run.end.reason}" if run.end.reason else ""
        warnings.append(f"The run ended as {summary['status']}{reason}.")
    warnings += [f"{loss}." for loss in losses(summary)]
    if run.end is not None and not summary["final"] and not summary["missing_records"]:
        announced = f"the run's end announced {summary['expected_records']:,}"
        warnings.append(f"The records are {summary['records']:,}, but {announced}.")
    if not summary["records"]:
        warnings.append("The run has no request records: there is nothing to plot.")
    elif not summary["overall"]["successful"]:
        warnings.append("No request succeeded: there are no latencies.")
    return warnings


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


def _phase_cells(phase: Mapping[str, Any]) -> list[str]:
    """Return a phase's cells in the table of phases, except its name."""
    cells = [f"{phase[name]:,}" for name in ("requests", "successful", "failed")]
    if phase["failed"]:
        cells[-1] += f" ({phase['error_rate']:.2%})"
    for value in (phase["duration_s"], phase["request_throughput"], phase["output_token_throughput"]):
        cells.append("-" if value is None else format_number(value))
    return cells + [cell(phase["metrics"].get(name), statistic) for name, statistic in _IN_PHASES]


def _metric_rows(phase: Mapping[str, Any]) -> list[list[str]]:
    """Return the title and cells of each of a phase's metrics."""
    return [row(phase["metrics"][name], _COLUMNS) for name in in_reading_order(phase["metrics"])]


def _when(ts_ns: int) -> str:
    """Return a time as local time with its offset to UTC."""
    return datetime.fromtimestamp(ts_ns // 10**9).astimezone().isoformat(sep=" ")
