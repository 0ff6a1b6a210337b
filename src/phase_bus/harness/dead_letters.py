"""Giving events that a consumer failed on to it again, in a process of their own."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import msgspec
import zmq
from msgspec.structs import replace

from phase_bus.bus.stream import Incoming, Stream, number_own
from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.consumer.share import Share
from phase_bus.consumer.view import View
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Status
from phase_bus.core.outbox import Outbox
from phase_bus.core.position import Position
from phase_bus.core.wire import decode_event, parse_topic, partition_of
from phase_bus.errors import (
    BusUnreachableError,
    ConfigError,
    JournalError,
    JournalInUseError,
    PhaseBusError,
)
from phase_bus.events import Event, Receipt
from phase_bus.harness.config import ConsumerConfig
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import DeadLetter, Entry, parse_checkpoint_name
from phase_bus.journal.writer import Journal
from phase_bus.plugins.build import build
from phase_bus.plugins.registry import Registry
from phase_bus.publisher.publisher import Publisher

logger = logging.getLogger("phase_bus.consumer")

_RECEIPT_S = 5.0

Letters: TypeAlias = Sequence[DeadLetter]
Settle: TypeAlias = Callable[[int, bytes | None], object]
Tell: TypeAlias = Callable[[Receipt], object]
Retry: TypeAlias = Callable[[str, str, Letters], Coroutine[None, None, int]]


def event_of(reader: JournalReader, letter: DeadLetter) -> Event:
    """Return a dead letter's event.

    Raises:
        PhaseBusError: if it is not in the journal, damaged, or of a kind that this version does not know.
    """
    return _find(reader, letter)[1]


def _find(reader: JournalReader, letter: DeadLetter) -> tuple[Entry, Event]:
    """Return a dead letter's entry in the journal, and the event in it."""
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
    return found[0], event


async def retry(
    reader: JournalReader, settle: Settle, tell: Tell, name: str, use: str, letters: Letters
) -> int:
    """Run one consumer for some of its dead letters alone; return how many it failed on again.

    ``name`` is what it was called, ``use`` what it is, with options, as for ``--with``. ``settle`` takes a
    dead letter out of the journal and keeps the consumer's new state; ``tell`` publishes its new receipts.

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
            return await _give(reader, settle, tell, share, letters)
        finally:
            await share.stop()
    except OSError as error:
        raise ConfigError(
            f"consumer {name!r}: {error}; check the files and addresses among its options"
        ) from error


async def _give(reader: JournalReader, settle: Settle, tell: Tell, share: Share, letters: Letters) -> int:
    consumer, name = share.consumer, share.name
    kept = reader.checkpoint(name)
    consumer.context.lineage = reader.lineage
    if await consumer.position() is not None:
        raise ConfigError(
            f"consumer {name!r} keeps its position with its data, and takes no event twice; "
            "to have it take all again, give it a new place for its data"
        )
    await share.begin(kept, reader.lineage)
    # What a consumer without a state has in its checkpoint is the account of its runs.
    state = None if kept is None else kept.state
    saves = state is not None and (consumer.state() is not None or decode_saved(state).state is None)
    failed = 0
    receipts: dict[str, Receipt] = {}  # the new ones, by run
    for letter in letters:
        if not {letter.kind, "*"} & share.view.handlers.keys():
            raise ConfigError(f"consumer {name!r} handles no {letter.kind!r}; give another --with")
        entry, event = _find(reader, letter)
        if not await share.retry(entry, event):
            failed += 1
            continue
        run_id = letter.run_id
        told = receipts.get(run_id) or _last_receipt(reader, run_id, parse_checkpoint_name(name)[0])
        if told is not None:
            receipts[run_id] = _corrected(told, entry.topic.decode())
            if (end := share.dispatcher.handled.get(run_id)) is not None:
                corrected = msgspec.structs.replace(end, whole=receipts[run_id].complete)
                share.dispatcher.handled[run_id] = corrected
        settle(letter.id, share.dispatcher.saved() if saves else None)
    for receipt in receipts.values():
        tell(receipt)
    return failed


def _last_receipt(reader: JournalReader, run_id: str, consumer: str) -> Receipt | None:
    said = [each for each in reader.events(run_id, Receipt) if each.consumer == consumer]
    return said[-1] if said else None


def _corrected(receipt: Receipt, topic: str) -> Receipt:
    """Return a receipt in which an event of a topic was handled that had failed."""
    said = receipt.topics.get(topic)
    if said is None or not said.failed:  # it failed after the receipt was given
        return receipt
    said = replace(said, failed=said.failed - 1, handled=said.handled + 1, written=said.written + 1)
    return replace(receipt, ts_ns=time.time_ns(), topics={**receipt.topics, topic: said})


def _publish(address: Address, receipt: Receipt) -> None:
    """Publish a receipt on a bus."""
    with Publisher(str(address), name=f"{receipt.consumer} (dead letters)") as publisher:
        publisher.publish(receipt)
        if not publisher.flush(_RECEIPT_S):
            raise BusUnreachableError(str(address), _RECEIPT_S)


def _journal_receipt(journal: Journal, receipt: Receipt) -> None:
    """Put a receipt into a journal that no bus has."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    nobody = context.socket(zmq.XPUB)
    try:
        stream = Stream(nobody, journal, journal.stream)
        topic, header, payload = number_own(Outbox(uuid.uuid4().bytes, 0), receipt)
        stream.add(
            Incoming(topic, parse_topic(topic), header, payload, partition_of(topic), payload, receipt)
        )
        stream.commit()
    finally:
        nobody.close()
        context.term()


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
                tell = partial(_publish, address)
                return await retry(reader, client.remove_dead_letter, tell, name, use, letters)

            yield retry_beside
        return
    with journal:
        yield partial(retry, reader, journal.settle_dead_letter, partial(_journal_receipt, journal))


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
