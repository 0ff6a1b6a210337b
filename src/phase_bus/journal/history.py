"""Reading past events: all that a journal holds, or what publishers put into it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from phase_bus.core.wire import parse_topic
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry

# What consumers and the bus put on the bus too: having published it makes nobody a run's publisher.
_OF_ANYBODY = frozenset({"summary", "receipt", "drop", "run_complete"})


class Past(NamedTuple):
    """An event as a publisher once published it.

    Attributes:
        topic: the topic frame.
        payload: the payload frame.
        records: how many request records are in it.
        source: 16 bytes that name the publisher.
        ts_ns: Unix time in ns by which its distance to the others is measured.
    """

    topic: bytes
    payload: bytes
    records: int
    source: bytes
    ts_ns: int


def read_entries(
    reader: JournalReader, run_id: str | None = None, until: int | None = None
) -> Iterator[Entry]:
    """Yield what a journal holds, of one run or of all, in order and a bounded piece at a time.

    Args:
        reader: the journal.
        run_id: only those of this run.
        until: the last offset that is wanted; by default the last one that there is now.

    Raises:
        JournalError: it cannot be read.
    """
    offset = 0
    until = reader.head.offset if until is None else until
    while entries := reader.read(offset, records=True, run_id=run_id, until=until):
        offset = entries[-1].offset
        yield from entries


class PublishedInJournal:
    """The events of past runs as their publishers published them, in order.

    Left out is what consumers (summaries, receipts) and the bus itself (the end of a run whose publisher
    vanished) added: on another bus its own consumers and that bus do so.

    Args:
        reader: the journal.
        run_ids: which runs.

    Attributes:
        count: how many events there are.
    """

    def __init__(self, reader: JournalReader, run_ids: list[str]) -> None:
        self._reader = reader
        self._run_ids = run_ids
        # A source may publish one run, and only have something to say of another.
        self._wanted: set[tuple[str, bytes]] = set()
        self.count = 0
        for run_id in run_ids:
            topics = reader.topics(run_id)
            sources = {s for topic, s, _ in topics if parse_topic(topic).kind not in _OF_ANYBODY}
            self._wanted |= {(run_id, source) for source in sources}
            self.count += sum(events for _, source, events in topics if source in sources)

    def __iter__(self) -> Iterator[Past]:
        only = self._run_ids[0] if len(self._run_ids) == 1 else None
        for entry in read_entries(self._reader, only):
            if (entry.run_id, entry.source) in self._wanted:
                yield Past(entry.topic, entry.payload, entry.records, entry.source, entry.ts_ns)
