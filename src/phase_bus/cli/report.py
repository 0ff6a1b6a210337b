"""``phase-bus report``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from phase_bus.cli.journals import DataOption, find_run, find_sweep
from phase_bus.cli.options import JsonOption, OutputOption
from phase_bus.cli.output import EXIT_NOT_WHOLE, format_json, print_json, say
from phase_bus.core.files import replacing_output
from phase_bus.errors import ConfigError

if TYPE_CHECKING:
    from phase_bus.reporting.source import PastRun

Format: TypeAlias = Literal["text", "json", "csv", "html"]


def report(
    run: str | None = None,
    *,
    sweep: str | None = None,
    by: str | None = None,
    warmup: bool = False,
    format: Format | None = None,
    output: OutputOption = None,
    data: DataOption = None,
    json: JsonOption = False,
) -> int:
    """Show the result of a past run, or of all runs of a sweep, computed from the journals alone.

    The numbers of a run are those of the consumer 'aggregator' with its default options, whether or not
    one was running.

    html is one file with plots of latency over time, its distribution, throughput and errors; it needs
    no network and can be sent to anybody. csv has a row for each phase and metric, with what is of the
    phase as a whole (requests, failures, throughput) in columns of its own. html and --sweep need
    'phase-bus[report]'.

    With --sweep, runs of the same variation are repeated trials: for each variation there are the mean
    of the trials' values, its 95% confidence interval by Student's t, and the percentiles over the
    requests of all trials. Runs that are not complete are listed, and count for nothing else.

    The exit code is 3 if the run is over and its result lacks something: records that did not arrive
    or that its publisher dropped, or what a publisher had that vanished.

    For example:

        phase-bus report latest
        phase-bus report 3f2a9c01d4e5 --format html --output report.html
        phase-bus report latest --format csv > result.csv
        phase-bus report latest --by aggregator --json
        phase-bus report --sweep latest --format html

    Args:
        run: The run's id, as 'phase-bus runs' lists it, or 'latest'.
        sweep: A sweep's id, or 'latest': report on all its runs in all journals.
        by: Show the last summary of the run that this consumer published, instead of computing it.
        warmup: Count warm-up phases in a sweep too.
        format: 'text' (the default), 'json', 'csv' or 'html'.
        output: The file to write to. By default it is printed; html on a terminal goes to
            phase-bus-RUN.html.
    """
    if json and format not in (None, "json"):
        raise ConfigError(f"--json and --format {format}: give one of them")
    form: Format = "json" if json else format or "text"
    if (run is None) == (sweep is None):
        raise ConfigError("give a run's id or 'latest' ('phase-bus runs' lists them), or --sweep ID")
    if sweep is not None and by is not None:
        raise ConfigError("--by is for one run; with --sweep the result is computed")
    if warmup and sweep is None:
        raise ConfigError("--warmup is for --sweep; the report of a run has every phase")
    if sweep is not None:
        name, result = _sweep(sweep, data, warmup, form)
        code = 0
    else:
        assert run is not None
        name, result, past = _run(run, data, by, form)
        code = 0 if past.is_whole else EXIT_NOT_WHOLE
        if past.damage:
            say(f"run {name}: {past.damage}; 'phase-bus journal verify' says more")
    if form == "html" and output is None and sys.stdout.isatty():
        in_a_file_name = re.sub(r"[^\w.-]+", "-", name)
        output = Path(f"phase-bus-{in_a_file_name}.html")
    _put(result, output)
    return code


def _run(run: str, data: Path | None, by: str | None, form: Format) -> tuple[str, Any, PastRun]:
    from phase_bus.reporting.source import compute, published

    found = find_run(run, data)
    run_id = found.row.run_id
    past = compute(found.journal, run_id) if by is None else published(found.journal, run_id, by)
    if form != "json" and (past.summary.get("version") != 1 or "phases" not in past.summary):
        raise ConfigError(f"--by {by!r}: its summary is in a form of its own; print it with --format json")
    match form:
        case "json":
            return run_id, past.summary, past
        case "csv":
            from phase_bus.reporting.csv_table import run_csv as render
        case "html":
            from phase_bus.reporting.html import run_html

            return run_id, run_html(past), past
        case "text":
            from phase_bus.aggregation.text import render_text as render
    return run_id, render(past.summary), past


def _sweep(sweep: str, data: Path | None, warmup: bool, form: Format) -> tuple[str, Any]:
    from phase_bus.reporting.source import compute
    from phase_bus.reporting.sweep import Sweep

    sweep_id, runs = find_sweep(sweep, data)
    collected = Sweep(sweep_id, warmup=warmup)
    for found in runs:
        collected.add(found.journal, compute(found.journal, found.row.run_id))
    document = collected.document()
    match form:
        case "json":
            return sweep_id, document
        case "csv":
            from phase_bus.reporting.csv_table import sweep_csv as render
        case "html":
            from phase_bus.reporting.html import sweep_html as render
        case "text":
            from phase_bus.reporting.sweep_text import sweep_text as render
    return sweep_id, render(document)


def _put(result: Any, output: Path | None) -> None:
    """Print a result, a text or a document for JSON, or write it to a file."""
    if output is None:
        if isinstance(result, str):
            sys.stdout.buffer.write(result.encode())  # a page is in UTF-8 wherever it was made
        else:
            print_json(result)
        return
    text = result if isinstance(result, str) else format_json(result) + "\n"
    with replacing_output(output) as aside:
        aside.write_text(text, encoding="utf-8")
    say(f"written to {output}")
