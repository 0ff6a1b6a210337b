"""``phase-bus replay``."""

from __future__ import annotations

from pathlib import Path

from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from phase_bus.cli.journals import exit_code, find_run
from phase_bus.cli.options import AddressOption, RunOption, parse_address
from phase_bus.cli.output import configure_logging, counted, make_console, say
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Status
from phase_bus.errors import ConfigError
from phase_bus.harness.replayer import Replayer
from phase_bus.journal.reader import JournalReader, PublishedInJournal
from phase_bus.publisher.spool import deliver_spool, is_spool


def replay(
    journal: Path,
    *,
    run: RunOption = None,
    speed: float | None = None,
    as_fast_as_possible: bool = False,
    run_id: str | None = None,
    address: AddressOption = None,
) -> int:
    """Publish past runs again, on another bus.

    Consumers there get what the publishers had published, in the same order and with the same run ids,
    times and numbers. What consumers and the old bus had added is left out, and so are pauses between
    runs. A run whose publisher had vanished ends as 'lost' there too, once the replay is over.

    For example:

        phase-bus replay old.sqlite --as-fast-as-possible
        phase-bus replay old.sqlite --run 3f2a9c01d4e5 --speed 10

    A publisher's spool file is delivered as it is, and renamed; the exit code is 1 if some of it was not:

        phase-bus replay aiperf-20260101T120000Z-3f2a9c01.spool

    Args:
        journal: The journal's file or its directory, or a publisher's spool file.
        speed: Divide the time between events by this. By default 1.
        as_fast_as_possible: Do not wait between events at all.
        run_id: Another id for the run, if the bus has it already.
    """
    configure_logging()
    if speed is not None and (as_fast_as_possible or not speed > 0):
        wrong = "give it, or --as-fast-as-possible" if as_fast_as_possible else "must be above 0"
        raise ConfigError(f"--speed {speed:g}: {wrong}")
    where = parse_address(address)
    if where.direct:
        raise ConfigError(f"address {str(where)!r}: a replay goes to a bus; leave 'direct+' out")
    if is_spool(journal):
        if run is not None or run_id is not None or speed is not None:
            raise ConfigError("--run, --run-id and --speed are for journals; a spool is delivered as it is")
        return _deliver(journal, where)
    with JournalReader(journal) as reader:
        run_ids = _chosen(reader, run)
        if run_id is not None and len(run_ids) != 1:
            raise ConfigError(f"--run-id {run_id!r}: there are {len(run_ids)} runs; choose one with --run")
        published = PublishedInJournal(reader, run_ids)
        with BusClient(where) as client:
            _check_new(client.status(), [run_id] if run_id else run_ids, where)
        console = make_console(stderr=True)
        columns = (TextColumn("replay"), MofNCompleteColumn(), TextColumn("events"), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("replay", total=published.count)
            replayer = Replayer(
                where,
                speed=None if as_fast_as_possible else speed or 1.0,
                run_id=run_id,
                on_sent=lambda count: progress.update(task, completed=count),
            )
            replayer.publish(published)
        code = exit_code(reader)
    say(
        f"{counted(len(run_ids), 'run')}, {counted(replayer.events, 'event')}, "
        f"{counted(replayer.records, 'record')} published again at {where}"
    )
    return code


def _deliver(spool: Path, where: Address) -> int:
    """Deliver a spool file, say what became of it, and return the exit code."""
    report = deliver_spool(spool, str(where))
    delivered = report.events - report.remaining - report.known
    text = f"{delivered} of {report.events + report.missing} events delivered to {where}"
    if report.known:
        text += f", {report.known} were there already"
    if report.remaining:
        text += f", {report.remaining} not acknowledged in time"
    if report.damage:
        text += f", {report.missing} cannot be read ({report.damage})"
    say(f"{text}; the file is {report.path}")
    return 0 if report.complete else 1


def _chosen(reader: JournalReader, run: str | None) -> list[str]:
    """Return the ids of the runs to replay; ids that only consumers mention are no runs."""
    if run is not None:
        return [find_run(run, reader.path).row.run_id]
    known = [row.run_id for row in reader.runs() if row.status != "unknown"]
    if not known:
        raise ConfigError(f"there is no run in {str(reader.path)!r}; give another journal")
    return known


def _check_new(status: Status, run_ids: list[str], where: Address) -> None:
    """Raise a ConfigError if the bus has one of the runs: its consumers would count everything twice."""
    for run_id in {run.run_id for run in status.runs}.intersection(run_ids):
        raise ConfigError(
            f"the bus at {where} has run {run_id!r} already; "
            "choose another bus, or another id with --run-id"
        )
