"""The bus's loop: one ROUTER that takes everything in, one XPUB that fans events out."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import cast

import msgspec
import zmq
from msgspec import Struct

from phase_bus.address import Address
from phase_bus.bus.groups import Group, Groups
from phase_bus.bus.journal import Journal
from phase_bus.bus.ledger import Client, Ledger, Run, lost
from phase_bus.bus.positions import Positions
from phase_bus.bus.replay import ReplayServer
from phase_bus.bus.sockets import BusSockets
from phase_bus.bus.stream import Incoming, Stream
from phase_bus.control import (
    WIRE_VERSION,
    Ack,
    Assigned,
    Beat,
    ClientInfo,
    EndRuns,
    Goodbye,
    Heard,
    Hello,
    Refused,
    RemoveDeadLetter,
    Reply,
    Request,
    Status,
    StatusRequest,
    Welcome,
)
from phase_bus.errors import JournalError, WireError
from phase_bus.events import EventBase, Heartbeat, RunComplete
from phase_bus.outbox import Message, Outbox
from phase_bus.wire import (
    Header,
    decode_event,
    decode_request,
    encode_control,
    parse_topic,
    partition_of,
    receive_frames,
    send_frames,
    unpack_header,
)

logger = logging.getLogger("phase_bus.bus")

_PRUNE_EVERY_S = 60.0
_PRUNE_BUDGET_S = 0.1
_DRAIN = 1000  # messages taken in before replies are sent and timers looked at
_LARGE_BYTES = 8192  # a payload from here on is passed on as it was received; copying less costs less
_CLIENT_ID = re.compile("[0-9a-f]{32}")
_SETTLE_S = 0.2  # members that start together are to share the work at once
_READY = b"ready."
_NO_HEADER = Header(source=bytes(16), source_seq=0, topic_seq=0).pack()


class BusOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bus behaves.

    Attributes:
        heartbeat_s: how often clients are to say that they are alive, in seconds.
        silent_after_s: seconds without a word after which a client counts as gone, and the runs of a
            publisher that is gone end as ``lost``.
        high_water_mark: events queued for each consumer at most; beyond that the consumer loses
            events, sees the gap, and reports it.
        max_message_bytes: larger messages are refused.
    """

    heartbeat_s: float = 1.0
    silent_after_s: float = 10.0
    high_water_mark: int = 1000
    max_message_bytes: int = 256 << 20


class Bus:
    """One bus process's sockets and loop.

    Args:
        addresses: where it can be reached: ipc, tcp, or both.
        options: how it behaves.
        journal: where events are kept; the bus closes it. None keeps them in memory only: consumers
            that are late or slow then lose events.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        options: BusOptions | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.options = options or BusOptions()
        self.bus_id = uuid.uuid4().hex
        self.addresses: tuple[Address, ...] = tuple(addresses)
        self._ledger = Ledger(max(self.options.silent_after_s, 2 * self.options.heartbeat_s))
        self._own = Outbox(uuid.uuid4().bytes, 0)  # numbers what the bus itself publishes
        self._started_s = time.monotonic()
        self._next_tick_s = 0.0
        self._next_prune_s = 0.0
        self._events = 0
        self._bad = 0
        self._acks: dict[bytes, Ack] = {}
        self._stop = False
        self._lost: dict[str, str] = {}  # runs whose end is still to be published, and why
        self._ending: list[tuple[bytes, str]] = []
        self._wake_read, self._wake_write = os.pipe()
        self._sockets = BusSockets(self.options.high_water_mark, self.options.max_message_bytes)
        self._router, self._xpub = self._sockets.router, self._sockets.xpub
        self._journal = journal
        self._stream = Stream(self._xpub, journal)
        self._groups = Groups(self._stream.partitions)
        self._positions = Positions(journal)
        # After a restart members come back one by one: it pays to wait for all.
        self._crowd_until_s = (
            self._started_s + 2 * self.options.heartbeat_s if self._stream.head.offset else 0.0
        )
        self._replay: ReplayServer | None = None
        if journal is not None:
            self._ledger.recall(journal)

    # ---- life ----

    def bind(self) -> None:
        """Bind all addresses; afterwards :attr:`addresses` name the ports that port 0 became.

        Raises:
            AddressError: one is in use, or cannot be bound, or there are two of one scheme.
        """
        self.addresses = self._sockets.bind(self.addresses, replay=self._journal is not None)
        if self._journal is not None:
            self._replay = ReplayServer(self._sockets.replay, self._journal.path)
            self._replay.start()

    def run(self, stop_on_eof: int | None = None) -> None:
        """Serve until SIGTERM, SIGINT or :meth:`stop`.

        Args:
            stop_on_eof: a file descriptor whose end means that the parent process is gone.
        """
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._xpub, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        if stop_on_eof is not None:
            poller.register(stop_on_eof, zmq.POLLIN)
        while not self._stop:
            wait_s = 0.0 if self._ending else max(self._next_tick_s - time.monotonic(), 0.0)
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            if self._router in ready or self._ending:
                self._take_in()
            if self._xpub in ready:
                self._greet_subscribers()
            if stop_on_eof in ready and not os.read(stop_on_eof or 0, 4096):
                self._stop = True
            if time.monotonic() >= self._next_tick_s:
                self._tick()

    def stop(self, *_signal: object) -> None:
        """End :meth:`run` after the current message; usable as a signal handler."""
        if not self._stop:
            self._stop = True
            with suppress(OSError):  # closed already
                os.write(self._wake_write, b"!")

    def install_signals(self) -> None:
        """Let SIGTERM and SIGINT end :meth:`run`."""
        signal.signal(signal.SIGTERM, self.stop)
        signal.signal(signal.SIGINT, self.stop)

    def close(self) -> None:
        """End the runs that are going on, close the sockets, and remove the ipc files."""
        # With a journal the next bus goes on with the runs; without one they are over.
        if self._journal is None:
            self._end_runs("the bus was stopped")
        if self._replay is not None:
            self._replay.close()
        self._sockets.close()
        if self._journal is not None:
            self._journal.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._wake_read = self._wake_write = -1

    # ---- taking events in ----

    def _take_in(self) -> None:
        for _ in range(_DRAIN):
            try:
                frames = receive_frames(self._router)
            except zmq.Again:
                self._end_asked_runs()  # all that their publishers had sent is in
                break
            try:
                if len(frames) == 4:
                    name, topic, header, payload = frames
                    self._ingest(name.bytes, topic.bytes, header.bytes, payload)
                elif len(frames) == 2:
                    self._answer(frames[0].bytes, decode_request(frames[1].bytes))
                else:
                    raise WireError(f"{len(frames) - 1} frames are neither an event nor a request")
            except WireError as error:
                self._bad += 1
                logger.warning("phase-bus bus: %s; set aside", error)
            except JournalError as error:  # it cannot be read: the client asks again
                logger.error("phase-bus bus: %s", error)
        self._commit()
        for identity, ack in self._acks.items():
            self._reply(identity, ack)
        self._acks.clear()

    def _commit(self) -> bool:
        """Put into the stream what was taken in, and say if it is; else nothing is acknowledged."""
        try:
            taken = self._stream.commit()
        except JournalError as error:
            self._refuse(error)
            return False
        for client in self._ledger.sources.values():
            client.kept_seq = client.last_seq
        for incoming in taken:
            self._count(incoming)
            self._groups.add_partition(incoming.partition)
        return True

    def _refuse(self, error: JournalError) -> None:
        """Tell the publishers that nothing since the last commit could be kept."""
        logger.error("phase-bus bus: %s", error)
        for client in self._ledger.sources.values():
            client.last_seq = client.kept_seq
            client.asked_seq = 0
            if self._acks.pop(client.identity, None) is not None:
                self._reply(client.identity, Refused(seq=client.kept_seq, reason=str(error)))
        self._acks.clear()  # of connections that their publishers have replaced by now

    def _ingest(self, identity: bytes, topic: bytes, header_frame: bytes, payload: zmq.Frame) -> None:
        header = unpack_header(header_frame, topic)
        client = self._ledger.sources.get(header.source)
        if client is None or not client.here:
            self._reply(identity, Heard(bus_id=self.bus_id, known=False))
            return
        client.heard_s = time.monotonic()
        client.identity = identity  # it may have been connected anew, and not know
        expected = client.last_seq + 1
        if header.source_seq != expected:
            # A repetition is acknowledged again; a hole asks, once, for what is missing. Should that be
            # lost in its turn, the publisher's next beat brings it up again.
            hole = header.source_seq > expected
            if not hole or client.asked_seq != expected:
                self._acks[identity] = Ack(seq=client.last_seq, resend=hole)
            if hole:
                client.asked_seq = expected
            return
        client.last_seq = header.source_seq
        self._acks[identity] = Ack(seq=header.source_seq)
        view = payload.buffer
        if len(view) < _LARGE_BYTES:
            self._accept(topic, header, payload.bytes)
        else:
            self._accept(topic, header, cast("bytes", view), payload)

    def _accept(self, topic: bytes, header: Header, payload: bytes, frame: zmq.Frame | None = None) -> None:
        """Take in an event that is new."""
        self._events += 1
        partition = partition_of(topic)
        self._stream.add(Incoming(topic, parse_topic(topic), header, payload, partition, frame or payload))

    def _count(self, incoming: Incoming) -> None:
        """Keep account of an event that is in the stream now."""
        topic, parsed, header, payload, *_ = incoming
        was = self._ledger.runs.get(parsed.run_id)
        known = was is not None and was.status == "running"
        run = self._ledger.count(parsed, topic.decode(), header)
        if run is None:
            return
        self._lost.pop(run.run_id, None)  # its publisher is back
        if parsed.kind == RunComplete.kind:
            try:
                event = decode_event(topic, payload)
            except WireError as error:
                self._bad += 1
                logger.warning("phase-bus bus: %s; the run is not ended by it", error)
                return
            if isinstance(event, RunComplete):
                self._ledger.end(run, event.status, event.ts_ns)
                self._note(run)
        elif not known:
            self._note(run)

    def _note(self, run: Run) -> None:
        if self._journal is not None:
            with self._told_only():
                self._journal.note_run(
                    run.run_id, run.status, run.started_ns, run.ended_ns, run.publisher_name
                )

    @contextmanager
    def _told_only(self) -> Iterator[None]:
        """Log that the journal cannot be written; for what is no event, and is written again later."""
        try:
            yield
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)

    # ---- requests ----

    def _answer(self, identity: bytes, request: Request) -> None:
        now_s = time.monotonic()
        match request:
            case Hello(wire_version=version) if version != WIRE_VERSION:
                self._refuse_version(identity, request)
            case Hello():
                self._reply(identity, self._welcome(request, identity, now_s))
                if request.group:
                    self._join(identity, request, now_s)
            case Beat():
                self._hear_beat(identity, request, now_s)
            case Goodbye(client_id=client_id):
                if (client := self._ledger.leave(client_id)) is not None:
                    self._gone(client, "its publisher left without ending it")
                self._reply(identity, Heard(bus_id=self.bus_id))
            case StatusRequest():
                self._reply(identity, self._status(now_s))
            case EndRuns(reason=reason):
                self._ending.append((identity, reason))
            case RemoveDeadLetter(letter_id=letter_id, saved=saved):
                if self._journal is not None:
                    with self._told_only():
                        self._journal.settle_dead_letter(letter_id, saved)
                        self._reply(identity, Heard(bus_id=self.bus_id))

    def _hear_beat(self, identity: bytes, beat: Beat, now_s: float) -> None:
        client = self._ledger.clients.get(beat.client_id)
        if client is None or not self._ledger.beat(beat, now_s):
            # Its commits are judged when it has said hello and says them again.
            self._reply(identity, Heard(bus_id=self.bus_id, known=False))
            return
        group = self._groups.of(beat.client_id)
        kept = self._positions.keep(client.info, beat, group)
        self._reply(
            identity,
            Heard(
                bus_id=self.bus_id,
                dead_letters=tuple(kept.dead_letters),
                kept=kept.shares,
                refused=tuple(kept.refused),
            ),
        )
        if beat.sent_seq > client.last_seq:
            self._acks[identity] = Ack(seq=client.last_seq, resend=True)
        if group is not None:
            changed = group.take_beat(beat)
            self._assign(group.members if changed else [beat.client_id], group)

    def _refuse_version(self, identity: bytes, hello: Hello) -> None:
        """Tell a client that it and this bus do not understand each other."""
        reason = (
            f"it reads wire version {WIRE_VERSION}, and {hello.name!r} on {hello.host or 'this host'} "
            f"writes {hello.wire_version}; use the same phase-bus on both sides"
        )
        logger.warning("phase-bus bus: %s %r is refused: %s", hello.role, hello.name, reason)
        self._reply(identity, Refused(seq=hello.next_seq - 1, reason=reason))

    def _join(self, identity: bytes, hello: Hello, now_s: float) -> None:
        """Take a consumer into its group."""
        due_s = max(now_s + _SETTLE_S, self._crowd_until_s)
        problem = self._groups.join(hello.group, hello.client_id, hello.settings, due_s)
        if problem:
            self._reply(identity, Assigned(problem=problem))
        self._next_tick_s = min(self._next_tick_s, due_s)

    def _share_out(self, now_s: float) -> None:
        """Rebalance the groups for which it is time, and tell their members."""
        for group in self._groups.rebalance_due(now_s):
            self._assign(group.members, group)

    def _assign(self, members: Iterable[str], group: Group) -> None:
        """Tell members what they are to work on, unless they act upon it already."""
        for member in members:
            client = self._ledger.clients.get(member)
            if client is not None and not group.is_current(member):
                self._reply(client.identity, group.assignment(member))

    def _welcome(self, hello: Hello, identity: bytes, now_s: float) -> Welcome:
        if not _CLIENT_ID.fullmatch(hello.client_id):
            raise WireError(f"client id {hello.client_id!r:.100} is not 32 hex digits")
        self._commit()  # so that the head below is the head
        client = self._ledger.hello(hello, identity, now_s)
        kept = None
        if self._journal is not None and hello.role == "consumer" and not hello.group:
            kept = self._journal.checkpoint(hello.name)
        return Welcome(
            bus_id=self.bus_id,
            events=self._sockets.events_endpoint,
            heartbeat_s=self.options.heartbeat_s,
            silent_after_s=self._ledger.silent_after_s,
            last_seq=client.last_seq,
            replay=self._sockets.replay_endpoint if self._journal else None,
            journal_id=self._journal.journal_id if self._journal else "",
            offset=self._stream.head.offset,
            event_number=self._stream.head.event_number,
            checkpoint=kept.offset if kept else None,
            state=kept.state if kept else None,
        )

    def _client_infos(self, now_s: float) -> tuple[ClientInfo, ...]:
        """Return what is known of all clients, members of groups with their shares."""
        infos = self._ledger.client_infos(now_s)
        groups = [(info, self._groups.of(info.client_id)) for info in infos]
        return tuple(
            info if group is None else msgspec.structs.replace(info, shares=group.shares_of(info.client_id))
            for info, group in groups
        )

    def _status(self, now_s: float) -> Status:
        return Status(
            bus_id=self.bus_id,
            pid=os.getpid(),
            addresses=tuple(map(str, self.addresses)),
            uptime_s=now_s - self._started_s,
            events=self._events,
            dropped=self._bad,
            offset=self._stream.head.offset,
            journal=str(self._journal.path) if self._journal else None,
            clients=self._client_infos(now_s),
            runs=tuple(run.info() for run in self._ledger.runs.values()),
            groups=self._groups.infos(),
        )

    def _reply(self, identity: bytes, reply: Reply) -> None:
        # A ROUTER lets go of what is for a peer that is gone; the peer asks again if it is not.
        with suppress(zmq.Again):
            send_frames(self._router, (identity, encode_control(reply)), int(zmq.NOBLOCK))

    # ---- subscribers ----

    def _greet_subscribers(self) -> None:
        """Answer each consumer's last subscription on that very topic.

        A consumer subscribes to ``ready.<its id>$`` after everything else. That the answer reaches it
        shows that all its subscriptions are in force.
        """
        while True:
            try:
                message = self._xpub.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if message[:1] == b"\x01" and message[1:].startswith(_READY):
                send_frames(self._xpub, (message[1:], _NO_HEADER, b""))

    # ---- time ----

    def _tick(self) -> None:
        now_s = time.monotonic()
        if self._next_tick_s and now_s - self._next_tick_s > self.options.silent_after_s / 2:
            self._ledger.forgive_silence(now_s)  # this process was suspended: a laptop's lid, SIGSTOP
        self._share_out(now_s)
        self._next_tick_s = min(now_s + self.options.heartbeat_s, self._groups.next_due_s())
        for client in self._ledger.newly_silent(now_s):
            logger.warning(
                "phase-bus bus: %s %r (pid %d) has not answered for %g s",
                client.info.role,
                client.info.name,
                client.info.pid,
                self.options.silent_after_s,
            )
            self._gone(client, "its publisher fell silent")
        for source in self._ledger.newly_orphaned(now_s):
            self._end_runs("its publisher did not come back after a restart of the bus", source)
        self._end_lost_runs()
        self._beat()
        if self._journal is not None and now_s >= self._next_prune_s:
            self._next_prune_s = now_s + _PRUNE_EVERY_S
            with self._told_only():
                for run_id in self._journal.prune(time.time_ns(), _PRUNE_BUDGET_S):
                    logger.info("phase-bus bus: run %s was pruned from the journal", run_id)

    def _gone(self, client: Client, reason: str) -> None:
        self._groups.leave(client.info.client_id)
        self._share_out(time.monotonic())
        if client.info.role == "publisher":
            self._end_runs(reason, bytes.fromhex(client.info.client_id))

    def _end_asked_runs(self) -> None:
        while self._ending:
            identity, reason = self._ending.pop()
            self._end_runs(reason)
            self._reply(identity, Heard(bus_id=self.bus_id))

    def _end_runs(self, reason: str, source: bytes | None = None) -> None:
        self._commit()
        for run in self._ledger.open_runs(source):
            logger.warning("phase-bus bus: run %s is lost: %s", run.run_id, reason)
            self._lost[run.run_id] = reason
        self._end_lost_runs()

    def _end_lost_runs(self) -> None:
        """Publish the end of runs that are lost; what the journal cannot take now comes later."""
        for run_id, reason in list(self._lost.items()):
            run = self._ledger.runs[run_id]
            event = lost(run, reason)
            message = self._own_message(event)
            self._accept(message.frames[0], unpack_header(message.frames[1]), message.frames[2])
            if not self._commit():
                return
            self._lost.pop(run_id, None)
            self._ledger.end(run, event.status, event.ts_ns)
            self._note(run)

    def _beat(self) -> None:
        """Say that the bus is alive, and where the stream stands: after this nothing older comes."""
        topic, header, payload = self._own_message(
            Heartbeat(bus_id=self.bus_id, partitions=self._stream.partitions)
        ).frames
        placed = unpack_header(header)._replace(**self._stream.head._asdict())
        send_frames(self._xpub, (topic, placed.pack(), payload))

    def _own_message(self, event: EventBase) -> Message:
        """Number something the bus itself has to say."""
        self._own.put(event)
        message = self._own.peek()
        assert message is not None
        self._own.acknowledge(message.seq)
        return message
