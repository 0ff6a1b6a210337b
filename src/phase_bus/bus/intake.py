"""What an event must be to be taken in: decoded, and in agreement with its frames and with itself.

Nothing else reaches the journal, so whoever reads it may rely on this. What only some readers decode, the
texts and lists inside tables, is not looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

from phase_bus.core.bundle import BUNDLED_BYTES, LARGEST_BUNDLED_BYTES, payloads
from phase_bus.core.wire import (
    NO_PARTITION,
    READY,
    Header,
    Topic,
    decode,
    decode_event,
    event_decoder,
    partition_of,
)
from phase_bus.errors import WireError
from phase_bus.events import (
    BEGIN_NO_RUN,
    KINDS,
    LARGEST_BATCH,
    LARGEST_COUNT,
    Event,
    Heartbeat,
    Records,
    RunComplete,
    RunStart,
    Table,
)

_NUMBER_BYTES = 8
_ROW_BYTES = 4
_SAID_BY_BUSES = frozenset({Heartbeat.kind, READY.decode().rstrip(".")})
# The kinds of which, in a run that goes on, nothing but a count depends on the single event.
BUNDLED = KINDS.keys() - _SAID_BY_BUSES - BEGIN_NO_RUN - {Records.kind, RunStart.kind, RunComplete.kind}


def check_event(
    topic: bytes,
    parsed: Topic,
    partition: int,
    header: Header,
    payload: bytes | memoryview,
    largest_batch: int = LARGEST_BATCH,
) -> Event | None:
    """Return the event of three frames, None for a kind that this program does not know.

    Raises:
        WireError: if it is malformed.
    """
    if parsed.kind in _SAID_BY_BUSES:
        raise WireError("only a bus says this", topic)
    if not parsed.run_id and parsed.kind in KINDS:
        raise WireError("it is of no run: the run's id is empty", topic)
    if not (0 < header.topic_seq <= LARGEST_COUNT and 0 < header.source_seq <= LARGEST_COUNT):
        raise WireError(f"its numbers are {header.source_seq}, and {header.topic_seq} on its topic", topic)
    if header.records > largest_batch:
        reason = f"the header counts {header.records} records, of at most {largest_batch}"
        counted_as = "malformed" if header.records > LARGEST_BATCH else "batch_records"
        raise WireError(reason, topic, counted_as=counted_as)
    if len(payload) == 0 and parsed.kind in KINDS:
        reason = "its publisher left out the payload, since it is too large (--max-message-bytes)"
        raise WireError(reason, topic, counted_as="message_size")
    event = decode_event(topic, payload)
    if event is None:
        return None
    if event.run_id != parsed.run_id:
        raise WireError(f"the payload is of run {event.run_id!r:.100}", topic)
    if not isinstance(event, Records):
        if header.records:
            raise WireError(f"the header counts {header.records} records", topic)
    elif event.partition != partition or partition == NO_PARTITION:
        raise WireError(f"the payload is of partition {event.partition}", topic)
    else:
        _check_batch(topic, header, event)
    if isinstance(event, RunComplete):
        for name in event.published:  # groups wait for what was published in each partition
            partition_of(name.encode())
    return event


def check_bundle(
    topic: bytes, parsed: Topic, header: Header, sizes: Sequence[int], payload: memoryview
) -> Event:
    """Return the latest event of a bundle of which each event would pass :func:`check_event`, by much less.

    Raises:
        WireError: if not, or if that takes a look at each event by itself.
    """
    if parsed.kind not in BUNDLED:
        raise WireError("such events are looked at by themselves", topic)
    if not (
        header.source_seq > 0 and max(header.source_seq, header.topic_seq) < LARGEST_COUNT - len(sizes)
    ):
        raise WireError("its numbers are too large", topic)
    if max(sizes) > LARGEST_BUNDLED_BYTES or sum(sizes) > BUNDLED_BYTES:
        raise WireError("the bundle is too large", topic)
    return decode(partial(_latest, parsed, sizes), payload, "not all of them events of the topic", topic)


def _latest(parsed: Topic, sizes: Sequence[int], payload: memoryview) -> Event:
    """Return the latest of the events in a bundle.

    Raises:
        ValueError: if one is of another kind or run. Others as the decoder does.
    """
    kind, run_id = parsed
    decode_one = event_decoder()
    latest: Event | None = None
    for each in payloads(sizes, payload):  # as readers rely on the sizes; all at once would be no quicker
        event = decode_one(each)
        if event.kind != kind or event.run_id != run_id:
            raise ValueError("one is of another kind or run")
        if latest is None or event.ts_ns > latest.ts_ns:
            latest = event
    assert latest is not None
    return latest


def _check_batch(topic: bytes, header: Header, event: Records) -> None:
    count = event.count
    if count != header.records:
        raise WireError(f"{count} records, and {header.records} by the header", topic)
    for table in chain(event.metrics, event.fields):
        if not _fits(table, count):
            raise WireError(f"a table does not fit its names, types and the batch's {count} records", topic)
    if any(not 0 <= error.row < count for error in event.errors):
        raise WireError(f"an error is of none of the batch's {count} records", topic)


def _fits(table: Table, count: int) -> bool:
    """Return whether a table agrees with itself, and its rows are some of a batch's, in their order."""
    types, rows = table.types, table.rows
    width = len(types.rstrip("sl"))
    if (
        len(types) != len(table.names)
        or len(set(table.names)) != len(types)
        or types.strip("ifb") != types[width:]
    ):
        return False
    if table.count * width * _NUMBER_BYTES != len(table.numbers):
        return False
    if rows is None:
        return table.count == count
    if len(rows) != table.count * _ROW_BYTES:
        return False
    numbers = rows.cast("B").cast("I").tolist()
    return not numbers or (numbers[-1] < count and numbers == sorted(set(numbers)))
