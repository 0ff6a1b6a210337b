"""``phase-bus compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from phase_bus.cli.journals import DataOption, Past, PastAddressOption, looking, none_given
from phase_bus.cli.options import JsonOption, OutputOption
from phase_bus.cli.output import EXIT_NOT_WHOLE, default_output, put_result
from phase_bus.core.files import check_writable, write_whole
from phase_bus.errors import ConfigError, suggest

if TYPE_CHECKING:
    from phase_bus.cli.sides import SideRuns
    from phase_bus.comparison import Comparison, Measure, Side

Format: TypeAlias = Literal["text", "json", "markdown", "html"]
Allowed: TypeAlias = Literal["producer", "model", "endpoint", "options", "load", "incomplete", "receipts"]

EXIT_REGRESSED = 1


def compare(
    base: str | None = None,
    candidate: str | None = None,
    *,
    metric: list[str] | None = None,
    margin: list[str] | None = None,
    allow: list[Allowed] | None = None,
    format: Format | None = None,
    output: OutputOption = None,
    junit: Path | None = None,
    data: DataOption = None,
    address: PastAddressOption = None,
    json: JsonOption = False,
) -> int:
    """Say whether CANDIDATE is slower than BASE, and how sure that is.

    Each side is a run's id, or its beginning, or 'latest'; a baseline; a label of runs; a sweep's variation
    as 'SWEEP/VARIATION'; or several of these with commas between them. 'run:', 'baseline:', 'label:' or
    'sweep:' before a name says which is meant.

    The verdict on each metric is 'regressed', 'improved', 'equivalent' (any difference lies within the
    margin), or 'cannot tell', with the number of further runs that would be enough. The unit of repetition
    is the run, never the request, so give each side several, at least three and better five, alternating
    between the sides: 'phase-bus exec --repeat'. With one run on each side, nothing can be concluded. Only
    profiling phases count. All metrics together raise a false alarm in at most 5 % of comparisons.

    Runs that are not comparable are refused: those by another load generator, with another model, endpoint,
    request options or load, or with something missing.

    The exit code is 1 if a metric regressed, 2 if there is nothing to compare, and 3 if a run that was
    allowed lacks something.

    For example:

        phase-bus compare main latest
        phase-bus compare run-1,run-2,run-3 run-4,run-5,run-6 --metric error_rate
        phase-bus compare label:before label:after --format html -o comparison.html
        phase-bus compare main build-42 --format markdown --junit verdicts.xml

    Args:
        base: What CANDIDATE is compared with.
        candidate: The other side.
        metric: What to compare, as NAME[:STATISTIC[:lower|higher]] (request_latency:p90, error_rate); with
            more metrics each interval is wider. May be repeated. Default: p50 and p99 of request_latency,
            time_to_first_token and inter_token_latency, request_throughput, output_token_throughput and
            error_rate.
        margin: How large a difference does not matter, in percent: '3%', or for one metric
            'request_latency:p99=5%'. May be repeated. Default: 2%, and for the share of errors 0.5 points.
        allow: Compare although this differs, or something is missing. May be repeated.
        format: 'text' (the default), 'json', 'markdown' (for a pull request) or 'html'.
        output: The file to write to. By default it is printed; html on a terminal goes to
            phase-bus-BASE-CANDIDATE.html.
        junit: Also write JUnit's XML to this file.
    """
    from phase_bus.comparison import DEFAULT_MEASURES, parse_measures

    if json and format not in (None, "json"):
        raise ConfigError(f"--json and --format {format}: give one of them")
    form: Format = "json" if json else format or "text"
    measures = parse_measures(metric) if metric else DEFAULT_MEASURES
    margins_pct = parse_margins(margin or [], measures)
    if junit is not None:
        check_writable(junit, "--junit")
    with looking(data, address) as past:
        if base is None or candidate is None:
            raise none_given(past, "give two sides, each")
        comparison = compare_sides(base, candidate, past, measures, margins_pct, allow or [])
    put_result(_render(comparison, form), output or default_output(f"{base}-{candidate}", form))
    if junit is not None:
        from phase_bus.reporting.comparison_text import comparison_junit

        write_whole(junit, comparison_junit(comparison))
    if comparison.verdict == "regressed":
        return EXIT_REGRESSED
    return 0 if comparison.whole else EXIT_NOT_WHOLE


def compare_sides(
    base: str,
    candidate: str,
    past: Past,
    measures: Sequence[Measure],
    margins_pct: dict[str, float],
    allow: Sequence[Allowed] = (),
) -> Comparison:
    """Return the comparison of two sides as a user names them."""
    from phase_bus.cli.sides import Sides
    from phase_bus.comparison import compare as compare_measured

    sides = Sides(past)
    one, other = (sides.resolve(text) for text in (base, candidate))
    single = len(one.runs) == len(other.runs) == 1
    return compare_measured(
        measure_side(one, measures, blocks=single),
        measure_side(other, measures, blocks=single),
        measures,
        margins_pct=margins_pct,
        allow=allow,
    )


def measure_side(side: SideRuns, measures: Sequence[Measure], *, blocks: bool) -> Side:
    """Return a side with the figures of its runs, from their journals."""
    from phase_bus.comparison import Side
    from phase_bus.reporting.measured import measure_run

    runs = [
        msgspec.structs.replace(
            measure_run(run.journal, run.row.run_id, measures, blocks=blocks), journal=run.where
        )
        for run in side.runs
    ]
    return Side(side.name, tuple(runs))


def parse_margins(texts: Sequence[str], measures: Sequence[Measure]) -> dict[str, float]:
    """Return margins in percent by measure or metric, that for all under an empty key."""
    known = {name for measure in measures for name in (measure.key, measure.metric)}
    margins: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if equals and name not in known:
            raise ConfigError(f"--margin {text!r}: {name!r} is not compared{suggest(name, known)}")
        margins[name] = _percent(text, number)
    return margins


def _percent(text: str, number: str) -> float:
    try:
        value = float(number.strip().removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise ConfigError(f"--margin {text!r}: give a percentage between 0 and 100, such as 3%")
    return value


def _render(comparison: Comparison, form: Format) -> Any:
    """Return a comparison as text, or as a document for JSON."""
    match form:
        case "json":
            return msgspec.to_builtins(comparison)
        case "markdown":
            from phase_bus.reporting.comparison_text import comparison_markdown as render
        case "html":
            from phase_bus.reporting.html import comparison_html as render
        case "text":
            from phase_bus.cli.output import text_width
            from phase_bus.reporting.comparison_text import comparison_text

            return comparison_text(comparison, text_width())
    return render(comparison)
