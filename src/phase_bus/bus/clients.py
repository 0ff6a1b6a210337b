"""The clients of a bus: who is connected, and what happens when they come, beat, and go."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping

import msgspec

from phase_bus.bus.access import Party
from phase_bus.bus.checkpoints import Checkpoints
from phase_bus.bus.groups import Groups
from phase_bus.bus.limits import LargeReplies
from phase_bus.bus.options import BusOptions
from phase_bus.bus.owners import Owners, Thing, not_yours
from phase_bus.bus.room import RoomForClients
from phase_bus.bus.sockets import BusSockets
from phase_bus.bus.stream import Stream
from phase_bus.core.control import (
    RESULTS_SUFFIX,
    TAKES_ALL,
    WIRE_VERSION,
    Beat,
    ClientInfo,
    Heard,
    Hello,
    JournalFile,
    NameTaken,
    Refused,
    Reply,
    Role,
    Welcome,
)
from phase_bus.core.session import is_gone, is_here
from phase_bus.errors import WireError
from phase_bus.journal.rows import parse_checkpoint_name

logger = logging.getLogger("phase_bus.bus")
news = logging.getLogger("phase_bus.bus.news")

_CLIENT_ID = re.compile("[0-9a-f]{32}")
_KEPT_TOPICS = 4096  # of a publisher; the first ones are forgotten
_MOST_WAITING = 1000  # for a name that another has
_KEPT_CLIENTS = 200  # of those that left; the oldest are forgotten


class Client:
    """A publisher or consumer as the bus sees it.

    Attributes:
        source: a publisher's name in the headers of its events.
        heard_s: when it was last heard, by :func:`time.monotonic`.
        last_seq: a publisher's last event taken in.
        kept_seq: its last event in the stream.
        asked_seq: the missing event that a publisher was last asked to send again.
        identity: the ROUTER's name for its connection.
        said_s: when it last said something; unlike ``heard_s`` never changed to forgive its silence.
        pid_space: where its pid counts.
        told_seq: what a publisher was acknowledged last, and on which connection.
        owner: whose it is.
    """

    def __init__(self, hello: Hello, owner: str) -> None:
        self.owner = owner
        self.source = bytes.fromhex(hello.client_id)
        self.identity = b""
        self.heard_s = 0.0
        self.last_seq = self.kept_seq = hello.next_seq - 1
        self.asked_seq = 0
        self._topic_seqs: dict[bytes, int] = {}
        self.said_s = 0.0
        self.pid_space = hello.pid_space
        self.told_seq = (b"", 0)
        told = msgspec.structs.asdict(hello)
        told["state"] = "starting" if hello.role == "consumer" else "ready"
        self.info = msgspec.convert(told, ClientInfo)  # which has the names of a hello

    @property
    def here(self) -> bool:
        """Whether it is still on the bus, as far as is known."""
        return self.info.state not in ("stopped", "silent")

    def hear(self, identity: bytes, now_s: float) -> None:
        """Note a sign of life. ZeroMQ may have connected the client anew, without a word to it."""
        self.identity = identity
        self.heard_s = self.said_s = now_s

    def has_published_on(self, topic: bytes) -> bool:
        """Return whether it is known to have published on a topic before."""
        return topic in self._topic_seqs

    def is_next_on(self, topic: bytes, topic_seq: int, events: int = 1) -> bool:
        """Return whether a number on a topic is beyond that of the publisher's last event there.

        There may be a hole before it: of what was acknowledged, and a power cut took from the journal.

        Args:
            events: how many are taken in from this number on, if it is.
        """
        seqs = self._topic_seqs
        if topic_seq <= seqs.get(topic, 0):
            return False
        if topic not in seqs and len(seqs) >= _KEPT_TOPICS:
            del seqs[next(iter(seqs))]
        seqs[topic] = topic_seq + events - 1
        return True

    def take_back(self, topic: bytes, source_seq: int) -> None:
        """Expect an event again that was not taken in after all."""
        self.last_seq = source_seq - 1
        self.asked_seq = 0
        self._topic_seqs.pop(topic, None)

    def go_back(self) -> None:
        """Expect again what came after its last event in the stream: that could not be kept."""
        self.last_seq = self.kept_seq
        self.asked_seq = 0
        self._topic_seqs.clear()

    def update(self, **changes: object) -> None:
        """Change what is known of it."""
        self.info = msgspec.structs.replace(self.info, **changes)


class Clients:
    """Answers hellos, beats and goodbyes, and notices who is gone without one.

    A client that is gone leaves its group, and the runs that it published and did not end are lost.

    Args:
        last_seqs: the last sequence that an earlier bus took in from each source.
        end_runs: ends a source's part of its runs, for a reason.
        file: the journal's files, which consumers on this machine may read themselves.

    Attributes:
        by_id: all clients, the latest of those that left included.
        silent_after_s: after how many seconds without a word one counts as gone.
        is_handled: whether a run has not gone on since an end of it, by its offset.
    """

    def __init__(
        self,
        bus_id: str,
        options: BusOptions,
        *,
        sockets: BusSockets,
        stream: Stream,
        checkpoints: Checkpoints,
        groups: Groups,
        owners: Owners,
        last_seqs: Mapping[bytes, int],
        end_runs: Callable[[str, bytes], None],
        file: JournalFile | None = None,
    ) -> None:
        self.by_id: dict[str, Client] = {}
        self.sources: dict[bytes, Client] = {}
        self._bus_id = bus_id
        self._options = options
        self.silent_after_s = max(options.silent_after_s, 2 * options.heartbeat_s)
        self._sockets = sockets
        self._reply = sockets.reply
        self._stream = stream
        self._checkpoints = checkpoints
        self._groups = groups
        self._belongings = owners
        self._last_seqs = dict(last_seqs)
        self._end_runs = end_runs
        self._file = file
        self._orphans: dict[bytes, float] = {}
        self._owners: dict[str, str] = {}  # the consumer that had a name last, and has it while it is here
        self._room = RoomForClients(options, self._here)
        self._states = LargeReplies()
        self._waiting: dict[str, float] = {}  # who wants a name that another has, and since when
        self.is_handled: Callable[[str, int], bool] = lambda _run_id, _offset: True

    def wait_for(self, source: bytes) -> None:
        """Expect a publisher back whose run an earlier bus left open; else the run is lost."""
        self._orphans[source] = time.monotonic() + self.silent_after_s

    def name_of(self, source: bytes) -> str:
        """Return what a person calls a publisher, empty if it is not known."""
        client = self.sources.get(source)
        return client.info.name if client else ""

    def had(self, source: bytes) -> bool:
        """Return whether an earlier bus took in something from a publisher."""
        return source in self._last_seqs

    def tell(self, client_id: str, message: Reply) -> None:
        """Send a client a message, unless it is not known."""
        client = self.by_id.get(client_id)
        if client is not None:
            self._reply(client.identity, message)

    def consumers(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the consumers and groups that are here, and which topics they take."""
        infos = [client.info for client in self.by_id.values() if client.here]
        return {info.name: info.subscriptions for info in infos if info.role == "consumer"}

    def names(self) -> Iterator[Thing]:
        """Yield the ids, names and groups of all clients."""
        for client_id, client in self.by_id.items():
            yield "source", client_id
            if client.info.role == "consumer":
                yield "consumer", client.info.name
                yield "consumer", client.info.group

    def info(self, client: Client, now_s: float) -> ClientInfo:
        """Return what is known of a client."""
        shares = self._groups.shares_of(client.info.client_id)
        # Of a publisher what was taken in, which its beats, seconds apart, do not know.
        received = client.last_seq if client.info.role == "publisher" else client.info.received
        return msgspec.structs.replace(
            client.info, age_s=now_s - client.heard_s, shares=shares, received=received
        )

    # ---- coming ----

    def welcome(self, identity: bytes, party: Party, hello: Hello, now_s: float) -> None:
        """Take in a client that introduces itself, for the first time or again.

        What was taken in must be in the stream by now: the client is told how far the stream is.

        Raises:
            WireError: if its id is malformed, or it may not be on the bus as what it says it is.
            JournalError: if its checkpoint cannot be read.
        """
        if hello.wire_version != WIRE_VERSION:
            self._refuse_version(identity, hello)
            return
        if not _CLIENT_ID.fullmatch(hello.client_id):
            raise WireError(f"client id {hello.client_id!r:.100} is not 32 hex digits")
        known = self.by_id.get(hello.client_id)
        if known is None or not known.here:
            self._check_place(hello)
            self._room.check(identity, hello, now_s)
        self._check_may_be(hello, party)
        if (taken := self._claim(hello, now_s)) is not None:
            self._reply(identity, taken)
            return
        client = self._take_in(hello, party.name)
        client.hear(identity, now_s)
        if hello.role == "consumer":
            self._checkpoints.see({hello.name: hello.subscriptions})
        checkpoint = self._checkpoints.find(hello)
        if checkpoint is not None and TAKES_ALL in hello.subscriptions:
            client.update(position=checkpoint.position)
        welcome = Welcome(
            bus_id=self._bus_id,
            events=self._sockets.events_endpoint,
            heartbeat_s=self._options.heartbeat_s,
            silent_after_s=self.silent_after_s,
            last_seq=client.last_seq,
            replay=self._sockets.replay_endpoint,
            lineage=self._stream.lineage.segments,
            offset=self._stream.head.offset,
            event_number=self._stream.head.event_number,
            checkpoint=checkpoint.position if checkpoint else None,
            state=checkpoint.state if checkpoint else None,
            pruned=self._checkpoints.prunings(),
            max_message_bytes=self._options.max_message_bytes,
            journal=self._file if hello.role != "publisher" and is_here(hello.pid_space) else None,
        )
        if welcome.state is None or self._states.may_send(identity, len(welcome.state), now_s):
            self._reply(identity, welcome)
        if hello.group:
            self._groups.join(hello.group, hello.client_id, hello.settings, now_s)

    def _here(self) -> Iterator[tuple[ClientInfo, bytes]]:
        return ((client.info, client.identity) for client in self.by_id.values() if client.here)

    def _check_place(self, hello: Hello) -> None:
        """Check that the journal has room for a consumer's place.

        Raises:
            WireError: if it has not.
            JournalError: if it cannot be asked.
        """
        most = self._options.max_checkpoints
        if hello.role == "consumer" and not self._checkpoints.has_room(hello.group or hello.name, most):
            reason = f"the journal keeps the place of {most} consumers, and none was away for long"
            raise WireError(f"{reason} (--max-checkpoints)", counted_as="checkpoints")

    def _refuse_version(self, identity: bytes, hello: Hello) -> None:
        reason = (
            f"it reads wire version {WIRE_VERSION}, and {hello.name!r} on {hello.host or 'this host'} "
            f"writes {hello.wire_version}; use the same phase-bus on both sides"
        )
        logger.warning("phase-bus bus: %s %r is refused: %s", hello.role, hello.name, reason)
        self._reply(identity, Refused(seq=hello.next_seq - 1, reason=reason))

    def _check_may_be(self, hello: Hello, party: Party) -> None:
        """Check that somebody may be what a hello says, under its names, which are its own from now on.

        Raises:
            WireError: if it may not.
            JournalError: if the journal cannot be asked.
        """
        self._check_of(self.by_id.get(hello.client_id), party)
        _check_role(hello.role, party)
        # Whatever it says it is: under the id of another's publisher it would stand in its way. The id is
        # its own for good once an event is kept.
        known = self.had(bytes.fromhex(hello.client_id))
        self._belongings.check("source", hello.client_id, party, known=known)
        if hello.role == "consumer":
            for name in filter(None, {hello.group, hello.name}):
                self._claim_name(name, party)

    def _claim_name(self, name: str, party: Party) -> None:
        """Let somebody have a consumer's or group's name, but for those of the shares of a group."""
        _, share = parse_checkpoint_name(name)
        if share is not None and not party.may("admin"):
            raise not_yours(party, f"the name {name!r:.100}, a share's of a consumer group,")
        self._belongings.claim("consumer", name, party, known=self._checkpoints.knows(name))

    def _check_of(self, client: Client | None, party: Party) -> None:
        """Raise a WireError if a client is not somebody's who speaks for it."""
        if client is not None and not party.speaks_for(client.owner):
            raise not_yours(party, f"{client.info.role} {client.info.name!r:.100}")

    def _claim(self, hello: Hello, now_s: float) -> NameTaken | None:
        """Give a consumer its name, or return who has it.

        Who has it keeps it while it is alive: that is, says something after the newcomer's first hello.
        Half a heartbeat after, since what it said before it was killed may be read a little later.
        """
        if hello.role != "consumer" or hello.group:
            return None
        owner = self.by_id.get(self._owners.get(hello.name, ""))
        if owner is not None and owner.info.client_id != hello.client_id:
            if hello.client_id in self.by_id:  # it was away, and what it knows is out of date
                return _taken_by(owner.info, answers=True)
            if owner.here and not is_gone(owner.info.pid, owner.pid_space):
                since_s = self._waiting.get(hello.client_id, now_s)
                if len(self._waiting) < _MOST_WAITING:
                    self._waiting.setdefault(hello.client_id, now_s)
                answers = owner.said_s > since_s + self._options.heartbeat_s / 2
                return _taken_by(owner.info, answers=answers)
            if owner.here:
                self._miss(owner, "has ended")
        self._owners[hello.name] = hello.client_id
        self._waiting.pop(hello.client_id, None)
        return None

    def _owner_instead_of(self, client: ClientInfo) -> ClientInfo | None:
        """Return the consumer that has a client's name instead of it."""
        owner = self.by_id.get(self._owners.get(client.name, ""))
        if client.role != "consumer" or client.group or owner is None:
            return None
        return None if owner.info.client_id == client.client_id else owner.info

    def _take_in(self, hello: Hello, owner: str) -> Client:
        client = self.by_id.get(hello.client_id)
        if client is None:
            client = self.by_id[hello.client_id] = Client(hello, owner)
            _tell(client, "is here")
            self._forget_old()
            self._tell_gap(hello)
        # Nobody can send again what was acknowledged: waiting for it would never end.
        last_seq = self._last_seqs.get(client.source, 0)
        client.last_seq = client.kept_seq = max(client.last_seq, hello.next_seq - 1, last_seq)
        if not client.here:
            _tell(client, "is here again")
            client.update(state="ready" if hello.role == "publisher" else "starting")
        if client.info.role == "publisher":
            self.sources[client.source] = client
            self._orphans.pop(client.source, None)
        return client

    def _tell_gap(self, hello: Hello) -> None:
        """Tell that a publisher was acknowledged more by an earlier bus than is in the journal."""
        last_seq = self._last_seqs.get(bytes.fromhex(hello.client_id), 0)
        if hello.role == "publisher" and self._stream.lineage.segments and hello.next_seq - 1 > last_seq:
            logger.error(
                "phase-bus bus: an earlier bus acknowledged %d events of publisher %r that are not in this "
                "journal: it has lost its end, or it is another one",
                hello.next_seq - 1 - last_seq,
                hello.name,
            )

    def _forget_old(self) -> None:
        gone = [client_id for client_id, client in self.by_id.items() if not client.here]
        for client_id in gone[:-_KEPT_CLIENTS]:
            client = self.by_id.pop(client_id)
            self.sources.pop(client.source, None)
            if self._owners.get(client.info.name) == client_id:
                del self._owners[client.info.name]

    # ---- being here ----

    def hear(self, identity: bytes, party: Party, beat: Beat, now_s: float) -> Client | None:
        """Take in a beat, and keep the checkpoints in it; return the client, None if it is not known.

        Raises:
            WireError: if it is another's, or may not be on the bus as what it is any more.
        """
        client = self.by_id.get(beat.client_id)
        self._check_of(client, party)
        if client is not None:
            _check_role(client.info.role, party)
        if client is None or not client.here:
            # Its commits are judged when it has said hello and says them again.
            self._reply(identity, Heard(bus_id=self._bus_id, known=False))
            return None
        if (owner := self._owner_instead_of(client.info)) is not None:
            self._reply(identity, _taken_by(owner, answers=True))
            return None
        client.hear(identity, now_s)
        beat = self._with_last_ends(beat)
        position = beat.position
        if position is None and TAKES_ALL in client.info.subscriptions:
            position = client.info.position  # there is nothing that it would not have told of
        client.update(
            state=beat.state,
            handled_runs=beat.handled_runs,
            incomplete_runs=beat.incomplete_runs,
            received=beat.received,
            failed=beat.failed,
            position=position,
            journal_losses=beat.journal_losses,
        )
        heard = Heard(bus_id=self._bus_id)
        if client.info.role == "consumer":  # an onlooker keeps nothing, whatever it says
            heard = self._checkpoints.keep(client.info, beat, self._groups.of(beat.client_id))
        self._reply(identity, heard)
        self._groups.take_beat(beat)
        return client

    def _with_last_ends(self, beat: Beat) -> Beat:
        """Return a beat without the runs that have not ended yet, or once more, since they were handled."""
        ends = zip(beat.handled_runs, beat.handled_ends, strict=False)
        going_on = {run_id for run_id, offset in ends if not self.is_handled(run_id, offset)}
        if not going_on:
            return beat
        names = ("handled_runs", "incomplete_runs", "lost_runs")
        kept = {n: tuple(each for each in getattr(beat, n) if each not in going_on) for n in names}
        return msgspec.structs.replace(beat, **kept)

    def forget_handled(self, run_ids: set[str]) -> None:
        """Forget that runs were handled that go on."""
        for client in self.by_id.values():
            if not run_ids.isdisjoint(client.info.handled_runs):
                handled = tuple(each for each in client.info.handled_runs if each not in run_ids)
                client.update(handled_runs=handled)
        self._groups.forget_handled(run_ids)

    def forgive_silence(self, now_s: float) -> None:
        """Count everybody's silence from now on: it was the bus that did not listen."""
        for client in self.by_id.values():
            client.heard_s = now_s

    # ---- going ----

    def take_leave(self, identity: bytes, party: Party, client_id: str) -> Client | None:
        """Let go of a client that says goodbye; return it, None if it is not known.

        Raises:
            WireError: if it is another's.
        """
        client = self.by_id.get(client_id)
        self._check_of(client, party)
        if client is not None:
            if client.here:
                _tell(client, "has left")
            client.update(state="stopped")
            self._groups.leave(client_id, time.monotonic())
        self._reply(identity, Heard(bus_id=self._bus_id))
        return client

    def miss(self, now_s: float) -> None:
        """Let go of the clients that have been silent for too long, or did not come back to a new bus."""
        latest_s = now_s - self.silent_after_s
        silent = [client for client in self.by_id.values() if client.here and client.heard_s < latest_s]
        for client in silent:
            self._miss(client, f"has not answered for {self._options.silent_after_s:g} s")
        for client_id in [each for each, since_s in self._waiting.items() if since_s < latest_s]:
            del self._waiting[client_id]  # it gave up, or begins to wait anew
        for source in [source for source, until_s in self._orphans.items() if now_s > until_s]:
            del self._orphans[source]
            self._end_runs("its publisher did not come back after a restart of the bus", source)

    def _miss(self, client: Client, why: str) -> None:
        info = client.info
        logger.warning("phase-bus bus: %s %r (pid %d) %s", info.role, info.name, info.pid, why)
        client.update(state="silent")
        self._groups.leave(info.client_id, time.monotonic())
        if info.role == "publisher":
            self._end_runs("its publisher fell silent", client.source)


def _tell(client: Client, what: str) -> None:
    """Tell that somebody comes or goes, but for the publishers that consumers have for their results."""
    info = client.info
    # Else every consumer of ours would come and go twice.
    if not (info.role == "publisher" and info.name.endswith(RESULTS_SUFFIX)):
        role = "onlooker" if info.role == "client" else info.role
        host = info.host or "an unknown host"
        news.info("%s %r %s (pid %d on %s)", role, info.name, what, info.pid, host)


def _check_role(role: Role, party: Party) -> None:
    """Raise a WireError if somebody may not be on the bus in a role."""
    if role == "publisher" and not party.may("consume"):  # consumers publish receipts, and results
        party.expect("publish")
    elif role != "publisher":
        party.expect("consume")


def _taken_by(owner: ClientInfo, *, answers: bool) -> NameTaken:
    return NameTaken(name=owner.name, pid=owner.pid, host=owner.host, answers=answers)
