"""``phase-bus baseline``: set, show, list, remove."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from msgspec import Struct
from rich.filesize import decimal

from phase_bus.cli.journals import DataOption, Found, PastAddressOption, looking, run_starts
from phase_bus.cli.options import JsonOption
from phase_bus.cli.output import counted, duration, local_time, print_json, print_table, say
from phase_bus.errors import ConfigError, JournalError
from phase_bus.journal.baselines import (
    RunSource,
    baseline_journal,
    baseline_names,
    baselines_directory,
    check_name,
    remove_baseline,
    set_baseline,
)
from phase_bus.journal.files import FILE_NAME, size_on_disk
from phase_bus.journal.reader import JournalReader

_COLUMNS = ("RUN", "STATUS", "STARTED", "DURATION", "RECORDS", "LABEL", "MODELS")
_SPARE = ("MODELS", "LABEL", "DURATION", "STARTED")


def set_(
    name: str,
    run: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    data: DataOption = None,
    address: PastAddressOption = None,
    allow_incomplete: bool = False,
) -> None:
    """Name runs to compare others with, replacing those that had the name.

    The runs are copied, with everything that consumers published about them, so that pruning does not
    affect them: they stay until the name is set again or removed. Several runs of one kind make a better
    baseline than one, because only they show how much equal runs differ.

    For example:

        phase-bus baseline set nightly label:nightly
        phase-bus baseline set v1 3f2a9c01d4e5 77b0c1d2e3f4 90ab12cd34ef

    Args:
        name: What to call it: letters, digits, '-', '_' and '.', a letter first.
        run: The runs: ids, 'latest', labels, other baselines, as in 'phase-bus compare'.
        allow_incomplete: Take runs, too, that did not complete, or of which something is missing.
    """
    from phase_bus.cli.sides import Sides

    check_name(name)
    with looking(data, address) as past:
        sides = Sides(past)
        named = [each for word in run for each in sides.resolve(word).runs]
        found = list({each.row.run_id: each for each in named}.values())
        if not allow_incomplete:
            for each in found:
                _check_whole(each)
        sources = [RunSource(each.journal, each.row.run_id) for each in found]
        path = set_baseline(name, sources, allow_damaged=allow_incomplete)
    say(f"baseline {name} has {counted(len(found), 'run')}, {decimal(size_on_disk(path))}, in {path}")


def show(name: str, /, *, json: JsonOption = False) -> None:
    """List the runs of a baseline.

    For example:

        phase-bus baseline show nightly
        phase-bus baseline show nightly --json | jq -r .journal

    Args:
        name: The baseline.
    """
    path = baseline_journal(name)
    found = _runs(path)
    starts = run_starts(found)
    if json:
        runs = [
            {**msgspec.to_builtins(each.row), "start": start}
            for each, start in zip(found, starts, strict=True)
        ]
        print_json({**msgspec.to_builtins(_told(name, path, found)), "runs": runs})
        return
    rows = (
        (
            row.run_id,
            row.status,
            local_time(row.started_ns),
            duration(row.started_ns, row.ended_ns),
            f"{row.records:,}",
            (start.label if start else None) or "",
            ", ".join(start.models) if start else "",
        )
        for (_, row, _), start in zip(found, starts, strict=True)
    )
    print_table(_COLUMNS, rows, whole=("RUN",), spare=_SPARE)
    say(f"they are in {path}")


def list_(*, json: JsonOption = False) -> None:
    """List the baselines.

    For example:

        phase-bus baseline list
    """
    told = list(_readable())
    if json:
        print_json(told)
        return
    rows = (
        (each.name, each.run_count, f"{each.records:,}", local_time(each.set_ns), decimal(each.size_bytes))
        for each in told
    )
    empty = "no baselines yet; 'phase-bus baseline set NAME RUN ...' makes one"
    print_table(("BASELINE", "RUNS", "RECORDS", "SET", "SIZE"), rows, empty, whole=("BASELINE",))


def remove(name: str, /) -> None:
    """Remove a baseline, with its copies of runs.

    For example:

        phase-bus baseline remove nightly

    Args:
        name: The baseline.
    """
    remove_baseline(name)
    say(f"baseline {name} removed")


class _Told(Struct, frozen=True, kw_only=True):
    name: str
    run_count: int
    records: int
    set_ns: int
    size_bytes: int
    journal: str


def _told(name: str, path: Path, found: list[Found]) -> _Told:
    return _Told(
        name=name,
        run_count=len(found),
        records=sum(each.row.records for each in found),
        set_ns=path.stat().st_mtime_ns,
        size_bytes=size_on_disk(path),
        journal=str(path),
    )


def _readable() -> Iterator[_Told]:
    """Yield what there is to tell of each baseline; one that cannot be read is reported and left out."""
    for name in baseline_names():
        path = baselines_directory() / name / FILE_NAME
        try:
            told = _told(name, path, _runs(path))
        except JournalError as error:
            say(f"{error}; left out")
        else:
            yield told


def _runs(path: Path) -> list[Found]:
    with JournalReader(path) as reader:
        return [Found(path, row) for row in reader.runs()]


def _check_whole(run: Found) -> None:
    """Raise a ConfigError if something is missing of a run, or it did not complete."""
    from phase_bus.reporting.measured import measure_run

    faults = measure_run(run.journal, run.row.run_id, ()).faults
    if faults:
        raise ConfigError(
            f"run {run.row.run_id!r}: {'; '.join(faults.values())}; give other runs, or allow it with "
            "--allow-incomplete"
        )
