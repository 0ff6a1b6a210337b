"""What clients and the bus say to each other besides events.

A client opens a DEALER to the bus's address and says :class:`Hello`; the :class:`Welcome` tells it the
other sockets. All messages are frozen Structs tagged by ``op``; :mod:`phase_bus.core.wire` turns them into
bytes. A client repeats what gets no reply: every request may arrive twice without harm.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from phase_bus.core.past import FetchedPast, FetchPast
from phase_bus.core.position import Position, Segment
from phase_bus.events import Count, Int, JournalLoss, Offset

WIRE_VERSION = 4
EVENTS = -1  # the share of a group that is all events but records; its other shares are partitions
PARTITIONS = 16  # of the records; a group takes up others, of foreign publishers, when they appear
REMEMBERED_RUNS = 50  # how many of the latest runs a consumer names in its beats
RESULTS_SUFFIX = " (results)"  # in the names of the publishers that consumers have
DEFAULT_MAX_MESSAGE_BYTES = 8 << 20  # of a bus; what a publisher goes by until it knows
# How many of those that ended as lost consumers keep beside them: their publishers may come back.
KEPT_LOST_RUNS = 50

Role: TypeAlias = Literal["publisher", "consumer", "client"]
State: TypeAlias = Literal["starting", "ready", "stopping", "stopped", "failed", "silent"]


class DeadLetterNote(Struct, frozen=True, kw_only=True):
    """An event that a consumer could not handle and has dead-lettered.

    Attributes:
        offset: the event's place in the journal.
        stream: the stream that the offset is in.
        error: the exception in one line.
        traceback: the exception in full.
        attempts: how often it was tried.
        skipped: how many events it failed on before this one, since the last note, that have none: there
            were too many at once.
    """

    offset: Offset
    run_id: str
    kind: str
    error: str
    traceback: str = ""
    attempts: Int = 1
    stream: str = ""
    skipped: Int = 0

    @property
    def position(self) -> Position:
        """The event's place in its stream."""
        return Position(self.stream, self.offset)


class Hello(Struct, frozen=True, kw_only=True, tag_field="op", tag="hello"):
    """A client introduces itself, at its start and whenever the bus does not know it.

    Attributes:
        client_id: 32 hex digits that name the client process; a publisher's is its source id.
        role: what it is. A ``client`` looks on, as ``tail`` does, and gives no receipts.
        name: what a person calls it.
        subscriptions: topic prefixes, for a consumer.
        next_seq: for a publisher, the source sequence it sends next.
        wire_version: the version it writes and reads.
        group: for a member of a consumer group, the group's name.
        settings: what such a member runs, with its options: all of a group must run the same.
        pid_space: where its pid names a process: clients with the same one can look for each other's.
    """

    client_id: str
    role: Role
    name: str
    pid: Int = 0
    host: str = ""
    subscriptions: tuple[str, ...] = ()
    next_seq: Count = 1
    wire_version: Int = WIRE_VERSION
    group: str = ""
    settings: str = ""
    pid_space: str = ""


class Endpoint(Struct, frozen=True, kw_only=True):
    """Where one socket of the bus is: a file name beside the address's, or a port on its host."""

    ipc_name: str = ""
    tcp_port: Int = 0


class JournalFile(Struct, frozen=True, kw_only=True):
    """The files of a bus's journal, by which it is told from a copy, and from another one at its place.

    Attributes:
        path: the absolute path of its main file, as the bus sees it.
        device: the number of the device that this is on.
        inodes: the numbers of the main file, of the log beside it and of the log's index.
    """

    path: str
    device: int
    inodes: tuple[int, ...]


class Welcome(Struct, frozen=True, kw_only=True, tag_field="op", tag="welcome"):
    """The bus knows the client now.

    Attributes:
        bus_id: 32 hex digits, new at each start of the bus, and the id of the stream that it publishes.
        events: where live events are published.
        heartbeat_s: how often the bus wants to hear from the client, in seconds.
        silent_after_s: seconds without a word after which the client counts as gone.
        last_seq: for a publisher, the last source sequence the bus has, 0 for none.
        replay: where past events can be fetched, None if the bus keeps none.
        lineage: the streams that the journal holds, the oldest first and this one last: the first one, and
            the latest of the others; empty without a journal.
        offset: the offset of the last event the bus took in.
        event_number: how many of the events up to there are no records.
        checkpoint: for a consumer, the position up to which one of its name has finished, None if none has.
        state: the state that was kept with the checkpoint, if any.
        pruned: how many runs were pruned from the journal since it was begun: what these held, a consumer
            that comes for the first time has not lost.
        max_message_bytes: the size of a message, all its frames together, that the bus takes at most; 0 if
            that is unknown.
        journal: the journal's files, for who reads events on the bus's own machine and may do so there.
    """

    bus_id: str
    events: Endpoint
    heartbeat_s: float
    silent_after_s: float = 10.0
    last_seq: Int = 0
    replay: Endpoint | None = None
    lineage: tuple[Segment, ...] = ()
    offset: Int = 0
    event_number: Int = 0
    checkpoint: Position | None = None
    state: bytes | None = None
    pruned: int = 0
    max_message_bytes: int = 0
    journal: JournalFile | None = None


class Commit(Struct, frozen=True, kw_only=True):
    """A checkpoint of one share of a group's work, from the member that holds the share.

    Attributes:
        share: a partition of the records, or :data:`EVENTS`.
        token: the epoch in which the member was given the share; see :class:`Assigned`.
        position: the place up to which all of the share is handled and flushed.
        saved: the state at that position.
        dead_letters: what was dead-lettered in the share since the last commit that was confirmed.
    """

    share: Int
    token: Int
    position: Position
    saved: bytes | None = None
    dead_letters: tuple[DeadLetterNote, ...] = ()


class Beat(Struct, frozen=True, kw_only=True, tag_field="op", tag="beat"):
    """A client is alive.

    Attributes:
        handled_runs: for a consumer, the runs whose end it has handled and flushed.
        handled_ends: the offset of that end, for each of them. A run that goes on ends once more.
        incomplete_runs: those among them of which it did not handle everything.
        lost_runs: those among them that ended as lost, so that their publishers may still come back.
        received: events received so far (consumer), or published (publisher).
        failed: events its handlers failed on (consumer), or dropped (publisher).
        sent_seq: for a publisher, the last source sequence it sent. If the bus does not have it by now,
            it was lost with a connection, and the bus asks for it.
        position: for a consumer, the place up to which all is handled and flushed, None to leave its
            checkpoint where it is.
        journal_losses: what it has learned that the journal lost, the latest ones.
        saved: the consumer's state at that position, if it has one.
        dead_letters: what it has dead-lettered since the last beat that was confirmed.
        generation: for a member of a group, the last assignment that it acts upon.
        shares: the shares that it holds under that.
        commits: checkpoints of these, and of those it has just let go of.
    """

    client_id: str
    state: State
    handled_runs: tuple[str, ...] = ()
    handled_ends: tuple[int, ...] = ()
    incomplete_runs: tuple[str, ...] = ()
    lost_runs: tuple[str, ...] = ()
    received: Int = 0
    failed: Int = 0
    sent_seq: Int = 0
    position: Position | None = None
    journal_losses: tuple[JournalLoss, ...] = ()
    saved: bytes | None = None
    dead_letters: tuple[DeadLetterNote, ...] = ()
    generation: Int = 0
    shares: tuple[Int, ...] = ()
    commits: tuple[Commit, ...] = ()


class Goodbye(Struct, frozen=True, kw_only=True, tag_field="op", tag="goodbye"):
    """A client leaves; a publisher's running runs are over.

    Attributes:
        last_seq: for a publisher, the last source sequence that it had, sent or not.
    """

    client_id: str
    last_seq: int = 0


class Heard(Struct, frozen=True, kw_only=True, tag_field="op", tag="heard"):
    """The reply to a beat or a goodbye.

    Attributes:
        known: False asks the client to say hello again.
        dead_letters: the places of those that the bus has taken over from the beat.
        kept: the shares whose commits in the beat are kept, with their positions; for a consumer that is in
            no group, :data:`EVENTS` with the position that the journal holds now.
        refused: the shares whose commits are refused: they were given to another member meanwhile.
    """

    bus_id: str
    known: bool = True
    dead_letters: tuple[Position, ...] = ()
    kept: dict[Int, Position] = {}
    refused: tuple[Int, ...] = ()


class Assigned(Struct, frozen=True, kw_only=True, tag_field="op", tag="assigned"):
    """What a member of a group is to work on from now on; sent whenever that changes.

    Attributes:
        generation: the number of this assignment; it grows with every change in the group.
        shares: the shares, each with its token: the epoch, which is the generation in which the member was
            given it. A commit that bears another token is refused.
        release: the shares that it is to let go of, after a last commit. What it holds and is named
            nowhere here has been given to another already.
        handled_runs: the latest runs that the whole group has handled and that can be forgotten: all but a
            few of those of which something is missing, or whose publisher may come back.
        problem: why the member cannot be in the group, empty if it can.
    """

    generation: Int = 0
    shares: dict[Int, Int] = {}
    release: tuple[Int, ...] = ()
    handled_runs: tuple[str, ...] = ()
    problem: str = ""


class NameTaken(Struct, frozen=True, kw_only=True, tag_field="op", tag="name_taken"):
    """The reply to the hello or beat of a consumer whose name is another's; what was in a beat is not kept.

    Attributes:
        pid: the process that has the name.
        host: the host that it is on.
        answers: whether that process is known to be alive; if not, the name is free once it has been silent
            for too long: say hello again until then.
    """

    name: str
    pid: Int
    host: str
    answers: bool = True


class Ack(Struct, frozen=True, kw_only=True, tag_field="op", tag="ack"):
    """The bus has a publisher's events up to and including a source sequence.

    Attributes:
        resend: True if the one after it is missing: send again from ``seq + 1``.
    """

    seq: Int
    resend: bool = False


class Refused(Struct, frozen=True, kw_only=True, tag_field="op", tag="refused"):
    """The bus could not keep a publisher's events, cannot talk to a client at all, or refused a request.

    Attributes:
        seq: the last source sequence that it has; 0 if it is about something else than events.
        reason: why, in words (the disk is full, another wire version, too long a name ...). Try again in a
            while.
    """

    seq: Int
    reason: str


class Rejected(Struct, frozen=True, kw_only=True, tag_field="op", tag="rejected"):
    """An event of a publisher is malformed, or beyond a limit: it counts as received, and is lost.

    The bus says so to everybody in a ``drop`` event.

    Attributes:
        seq: its source sequence.
        reason: what is wrong with it.
        count: how many events it is about, if there were many: this one, and others before it.
    """

    seq: Int
    reason: str
    count: Int = 1


class Fetch(Struct, frozen=True, kw_only=True, tag_field="op", tag="fetch"):
    """Ask the replay socket for past events.

    Attributes:
        after: the offset after which they are wanted.
        stream: the stream of the bus that the offset was judged by, so that another one does not answer;
            empty for any.
        records: whether batches of records are wanted too.
        limit_bytes: the size of the answer at most; one event comes in any case.
        partition: only the records of this partition.
        run_id: only the events of this run; empty for all.
        kinds: only events of these kinds; empty for all.
    """

    after: Int
    records: bool
    limit_bytes: Int = 1 << 20
    partition: Int | None = None
    stream: str = ""
    run_id: str = ""
    kinds: tuple[str, ...] = ()


class PrunedTopic(Struct, frozen=True, array_like=True):
    """What a topic of a pruned run held: events, request records in them, the offset of the last event."""

    events: int = 0
    records: int = 0
    last_offset: int = 0


class PrunedRun(Struct, frozen=True, kw_only=True):
    """A run that was pruned from the journal.

    Attributes:
        number: which pruning this was, counted from 1 since the journal was begun.
        last_offset: that of its last event.
        topics: what its topics held.
    """

    number: int
    run_id: str
    last_offset: int
    topics: dict[str, PrunedTopic] = {}


class Fetched(Struct, frozen=True, kw_only=True, tag_field="op", tag="fetched"):
    """The answer's first frame; after it come three frames for each event.

    Attributes:
        offset: how far a reader is that has handled these events.
        event_number: the event number there.
        end: whether there was nothing more.
        pruned: the runs with events beyond ``after`` that are, or are being, pruned from the journal, as
            far as they begin before ``offset``. The journal knows the latest 1,000 such runs.
        damaged: the offsets of events that were left out, as they do not match their checksums.
    """

    after: Int
    offset: Int
    event_number: Int
    end: bool
    pruned: tuple[PrunedRun, ...] = ()
    damaged: tuple[Int, ...] = ()


class ReadFailed(Struct, frozen=True, kw_only=True, tag_field="op", tag="read_failed"):
    """The answer of the replay socket if the journal cannot be read.

    Attributes:
        reason: why, in words.
        moved: whether it was another bus that was asked: say hello again.
    """

    reason: str
    moved: bool = False


class FetchStates(Struct, frozen=True, kw_only=True, tag_field="op", tag="fetch_states"):
    """Ask the replay socket for a group's checkpoints.

    Attributes:
        after: by share the offset that is known already; checkpoints not beyond it are left out.
        only: this share alone, None for all partitions.
        stream: as for :class:`Fetch`.
    """

    group: str
    after: dict[Int, Int] = {}
    only: Int | None = None
    stream: str = ""


class FetchedStates(Struct, frozen=True, kw_only=True, tag_field="op", tag="fetched_states"):
    """The answer.

    Attributes:
        states: the checkpoints by share, in order: position and state.
        end: whether that is all; else ask again.
    """

    states: dict[Int, tuple[Position, bytes | None]] = {}
    end: bool = True


class StatusRequest(Struct, frozen=True, kw_only=True, tag_field="op", tag="status"):
    """Ask who is on the bus and how the runs are.

    Attributes:
        after: where to go on: :attr:`Status.next` of the answer before, 0 for the first part.
    """

    after: Count = 0


class EndRuns(Struct, frozen=True, kw_only=True, tag_field="op", tag="end_runs"):
    """Declare the publishers of all running runs gone, for a reason: each run ends as ``lost``."""

    reason: str


class RemoveDeadLetter(Struct, frozen=True, kw_only=True, tag_field="op", tag="remove_dead_letter"):
    """A dead letter was handled after all, by a process that is no consumer on the bus.

    Attributes:
        saved: the state to keep with the consumer's checkpoint from now on, None to leave it as it is.
    """

    letter_id: Int
    saved: bytes | None = None


TAKES_ALL = ""
"""Among the subscriptions of a consumer: it takes everything, so that its position tells how far it is."""


class ClientInfo(Struct, frozen=True, kw_only=True):
    """What the bus knows of a publisher or consumer, from its hello and its last beat.

    Attributes:
        received: how many events the bus has taken in from a publisher, or a consumer has received.
        age_s: seconds since it was last heard.
        shares: what it works on in its group; -1 stands for all events that are no records.
    """

    client_id: str
    role: Role
    name: str
    pid: Int
    host: str
    state: State
    subscriptions: tuple[str, ...] = ()
    handled_runs: tuple[str, ...] = ()
    incomplete_runs: tuple[str, ...] = ()
    received: Int = 0
    failed: Int = 0
    position: Position | None = None
    journal_losses: tuple[JournalLoss, ...] = ()
    age_s: float = 0.0
    group: str = ""
    shares: tuple[Int, ...] = ()


class GroupInfo(Struct, frozen=True, kw_only=True):
    """What the bus knows of a consumer group.

    Attributes:
        generation: the number of its latest assignment.
        members: how many processes are in it now.
        handled_runs: the runs whose end the whole group has handled.
        incomplete_runs: those among them of which it did not handle everything.
        refused: commits refused because their share had been given to another member.
    """

    name: str
    generation: Int
    members: Int
    handled_runs: tuple[str, ...] = ()
    incomplete_runs: tuple[str, ...] = ()
    refused: Int = 0


class RunInfo(Struct, frozen=True, kw_only=True):
    """What the bus knows of a run.

    Attributes:
        status: ``running`` until all its publishers have ended it.
        started_ns, ended_ns: Unix time in ns, by the times of its own start and end.
        events: how many events its publishers published, and its end.
        publisher: what a person calls the first of them, and the number of others.
        dropped: events that its publishers had to drop, with ``dropped_records`` in them.
    """

    run_id: str
    status: str
    started_ns: Int
    ended_ns: Int | None = None
    events: Int = 0
    publisher: str = ""
    dropped: int = 0
    dropped_records: int = 0


class UnreadRun(Struct, frozen=True, kw_only=True):
    """What a consumer lost: a run was pruned from the journal before it had read all of it.

    Attributes:
        consumer: the consumer's name, or the group's.
        events, records: how many events it had not read, and request records in them.
    """

    consumer: str
    run_id: str
    events: int
    records: int


class RejectionInfo(Struct, frozen=True, kw_only=True):
    """What the bus refused, for one reason.

    Attributes:
        reason: the reason, in a word.
        count: how often.
        last_from: where the last of it came from, as far as that is known.
        last_ns: when, in Unix ns.
    """

    reason: str
    count: Int = 0
    last_from: str = ""
    last_ns: Int = 0


class Status(Struct, frozen=True, kw_only=True, tag_field="op", tag="status_reply"):
    """Who is on the bus and how the runs are: all of it, or one part of some 64 KiB.

    Clients, runs and groups come in parts. One that comes or goes between two parts may be in none, or in
    both; who asks goes by their ids.

    Attributes:
        next: where the next part begins, 0 if this is the last.
        events: events taken in since then.
        dropped: malformed messages, which it skipped.
        offset: the offset of the last event.
        connections: how many there are; a client has one or several.
        replay: where past events can be fetched, None if the bus keeps none.
        clients: publishers and consumers, the latest of those that left included.
        runs: the runs, the oldest first, the latest of those that ended included.
        groups: the consumer groups that have members, or had since its start.
        unread: what consumers have lost by pruning, the latest last.
        rejected: what the bus refused, by reason.
    """

    bus_id: str
    pid: Int
    addresses: tuple[str, ...]
    uptime_s: float
    events: Int = 0
    dropped: Int = 0
    offset: Int = 0
    connections: Int = 0
    journal: str | None = None
    replay: Endpoint | None = None
    clients: tuple[ClientInfo, ...] = ()
    runs: tuple[RunInfo, ...] = ()
    groups: tuple[GroupInfo, ...] = ()
    unread: tuple[UnreadRun, ...] = ()
    rejected: tuple[RejectionInfo, ...] = ()
    next: Int = 0


Request: TypeAlias = (
    Hello | Beat | Goodbye | StatusRequest | EndRuns | Fetch | FetchStates | FetchPast | RemoveDeadLetter
)
Reply: TypeAlias = (
    Welcome
    | Heard
    | Rejected
    | Assigned
    | NameTaken
    | Ack
    | Refused
    | Status
    | Fetched
    | FetchedStates
    | FetchedPast
    | ReadFailed
)
