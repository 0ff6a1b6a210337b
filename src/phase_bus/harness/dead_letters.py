"""Giving events that a consumer failed on to it again, in a process of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Status
from phase_bus.core.position import Position
from phase_bus.core.wire import decode_event
from phase_bus.errors import (
    BusUnreachableError,
    ConfigError,
    JournalError,
    JournalInUseError,
    PhaseBusError,
)
from phase_bus.events import Event
from phase_bus.harness.config import ConsumerConfig
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import DeadLetter, parse_checkpoint_name
from phase_bus.journal.writer import Journal
from phase_bus.plugins.build import build
from phase_bus.plugins.registry import Registry

logger = logging.getLogger("phase_bus.consumer")

Letters: TypeAlias = Sequence[DeadLetter]
Settle: TypeAlias = Callable[[int, bytes | None], object]
Retry: TypeAlias = Callable[[str, str, Letters], Coroutine[None, None, int]]


def event_of(reader: JournalReader, letter: DeadLetter) -> Event:
    """Return a dead letter's event.

    Raises:
        PhaseBusError: if it is not in the journal, damaged, or of a kind that this version does not know.
    """
    place = reader.lineage.find(Position(letter.stream, letter.offset), reader.head.offset)
    if place.found != "here":
        raise PhaseBusError(
            f"dead letter {letter.id}: the journal {str(reader.path)!r} has lost its event (offset "
            f"{letter.offset} of stream {letter.stream[:8]}), by a power cut or a deleted file; another "
            "event may be at that offset now, so the letter cannot be retried"
        )
    found = reader.read(letter.offset - 1, records=True, until=letter.offset, limit=1)
    event = decode_event(found[0].topic, found[0].payload) if found else None
    if event is None:
        raise PhaseBusError(
            f"dead letter {letter.id}: its event, offset {letter.offset}, is not in {str(reader.path)!r} "
            "or newer than this phase-bus; 'phase-bus journal verify' tells which"
        )
    return event


async def retry(reader: JournalReader, settle: Settle, name: str, use: str, letters: Letters) -> int:
    """Run one consumer for some of its dead letters alone; return how many it failed on again.

    ``name`` is what it was called, ``use`` what it is, with options, as for ``--with``. ``settle`` takes a
    dead letter out of the journal and keeps the consumer's new state.

    Raises:
        PhaseBusError: if it cannot be built, cannot start, or must not be run so.
    """
    config = ConsumerConfig.parse(use)
    consumer = build(Registry.load(), config.use, name, config.set)
    group, number = parse_checkpoint_name(name)
    if number is None:
        view = View.whole(consumer)
    else:
        consumer.context.name = group
        view = View.in_group(consumer, group, number)
    share = Share(consumer, view, "")
    try:
        await share.start()
        try:
            return await _give(reader, settle, share, letters)
        finally:
            await share.stop()
    except OSError as error:
        raise ConfigError(
            f"consumer {name!r}: {error}; check the files and addresses among its options"
        ) from error


async def _give(reader: JournalReader, settle: Settle, share: Share, letters: Letters) -> int:
    consumer, name = share.consumer, share.name
    kept = reader.checkpoint(name)
    consumer.context.lineage = reader.lineage
    if await consumer.position() is not None:
        raise ConfigError(
            f"consumer {name!r} keeps its position with its data, and takes no event twice; "
            "to have it take all again, give it a new place for its data"
        )
    await share.begin(kept, reader.lineage)
    failed = 0
    for letter in letters:
        if not {letter.kind, "*"} & share.view.handlers.keys():
            raise ConfigError(f"consumer {name!r} handles no {letter.kind!r}; give another --with")
        if not await share.retry(event_of(reader, letter), letter.offset):
            failed += 1
            continue
        stateful = kept is not None and kept.state is not None and consumer.state() is not None
        settle(letter.id, share.dispatcher.saved() if stateful else None)
    return failed


@contextmanager
def open_retry(reader: JournalReader, address: Address) -> Iterator[Retry]:
    """Give what retries dead letters of a journal, whether a bus has the journal or none does.

    It takes the consumer's name, what it is, and the dead letters, as :func:`retry` does.

    Raises:
        JournalError: if a bus has it that is not at this address, or it cannot be written.
    """
    try:
        journal = Journal(reader.path.parent)
    except JournalInUseError as error:
        with BusClient(address) as client:
            status = _status(reader, client, error)

            async def retry_beside(name: str, use: str, letters: Letters) -> int:
                _check_alone(status, name)
                return await retry(reader, client.remove_dead_letter, name, use, letters)

            yield retry_beside
        return
    with journal:
        yield partial(retry, reader, journal.settle_dead_letter)


def _check_alone(status: Status, name: str) -> None:
    group, _ = parse_checkpoint_name(name)
    states = [c.state for c in status.clients if c.name in (name, group) and c.role == "consumer"]
    if "starting" in states or "ready" in states:
        raise ConfigError(f"consumer {group!r} is running; stop it first, since it would not know")


def _status(reader: JournalReader, client: BusClient, error: JournalError) -> Status:
    """Return the bus's status, if it is the one that has the journal."""
    try:
        status = client.status()
    except BusUnreachableError:
        status = None
    if status is None or status.journal is None or not reader.path.samefile(status.journal):
        raise JournalInUseError(
            reader.path,
            f"is in use by a bus, and that is not at {client.address}",
            "give its --address, or end it first",
        ) from error
    return status
