"""``phase-bus report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from phase_bus.cli.journals import DataOption, Past, PastAddressOption, find_run, find_sweep, looking
from phase_bus.cli.options import JsonOption, OutputOption
from phase_bus.cli.output import EXIT_NOT_WHOLE, counted, default_output, put_result, say, text_width
from phase_bus.core.files import check_writable
from phase_bus.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from phase_bus.cli.journals import Found
    from phase_bus.comparison import Comparison
    from phase_bus.reporting.source import PastRun

Format: TypeAlias = Literal["text", "json", "csv", "html", "markdown"]
_RECORDS = (".csv", ".parquet")


def report(
    run: str | None = None,
    *,
    sweep: str | None = None,
    by: str | None = None,
    warmup: bool = False,
    all: bool = False,
    records: Path | None = None,
    against: str | None = None,
    format: Format | None = None,
    output: OutputOption = None,
    data: DataOption = None,
    address: PastAddressOption = None,
    json: JsonOption = False,
) -> int:
    """Show the result of a past run, or of all runs of a sweep, computed from the journals alone.

    The numbers are the same as those of the consumer 'aggregator' with its default options, whether or not
    it was running.

    How the run was made (its command line without secrets, load, endpoints, versions, host), and the
    verdicts on its thresholds, are in all forms but csv. Text and markdown begin with one brief table;
    'markdown' is for a pull request.

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
        phase-bus report latest --all
        phase-bus report latest --format markdown --records requests.csv
        phase-bus report 3f2a9c01d4e5 --format html --output report.html
        phase-bus report latest --format csv > result.csv
        phase-bus report latest --by aggregator --json
        phase-bus report latest --against main --format html --output report.html
        phase-bus report --sweep latest --format html

    Args:
        run: Its id or at least its first 4 letters, a label, or 'latest'.
        sweep: A sweep's id, or 'latest': report on all its runs in all journals.
        by: Show the last summary of the run that this consumer published, instead of computing it.
        warmup: Count warm-up phases in a sweep too.
        all: In text, show every phase and metric. By default it has what most people look at.
        records: Also write a row for every request to this file, which ends in .csv or .parquet (needs
            'phase-bus[parquet]').
        against: With html, also compare the run with this: a baseline, a label, or runs, as 'compare' takes
            them.
        format: 'text' (the default), 'json', 'csv', 'html' or 'markdown'.
        output: The file to write to. By default it is printed; html on a terminal goes to
            phase-bus-RUN.html.
    """
    if json and format not in (None, "json"):
        raise ConfigError(f"--json and --format {format}: give one of them")
    form: Format = "json" if json else format or "text"
    if run is not None and sweep is not None:
        raise ConfigError(f"run {run!r} and --sweep {sweep!r}: give one of them")
    if against is not None and (sweep is not None or by is not None or form != "html"):
        raise ConfigError("--against is for one run, computed, with --format html; see 'phase-bus compare'")
    if sweep is not None and by is not None:
        raise ConfigError("--by is for one run; with --sweep the result is computed")
    if warmup and sweep is None:
        raise ConfigError("--warmup is for --sweep; the report of a run has every phase")
    if all and (sweep is not None or form != "text"):
        raise ConfigError("--all is for one run in text; the other forms have everything")
    if records is not None:
        if sweep is not None:
            raise ConfigError("--records is for one run")
        _check_records(records)
    with looking(data, address) as where:
        if sweep is not None:
            name, result = _sweep(sweep, where, warmup, form)
            code = 0
        else:
            found = find_run(run, where)
            name, past = found.row.run_id, _past(found, by, form)
            if records is not None:
                _write_records(found, records)
            comparison = None if against is None else _compare(against, name, where)
            result = _render(past, form, comparison, brief=not all)
            code = 0 if past.is_whole else EXIT_NOT_WHOLE
            if past.damage:
                say(f"run {name}: {past.damage}; 'phase-bus journal verify' says more")
    put_result(result, output or default_output(name, form))
    return code


def _past(found: Found, by: str | None, form: Format) -> PastRun:
    from phase_bus.reporting.source import compute, published

    if by is None:
        return compute(found.journal, found.row.run_id, fine=form == "html")
    past = published(found.journal, found.row.run_id, by)
    if form != "json" and (past.summary.get("version") != 1 or "phases" not in past.summary):
        raise ConfigError(f"--by {by!r}: its summary is in a form of its own; print it with --format json")
    return past


def _render(past: PastRun, form: Format, comparison: Comparison | None, *, brief: bool) -> Any:
    match form:
        case "json":
            return _document(past)
        case "csv":
            from phase_bus.reporting.csv_table import run_csv

            return run_csv(past.summary)
        case "html":
            from phase_bus.reporting.html import run_html

            return run_html(past, comparison)
        case "markdown":
            from phase_bus.reporting.markdown import run_markdown

            return run_markdown(past)
        case "text":
            return _text(past, brief=brief)


def _check_records(path: Path) -> None:
    if path.suffix not in _RECORDS:
        raise ConfigError(f"--records {str(path)!r}: give a name that ends in {' or '.join(_RECORDS)}")
    check_writable(path, "--records")


def _write_records(found: Found, path: Path) -> None:
    from phase_bus.journal.export import export_csv, export_parquet
    from phase_bus.journal.reader import JournalReader

    export = export_csv if path.suffix == ".csv" else export_parquet
    with JournalReader(found.journal) as reader:
        count = export(reader, found.row.run_id, path)
    say(f"{counted(count, 'record')} written to {path}")


def _compare(against: str, run_id: str, where: Past) -> Comparison:
    from phase_bus.cli.compare import compare_sides
    from phase_bus.comparison import DEFAULT_MEASURES

    return compare_sides(against, f"run:{run_id}", where, DEFAULT_MEASURES, {})


def _document(past: PastRun) -> dict[str, Any]:
    """Return a run's summary with its settings and verdicts; one in another form is left as it is."""
    from phase_bus.reporting.settings import settings_document
    from phase_bus.reporting.verdicts import verdicts_document

    if "phases" not in past.summary:
        return past.summary
    document = {**past.summary, "settings": settings_document(past)}
    if not past.verdicts:
        return document
    verdicts = verdicts_document(past.last_verdicts)["verdicts"]
    return {**document, "verdicts": verdicts, "ended_because": past.ended_because}


def _text(past: PastRun, *, brief: bool) -> str:
    from phase_bus.aggregation.text import plain_text, render_text
    from phase_bus.reporting.settings import run_settings, settings_table
    from phase_bus.reporting.verdicts import verdict_table, verdicts_in_brief

    more: list[RenderableType] = []
    if past.verdicts:
        last = past.last_verdicts
        more += ["", "== thresholds ==", verdict_table(last), "", f"{verdicts_in_brief(last)}."]
        if past.ended_because:
            more.append(f"The run {past.ended_because}.")
    more += ["", "== settings ==", settings_table(run_settings(past))]
    width = text_width()
    return render_text(past.summary, brief=brief, width=width) + plain_text(more, width)


def _sweep(sweep: str, where: Past, warmup: bool, form: Format) -> tuple[str, Any]:
    from phase_bus.reporting.source import compute
    from phase_bus.reporting.sweep import Sweep

    sweep_id, runs = find_sweep(sweep, where)
    collected = Sweep(sweep_id, warmup=warmup)
    for found in runs:
        collected.add(found.where, compute(found.journal, found.row.run_id))
    document = collected.document()
    match form:
        case "json":
            return sweep_id, document
        case "csv":
            from phase_bus.reporting.csv_table import sweep_csv as render
        case "html":
            from phase_bus.reporting.html import sweep_html as render
        case "markdown":
            from phase_bus.reporting.markdown import sweep_markdown as render
        case "text":
            from phase_bus.reporting.sweep_text import sweep_text

            return sweep_id, sweep_text(document, text_width())
    return sweep_id, render(document)
