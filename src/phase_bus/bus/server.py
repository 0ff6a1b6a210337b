"""The bus's loop: one ROUTER that takes everything in, one XPUB that fans events out."""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec
import zmq

from phase_bus.bus.access import OWN, Party
from phase_bus.bus.checkpoints import Checkpoints
from phase_bus.bus.clients import Client, Clients
from phase_bus.bus.clock import ClockWatch
from phase_bus.bus.connections import Connections
from phase_bus.bus.groups import Groups
from phase_bus.bus.health import BusSnapshot
from phase_bus.bus.intake import check_event
from phase_bus.bus.limits import (
    TOPIC,
    Errors,
    LineLimit,
    check_content,
    check_request,
    check_request_size,
    check_size,
    check_topic,
)
from phase_bus.bus.options import BusOptions
from phase_bus.bus.owners import Owners, not_yours
from phase_bus.bus.rejections import MALFORMED, Rejections
from phase_bus.bus.replay import ReplayServer
from phase_bus.bus.room import RoomForRuns
from phase_bus.bus.runs import EDGES, Runs
from phase_bus.bus.sockets import BusSockets
from phase_bus.bus.status import Info, StatusParts
from phase_bus.bus.stream import Incoming, Stream, number_own
from phase_bus.core.address import Address
from phase_bus.core.control import (
    Ack,
    Beat,
    EndRuns,
    Goodbye,
    Heard,
    Hello,
    Refused,
    Rejected,
    RemoveDeadLetter,
    Request,
    Status,
    StatusRequest,
)
from phase_bus.core.health import LEAST_PATIENCE_S
from phase_bus.core.keys import Key, check_guarded
from phase_bus.core.outbox import Outbox
from phase_bus.core.threads import Waker
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import (
    NO_PARTITION,
    Header,
    Topic,
    decode_request,
    encode_event,
    parse_topic,
    partition_of,
    receive_frames,
    send_frames,
    topic_prefix,
    unpack_header,
)
from phase_bus.errors import AddressError, JournalError, WireError
from phase_bus.events import (
    WORDS_ON_A_RUN,
    Drop,
    Event,
    EventBase,
    Heartbeat,
    Receipt,
    RunComplete,
    RunStart,
    Summary,
)
from phase_bus.journal.holding import in_words
from phase_bus.journal.rows import parse_checkpoint_name
from phase_bus.journal.writer import RUNNING, Journal

if TYPE_CHECKING:
    from phase_bus.core.health_server import HealthServer

logger = logging.getLogger("phase_bus.bus")

_PRUNE_EVERY_S = 60.0
_PRUNE_BUDGET_S = 0.1
_SHOWN_UNREAD = 50  # of what consumers have lost by pruning
_WORDS = tuple(topic_prefix(kind) for kind in WORDS_ON_A_RUN)
_START = topic_prefix(RunStart.kind)
_EDGES = tuple(topic_prefix(kind) for kind in EDGES)
# What is taken in before acknowledgements are sent and timers looked at: messages, bytes, and for how long.
_DRAIN, _DRAIN_BYTES = 1000, 4 << 20
_DRAIN_S = 0.01  # of what is no event: events that come together are written together
_END_WITHIN_S = 1.0  # runs are ended by, even if there is always something more to take in before
# What is refused for these reasons is no loss of a run: it was not its publisher's, or the run not there.
_WITHOUT_DROP = frozenset({"role", "not_yours", TOPIC, "open_runs", "sources"})
_LARGE_BYTES = 8192  # a payload from here on is passed on as it was received; copying less costs less


class Bus:
    """One bus process's sockets and loop.

    The journal is where events are kept, and closed by the bus. Without one consumers that are late or slow
    lose events. The key is what clients must know to connect by tcp; without one only this machine's can,
    unless it is ``insecure``.

    Attributes:
        rejections: what it has refused.

    Raises:
        JournalError: if the journal cannot be read.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        options: BusOptions | None = None,
        journal: Journal | None = None,
        key: Key | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        self.options = options or BusOptions()
        self._key = key
        self._insecure = insecure
        self.bus_id = uuid.uuid4().hex if journal is None else journal.stream
        self.addresses: tuple[Address, ...] = tuple(addresses)
        self._started_s = time.monotonic()
        self._next_tick_s = 0.0
        self._next_prune_s = 0.0
        self._clock = ClockWatch()
        self._events = 0
        self.rejections = Rejections()
        self._ends_on_the_way: set[str] = set()  # of runs whose end was taken in and is not counted yet
        self._complaints = Throttle(logger)
        self._acks: dict[bytes, tuple[Client, bool]] = {}  # by connection: whom, and to send again
        self._ending: list[tuple[bytes, str, float]] = []  # who asked to end the runs, why, and by when
        self._errors = Errors()
        self._untold: dict[bytes, Rejected] = {}  # by connection, at the end of a turn
        self._told = False  # whether a client was told of the error that comes next
        # Since the last commit, by run, source and reason: where it is among what was taken in.
        self._drops: dict[tuple[str, bytes, str], tuple[int, Drop]] = {}
        self._lines = LineLimit(self.options.max_log_lines_s)
        logger.addFilter(self._lines)
        self._stop = False
        self._journal_gone = ""  # what was told of that
        self._refused = ""  # why the journal could not keep what came last
        self._health: HealthServer | None = None
        self._waker = Waker()
        self._sockets = BusSockets(
            self.options, key, self.rejections, shared=any(a.shared for a in addresses)
        )
        self._connections = Connections(self._sockets.all, self.options, self.rejections)
        self._access = self._sockets.access
        self._owners = Owners(journal)
        self._router, self._xpub = self._sockets.router, self._sockets.xpub
        self._reply = self._sockets.reply
        self._journal = journal
        self._replay: ReplayServer | None = None
        self._told_removed = False
        self._stream = Stream(self._xpub, journal, self.bus_id)
        self._own_events = Outbox(uuid.uuid4().bytes, 0)  # under a source of their own
        self._checkpoints = Checkpoints(self.bus_id, journal)
        # After a restart members come back one by one: it pays to wait for all.
        crowd_s = 2 * self.options.heartbeat_s if self._stream.head.offset else 0.0
        self._groups = Groups(
            self._stream.partitions,
            lambda member, assigned: self._clients.tell(member, assigned),
            self._started_s + crowd_s,
        )
        self._clients = Clients(
            self.bus_id,
            self.options,
            sockets=self._sockets,
            stream=self._stream,
            checkpoints=self._checkpoints,
            groups=self._groups,
            owners=self._owners,
            last_seqs={} if journal is None else journal.last_seqs(),
            end_runs=self._end_runs,
        )
        self._runs = Runs(
            journal, self._clients.name_of, self._clients.silent_after_s, self._own_events.source
        )
        self._clients.is_handled = self._runs.is_handled
        self._room = RoomForRuns(self.options, self._runs)
        self._status = StatusParts(self._status_head, self._status_rows)
        self._unread = [] if journal is None else journal.unread_runs()[-_SHOWN_UNREAD:]
        for source in self._runs.open_sources():
            self._clients.wait_for(source)

    # ---- life ----

    def bind(self) -> None:
        """Bind all addresses; afterwards :attr:`addresses` name the ports that port 0 became.

        Raises:
            AddressError: if one is in use, cannot be bound, is the second of its scheme, or lets strangers
                in.
            KeyFileError: if the key is that of a client of another bus.
        """
        for address in self.addresses:
            check_guarded(address, self._key, insecure=self._insecure)
        self.addresses = self._sockets.bind(self.addresses, replay=self._journal is not None)
        self._start_replay()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        poller = zmq.Poller()
        zap = self._access.zap
        for readable in (self._router, self._xpub, zap, self._waker.fd):
            if readable is not None:
                poller.register(readable, zmq.POLLIN)
        for monitor in self._connections.readable:
            poller.register(monitor, zmq.POLLIN)
        while not self._stop:
            wait_s = 0.0 if self._ending else max(self._next_tick_s - time.monotonic(), 0.0)
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            if not ready.keys().isdisjoint(self._connections.readable):
                self._connections.look()
            if self._router in ready or self._ending:
                self._take_in()
            if self._xpub in ready:
                self._sockets.greet_subscribers()
            if zap in ready:
                self._access.answer()
            if time.monotonic() >= self._next_tick_s:
                self._tick()

    def _start_replay(self) -> None:
        if self._journal is not None:
            self._replay = ReplayServer(
                self._sockets.replay,
                self._journal.path,
                self.bus_id,
                access=self._access,
                owners=self._owners,
                rejections=self.rejections,
            )

    def tell_health(self, server: HealthServer) -> None:
        """Tell a server, at each turn of the loop that looks at the time, how the bus is; start it."""
        self._health = server
        server.start(self._snapshot())

    def stop(self) -> None:
        """End :meth:`run` after the current message; from any thread."""
        self._stop = True
        self._waker.wake()

    def remove_sockets(self) -> None:
        """Remove the ipc files, in a process that ends at once; from any thread."""
        self._sockets.release()

    def close(self) -> None:
        """Close the sockets and the journal, and remove the ipc files."""
        # With a journal the next bus goes on with the running runs; without one they are over.
        if self._journal is None:
            self._end_runs("the bus was stopped")
        if self._replay is not None:
            self._replay.close()
        self._connections.close()
        self._sockets.close()
        if self._journal is not None:
            self._journal.close()
        self._waker.close()
        logger.removeFilter(self._lines)

    # ---- taking events in ----

    def _take_in(self) -> None:
        access = self._access
        large_bytes = self._sockets.queue.large_bytes
        until_s, left_bytes = time.monotonic() + _DRAIN_S, _DRAIN_BYTES
        for _ in range(_DRAIN):
            try:
                frames = receive_frames(self._router, 5)
            except zmq.Again:
                self._end_asked_runs()  # all that their publishers had sent is in
                break
            self._told = False
            try:
                party = OWN if access.is_open else access.expect(frames[0])
                if len(frames) == 4:
                    name, topic, header, payload = frames
                    self._ingest(name.bytes, party, topic.bytes, header.bytes, payload)
                elif len(frames) == 2:
                    request = frames[1].bytes
                    check_request_size(self.options, len(request))
                    self._answer(frames[0].bytes, party, decode_request(request))
                else:
                    raise WireError("as many frames are neither an event nor a request")
            except WireError as error:
                self.rejections.count(error.counted_as, access.where(frames[0]))
                self._complaints.warn("phase-bus bus: %s; skipped", error)
                if not self._told and self._errors.may_tell(identity := frames[0].bytes):
                    self._reply(identity, Refused(seq=0, reason=str(error)))
            except JournalError as error:  # it cannot be read; the client asks again
                logger.error("phase-bus bus: %s", error)
            size_bytes = len(frames[-1])  # type: ignore[arg-type] # it has a length
            left_bytes -= size_bytes
            if size_bytes >= large_bytes:
                self._sockets.queue.note_large(time.monotonic())
            if left_bytes < 0 or (len(frames) != 4 and time.monotonic() > until_s):
                break
        if self._ending and time.monotonic() > self._ending[0][2]:
            self._end_asked_runs()
        self._commit()
        for identity, rejected in self._untold.items():
            self._reply(identity, rejected)
        self._untold.clear()
        for identity, (client, resend) in self._acks.items():
            if self._reply(identity, Ack(seq=client.last_seq, resend=resend)):
                client.told_seq = identity, client.last_seq
        self._acks.clear()
        self._errors.clear()
        self._status.clear()

    def _commit(self) -> bool:
        """Put into the stream what was taken in; return whether it is there, or else logged and refused."""
        self._ends_on_the_way.clear()
        self._room.clear()
        for place, drop in self._drops.values():
            self._stream.change(place, encode_event(drop))
        self._drops.clear()
        try:
            taken = self._stream.commit()
        except JournalError as error:
            self._refuse(error)
            return False
        if taken:
            self._refused = ""
            self._status.clear()
        for client in self._clients.sources.values():
            client.kept_seq = client.last_seq
        first = self._stream.head.offset - len(taken) + 1
        for offset, incoming in enumerate(taken, first):
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
        self._refused = error.reason
        for client in self._clients.sources.values():
            client.go_back()
            if self._acks.pop(client.identity, None) is not None:
                self._reply(client.identity, Refused(seq=client.kept_seq, reason=str(error)))
        self._acks.clear()  # of connections that their publishers have replaced by now

    def _ingest(
        self, identity: bytes, party: Party, topic: bytes, header_frame: bytes, payload: zmq.Frame
    ) -> None:
        header = unpack_header(header_frame, topic)
        client = self._clients.sources.get(header.source)
        if client is None or not client.here:
            self._reply(identity, Heard(bus_id=self.bus_id, known=False))
            return
        if party.name != client.owner and not party.may("admin"):
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
        if self._is_judged(topic, header.source) and not self._commit():
            return
        client.last_seq = header.source_seq
        self._acks[identity] = (client, False)
        view = payload.buffer
        try:
            if not client.has_published_on(topic):
                check_topic(self.options, topic)
                self._room.check(topic, header.source)
            check_size(self.options, topic, len(header_frame), len(view))
            if not client.is_next_on(topic, header.topic_seq):
                raise WireError(f"its number on its topic, {header.topic_seq}, is not new", topic)
            if self._comes_too_late(topic, client.info.name):
                return
            if len(view) < _LARGE_BYTES:
                self._accept(party, topic, header, payload.bytes)
            else:
                self._accept(party, topic, header, cast("bytes", view), payload)
        except WireError as error:
            self._reject(client, party, topic, header, error)
            raise

    def _is_judged(self, topic: bytes, source: bytes) -> bool:
        """Return whether what becomes of an event depends on those before it: they are counted first."""
        if len(topic) > self.options.max_topic_bytes:
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
        if self._journal is None or not topic.startswith(_WORDS) or self._knows_run_of(topic):
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
        frame: zmq.Frame | None = None,
    ) -> None:
        """Take in an event that is new.

        Raises:
            WireError: if it is malformed, or its publisher may not say it.
        """
        parsed, partition = parse_topic(topic), partition_of(topic)
        event = check_event(topic, parsed, partition, header, payload, self.options.max_batch_records)
        check_content(self.options, topic, event)
        if not self._access.is_open:
            self._check_may_say(party, parsed, event)
        incoming = Incoming(topic, parsed, header, payload, partition, frame or payload, event)
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
            if not party.may("publish"):
                raise WireError(f"{party.name!r} may not publish", counted_as="role")
            self._owners.claim("run", run_id, party, known=self._runs.knows(run_id))
        elif isinstance(event, Receipt):
            if not self._owners.is_of("consumer", event.consumer, party):
                raise not_yours(party, f"the consumer name {event.consumer!r:.100}")
        elif isinstance(event, Summary) and not self._owners.is_of("run", run_id, party):
            name, _ = parse_checkpoint_name(event.producer)  # of the instance for a partition
            if not self._owners.is_of("consumer", name, party):
                raise not_yours(party, f"the consumer name {name!r:.100}")

    def _add(self, incoming: Incoming) -> int:
        self._events += 1
        return self._stream.add(incoming)

    def _add_own(self, event: EventBase) -> int:
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
        if run_id and (kind not in WORDS_ON_A_RUN or self._owners.is_of("run", run_id, party)):
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
            self._drops[key] = self._add_own(drop), drop
            return
        place, first = self._drops[key]
        events = Counter(first.events)
        events.update(drop.events)
        records = first.records + drop.records
        self._drops[key] = place, msgspec.structs.replace(first, events=dict(events), records=records)

    def _tell_rejected(self, identity: bytes, header: Header, error: WireError) -> None:
        """Tell a publisher that an event is refused; of many in a turn, at its end, how many there were."""
        self._told = True
        rejected = Rejected(seq=header.source_seq, reason=str(error))
        if self._errors.may_tell(identity):
            self._reply(identity, rejected)
        else:
            before = self._untold.get(identity)
            count = 1 + (before.count if before else 0)
            self._untold[identity] = msgspec.structs.replace(rejected, count=count)

    # ---- runs that their publishers do not end ----

    def _end_runs(self, reason: str, source: bytes | None = None) -> None:
        """End the running runs, or one publisher's part of them, as ``lost``."""
        self._commit()  # what was taken in may begin a run, or end it
        self._runs.lose(reason, source)
        self._publish_ends()

    def _say_goodbye(self, identity: bytes, party: Party, goodbye: Goodbye) -> None:
        """Let go of a client that leaves; what it published is whole if the bus has all that it sent."""
        self._commit()
        client = self._clients.take_leave(identity, party, goodbye.client_id)
        if client is not None and client.info.role == "publisher":
            self._runs.leave(client.source, whole=client.last_seq >= goodbye.last_seq)
            self._publish_ends()

    def _publish_ends(self) -> None:
        """Publish the ends of runs whose publishers are gone; what the journal cannot take comes later."""
        for run_id in list(self._runs.ending):
            run = self._runs.by_id[run_id]
            end = run.end()
            self._add_own(end)
            if not self._commit():
                return
            self._runs.end(run, end, self._stream.head.offset)

    # ---- requests ----

    def _answer(self, identity: bytes, party: Party, request: Request) -> None:
        """Answer a request.

        Raises:
            WireError: if the client may not ask this; it is told.
        """
        now_s = time.monotonic()
        check_request(self.options, request)
        if not isinstance(request, StatusRequest):
            self._status.clear()
        match request:
            case Hello():
                self._commit()  # the welcome tells how far the stream is
                self._clients.welcome(identity, party, request, now_s)
                self._next_tick_s = min(self._next_tick_s, self._groups.next_due_s())
            case Beat():
                client = self._clients.hear(identity, party, request, now_s)
                if client is not None and request.sent_seq > client.last_seq:
                    self._acks[identity] = (client, True)
                elif (
                    client is not None
                    and request.sent_seq
                    and client.told_seq != (identity, client.last_seq)
                ):
                    self._acks.setdefault(identity, (client, False))  # it may have missed the last one
            case Goodbye():
                self._say_goodbye(identity, party, request)
            case StatusRequest(after=after):
                self._sockets.send(identity, self._status.part(after))
            case EndRuns(reason=reason):
                _expect_admin(party, "end the runs of all")
                self._ending.append((identity, reason, now_s + _END_WITHIN_S))
            case RemoveDeadLetter(letter_id=letter_id, saved=saved):
                _expect_admin(party, "settle dead letters")
                if self._checkpoints.settle(letter_id, saved):
                    self._reply(identity, Heard(bus_id=self.bus_id))

    def _confirm(self, identity: bytes, client: Client, sent_seq: int) -> None:
        """Acknowledge again: what a publisher sent last, or the last word to it, may be lost."""
        if sent_seq > client.last_seq:
            self._acks[identity] = (client, True)
        elif client.told_seq != (identity, client.last_seq):
            self._acks.setdefault(identity, (client, False))

    def _status_head(self, first: bool) -> Status:
        """Return what is in each part of the status, and what is in the first one alone."""
        return Status(
            bus_id=self.bus_id,
            pid=os.getpid(),
            addresses=tuple(map(str, self.addresses)),
            uptime_s=time.monotonic() - self._started_s,
            events=self._events,
            dropped=self.rejections.of(MALFORMED),
            offset=self._stream.head.offset,
            connections=self._connections.number,
            journal=str(self._journal.path) if self._journal else None,
            unread=tuple(self._unread) if first else (),
            rejected=self.rejections.infos() if first else (),
        )

    def _status_rows(self) -> list[list[Callable[[], Info]]]:
        """Return what makes the clients, runs and groups in the status."""
        now_s = time.monotonic()
        return [
            [partial(self._clients.info, client, now_s) for client in self._clients.by_id.values()],
            [run.info for run in self._runs.by_id.values()],
            [group.info for group in self._groups.all()],
        ]

    def _end_asked_runs(self) -> None:
        while self._ending:
            identity, reason, _ = self._ending.pop()
            self._end_runs(reason)
            self._reply(identity, Heard(bus_id=self.bus_id))

    # ---- time ----

    def _tick(self) -> None:
        now_s = time.monotonic()
        if self._next_tick_s and now_s - self._next_tick_s > self.options.silent_after_s / 2:
            self._clients.forgive_silence(now_s)  # this process was suspended: a laptop's lid, SIGSTOP
        self._groups.share_out(now_s)
        self._next_tick_s = min(now_s + self.options.heartbeat_s, self._groups.next_due_s())
        self._sockets.queue.look(now_s)
        self._clients.miss(now_s)
        self._runs.give_up(now_s)
        self._publish_ends()
        self._access.refresh()
        self._watch_sockets()
        self._connections.forget_gone()
        self._beat()
        if self._journal is not None:
            self._see_journal(self._journal)
        if self._health is not None:
            self._health.snapshot = self._snapshot()
        if self._journal is not None and now_s >= self._next_prune_s:
            self._next_prune_s = now_s + _PRUNE_EVERY_S
            self._prune(self._journal)

    def _watch_sockets(self) -> None:
        """Bind the Unix sockets anew if a cleaner of temporary files has removed them."""
        if not self._sockets.removed:
            self._told_removed = False
            return
        try:
            self._sockets.lock_again()
            if self._replay is not None:
                self._replay.close()
            try:
                self._sockets.bind_again()
            finally:
                self._start_replay()
        except AddressError as error:
            if not self._told_removed:
                self._told_removed = True
                logger.error(
                    "phase-bus bus: somebody has removed its sockets, and no client can connect any more: "
                    "%s; start another one elsewhere",
                    error,
                )
            return
        where = " and ".join(map(str, self.addresses))
        logger.warning(
            "phase-bus bus: somebody has removed the sockets of %s; they are there again. If that was a "
            "cleaner of temporary files, choose a directory that it leaves alone",
            where,
        )

    def _beat(self) -> None:
        """Say that the bus is alive, and how far the stream is: after this nothing older comes."""
        beat = Heartbeat(bus_id=self.bus_id, partitions=self._stream.partitions)
        topic, header, payload = number_own(self._own_events, beat)
        send_frames(self._xpub, (topic, header.pack_at(*self._stream.head, 0, self._stream.tag), payload))

    def _see_journal(self, journal: Journal) -> None:
        """See that the journal's files are where they were, also while nothing is published."""
        try:
            journal.check_in_place()
            self._journal_gone = ""
        except JournalError as error:
            if not self._journal_gone:
                logger.error("phase-bus bus: %s", error)
            self._journal_gone = error.reason

    # ---- health ----

    def _snapshot(self) -> BusSnapshot:
        problem = self._journal_gone or self._still_refused()
        clients = Counter[tuple[str, ...]](
            (c.info.role, c.info.state) for c in self._clients.by_id.values()
        )
        return BusSnapshot(
            taken_s=time.monotonic(),
            patience_s=max(3 * self.options.heartbeat_s, LEAST_PATIENCE_S),
            problem=f"its journal {problem}" if problem else "",
            events=self._stream.events,
            records=self._stream.records,
            payload_bytes=self._stream.payload_bytes,
            offset=self._stream.head.offset,
            clients=dict(clients),
            connections=self._connections.number,
            open_runs=sum(run.status == RUNNING for run in self._runs.by_id.values()),
            rejected=self.rejections.infos(),
            journal=None if self._journal is None else self._journal.path,
        )

    def _still_refused(self) -> str:
        """Return why the journal cannot be written; what came last may have been the last for long."""
        if self._refused and self._journal is not None:
            try:
                self._journal.check_writable()
                self._refused = ""
            except JournalError as error:
                self._refused = error.reason
        return self._refused

    def _prune(self, journal: Journal) -> None:
        now_ns = time.time_ns()
        self._checkpoints.see(self._clients.consumers())
        try:
            pruned = journal.prune(now_ns, _PRUNE_BUDGET_S, by_age=self._clock.is_steady())
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)
            return
        if pruned:
            self._owners.renew()
        for run in pruned:
            self._runs.forget(run.run_id)
            self._unread += run.unread
            what = f"run {run.run_id} was pruned from the journal"
            if run.unread:
                logger.warning("phase-bus bus: %s before it was read by %s", what, in_words(run.unread))
            else:
                logger.info("phase-bus bus: %s", what)
            if run.dead_letters:
                logger.warning("phase-bus bus: %s with %d dead letters", what, run.dead_letters)
        del self._unread[:-_SHOWN_UNREAD]


def _expect_admin(party: Party, what: str) -> None:
    if not party.may("admin"):
        raise WireError(f"{party.name!r} may not {what}", counted_as="role")
