"""``phase-bus check``: whether a past run keeps to thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from phase_bus.cli.journals import DataOption, Found, PastAddressOption, exit_code, find_run, looking
from phase_bus.cli.options import ConfigOption, JsonOption, JunitOption, MarkdownOption, ThresholdOption
from phase_bus.cli.output import (
    EXIT_NOT_WHOLE,
    EXIT_THRESHOLD,
    make_console,
    print_json,
    print_line,
    print_table,
    say,
)
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.events import Verdict
from phase_bus.journal.reader import JournalReader

if TYPE_CHECKING:
    from phase_bus.thresholds import Threshold


def check(
    run: str | None = None,
    *,
    threshold: ThresholdOption = None,
    config: ConfigOption = None,
    junit: JunitOption = None,
    markdown: MarkdownOption = None,
    data: DataOption = None,
    address: PastAddressOption = None,
    json: JsonOption = False,
) -> int:
    """Judge a past run by thresholds, from the journal alone.

    The verdicts are those that 'phase-bus exec --threshold' gave, or would have given, at the same events.
    Shows each change of a threshold's state on the way, and the final state of each. If none are given,
    the thresholds that were judged during the run are used.

    The exit code is 4 if a threshold failed, or is unknown at the end of the run for lack of data. It is 3
    if none failed but the run is still going on, or the journal is damaged.

    For example:

        phase-bus check latest --threshold 'time_to_first_token p99 < 500 ms'
        phase-bus check 3f2a9c01d4e5 -c thresholds.yaml --junit verdicts.xml

    Args:
        run: Its id or at least its first 4 letters, a label, or 'latest'.
    """
    # Here, since they take longer to load than --help to show.
    from phase_bus.reporting.verdict_files import VerdictFiles
    from phase_bus.thresholds import judge_journal, resolve_all

    files = VerdictFiles(junit=junit, markdown=markdown)
    files.check()
    given = _given(threshold or [], config)
    with ExitStack() as stack:
        found = find_run(run, stack.enter_context(looking(data, address)))
        reader = stack.enter_context(JournalReader(found.journal))
        thresholds = resolve_all(given or _judged(reader, found.row.run_id))
        verdicts = judge_journal(reader, found.row.run_id, thresholds)
        damaged = exit_code(reader, found.where)
    over = found.row.status not in ("running", "unknown")
    last = _last(found, thresholds, verdicts, over=over)
    changes = [verdict for verdict in verdicts if not verdict.final]
    if json:
        _print_json(found.row.run_id, last, changes)
    else:
        _print_text(found, last, changes)
    if not over:
        say(f"run {found.row.run_id} has no end yet: its thresholds may still fail")
    if problems := files.write(last):
        raise PhaseBusError("; ".join(problems))
    if any(verdict.state == "failed" or (over and verdict.state == "unknown") for verdict in last):
        return EXIT_THRESHOLD
    return damaged if over else EXIT_NOT_WHOLE


def _given(texts: Sequence[str], config: Path | None) -> list[Threshold]:
    """Return the thresholds of the command line and of a file, each once."""
    from phase_bus.harness.config import JUDGE, load_config
    from phase_bus.thresholds import parse_thresholds

    found: list[Threshold] = []
    if config is not None:
        for consumer in load_config(config, [], []).consumers:
            if consumer.use == JUDGE:
                place = f"{config}: thresholds of {consumer.title}"
                abort = bool(consumer.set.get("abort_on_failure"))
                found += parse_thresholds(consumer.set.get("thresholds", []), place, abort=abort)
        if not found and not texts:
            raise ConfigError(f"{config}: there are no thresholds in it; list them as 'thresholds'")
    found += parse_thresholds(texts)
    return list({threshold.text: threshold for threshold in found}.values())


def _judged(reader: JournalReader, run_id: str) -> list[Threshold]:
    """Return the thresholds that a run was judged by."""
    from phase_bus.thresholds import parse_thresholds

    verdicts = sorted(reader.events(run_id, Verdict), key=lambda verdict: not verdict.final)
    texts = [verdict.threshold for verdict in verdicts]  # the final ones are in their order
    if not texts:
        raise ConfigError(
            f"run {run_id!r} was not judged by any threshold; give one, such as "
            "--threshold 'time_to_first_token p99 < 500 ms'"
        )
    return list(parse_thresholds(texts))


def _last(
    found: Found, thresholds: Sequence[Threshold], verdicts: Sequence[Verdict], *, over: bool
) -> list[Verdict]:
    """Return how each threshold stands, in their order."""
    from phase_bus.reporting.verdicts import last_verdicts

    last = {verdict.threshold: verdict for verdict in last_verdicts(verdicts, over=over)}
    return [last.get(each.text) or _not_judged(found, each) for each in thresholds]


def _not_judged(found: Found, threshold: Threshold) -> Verdict:
    return Verdict(
        run_id=found.row.run_id,
        ts_ns=found.row.started_ns,
        producer="check",
        threshold=threshold.text,
        phase=threshold.phase,
        state="unknown",
        reason="nothing was judged yet",
        abort=threshold.abort,
    )


def _print_json(run_id: str, last: Sequence[Verdict], changes: Sequence[Verdict]) -> None:
    from phase_bus.reporting.verdicts import verdicts_document

    print_json({"run_id": run_id, **verdicts_document(last, changes)})


def _print_text(found: Found, last: Sequence[Verdict], changes: Sequence[Verdict]) -> None:
    from phase_bus.reporting.verdicts import run_title, verdict_rows, verdict_table, verdicts_in_brief

    if changes:
        rows = [
            (
                f"{(verdict.ts_ns - found.row.started_ns) / 1e9:,.0f} s",
                verdict.offset,
                verdict.state,
                row.threshold,
                row.measured,
                row.samples,
            )
            for verdict, row in zip(changes, verdict_rows(changes), strict=True)
        ]
        print_table(
            ("AFTER", "OFFSET", "STATE", "THRESHOLD", "MEASURED", "SAMPLES"),
            rows,
            spare=("SAMPLES", "OFFSET"),
        )
        print_line("")
    print_line(run_title(found.row.run_id))
    make_console().print(verdict_table(last))
    print_line(verdicts_in_brief(last))
