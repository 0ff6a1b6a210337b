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
from typing import TYPE_CHECKING

import zmq

from phase_bus.bus.access import OWN, Party
from phase_bus.bus.checkpoints import Checkpoints
from phase_bus.bus.clients import Clients
from phase_bus.bus.clock import ClockWatch
from phase_bus.bus.connections import Connections
from phase_bus.bus.groups import Groups
from phase_bus.bus.health import BusSnapshot
from phase_bus.bus.ingest import Ingest
from phase_bus.bus.limits import (
    LineLimit,
    check_request,
    check_request_size,
)
from phase_bus.bus.options import BusOptions
from phase_bus.bus.owners import Owners
from phase_bus.bus.rejections import MALFORMED, Rejections
from phase_bus.bus.replay import ReplayServer
from phase_bus.bus.runs import Runs
from phase_bus.bus.sockets import BusSockets
from phase_bus.bus.status import Info, StatusParts
from phase_bus.bus.stream import Stream, number_own
from phase_bus.core.address import Address
from phase_bus.core.control import (
    Beat,
    EndRuns,
    Goodbye,
    Heard,
    Hello,
    Refused,
    RemoveDeadLetter,
    Request,
    Status,
    StatusRequest,
)
from phase_bus.core.health import LEAST_PATIENCE_S
from phase_bus.core.keys import Key, check_all_guarded
from phase_bus.core.outbox import Outbox
from phase_bus.core.threads import Waker
from phase_bus.core.throttle import Throttle
from phase_bus.core.wire import (
    decode_request,
    receive_frames,
    send_frames,
    unpack_header,
)
from phase_bus.errors import AddressError, JournalError, WireError
from phase_bus.events import (
    Heartbeat,
)
from phase_bus.journal.holding import in_words
from phase_bus.journal.writer import RUNNING, Journal

if TYPE_CHECKING:
    from phase_bus.core.health_server import HealthServer

logger = logging.getLogger("phase_bus.bus")
news = logging.getLogger("phase_bus.bus.news")

_PRUNE_EVERY_S = 60.0
_PRUNE_BUDGET_S = 0.1
_SHOWN_UNREAD = 50  # of what consumers have lost by pruning
# What is taken in before acknowledgements are sent and timers looked at: events and requests, their bytes,
# and for how long.
_DRAIN, _DRAIN_BYTES = 1000, 4 << 20
_DRAIN_S = 0.01  # of what is no event: events that come together are written together
_END_WITHIN_S = 1.0  # runs are ended by, even if there is always something more to take in before


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
        self.rejections = Rejections()
        self._complaints = Throttle(logger)
        self._ending: list[tuple[bytes, str, float]] = []  # who asked to end the runs, why, and by when
        # News has a limit of its own: whoever comes and goes all the time keeps no warning from being seen.
        self._lines = {each: LineLimit(self.options.max_log_lines_s) for each in (logger, news)}
        for each, limit in self._lines.items():
            each.addFilter(limit)
        self._stop = False
        self._journal_gone = ""  # what was told of that
        self._health: HealthServer | None = None
        self._waker = Waker()
        self._sockets = BusSockets(
            self.options, key, self.rejections, shared=any(a.shared for a in addresses)
        )
        self._connections = Connections(self._sockets.all, self.options, self.rejections)
        self._access = self._sockets.access
        self._access.inode_before = self._connections.inode_before
        self._owners = Owners(journal, self.options)
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
            file=None if journal is None else journal.file,
        )
        self._runs = Runs(
            journal,
            self._clients.name_of,
            self._clients.silent_after_s,
            self._own_events.source,
            news.info,
        )
        self._clients.is_handled = self._runs.is_handled
        self._status = StatusParts(self._status_head, self._status_rows)
        self._ingest = Ingest(
            self.bus_id,
            self.options,
            keeps=journal is not None,
            sockets=self._sockets,
            stream=self._stream,
            clients=self._clients,
            groups=self._groups,
            owners=self._owners,
            runs=self._runs,
            own_events=self._own_events,
            on_change=self._status.clear,
        )
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
        check_all_guarded(self.addresses, self._key, insecure=self._insecure)
        self.addresses = self._sockets.bind(self.addresses, replay=self._journal is not None)
        self._start_replay()

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        poller = zmq.Poller()
        zap = self._access.zap
        for readable in (self._router, self._xpub, zap, self._waker.fd):
            if readable is not None:
                poller.register(readable, zmq.POLLIN)
        for descriptor in self._connections.descriptors:
            poller.register(descriptor, zmq.POLLIN)
        while not self._stop:
            at_once = self._ending or self._connections.more
            wait_s = 0.0 if at_once else max(self._next_tick_s - time.monotonic(), 0.0)
            ready = dict(poller.poll(math.ceil(wait_s * 1000)))
            if self._connections.more or not self._connections.descriptors.isdisjoint(ready):
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

    def behind(self, name: str) -> int:
        """Return how many events a consumer of everything has not finished with; from any thread."""
        known = [client.info for client in list(self._clients.by_id.values())]
        places = [info.position.offset for info in known if info.name == name and info.position]
        return self._stream.head.offset - max(places, default=0)

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
        for each, limit in self._lines.items():
            each.removeFilter(limit)

    # ---- taking events in ----

    def _take_in(self) -> None:
        until_s, left, left_bytes = time.monotonic() + _DRAIN_S, _DRAIN, _DRAIN_BYTES
        while left > 0:
            try:
                frames = receive_frames(self._router, 5)
            except zmq.Again:
                self._end_asked_runs()  # all that their publishers had sent is in
                break
            left -= self._take(frames)
            left_bytes -= len(frames[-1])  # type: ignore[arg-type] # it has a length
            if left_bytes < 0 or (len(frames) != 4 and time.monotonic() > until_s):
                break
        if self._ending and time.monotonic() > self._ending[0][2]:
            self._end_asked_runs()
        self._ingest.end_turn()
        self._status.clear()

    def _take(self, frames: Sequence[zmq.Frame]) -> int:
        """Take in a message; return how many events or requests it is."""
        self._ingest.told = False
        try:
            party = OWN if self._access.is_open else self._access.expect(frames[0])
            if len(frames) == 4:
                return self._take_events(party, *frames)
            if len(frames) != 2:
                raise WireError("as many frames are neither an event nor a request")
            request = frames[1].bytes
            check_request_size(self.options, len(request))
            self._answer(frames[0].bytes, party, decode_request(request))
        except (WireError, JournalError) as error:
            self._tell_refused(frames[0], error)
        return 1

    def _take_events(
        self, party: Party, name: zmq.Frame, topic: zmq.Frame, header: zmq.Frame, payload: zmq.Frame
    ) -> int:
        """Take in an event or a bundle; return how many events it is.

        Raises:
            WireError: if the event, or the bundle as such, is refused.
            JournalError: if the journal, by which it is judged, cannot be read; it is not taken in.
        """
        ingest = self._ingest
        whom, on, header_frame = name.bytes, topic.bytes, header.bytes
        first = unpack_header(header_frame, on)
        if first.events == 1:
            ingest.take(whom, party, on, first, payload.buffer, payload)
            return 1
        for each, piece in ingest.take_bundle(whom, party, on, first, header_frame, payload):
            ingest.told = False
            try:
                ingest.take(whom, party, on, each, piece)
            except (WireError, JournalError) as error:
                self._tell_refused(name, error)
        return first.events

    def _tell_refused(self, name: zmq.Frame, error: WireError | JournalError) -> None:
        """Count what is refused, and tell of it, unless the client was told already."""
        if isinstance(error, JournalError):  # it cannot be read; the client asks again
            logger.error("phase-bus bus: %s", error)
            return
        self.rejections.count(error.counted_as, self._access.where(name))
        self._complaints.warn("phase-bus bus: %s; skipped", error)
        if not self._ingest.told and self._ingest.errors.may_tell(name.bytes):
            self._reply(name.bytes, Refused(seq=0, reason=str(error)))

    # ---- runs that their publishers do not end ----

    def _end_runs(self, reason: str, source: bytes | None = None) -> None:
        """End the running runs, or one publisher's part of them, as ``lost``."""
        self._ingest.commit()  # what was taken in may begin a run, or end it
        self._runs.lose(reason, source)
        self._publish_ends()

    def _say_goodbye(self, identity: bytes, party: Party, goodbye: Goodbye) -> None:
        """Let go of a client that leaves; what it published is whole if the bus has all that it sent."""
        self._ingest.commit()
        client = self._clients.take_leave(identity, party, goodbye.client_id)
        if client is not None and client.info.role == "publisher":
            self._runs.leave(client.source, whole=client.last_seq >= goodbye.last_seq)
            self._publish_ends()

    def _publish_ends(self) -> None:
        """Publish the ends of runs whose publishers are gone; what the journal cannot take comes later."""
        for run_id in list(self._runs.ending):
            run = self._runs.by_id[run_id]
            end = run.end()
            self._ingest.add_own(end)
            if not self._ingest.commit():
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
                self._ingest.commit()  # the welcome tells how far the stream is
                self._clients.welcome(identity, party, request, now_s)
                self._next_tick_s = min(self._next_tick_s, self._groups.next_due_s())
            case Beat():
                client = self._clients.hear(identity, party, request, now_s)
                if client is not None:
                    self._ingest.confirm(identity, client, request.sent_seq)
            case Goodbye():
                self._say_goodbye(identity, party, request)
            case StatusRequest(after=after):
                self._sockets.send(identity, self._status.part(after))
            case EndRuns(reason=reason):
                party.expect("admin", "end the runs of all")
                self._ending.append((identity, reason, now_s + _END_WITHIN_S))
            case RemoveDeadLetter(letter_id=letter_id, saved=saved):
                party.expect("admin", "settle dead letters")
                if self._checkpoints.settle(letter_id, saved):
                    self._reply(identity, Heard(bus_id=self.bus_id))

    def _status_head(self, first: bool) -> Status:
        """Return what is in each part of the status, and what is in the first one alone."""
        return Status(
            bus_id=self.bus_id,
            pid=os.getpid(),
            addresses=tuple(map(str, self.addresses)),
            uptime_s=time.monotonic() - self._started_s,
            events=self._ingest.events,
            dropped=self.rejections.of(MALFORMED),
            offset=self._stream.head.offset,
            connections=self._connections.number,
            journal=str(self._journal.path) if self._journal else None,
            replay=self._sockets.replay_endpoint,
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
        self._clients.miss(now_s)
        self._runs.give_up(now_s)
        self._publish_ends()
        self._access.refresh()
        self._watch_sockets()
        self._connections.forget_gone()
        self._beat()
        self._owners.keep()
        if self._journal is not None:
            self._see_journal(self._journal)
        if self._health is not None:
            self._health.snapshot = self._snapshot()
        if now_s >= self._next_prune_s:
            self._next_prune_s = now_s + _PRUNE_EVERY_S
            pruned = self._journal is not None and self._prune(self._journal)
            self._forget_owners(sources=pruned)

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
        if self._ingest.refused and self._journal is not None:
            try:
                self._journal.check_writable()
                self._ingest.refused = ""
            except JournalError as error:
                self._ingest.refused = error.reason
        return self._ingest.refused

    def _forget_owners(self, *, sources: bool) -> None:
        here = {*self._clients.names(), *(("run", self._runs.first_id(id_)) for id_ in self._runs.by_id)}
        try:
            self._owners.forget(here, sources=sources)
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)

    def _prune(self, journal: Journal) -> bool:
        """Prune the journal; return whether a run is gone."""
        now_ns = time.time_ns()
        self._checkpoints.see(self._clients.consumers())
        try:
            pruned = journal.prune(now_ns, _PRUNE_BUDGET_S, by_age=self._clock.is_steady())
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)
            return False
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
        return bool(pruned)
