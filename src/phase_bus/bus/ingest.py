"""Taking events in: in their publishers' order, once each, checked; put into the stream; acknowledged."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import msgspec
import zmq

from phase_bus.bus.access import Party
from phase_bus.bus.clients import Client, Clients
from phase_bus.bus.groups import Groups
from phase_bus.bus.intake import check_bundle, check_event
from phase_bus.bus.limits import TOPIC, Errors, check_content, check_size, check_topic
from phase_bus.bus.options import BusOptions
from phase_bus.bus.owners import Owners, not_yours
from phase_bus.bus.room import RoomForRuns
from phase_bus.bus.runs import EDGES, Runs
from phase_bus.bus.sockets import BusSockets
from phase_bus.bus.stream import Incoming, Stream, number_own
from phase_bus.core.bundle import sizes_of, split
from phase_bus.core.control import Ack, Heard, Refused, Rejected
from phase_bus.core.outbox import Outbox
from phase_bus.core.wire import (
    HEADER,
    NO_PARTITION,
    SIZE_BYTES,
    Header,
    Topic,
    encode_event,
    parse_topic,
    partition_of,
    topic_prefix,
)
from phase_bus.errors import JournalError, WireError
from phase_bus.events import WORDS_ON_A_RUN, Drop, Event, EventBase, Receipt, RunComplete, RunStart, Summary
from phase_bus.journal.rows import parse_checkpoint_name

logger = logging.getLogger("phase_bus.bus")

_WORDS = tuple(topic_prefix(kind) for kind in WORDS_ON_A_RUN)
_START = topic_prefix(RunStart.kind)
_EDGES = tuple(topic_prefix(kind) for kind in EDGES)
# What is refused for these reasons is no loss of a run: it was not its publisher's, or the run not there.
_WITHOUT_DROP = frozenset({"role", "not_yours", TOPIC, "open_runs", "sources", "names"})
_LARGE_BYTES = 8192  # a payload from here on is passed on as it was received; copying less costs less


class Ingest:
    """Takes events in, a turn of the bus's loop at a time: :meth:`take`, :meth:`commit`, :meth:`end_turn`.

    Args:
        keeps: whether there is a journal.
        own_events: numbers what the bus itself says.
        on_change: called when there is something new in the stream.

    Attributes:
        events: how many were taken in.
        refused: why the journal could not keep what came last, empty if it could.
        told: whether a client was told of the error that comes next; whoever catches it sets it back.
        errors: how many errors clients were told in this turn.
    """

    def __init__(
        self,
        bus_id: str,
        options: BusOptions,
        *,
        keeps: bool,
        sockets: BusSockets,
        stream: Stream,
        clients: Clients,
        groups: Groups,
        owners: Owners,
        runs: Runs,
        own_events: Outbox,
        on_change: Callable[[], None],
    ) -> None:
        self.events = 0
        self.refused = ""
        self.told = False
        self.errors = Errors()
        self._bus_id = bus_id
        self._options = options
        self._keeps = keeps
        self._access = sockets.access
        self._reply = sockets.reply
        self._stream = stream
        self._clients = clients
        self._groups = groups
        self._owners = owners
        self._runs = runs
        self._room = RoomForRuns(options, runs)
        self._own_events = own_events
        self._on_change = on_change
        self._ends_on_the_way: set[str] = set()  # of runs whose end was taken in and is not counted yet
        self._acks: dict[bytes, tuple[Client, bool]] = {}  # by connection: whom, and to send again
        self._untold: dict[bytes, Rejected] = {}  # by connection, at the end of a turn
        # Since the last commit, by run, source and reason: where it is among what was taken in.
        self._drops: dict[tuple[str, bytes, str], tuple[int, Drop]] = {}

    # ---- a turn ----

    def end_turn(self) -> None:
        """Put into the stream what was taken in, and tell the publishers."""
        self.commit()
        for identity, rejected in self._untold.items():
            self._reply(identity, rejected)
        self._untold.clear()
        for identity, (client, resend) in self._acks.items():
            if self._reply(identity, Ack(seq=client.last_seq, resend=resend)):
                client.told_seq = identity, client.last_seq
        self._acks.clear()
        self.errors.clear()

    def confirm(self, identity: bytes, client: Client, sent_seq: int) -> None:
        """Acknowledge again: what a publisher sent last, or the last word to it, may be lost."""
        if sent_seq > client.last_seq:
            self._acks[identity] = (client, True)
        elif sent_seq and client.told_seq != (identity, client.last_seq):
            self._acks.setdefault(identity, (client, False))

    def commit(self) -> bool:
        """Put into the stream what was taken in; return whether it is there, or else logged and refused."""
        self._ends_on_the_way.clear()
        self._room.clear()
        for place, drop in self._drops.values():
            self._stream.change(place, encode_event(drop))
        self._drops.clear()
        self._owners.keep()
        before = self._stream.head.offset
        try:
            taken = self._stream.commit()
        except JournalError as error:
            self._refuse(error)
            return False
        if taken:
            self.refused = ""
            self._on_change()
        for client in self._clients.sources.values():
            client.kept_seq = client.last_seq
        offset = before
        for incoming in taken:
            offset += incoming.header.events
            self._runs.count(incoming, offset)
            self._groups.add_partition(incoming.partition)
            if isinstance(incoming.event, RunComplete):  # a group waits for all that its end names
                for name in incoming.event.published:
                    self._groups.add_partition(partition_of(name.encode()))
        if self._runs.reopened:
            self._clients.forget_handled(self._runs.reopened)
            self._runs.reopened.clear()
        return True

    def _refuse(self, error: JournalError) -> None:
        """Tell the publishers that nothing since the last commit could be kept."""
        logger.error("phase-bus bus: %s", error)
        self.refused = error.reason
        for client in self._clients.sources.values():
            client.go_back()
            if self._acks.pop(client.identity, None) is not None:
                self._reply(client.identity, Refused(seq=client.kept_seq, reason=str(error)))
        self._acks.clear()  # of connections that their publishers have replaced by now

    # ---- an event ----

    def take_bundle(
        self,
        identity: bytes,
        party: Party,
        topic: bytes,
        header: Header,
        header_frame: bytes,
        payload: zmq.Frame,
    ) -> Iterator[tuple[Header, memoryview]]:
        """Take in a bundle if there is nothing to say about any event of it; that is nearly always.

        Returns:
            Headers and payloads of its events, to be given to :meth:`take` one after another. There are
            none if it was taken in, or if its publisher is not known.

        Raises:
            WireError: if it is not a bundle.
        """
        view = payload.buffer
        sizes = sizes_of(header, header_frame, view, topic)
        client = self._client(identity, header.source)
        if client is None:
            return iter(())
        event = self._latest_of(client, party, topic, header, sizes, view)
        if event is None:
            return split(header, header_frame, view, topic)
        client.heard_s = time.monotonic()
        client.identity = identity
        client.last_seq += header.events
        self._acks[identity] = (client, False)
        data, frame = _kept(view, payload)
        rest = header_frame[HEADER.size :]
        self._add(Incoming(topic, parse_topic(topic), header, data, NO_PARTITION, frame, event, rest))
        return iter(())

    def _latest_of(
        self,
        client: Client,
        party: Party,
        topic: bytes,
        header: Header,
        sizes: Sequence[int],
        payload: memoryview,
    ) -> Event | None:
        """Return the latest event of a bundle, None unless all of it can be taken in as it is."""
        if (
            not party.speaks_for(client.owner)
            or header.source_seq != client.last_seq + 1
            or not client.has_published_on(topic)
        ):
            return None
        try:
            parsed = parse_topic(topic)
            kind, run_id = parsed
            if run_id in self._ends_on_the_way or not self._runs.just_counts(run_id, header.source, kind):
                return None
            check_size(self._options, topic, HEADER.size + len(sizes) * SIZE_BYTES, len(payload))
            event = check_bundle(topic, parsed, header, sizes, payload)
            if not self._access.is_open:
                self._check_may_say(party, parsed, event)
                self._claim_source(header.source)
        except (WireError, JournalError):  # it is told of each event that it is true of
            return None
        return event if client.is_next_on(topic, header.topic_seq, header.events) else None

    def take(
        self,
        identity: bytes,
        party: Party,
        topic: bytes,
        header: Header,
        payload: memoryview,
        frame: zmq.Frame | None = None,
    ) -> None:
        """Take in an event, or say why not.

        Args:
            frame: what has the payload, if nothing else is in it.

        Raises:
            WireError: if it is refused.
            JournalError: if the journal, by which it is judged, cannot be read; it is not taken in.
        """
        client = self._client(identity, header.source)
        if client is None:
            return
        if not party.speaks_for(client.owner):
            error = not_yours(party, f"the publisher id {header.source.hex()}")
            self._tell_rejected(identity, header, error)
            raise error
        client.heard_s = time.monotonic()
        client.identity = identity  # it may have been connected anew, and not know
        expected = client.last_seq + 1
        if header.source_seq != expected:
            # A repetition is acknowledged again; a hole asks, once, for what is missing. Should that be
            # lost in its turn, the publisher's next beat brings it up again.
            hole = header.source_seq > expected
            if not hole or client.asked_seq != expected:
                self._acks[identity] = (client, hole)
            if hole:
                client.asked_seq = expected
            return
        # It must not be taken for kept with what it is judged by, and came before it.
        if self._is_judged(topic, header.source) and not self.commit():
            return
        client.last_seq = header.source_seq
        self._acks[identity] = (client, False)
        try:
            if not client.has_published_on(topic):
                check_topic(self._options, topic)
                self._room.check(topic, header.source)
            check_size(self._options, topic, HEADER.size, len(payload))
            if not client.is_next_on(topic, header.topic_seq):
                raise WireError(f"its number on its topic, {header.topic_seq}, is not new", topic)
            if self._comes_too_late(topic, client.info.name):
                return
            self._accept(party, topic, header, *_kept(payload, frame))
        except WireError as error:
            self._reject(client, party, topic, header, error)
            raise
        except JournalError:  # it cannot be judged now: it is asked for again
            client.take_back(topic, header.source_seq)
            self._acks[identity] = (client, False)
            raise

    def _client(self, identity: bytes, source: bytes) -> Client | None:
        """Return the publisher of an event; whoever is not known, any more, is told so."""
        client = self._clients.sources.get(source)
        if client is not None and client.here:
            return client
        self._reply(identity, Heard(bus_id=self._bus_id, known=False))
        return None

    def _is_judged(self, topic: bytes, source: bytes) -> bool:
        """Return whether what becomes of an event depends on those before it: they are counted first."""
        if len(topic) > self._options.max_topic_bytes:
            return False  # it will be refused
        if topic.startswith(_EDGES):
            return not (topic.startswith(_START) and self._starts_in_a_running_run(topic, source))
        return topic.startswith(_WORDS) and not self._knows_run_of(topic)

    def _starts_in_a_running_run(self, topic: bytes, source: bytes) -> bool:
        """Return whether a run's start is one more of a run that goes on, with no end of it on the way."""
        try:
            run_id = parse_topic(topic).run_id
        except WireError:
            return True  # it will be refused
        return run_id not in self._ends_on_the_way and self._runs.goes_on(run_id, source)

    def _knows_run_of(self, topic: bytes) -> bool:
        try:
            return self._runs.knows(parse_topic(topic).run_id)
        except WireError:
            return True  # it will be refused

    def _comes_too_late(self, topic: bytes, name: str) -> bool:
        """Return whether it is a word on a run that is not in the journal, any more: it is not kept then.

        Kept it would bring the run back, without any event of its publisher, in the place of a real one.
        """
        if not self._keeps or not topic.startswith(_WORDS) or self._knows_run_of(topic):
            return False
        kind, run_id = parse_topic(topic)
        what = "phase-bus bus: a %s of %r for run %s is not kept: the journal has no such run (any more)"
        logger.warning(what, kind, name, run_id)
        return True

    def _accept(
        self,
        party: Party,
        topic: bytes,
        header: Header,
        payload: bytes,
        frame: bytes | zmq.Frame,
    ) -> None:
        """Take in an event that is new.

        Raises:
            WireError: if it is malformed, or its publisher may not say it.
        """
        parsed, partition = parse_topic(topic), partition_of(topic)
        event = check_event(topic, parsed, partition, header, payload, self._options.max_batch_records)
        check_content(self._options, topic, event)
        if not self._access.is_open:
            self._check_may_say(party, parsed, event)
            self._claim_source(header.source)
        incoming = Incoming(topic, parsed, header, payload, partition, frame, event)
        if isinstance(event, RunComplete):
            self._ends_on_the_way.add(event.run_id)
        self._add(self._runs.admit(incoming))

    def _check_may_say(self, party: Party, parsed: Topic, event: Event | None) -> None:
        """Check that an event is of its publisher's own run, or its word as a consumer.

        Raises:
            WireError: if it is not.
        """
        kind, run_id = parsed
        if kind not in WORDS_ON_A_RUN:
            party.expect("publish")
            if run_id:
                first_id = self._runs.first_id(run_id)
                self._owners.claim("run", first_id, party, known=self._runs.knows(first_id))
        elif isinstance(event, Receipt):
            if not self._owners.is_of("consumer", event.consumer, party):
                raise not_yours(party, f"the consumer name {event.consumer!r:.100}")
        elif isinstance(event, Summary) and not self._has_run(party, run_id):
            name, _ = parse_checkpoint_name(event.producer)  # of the instance for a partition
            if not self._owners.is_of("consumer", name, party):
                raise not_yours(party, f"the consumer name {name!r:.100}")

    def _has_run(self, party: Party, run_id: str) -> bool:
        return self._owners.is_of("run", self._runs.first_id(run_id), party)

    def _claim_source(self, source: bytes) -> None:
        """Let a publisher's id be its owner's for good.

        Raises:
            WireError: if that has too many names.
        """
        owner = Party(self._clients.sources[source].owner, frozenset({"admin"}))  # as it was let in
        self._owners.claim("source", source.hex(), owner, known=self._clients.had(source))

    def _add(self, incoming: Incoming) -> int:
        self.events += incoming.header.events
        return self._stream.add(incoming)

    def add_own(self, event: EventBase) -> int:
        """Take in what the bus itself says of a run."""
        topic, header, payload = number_own(self._own_events, event)
        return self._add(Incoming(topic, parse_topic(topic), header, payload, NO_PARTITION, payload, None))

    def _reject(self, client: Client, party: Party, topic: bytes, header: Header, error: WireError) -> None:
        """Tell its publisher, and everybody, that an event is lost since it is malformed.

        What somebody says of another's run, malformed or not, is none of that run's events.
        """
        self._tell_rejected(client.identity, header, error)
        if error.counted_as in _WITHOUT_DROP:
            return
        try:
            parsed = parse_topic(topic)
            if not self._access.is_open:
                self._check_may_say(party, parsed, None)
        except WireError:
            return  # nobody waits for what has no topic
        kind, run_id = parsed
        if run_id and (kind not in WORDS_ON_A_RUN or self._has_run(party, run_id)):
            drop = Drop(
                run_id=run_id,
                source=client.info.name,
                reason=f"the bus refused it: {error}",
                events={topic.decode(): 1},
                records=header.records,
            )
            self._tell_drop((run_id, client.source, error.counted_as), drop)

    def _tell_drop(self, key: tuple[str, bytes, str], drop: Drop) -> None:
        """Tell of an event that is lost: in one event of many of a kind that come in a turn."""
        if key not in self._drops:
            self._drops[key] = self.add_own(drop), drop
            return
        place, first = self._drops[key]
        events = Counter(first.events)
        events.update(drop.events)
        records = first.records + drop.records
        self._drops[key] = place, msgspec.structs.replace(first, events=dict(events), records=records)

    def _tell_rejected(self, identity: bytes, header: Header, error: WireError) -> None:
        """Tell a publisher that an event is refused; of many in a turn, at its end, how many there were."""
        self.told = True
        rejected = Rejected(seq=header.source_seq, reason=str(error))
        if self.errors.may_tell(identity):
            self._reply(identity, rejected)
        else:
            before = self._untold.get(identity)
            count = 1 + (before.count if before else 0)
            self._untold[identity] = msgspec.structs.replace(rejected, count=count)


def _kept(payload: memoryview, frame: zmq.Frame | None) -> tuple[bytes, bytes | zmq.Frame]:
    """Return a payload as it is journaled, and as it is sent: a large one, with a frame, is not copied."""
    if frame is not None and len(payload) >= _LARGE_BYTES:
        return cast("bytes", payload), frame
    copied = bytes(payload)
    return copied, copied
