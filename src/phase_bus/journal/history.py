"""Reading a journal's events from its start: all of them, or what publishers published."""

from __future__ import annotations

from collections.abc import Iterator

from phase_bus.core.wire import parse_topic
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry

# What consumers and the bus put on the bus too: having published it makes nobody a run's publisher.
_OF_ANYBODY = frozenset({"summary", "receipt", "drop", "run_complete"})


def read_entries(
    reader: JournalReader, run_id: str | None = None, until: int | None = None
) -> Iterator[Entry]:
    """Yield the events of one run or of all, in order, reading a bounded piece at a time.

    Args:
        reader: the journal.
        run_id: the run, None for all.
        until: the last offset that is wanted; by default the last one that there is now.

    Raises:
        JournalError: if the journal cannot be read.
    """
    offset = 0
    until = reader.head.offset if until is None else until
    while entries := reader.read(offset, records=True, run_id=run_id, until=until):
        offset = entries[-1].offset
        yield from entries


class PublishedInJournal:
    """The events of past runs that their publishers published, in order.

    Left out is what consumers (summaries, receipts) and the bus itself (the end of a lost run) added: on
    another bus its own consumers and that bus do so.

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

    def __iter__(self) -> Iterator[Entry]:
        only = self._run_ids[0] if len(self._run_ids) == 1 else None
        entries = read_entries(self._reader, only)
        return (entry for entry in entries if (entry.run_id, entry.source) in self._wanted)
