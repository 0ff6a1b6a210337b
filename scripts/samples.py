"""One message of every kind and every ``op``, with all fields set: what the test vectors are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phase_bus.core import control, past
from phase_bus.core.position import Position, Segment
from phase_bus.core.values import ListMode
from phase_bus.events import (
    Drop,
    EventBase,
    Heartbeat,
    JournalLoss,
    PhaseComplete,
    PhasePlan,
    PhaseProgress,
    PhaseRef,
    PhasesConfigured,
    PhaseSendingComplete,
    PhaseStart,
    PhaseStats,
    PhaseTimeout,
    Receipt,
    Records,
    RunComplete,
    RunPart,
    RunStart,
    Summary,
    TopicReceipt,
    Verdict,
)
from phase_bus.publisher.record_builder import RecordBuilder

RUN = "3f2a9c"
START_NS = 1_760_000_000_000_000_000
PUBLISHER = bytes(range(16))
CONSUMER = bytes(range(16, 32))
BUS = bytes(range(32, 48))
FIRST_STREAM = bytes(range(48, 64)).hex()

WARMUP = PhaseRef("warmup", "warmup", 0)
PROFILING = PhaseRef("profiling", "profiling", 1)

_Row = (
    tuple[dict[str, Any], dict[str, Any]]
    | tuple[dict[str, Any], dict[str, Any], tuple[str, str, int | None]]
)


def _at(ms: int) -> int:
    return START_NS + ms * 1_000_000


def _stats(**counts: Any) -> PhaseStats:
    return PhaseStats(start_ns=_at(10), expected_requests=4, grace_period_s=30.0, **counts)


def _batch(
    rows: Sequence[_Row], *, lists: ListMode = "summary", run_id: str = RUN, partition: int = 0
) -> Records:
    builder = RecordBuilder(lists)
    for row in rows:
        builder.add(*row)
    metrics, fields, errors, unusable = builder.build()
    assert not unusable
    return Records(
        run_id=run_id,
        ts_ns=_at(400),
        phase=PROFILING,
        count=len(rows),
        partition=partition,
        metrics=metrics,
        fields=fields,
        errors=errors,
    )


# A small run in the order in which a bus would publish it. By whom, what it shows, the event.
STREAM: list[tuple[bytes, str, EventBase]] = [
    (
        PUBLISHER,
        "a run of a sweep begins",
        RunStart(
            run_id=RUN,
            ts_ns=_at(0),
            producer="aiperf 0.13.0",
            models=("llama-3.1-8b",),
            urls=("http://localhost:8000",),
            sweep_id="sweep-1",
            trial=2,
            label="c16",
            variation={"concurrency": 16, "rate": 2.5, "streaming": True, "endpoint": None},
            options={"endpoint.type": "chat", "endpoint.streaming": True, "dataset.prompts.osl.mean": 128},
            command="aiperf profile --model llama-3.1-8b --api-key ***",
            host="load-1",
            version="0.1.0",
        ),
    ),
    (
        PUBLISHER,
        "one phase bound by requests, one by time, with what is not set as nil",
        PhasesConfigured(
            run_id=RUN,
            ts_ns=_at(1),
            phases=(
                PhasePlan(phase=WARMUP, expected_requests=4, grace_period_s=30.0, concurrency=2),
                PhasePlan(phase=PROFILING, expected_duration_s=1.5, request_rate=100.0),
            ),
        ),
    ),
    (
        PUBLISHER,
        "nothing is counted yet",
        PhaseStart(run_id=RUN, ts_ns=_at(10), phase=WARMUP, stats=_stats()),
    ),
    (
        PUBLISHER,
        "two requests of four are answered, one of them with an error",
        PhaseProgress(
            run_id=RUN,
            ts_ns=_at(200),
            phase=WARMUP,
            stats=_stats(sent=3, completed=2, errors=1, in_flight=1, sent_sessions=3, completed_sessions=2),
        ),
    ),
    (
        PUBLISHER,
        "all four are sent",
        PhaseSendingComplete(
            run_id=RUN,
            ts_ns=_at(300),
            phase=WARMUP,
            stats=_stats(sent=4, completed=2, errors=1, in_flight=2, sent_end_ns=_at(299)),
        ),
    ),
    (
        PUBLISHER,
        "two records of one shape; their second message on the topic is in records.json",
        _batch(
            [
                ({"request_latency": 20_000_000, "output_sequence_length": 128}, {"x_request_id": "a"}),
                ({"request_latency": 25_000_000, "output_sequence_length": 130}, {"x_request_id": "b"}),
            ]
        ),
    ),
    (
        PUBLISHER,
        "one request was cut off when the grace period was over",
        PhaseTimeout(
            run_id=RUN,
            ts_ns=_at(500),
            phase=WARMUP,
            stats=_stats(
                sent=4,
                completed=3,
                cancelled=1,
                errors=1,
                timeout_triggered=True,
                grace_period_timeout_triggered=True,
            ),
            requests_cut=1,
        ),
    ),
    (
        PUBLISHER,
        "the phase's last word",
        PhaseComplete(
            run_id=RUN,
            ts_ns=_at(501),
            phase=WARMUP,
            stats=_stats(sent=4, completed=3, cancelled=1, sent_end_ns=_at(299), end_ns=_at(500)),
        ),
    ),
    (
        PUBLISHER,
        "records that the publisher had no room for",
        Drop(
            run_id=RUN,
            ts_ns=_at(502),
            source="aiperf",
            reason="the buffer of 67108864 bytes is full",
            events={f"records.00.{RUN}$": 2},
            records=512,
        ),
    ),
    (
        PUBLISHER,
        "the run's last event; it does not count itself",
        RunComplete(
            run_id=RUN,
            ts_ns=_at(600),
            status="completed",
            published={
                f"{kind}.{RUN}$": 1
                for kind in (
                    "run_start",
                    "phases_configured",
                    "phase_start",
                    "phase_progress",
                    "phase_sending_complete",
                    "records.00",
                    "phase_timeout",
                    "phase_complete",
                    "drop",
                )
            },
            records=2,
            dropped={f"records.00.{RUN}$": 2},
            dropped_records=512,
            running=1,
            parts={
                "30313233343536373839616263646566": RunPart(
                    status="completed",
                    publisher="aiperf",
                    published={f"records.00.{RUN}$": 2},
                    records=500,
                    dropped={f"records.00.{RUN}$": 2},
                    dropped_records=512,
                )
            },
        ),
    ),
    (
        CONSUMER,
        "what a consumer computed; a float that is no number is a float all the same",
        Summary(
            run_id=RUN,
            ts_ns=_at(700),
            producer="aggregator",
            final=True,
            result={"requests": 2, "latency_ms": {"p99": 24.95, "stddev": float("nan")}},
        ),
    ),
    (
        CONSUMER,
        "a threshold that another consumer judged; its time is the second's that was judged",
        Verdict(
            run_id=RUN,
            ts_ns=_at(650),
            producer="thresholds",
            threshold="profiling time_to_first_token p99 < 500 ms",
            phase="profiling",
            state="failed",
            final=True,
            value=612_000_000.0,
            limit=500_000_000.0,
            unit="ns",
            samples=120,
            offset=17,
            reason="",
            abort=False,
        ),
    ),
    (
        CONSUMER,
        "what the same consumer received",
        Receipt(
            run_id=RUN,
            ts_ns=_at(701),
            consumer="aggregator",
            consumer_id=CONSUMER.hex(),
            topics={
                f"records.00.{RUN}$": TopicReceipt(
                    published=1, received=1, replayed=1, handled=1, written=1
                ),
                f"drop.{RUN}$": TopicReceipt(),
            },
            journal_losses=(JournalLoss(reason="damaged", stream=FIRST_STREAM, first=3, last=3),),
            worst_lag_s=0.25,
        ),
    ),
    (
        BUS,
        "no run: the topic ends right after the dot; the header says where the stream stands",
        Heartbeat(ts_ns=_at(800), bus_id=BUS.hex(), partitions={0: 6}),
    ),
]

# Batches of records: what each shows, and the event.
BATCHES: list[tuple[str, str, Records]] = [
    (
        "whole-numbers",
        "64-bit integers up to both ends, one shape: rows is nil",
        _batch([({"a": 1, "b": -(2**63)}, {}), ({"a": 2**63 - 1, "b": 0}, {})]),
    ),
    (
        "floats",
        "floats, with those that are no finite numbers",
        _batch(
            [({"a": 0.1}, {}), ({"a": float("nan")}, {}), ({"a": float("-inf")}, {}), ({"a": -0.0}, {})]
        ),
    ),
    (
        "flags-and-texts",
        "flags as 0 and 1 among the numbers; texts in others",
        _batch([({"ok": True, "n": 7}, {"id": "lauf-ü"}), ({"ok": False, "n": 8}, {"id": ""})]),
    ),
    (
        "only-texts",
        "a table with texts and no numbers",
        _batch([({}, {"id": "a", "worker": "w1"}), ({}, {"id": "b", "worker": "w1"})]),
    ),
    (
        "lists",
        "lists in full: of integers, of floats, mixed, with a flag, empty",
        _batch(
            [
                ({"l": [1, 2, 300]}, {}),
                ({"l": [0.5, -1.5]}, {}),
                ({"l": [1, 2.5, True]}, {}),
                ({"l": []}, {}),
            ],
            lists="full",
        ),
    ),
    (
        "lists-summed-up",
        "lists as count, mean, min and max, in tables of their own; an empty one has a count only",
        _batch([({"ttft": 5, "itl": [1, 2, 6]}, {}), ({"ttft": 6, "itl": []}, {})]),
    ),
    (
        "several-shapes",
        "a success, a failure with an answer, one without, another success: rows lead back to the batch",
        _batch(
            [
                ({"latency": 20, "ttft": 5.5}, {"start_ns": START_NS, "id": "a"}),
                ({"latency": 3}, {"start_ns": START_NS + 1, "id": "b"}, ("HTTPError", "Too many", 429)),
                ({}, {"start_ns": START_NS + 2}, ("TimeoutError", "", None)),
                ({"latency": 30, "ttft": 6.5}, {"start_ns": START_NS + 3, "id": "d"}),
            ]
        ),
    ),
    (
        "values-missing",
        "nil is no value: the name is not in that record's table",
        _batch([({"a": 1, "b": 2}, {"id": None}), ({"a": None, "b": 4}, {"id": "x"})]),
    ),
    (
        "types-apart",
        "one name of integers in one table and of texts in another",
        _batch([({"v": 1}, {}), ({"v": "one"}, {})]),
    ),
    (
        "nothing-but-errors",
        "a record without metrics or fields: no table at all",
        _batch([({}, {}, ("ConnectionError", "refused", None))]),
    ),
    (
        "long-partition",
        "a partition beyond two digits, and a run id with dots",
        _batch([({"a": 1}, {})], run_id="llama-3.1.x", partition=123),
    ),
]

_AT_41 = Position(BUS.hex(), 41)
_LOSS = JournalLoss(reason="cut", stream=FIRST_STREAM, first=11, last=14)
_NOTE = control.DeadLetterNote(
    offset=7,
    run_id=RUN,
    kind="records",
    error="ValueError('x')",
    traceback="Traceback ...",
    attempts=3,
    stream=FIRST_STREAM,
    skipped=2,
)
_COMMIT = control.Commit(share=3, token=2, position=_AT_41, saved=b"\x00state", dead_letters=(_NOTE,))

# Name, what it shows, the message.
REQUESTS: list[tuple[str, str, control.Request]] = [
    (
        "hello-publisher",
        "client_id is the source of the headers, in hex",
        control.Hello(
            client_id=PUBLISHER.hex(),
            role="publisher",
            name="aiperf",
            pid=4242,
            host="node-1",
            next_seq=1,
            wire_version=3,
        ),
    ),
    (
        "hello-consumer",
        "a consumer on its own",
        control.Hello(
            client_id=CONSUMER.hex(),
            role="consumer",
            name="aggregator",
            pid=4243,
            host="node-1",
            subscriptions=("records.", "run_complete."),
            wire_version=3,
        ),
    ),
    (
        "hello-member",
        "a member of a consumer group",
        control.Hello(
            client_id=CONSUMER.hex(),
            role="consumer",
            name="aggregator",
            wire_version=3,
            group="aggregator",
            settings="aggregator",
        ),
    ),
    (
        "beat-publisher",
        "all up to sequence 10 was sent",
        control.Beat(client_id=PUBLISHER.hex(), state="ready", received=10, failed=2, sent_seq=10),
    ),
    (
        "beat-consumer",
        "a position to be kept, with a state and a dead letter",
        control.Beat(
            client_id=CONSUMER.hex(),
            state="ready",
            handled_runs=("r1", RUN),
            incomplete_runs=("r1",),
            received=12,
            failed=1,
            position=Position(BUS.hex(), 12),
            journal_losses=(_LOSS,),
            saved=b"\x00state",
            dead_letters=(_NOTE,),
        ),
    ),
    (
        "beat-member",
        "a member that acts upon generation 2, holds two shares and commits one",
        control.Beat(
            client_id=CONSUMER.hex(),
            state="ready",
            received=12,
            generation=2,
            shares=(control.EVENTS, 3),
            commits=(_COMMIT,),
        ),
    ),
    ("goodbye", "a client leaves", control.Goodbye(client_id=CONSUMER.hex())),
    ("status-request", "a map with nothing but op", control.StatusRequest()),
    ("end-runs", "from the program that started the publisher", control.EndRuns(reason="it exited with 1")),
    (
        "remove-dead-letter",
        "the state beside the position is replaced",
        control.RemoveDeadLetter(letter_id=1, saved=b"\x00state"),
    ),
    (
        "fetch",
        "to the replay socket",
        control.Fetch(after=4, records=True, limit_bytes=65536, stream=BUS.hex()),
    ),
    (
        "fetch-partition",
        "records of one partition only",
        control.Fetch(after=4, records=False, partition=3),
    ),
    (
        "fetch-states",
        "what partitions have committed beyond what is known",
        control.FetchStates(group="aggregator", after={0: 40, 3: 41}, only=None, stream=BUS.hex()),
    ),
    (
        "fetch-run",
        "of one run some kinds of events",
        control.Fetch(after=4, records=False, run_id=RUN, kinds=("run_start", "run_complete")),
    ),
    (
        "fetch-past",
        "the dead letters after number 2",
        past.FetchPast(what="dead_letters", after=2, stream=BUS.hex()),
    ),
]

REPLIES: list[tuple[str, str, control.Reply]] = [
    (
        "welcome",
        "from a bus with a journal, to a consumer that was there before",
        control.Welcome(
            bus_id=BUS.hex(),
            events=control.Endpoint(ipc_name="events.ipc", tcp_port=5556),
            heartbeat_s=1.0,
            last_seq=0,
            replay=control.Endpoint(ipc_name="replay.ipc", tcp_port=41000),
            lineage=(Segment(FIRST_STREAM, 1), Segment(BUS.hex(), 11)),
            offset=12,
            event_number=11,
            checkpoint=Position(FIRST_STREAM, 9),
            state=b"\x00state",
        ),
    ),
    (
        "welcome-no-journal",
        "from a bus in memory, to a publisher of which it has 10 events",
        control.Welcome(
            bus_id=BUS.hex(),
            events=control.Endpoint(ipc_name="events.ipc"),
            heartbeat_s=1.0,
            last_seq=10,
            offset=12,
            event_number=11,
        ),
    ),
    (
        "heard",
        "a dead letter and a share's commit are kept, another commit is refused",
        control.Heard(
            bus_id=BUS.hex(), dead_letters=(Position(FIRST_STREAM, 7),), kept={3: _AT_41}, refused=(5,)
        ),
    ),
    ("heard-unknown", "say hello again", control.Heard(bus_id=BUS.hex(), known=False)),
    (
        "assigned",
        "two shares with their tokens; share 5 is to be let go of",
        control.Assigned(generation=3, shares={-1: 1, 3: 2}, release=(5,), handled_runs=("r1",)),
    ),
    (
        "assigned-problem",
        "the member cannot be in the group",
        control.Assigned(problem="its members run a, and this one would run b"),
    ),
    (
        "name_taken",
        "another consumer has this name, and may be gone: say hello again",
        control.NameTaken(name="metrics", pid=4711, host="host", answers=False),
    ),
    ("ack", "the bus has everything up to 10", control.Ack(seq=10)),
    ("ack-resend", "11 is missing: send again from there", control.Ack(seq=10, resend=True)),
    (
        "rejected",
        "event 11 is malformed, and lost",
        control.Rejected(seq=11, reason="bad message on topic 'records.07.3f2a$': not an event"),
    ),
    (
        "refused",
        "the bus cannot keep anything after 10",
        control.Refused(seq=10, reason="the disk is full"),
    ),
    (
        "status",
        "who is on the bus and how the runs are",
        control.Status(
            bus_id=BUS.hex(),
            pid=4000,
            addresses=("ipc:///run/user/1000/phase-bus", "tcp://127.0.0.1:5555"),
            uptime_s=12.5,
            events=12,
            dropped=1,
            offset=12,
            journal="/var/lib/phase-bus/journal.sqlite",
            replay=control.Endpoint(ipc_name="replay.ipc", tcp_port=41000),
            clients=(
                control.ClientInfo(
                    client_id=CONSUMER.hex(),
                    role="consumer",
                    name="aggregator",
                    pid=4243,
                    host="node-1",
                    state="ready",
                    subscriptions=("records.",),
                    handled_runs=("r1", RUN),
                    incomplete_runs=("r1",),
                    received=12,
                    failed=1,
                    position=Position(BUS.hex(), 12),
                    journal_losses=(_LOSS,),
                    age_s=0.5,
                    group="aggregator",
                    shares=(-1, 3),
                ),
            ),
            runs=(
                control.RunInfo(
                    run_id=RUN,
                    status="completed",
                    started_ns=START_NS,
                    ended_ns=_at(600),
                    events=10,
                    publisher="aiperf",
                ),
            ),
            groups=(
                control.GroupInfo(
                    name="aggregator",
                    generation=3,
                    members=2,
                    handled_runs=("r1", RUN),
                    incomplete_runs=("r1",),
                    refused=1,
                ),
            ),
        ),
    ),
    (
        "fetched-end",
        "nothing after 12: the reader goes live",
        control.Fetched(after=12, offset=12, event_number=11, end=True),
    ),
    (
        "fetched-states",
        "two shares, one without a state; ask again for more",
        control.FetchedStates(
            states={0: (Position(BUS.hex(), 40), b"\x00state"), 3: (_AT_41, None)}, end=False
        ),
    ),
    (
        "fetched-past",
        "a run and a dead letter (a bus sends one or the other); ask again for more",
        past.FetchedPast(
            offset=41,
            lineage=(Segment(BUS.hex(), 1),),
            runs=(
                past.RunRow(
                    run_id=RUN,
                    status="completed",
                    started_ns=START_NS,
                    ended_ns=START_NS + 10**9,
                    events=19,
                    records=550,
                    size_bytes=94_000,
                    publisher="simulate",
                ),
            ),
            dead_letters=(
                past.DeadLetter(
                    id=3,
                    consumer="alerting",
                    stream=BUS.hex(),
                    offset=12,
                    run_id=RUN,
                    kind="phase_complete",
                    error="RuntimeError('no')",
                    traceback="Traceback ...",
                    ts_ns=START_NS,
                    attempts=3,
                ),
            ),
            left_out={"alerting": 7},
            withheld=2,
            next=3,
        ),
    ),
    ("read-failed", "the journal cannot be read", control.ReadFailed(reason="disk I/O error", moved=False)),
]
