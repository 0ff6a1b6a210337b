"""``phase-bus dead-letters``: list, show, retry."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from textwrap import indent
from typing import Annotated

import msgspec
from cyclopts import Parameter

from phase_bus.cli.journals import (
    DataOption,
    PastAddressOption,
    looking,
    one_journal,
    readable_journals,
    short_name,
)
from phase_bus.cli.options import AddressOption, JsonOption, parse_address
from phase_bus.cli.output import (
    configure_logging,
    counted,
    local_time,
    print_json,
    print_line,
    print_lines,
    print_table,
    say,
)
from phase_bus.core.address import StreamAddress
from phase_bus.errors import ConfigError
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import DeadLetter, parse_checkpoint_name

_ConsumerOption = Annotated[
    str | None, Parameter(name="--consumer", help="Only the dead letters of the consumer of this name.")
]


_LettersOption = Annotated[
    Path | None,
    Parameter(name="--data", help="The journal: its directory or file. Default: yours that has them."),
]
_COLUMNS = ("ID", "CONSUMER", "KIND", "RUN", "WHEN", "ATTEMPTS", "ERROR", "JOURNAL")
_SPARE = ("JOURNAL", "WHEN", "ATTEMPTS", "KIND")  # what a narrow terminal has no room for


def list_(
    *,
    consumer: _ConsumerOption = None,
    data: DataOption = None,
    address: PastAddressOption = None,
    json: JsonOption = False,
) -> None:
    """List the dead letters: events that consumers failed on, by journal, the oldest first.

    A journal keeps the first 1,000 of a consumer. A line below, or in JSON an object with 'left_out' and no
    'id', says how many more there were at least.

    For example:

        phase-bus dead-letters list
        phase-bus dead-letters list --consumer alerting --json
        phase-bus dead-letters list --address tcp://bus.example.org:5670
    """
    found: list[tuple[Path, DeadLetter]] = []
    left_out: list[tuple[Path, str, int]] = []
    with looking(data, address) as past:
        for reader in readable_journals(past if isinstance(past, Path | None) else past.dead_letters()):
            found += [(reader.path, it) for it in reader.dead_letters(consumer)]
            left_out += [(reader.path, *more) for more in reader.dead_letters_left_out(consumer).items()]
        withheld = 0 if isinstance(past, Path | None) else past.withheld
    if withheld:
        say(f"{withheld} more are of other clients' consumers, and shown to these and to admins only")
    if json:
        letters = [{**msgspec.to_builtins(it), "journal": address or str(path)} for path, it in found]
        more = [
            {"consumer": name, "left_out": n, "journal": address or str(path)} for path, name, n in left_out
        ]
        print_json([*letters, *more])
        return
    where = data or address
    empty = f"no dead letters in {where}" if where else "no dead letters"
    rows = (
        (
            it.id,
            it.consumer,
            it.kind,
            it.run_id,
            local_time(it.ts_ns),
            it.attempts,
            it.error,
            address or short_name(path),
        )
        for path, it in found
    )
    print_table(_COLUMNS, rows, empty, whole=("ID", "CONSUMER", "RUN"), spare=_SPARE)
    for path, name, n in left_out:
        print_line(
            f"and at least {n:,} more of consumer {name!r} that {address or short_name(path)} does not keep"
        )


def show(
    letter_id: int,
    /,
    *,
    data: _LettersOption = None,
    address: PastAddressOption = None,
    json: JsonOption = False,
) -> None:
    """Show a dead letter: the event, and the exception with its traceback.

    For example:

        phase-bus dead-letters show 3

    Args:
        letter_id: Its number, as 'phase-bus dead-letters list' shows it.
    """
    from phase_bus.core.records import to_plain
    from phase_bus.harness.dead_letters import event_of

    with ExitStack() as stack:
        past = stack.enter_context(looking(data, address))
        if isinstance(past, Path | None):
            path = _journal_of(past, (letter_id,), None)
        else:
            path = past.dead_letters(with_event=letter_id)
        reader = stack.enter_context(JournalReader(path))
        (letter,) = _chosen(reader, (letter_id,), None, address)
        event = to_plain(event_of(reader, letter))
    if json:
        print_json({**msgspec.to_builtins(letter), "event": event})
        return
    print_line(f"consumer {letter.consumer!r}, run {letter.run_id}, {letter.kind}, offset {letter.offset}")
    print_line(
        f"dead letter since {local_time(letter.ts_ns)} after {letter.attempts} attempts: {letter.error}"
    )
    print_lines(f"\n{indent(letter.traceback.rstrip(), '  ')}\n")
    print_json(event)


def retry(
    *letter_ids: int,
    all_: Annotated[bool, Parameter(name="--all", help="All there are.")] = False,
    consumer: _ConsumerOption = None,
    with_: Annotated[
        str | None,
        Parameter(
            name="--with",
            help="The consumer as it was started: NAME or module:Class, with options as NAME:key=value. "
            "Default: by its name, without options.",
        ),
    ] = None,
    data: _LettersOption = None,
    address: AddressOption = None,
) -> int:
    """Give events that a consumer failed on to it again; exit with 1 if it fails again.

    The consumer runs in this process, for these events only, and continues from the state that its last
    process left. So pass the options that it had, and make sure that it is not running. What it handles is
    no longer a dead letter, and a new receipt says so. The bus may or may not be running.

    For example:

        phase-bus dead-letters retry 3 --with alerting:threshold_s=30
        phase-bus dead-letters retry --all --consumer my_module:MyConsumer

    Args:
        letter_ids: Their numbers, as 'phase-bus dead-letters list' shows them.
    """
    from phase_bus.harness.dead_letters import open_retry

    if bool(letter_ids) == all_:
        raise ConfigError("give the numbers of dead letters, or --all")
    if StreamAddress.is_meant(address or ""):
        raise ConfigError(
            f"--address {address!r}: dead letters of a stream can be shown, but not retried; let the "
            "consumer take everything again under another name: phase-bus consume ... --name OTHER "
            "--from start"
        )
    configure_logging()
    with JournalReader(_journal_of(data, letter_ids, consumer)) as reader:
        letters = _chosen(reader, letter_ids, consumer)
        names = sorted({letter.consumer for letter in letters})
        consumers = {parse_checkpoint_name(name)[0] for name in names}
        if with_ is not None and len(consumers) > 1:
            raise ConfigError(
                f"--with {with_!r}: these are of {', '.join(sorted(consumers))}; choose with --consumer"
            )
        failed = 0
        with open_retry(reader, parse_address(address)) as again:
            for name in names:
                mine = [letter for letter in letters if letter.consumer == name]
                failed += asyncio.run(again(name, with_ or parse_checkpoint_name(name)[0], mine))
    say(f"{counted(len(letters) - failed, 'dead letter')} handled, {failed} failed again")
    return 1 if failed else 0


def _journal_of(data: Path | None, ids: tuple[int, ...], consumer: str | None) -> Path:
    """Return the journal given, or the user's one that has dead letters of these numbers, or any."""
    if data is not None:
        return data
    having = []
    for reader in readable_journals(None):
        numbers = {letter.id for letter in reader.dead_letters(consumer)}
        if numbers and numbers.issuperset(ids):
            having.append(reader.path)
    if len(having) > 1:
        where = ", ".join(str(path.parent) for path in having)
        raise ConfigError(f"{len(having)} journals have such dead letters; choose one by --data: {where}")
    return having[0] if having else one_journal(None)


def _chosen(
    reader: JournalReader, ids: tuple[int, ...], consumer: str | None, address: str | None = None
) -> list[DeadLetter]:
    """Return the dead letters with these numbers, or all."""
    letters = reader.dead_letters(consumer)
    there = {letter.id: letter for letter in letters}
    for letter_id in ids:
        if letter_id not in there:
            whose = "" if consumer is None else f" of consumer {consumer!r}"
            raise ConfigError(
                f"there is no dead letter {letter_id} in {address or str(reader.path)!r}{whose}; "
                "'phase-bus dead-letters list' shows which there are"
            )
    return [there[letter_id] for letter_id in ids] if ids else letters
