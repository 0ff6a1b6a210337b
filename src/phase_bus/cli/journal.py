"""``phase-bus journal``: info, verify, prune, export."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter
from rich.filesize import decimal

from phase_bus.cli.journals import (
    OneDataOption,
    PastAddressOption,
    exit_code,
    find_run,
    journal_to_write,
    looking,
    one_journal,
    whole_journal,
)
from phase_bus.cli.options import DEFAULT_LIMITS, JsonOption, LimitOptions, OutputOption, RunOption
from phase_bus.cli.output import counted, local_time, make_console, print_json, print_line, print_table, say
from phase_bus.errors import ConfigError, JournalDamagedError
from phase_bus.journal.files import FILE_NAME, size_on_disk
from phase_bus.journal.holding import in_words
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Limits


def info(*, data: OneDataOption = None, json: JsonOption = False) -> None:
    """Say what a journal holds, and how far each consumer has come in it.

    For example:

        phase-bus journal info
        phase-bus journal info --data /var/lib/my-bus --json
    """
    with JournalReader(one_journal(data)) as reader:
        told = reader.info()
        letters = len(reader.dead_letters())
    if json:
        print_json({**msgspec.to_builtins(told), "head": told.head._asdict(), "dead_letters": letters})
        return
    console = make_console()
    console.print(f"{told.path}: {decimal(told.size_bytes)}", soft_wrap=True)
    since = "" if told.oldest_ts_ns is None else f", since {local_time(told.oldest_ts_ns)}"
    console.print(
        f"{counted(told.runs, 'run')}, {counted(told.events, 'event')}, "
        f"{counted(told.records, 'record')}{since}; last offset {told.head.offset}; "
        f"{counted(letters, 'dead letter')}"
    )
    if told.checkpoints:
        offsets = ((name, position.offset) for name, position in told.checkpoints.items())
        rows = ((name, offset, told.head.offset - offset) for name, offset in offsets)
        print_table(("CONSUMER", "CHECKPOINT", "BEHIND"), rows, whole=("CONSUMER",))


def verify(*, data: OneDataOption = None, json: JsonOption = False) -> int:
    """Read a whole journal and say what is damaged; exit with 1 if anything is.

    For example:

        phase-bus journal verify --data /var/lib/my-bus
    """
    path, events = one_journal(data), 0
    try:
        with JournalReader(path) as reader:
            path, problems = reader.path, reader.verify()
            events = 0 if problems else reader.info().events
    except JournalDamagedError as error:  # any other error says nothing of its content
        problems = [error.reason]
    if json:
        print_json({"path": str(path), "problems": problems})
    else:
        for problem in problems:
            print_line(problem)
        verdict = counted(len(problems), "problem") if problems else f"{events} events, all is well"
        print_line(f"{path}: {verdict}")
    return 1 if problems else 0


def prune(
    *,
    data: Annotated[Path, Parameter(help="The journal: its directory or file.")],
    limits: LimitOptions = DEFAULT_LIMITS,
    json: JsonOption = False,
) -> None:
    """Delete the oldest finished runs until the limits are met. No bus may be using the journal.

    A bus prunes its own journal by itself, according to its limits. A run that a consumer has not read is
    kept as long as these allow; if it has to go, the consumer is told what it has lost.

    For example:

        phase-bus journal prune --data /var/lib/my-bus --max-runs 10
    """
    from phase_bus.journal.writer import Journal

    directory = journal_to_write(data)
    path = directory / FILE_NAME
    before = size_on_disk(path)
    with Journal(directory, msgspec.convert(limits, Limits, from_attributes=True)) as writer:
        pruned, held = writer.prune(time.time_ns()), writer.held
    after = size_on_disk(path)
    gone = [row.run_id for row in pruned]
    if json:
        unread = [each for row in pruned for each in row.unread]
        print_json({"path": str(path), "pruned": gone, "held": held, "unread": unread, "size_bytes": after})
        return
    for row in pruned:
        print_line(row.run_id)
        if row.unread:
            say(f"run {row.run_id} had not been read by {in_words(row.unread)}")
    if held:
        say(
            f"{counted(len(held), 'run')} over the limits held back for consumers that have not read them; "
            "--max-absence-s 0 takes them all the same"
        )
    say(f"{counted(len(gone), 'run')} pruned from {path}, {decimal(before)} before, {decimal(after)} now")


def export(
    run: RunOption = None,
    *,
    data: OneDataOption = None,
    address: PastAddressOption = None,
    format: Literal["jsonl", "parquet"] = "jsonl",
    output: OutputOption = None,
) -> int:
    """Write a journal's events to a file, for other programs; exit with 3 if some are damaged.

    As JSON lines, with one event per line, or as Parquet, with one request record per row; for the latter,
    install 'phase-bus[parquet]'. A journal of any size needs little memory.

    For example:

        phase-bus journal export latest | jq .kind
        phase-bus journal export latest --address tcp://10.0.0.5:5670 > run.jsonl
        phase-bus journal export --format parquet --output records.parquet

    Args:
        format: 'jsonl' or 'parquet'.
        output: The file; by default, for JSON lines, standard output.
    """
    from phase_bus.journal.export import export_jsonl, export_parquet

    if format == "parquet" and output is None:
        raise ConfigError("--format parquet: needs a file; give --output FILE")
    with ExitStack() as stack:
        past = stack.enter_context(looking(data, address))
        if run is None:
            path, where, run_id = *whole_journal(past), None
        else:
            found = find_run(run, past)
            path, where, run_id = found.journal, found.where, found.row.run_id
        reader = stack.enter_context(JournalReader(path))
        if format == "parquet":
            assert output is not None
            count, what = export_parquet(reader, run_id, output), "record"
        else:
            count, what = export_jsonl(reader, run_id, output), "event"
        say(f"{counted(count, what)} of {where} exported")
        return exit_code(reader, where)
