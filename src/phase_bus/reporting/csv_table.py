"""Results as CSV, to be pasted into a spreadsheet or read with ``pandas.read_csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from phase_bus.aggregation.summary import PERCENTILES
from phase_bus.aggregation.text import with_overall
from phase_bus.journal.record_csv import csv_cell

_OF_PHASE = (
    "requests",
    "successful",
    "failed",
    "cancelled",
    "duration_s",
    "request_throughput",
    "output_token_throughput",
)
_OF_METRIC = (
    "unit",
    "count",
    "mean",
    "std",
    "min",
    *(f"p{p}" for p in PERCENTILES),
    "max",
    "sum",
    "set_aside",
    "exact",
)
_OF_STATISTIC = ("n", "mean", "std", "ci95_low", "ci95_high")


def run_csv(summary: Mapping[str, Any]) -> str:
    """Return a run's summary as CSV: a row for each phase and metric.

    Numbers of the phase as a whole (requests, failures, duration, throughput) are repeated in each of its
    rows, in columns of their own. A phase without metrics has one row, with the metric left empty. If
    there are several phases, rows over all of them follow, with the ``phase_index`` -1. Numbers are in
    the raw units of the bus, named by ``unit``.
    """
    rows = []
    for phase in with_overall(summary["phases"], summary):
        first = [summary["run_id"], phase["name"], phase["kind"], phase["index"]]
        first += [phase[name] for name in _OF_PHASE]
        for name, metric in phase["metrics"].items() or [("", {})]:
            rows.append([*first, name, *(metric.get(column) for column in _OF_METRIC)])
    header = ("run_id", "phase", "phase_kind", "phase_index", *_OF_PHASE, "metric", *_OF_METRIC)
    return _csv(header, rows)


def sweep_csv(sweep: Mapping[str, Any]) -> str:
    """Return a sweep as CSV: a row for each variation, phase, metric and statistic.

    Each parameter that the sweep varies has a column ``variation.<name>``. ``mean``, ``std`` and the
    confidence interval are over the trials' values; ``pooled`` is the statistic over the requests of
    all trials taken together.
    """
    keys = list(dict.fromkeys(key for v in sweep["variations"] for key in v["variation"]))
    rows = []
    for variation in sweep["variations"]:
        varied = [variation["variation"].get(key) for key in keys]
        for phase in variation["phases"]:
            for name, metric in phase["metrics"].items():
                for statistic, trials in metric["statistics"].items():
                    first = [sweep["sweep_id"], variation["name"], *varied, phase["name"], name]
                    pooled = (metric["pooled"] or {}).get(statistic)
                    numbers = [trials[column] for column in _OF_STATISTIC]
                    rows.append([*first, metric["unit"], statistic, *numbers, pooled])
    names = [f"variation.{key}" for key in keys]
    header = ["sweep_id", "name", *names, "phase", "metric", "unit", "statistic", *_OF_STATISTIC, "pooled"]
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(csv_cell, header))
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue()
