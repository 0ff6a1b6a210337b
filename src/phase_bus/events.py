"""The vocabulary: every kind of event that travels on the bus.

An event is one fact about a run, a frozen :class:`msgspec.Struct` tagged with its kind. All kinds form
the union :data:`Event`. New fields only ever come with a default, and no field changes its type or its
meaning, so that old readers and new writers understand each other.

Units: ``*_ns`` is Unix time or a duration in nanoseconds, ``*_s`` a duration in seconds.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from msgspec import Meta, Struct, field

Int: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""A whole number of 64 bits: what every part behind the bus can hold. A decoder refuses any other."""
Offset: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A place in a bus's stream; 0 is before the first event."""
LARGEST_COUNT = 2**53
LARGEST_BATCH = 1 << 20  # records in an event
Count: TypeAlias = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
"""A number of events or records, such that many of them can be added up; a larger sum is told as this."""
LATEST_NS = 2**62
UnixNs: TypeAlias = Annotated[int, Meta(ge=0, le=LATEST_NS)]
"""Unix time in ns, to the year 2116: so that a time somewhat later is one of 64 bits, too."""
BatchSize: TypeAlias = Annotated[int, Meta(ge=0, le=LARGEST_BATCH)]
"""A number of records in one batch: who reads it makes room for as many."""
PhaseKind: TypeAlias = Literal["warmup", "profiling"]
"""What a phase is for."""
RunStatus: TypeAlias = Literal["completed", "cancelled", "failed", "lost"]
"""How a run ended; it is lost if its publisher left without saying so."""
VerdictState: TypeAlias = Literal["passed", "failed", "unknown"]
"""How a threshold stands."""


class PhaseRef(Struct, frozen=True):
    """Which phase of a run.

    Attributes:
        name: the phase's own name, unique in its run (``warmup``, ``profiling``, ``ramp-2`` ...).
        kind: what it is for: ``warmup`` or ``profiling``.
        index: its place in the order of the run's phases, from 0.
    """

    name: str
    kind: PhaseKind = "profiling"
    index: Int = 0

    def __str__(self) -> str:
        """Return the name: what a person calls the phase."""
        return self.name


class PhaseStats(Struct, frozen=True, kw_only=True):
    """The counts of a phase at one moment.

    Attributes:
        sent: requests sent.
        completed: requests answered, successes and errors together.
        cancelled: requests cancelled; they are not among ``completed``.
        errors: requests answered with an error; they are among ``completed``.
        in_flight: requests sent and not yet answered or cancelled.
        sent_sessions: user sessions begun.
        completed_sessions: user sessions finished.
        cancelled_sessions: user sessions whose last turn was cancelled.
        start_ns: Unix time of the phase's start, None before it.
        sent_end_ns: Unix time of the last request sent, None while sending.
        end_ns: Unix time of the last answer, None while waiting.
        expected_requests: how many requests end the phase, None if it is not bound so.
        expected_duration_s: how many seconds end the phase, None if it is not bound so.
        expected_sessions: how many sessions end the phase, None if it is not bound so.
        grace_period_s: how long answers are awaited after the sending time, None for ever.
        timeout_triggered: the sending time was over. Normal for a phase bound by duration.
        grace_period_timeout_triggered: the grace period was over too, and requests were cut.
        was_cancelled: the phase was cancelled from outside.
    """

    sent: Int = 0
    completed: Int = 0
    cancelled: Int = 0
    errors: Int = 0
    in_flight: Int = 0
    sent_sessions: Int = 0
    completed_sessions: Int = 0
    cancelled_sessions: Int = 0
    start_ns: Int | None = None
    sent_end_ns: Int | None = None
    end_ns: Int | None = None
    expected_requests: Int | None = None
    expected_duration_s: float | None = None
    expected_sessions: Int | None = None
    grace_period_s: float | None = None
    timeout_triggered: bool = False
    grace_period_timeout_triggered: bool = False
    was_cancelled: bool = False

    @property
    def duration_s(self) -> float | None:
        """Seconds from the phase's start to its last answer, None while it runs."""
        return span_s(self.start_ns, self.end_ns)

    @property
    def sending_duration_s(self) -> float | None:
        """Seconds from the phase's start to the last request sent, None while it sends."""
        return span_s(self.start_ns, self.sent_end_ns)

    def progress(self, now_ns: int) -> float | None:
        """Return how far the phase is, 0 to 1, or None if nothing bounds it.

        The stop condition that is nearest to being met counts, since it ends the phase.
        """
        if self.end_ns is not None:
            return 1.0
        parts = []
        if self.expected_requests:
            parts.append(self.completed / self.expected_requests)
        if self.expected_sessions:
            parts.append(self.completed_sessions / self.expected_sessions)
        if self.expected_duration_s and self.start_ns is not None:
            parts.append((now_ns - self.start_ns) / 1e9 / self.expected_duration_s)
        return min(max(parts), 1.0) if parts else None


class PhasePlan(Struct, frozen=True, kw_only=True):
    """What a configured phase is going to do.

    Attributes:
        phase: which phase.
        expected_requests: requests after which it ends, if bound so.
        expected_duration_s: seconds after which it stops sending, if bound so.
        expected_sessions: sessions after which it ends, if bound so.
        grace_period_s: seconds that answers are awaited after that, None for ever.
        concurrency: requests in flight at most, if set.
        request_rate: requests a second, if set.
    """

    phase: PhaseRef
    expected_requests: Int | None = None
    expected_duration_s: float | None = None
    expected_sessions: Int | None = None
    grace_period_s: float | None = None
    concurrency: Int | None = None
    request_rate: float | None = None


class EventBase(Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What every event has.

    Attributes:
        run_id: the benchmark run it belongs to (AIPerf's ``benchmark_id``).
        ts_ns: Unix time in ns when it happened.
    """

    kind: ClassVar[str]

    run_id: str
    ts_ns: UnixNs = field(default_factory=time.time_ns)


class RunStart(EventBase, frozen=True, kw_only=True, tag="run_start"):
    """A benchmark run has begun.

    Attributes:
        producer: what makes the load, with its version (``aiperf 0.13.0``).
        models: the models under test.
        urls: the endpoints under test.
        sweep_id: the sweep the run belongs to, if any.
        trial: the number of the repeated trial, if any.
        label: what its user calls the run (``phase-bus exec --label``), or else the load generator, if
            anybody does. Several runs may have one label.
        variation: the parameters that this run of the sweep varies.
        options: what shapes the requests, by name (``endpoint.streaming``), as far as it is told: runs of
            which it differs are not alike. It has no secrets.
        command: the command line that began it, as typed in a shell, without secrets.
        host: the name of the machine that makes the load.
        version: the version of phase-bus that published it.
    """

    producer: str = ""
    models: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    sweep_id: str | None = None
    trial: Int | None = None
    label: str | None = None
    variation: dict[str, Any] = {}
    options: dict[str, Any] = {}
    command: str = ""
    host: str = ""
    version: str = ""


class PhasesConfigured(EventBase, frozen=True, kw_only=True, tag="phases_configured"):
    """The phases a run is going to go through, in order."""

    phases: tuple[PhasePlan, ...]


class PhaseEvent(EventBase, frozen=True, kw_only=True):
    """What every event of one phase has.

    Attributes:
        phase: which phase.
        stats: its counts at this moment.
    """

    phase: PhaseRef
    stats: PhaseStats = PhaseStats()


class PhaseStart(PhaseEvent, frozen=True, kw_only=True, tag="phase_start"):
    """A phase has begun to send."""


class PhaseProgress(PhaseEvent, frozen=True, kw_only=True, tag="phase_progress"):
    """How far a phase is, every few seconds."""


class PhaseSendingComplete(PhaseEvent, frozen=True, kw_only=True, tag="phase_sending_complete"):
    """A phase has sent its last request and waits for answers."""


class PhaseTimeout(PhaseEvent, frozen=True, kw_only=True, tag="phase_timeout"):
    """A phase's grace period is over with requests still unanswered.

    Published once for such a phase, just before its ``phase_complete``. A phase that merely reaches
    its duration is no timeout.

    Attributes:
        requests_cut: requests that were cut off and bring no record.
    """

    requests_cut: Int = 0


class PhaseComplete(PhaseEvent, frozen=True, kw_only=True, tag="phase_complete"):
    """A phase is over: the last event of every phase that was not cancelled."""


class Table(Struct, frozen=True, array_like=True):
    """Metrics or fields of records that have all of the same names, with values of the same types.

    Attributes:
        names: the names, those of numbers before those of texts and lists.
        types: a letter for each name. ``i`` and ``f`` are 64-bit integers and floats, ``b`` a flag as a
            64-bit 0 or 1, ``s`` a text, ``l`` a list of numbers.
        count: the number of rows.
        numbers: the values of ``i``, ``f`` and ``b``, row after row, 8 bytes each, little-endian.
        others: a msgpack array of rows, each an array of the row's values of ``s`` and ``l``; empty
            without any.
        rows: the records' row numbers in the batch (u4, little-endian), None for 0 to count - 1.
    """

    names: tuple[str, ...]
    types: str
    count: BatchSize
    numbers: memoryview = memoryview(b"")
    others: memoryview = memoryview(b"")
    rows: memoryview | None = None


class RecordError(Struct, frozen=True, array_like=True):
    """Why a request failed.

    Attributes:
        row: the record's row number in its batch.
        type: the error's type (``TimeoutError``, ``Internal Server Error`` ...).
        message: the error's message.
        code: the HTTP status or other code, None without one.
    """

    row: Int
    type: str
    message: str = ""
    code: Int | None = None


class Records(EventBase, frozen=True, kw_only=True, tag="records"):
    """A batch of request records of one phase.

    :class:`phase_bus.RecordBatch` reads it, as numpy arrays or record by record.

    Attributes:
        phase: the phase the requests belong to.
        partition: which partition of the run's records this batch is in.
        count: the number of records.
        metrics: the records' metrics, a table for each shape. A record may be a row of several, as the
            summary of a list has one of its own, or of none.
        fields: what is known of the requests besides metrics (times, ids), likewise.
        errors: the failed requests, by row number.
    """

    phase: PhaseRef
    count: BatchSize
    partition: Int = 0
    metrics: tuple[Table, ...] = ()
    fields: tuple[Table, ...] = ()
    errors: tuple[RecordError, ...] = ()


class RunPart(Struct, frozen=True, kw_only=True):
    """What one of the publishers of a run did: the fields of :class:`RunComplete` for it alone.

    Attributes:
        status: how it ended; ``running`` if it goes on.
        publisher: what a person calls it.
    """

    status: RunStatus | Literal["running"]
    publisher: str = ""
    published: dict[str, Count] = {}
    records: Count = 0
    dropped: dict[str, Count] = {}
    dropped_records: Count = 0


class RunComplete(EventBase, frozen=True, kw_only=True, tag="run_complete"):
    """A run is over; the last event of its publisher.

    If several publishers publish one run, the bus fills in what they published together, and how many of
    them go on: the run is over when none does. Consumers are handed the run's end only, and if a run
    goes on after an end, as that of a publisher that was taken for lost, the last end is the one that
    counts.

    Attributes:
        status: how it ended; ``lost`` if a publisher vanished. Of several publishers' the worst one.
        reason: why, in words, where the status alone does not say.
        published: how many events each topic of the run got from its publishers, ends of runs left out.
        records: how many request records those events carried.
        dropped: how many events of each topic the publishers had to drop, if any.
        dropped_records: how many request records the publishers had to drop.
        running: how many publishers of the run have not ended it yet.
        parts: what each publisher did, by its source in hex, if the bus has filled this in.
    """

    status: RunStatus
    reason: str = ""
    published: dict[str, Count] = {}
    records: Count = 0
    dropped: dict[str, Count] = {}
    dropped_records: Count = 0
    running: Count = 0
    parts: dict[str, RunPart] = {}

    @property
    def events(self) -> int:
        """How many events the run has: what was published of it, and its end.

        That is the number which is meant wherever one of a run's events is shown.
        """
        return sum(self.published.values()) + 1

    def is_of_bus(self, source: bytes) -> bool:
        """Return whether the bus itself said it, under this source, when a run's publishers had gone."""
        return bool(self.parts) and source.hex() not in self.parts


class Summary(EventBase, frozen=True, kw_only=True, tag="summary"):
    """A result computed from a run, by an aggregator or by the benchmark tool itself.

    Attributes:
        producer: who computed it (a consumer's name, or ``aiperf``).
        final: whether everything the run published is in it.
        result: the result; the aggregator's document says what is in its own.
    """

    producer: str
    final: bool = False
    result: dict[str, Any] = {}


class Verdict(EventBase, frozen=True, kw_only=True, tag="verdict"):
    """The state of a threshold: published when it changes, and once more as ``final`` at the run's end.

    It is judged at each of the run's events that are no records, for every second that is over; ``ts_ns``
    is the end of the second. The same journal gives the same verdicts at the same offsets, whoever judges.

    Attributes:
        producer: who judged (a consumer's name).
        threshold: the expression, in its canonical spelling.
        phase: the name or kind of the phases that it is about.
        state: ``passed``, ``failed``, or ``unknown`` where there is not enough to judge by. In the end
            ``unknown`` is no pass.
        final: whether this is the verdict on the whole run.
        value: what was measured, None without a measurement.
        limit: what it was held against, with the baseline's value put in; None if that is not known.
        unit: the unit of both on the bus (``ns``, ``fraction``, ``requests/sec``), empty for plain numbers.
        samples: how many requests, or values of a metric, it was judged by.
        offset: the place in the journal of the event at which it was judged, 0 without a journal.
        reason: what there is to say in words, such as why it is ``unknown``.
        abort: whether the run is to be ended for it.
    """

    producer: str
    threshold: str
    state: VerdictState
    phase: str = ""
    final: bool = False
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    samples: Count = 0
    offset: Offset = 0
    reason: str = ""
    abort: bool = False


class TopicReceipt(Struct, frozen=True, kw_only=True):
    """What became of one topic at one consumer, in events.

    Attributes:
        published: what the publisher says it published, None if it never said.
        received: what arrived, live or from the journal.
        replayed: what of it came from the journal.
        repeated: what arrived once more, and was dropped.
        missed: gaps seen in the topic's sequence.
        handled: what the handlers accepted.
        written: what of it the consumer's flush has confirmed.
        failed: what a handler raised an exception on.
    """

    published: Count | None = None
    received: Count = 0
    replayed: Count = 0
    repeated: Count = 0
    missed: Count = 0
    handled: Count = 0
    written: Count = 0
    failed: Count = 0


class Loss(Struct, frozen=True, kw_only=True):
    """What a consumer did not get, and can get nowhere any more.

    Attributes:
        run_id: the run that it was of.
        reason: why it is lost, in words.
        events: how many events it was.
        records: how many request records were in them.
    """

    run_id: str
    reason: str
    events: Count = 0
    records: Count = 0

    def __str__(self) -> str:
        """Return it in words."""
        what = f"{self.events:,} events with {self.records:,} records of run {self.run_id}"
        return f"{what}: {self.reason}"


JournalLossReason: TypeAlias = Literal["cut", "moved", "damaged", "removed"]


class JournalLoss(Struct, frozen=True, kw_only=True):
    """Events of a bus's stream that its journal does not give any more, as far as a consumer can tell.

    Attributes:
        reason: ``cut``: the journal lost its end, by a power cut or a deleted file; the consumer had
            handled what is named here, and nobody knows how much came after it. ``moved``: the bus has
            another journal; what is named here is known to have been in the one before, and not handled by
            this consumer. ``damaged``: the journal has them, and they are not what was written.
            ``removed``: a stream in NATS that buses forward to does not keep them any more.
        stream: the stream's id.
        first, last: the first and the last offset; ``last`` is below ``first`` if none is known.
    """

    reason: JournalLossReason
    stream: str
    first: int
    last: int

    def __str__(self) -> str:
        """Return it in words."""
        where = f"stream {self.stream[:8]}"
        named = f"{self.first} to {self.last}" if self.last > self.first else str(self.first)
        match self.reason:
            case "cut":
                return f"the journal lost its end: offset {named} of {where}, and whatever came after"
            case "moved":
                rest = f"offset {named} was" if self.last >= self.first else "nothing that is known of was"
                return f"the bus has another journal than before: of {where} {rest} not handled"
            case "removed":
                return f"the stream in NATS does not keep offset {named} of {where} any more"
            case _:
                return f"the journal is damaged: offset {named} of {where} is not what was written"


class Receipt(EventBase, frozen=True, kw_only=True, tag="receipt"):
    """What one consumer did with a run, said when it has handled the run's end.

    Attributes:
        consumer: the consumer's name.
        consumer_id: the consumer process's id.
        status: how the run ended by the end that this is about. After one as lost, its publisher may have
            published more than anybody knows.
        topics: the account, by topic.
        journal_losses: what the consumer learned that the journal lost while the run went on, or before it
            if no run did. Which events of the run were among that the counts show.
        worst_lag_s: the longest time from an event's happening to its being handled, in seconds.
        lost: what it has lost since its last receipt, of other runs: it gives none for a run whose end it
            never saw.
    """

    consumer: str
    consumer_id: str = ""
    status: RunStatus = "completed"
    topics: dict[str, TopicReceipt] = {}
    journal_losses: tuple[JournalLoss, ...] = ()
    worst_lag_s: float = 0.0
    lost: tuple[Loss, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything published on the subscribed topics was handled and written out."""
        return self.status != "lost" and self.has_all_known

    @property
    def has_all_known(self) -> bool:
        """Whether everything was that the run's end names, be it all that was published or not."""
        return not self.lost and all(
            t.missed == 0
            and t.failed == 0
            and t.written >= t.handled
            and (t.published is None or t.handled >= t.published)
            for t in self.topics.values()
        )


class Drop(EventBase, frozen=True, kw_only=True, tag="drop"):
    """A publisher or the bus had to let go of events of a run.

    Attributes:
        source: who dropped, by name.
        reason: why.
        events: how many events of each topic, since the last such message.
        records: how many request records were in them.
    """

    source: str
    reason: str
    events: dict[str, Count] = {}
    records: Count = 0


class Heartbeat(EventBase, frozen=True, kw_only=True, tag="heartbeat"):
    """The bus is alive. A control event: never journaled, and of no run (``run_id`` is empty).

    Attributes:
        bus_id: which bus process.
        partitions: the last offset in each partition of the records.
    """

    run_id: str = ""
    bus_id: str = ""
    partitions: dict[Int, Int] = {}


Event: TypeAlias = (
    RunStart
    | PhasesConfigured
    | PhaseStart
    | PhaseProgress
    | PhaseSendingComplete
    | PhaseTimeout
    | PhaseComplete
    | Records
    | RunComplete
    | Summary
    | Verdict
    | Receipt
    | Drop
    | Heartbeat
)
"""Any event."""

# What consumers and the bus say about a run; none of it means that a run has begun.
WORDS_ON_A_RUN = frozenset({"summary", "verdict", "receipt"})
BEGIN_NO_RUN = WORDS_ON_A_RUN | {"drop"}

KINDS: dict[str, type[EventBase]] = {str(t.__struct_config__.tag): t for t in get_args(Event)}
for _name, _type in KINDS.items():
    _type.kind = _name  # msgspec keeps the tag in the type's configuration only


def span_s(start_ns: int | None, end_ns: int | None) -> float | None:
    """Return the seconds from one Unix time in ns to another, None if one of them is not known.

    A clock that was set back in between makes no negative time.
    """
    return None if start_ns is None or end_ns is None else max(end_ns - start_ns, 0) / 1e9
