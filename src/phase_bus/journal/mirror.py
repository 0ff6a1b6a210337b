"""A copy of a part of another journal, for those who read a journal that is far away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import astuple

from phase_bus.core.position import Segment
from phase_bus.core.wire import NO_PARTITION, Header, parse_topic, partition_of
from phase_bus.errors import WireError
from phase_bus.events import RunComplete, RunStart, Verdict
from phase_bus.journal.rows import DeadLetter, Entry, Head, RunRow
from phase_bus.journal.writer import Journal

OUTLINE = (RunStart.kind, RunComplete.kind, Verdict.kind)  # of what lists of runs tell
_LARGEST = 2**63  # of numbers that a journal can hold
DAMAGED = "damaged"  # the kind of what stands for an event that is damaged where it comes from
_SEGMENT = "INSERT INTO segments (stream, first_offset) VALUES (?, ?)"
_LETTER = """
INSERT INTO dead_letters (id, consumer, stream, offset, run_id, kind, error, traceback, ts_ns, attempts)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Mirror(Journal):
    """A journal with events of another one, at the offsets that they have there.

    Raises:
        JournalError: as :class:`~phase_bus.journal.writer.Journal`.
    """

    def copy(self, entries: Sequence[Entry]) -> None:
        """Add events, in their order. One of the kind :data:`DAMAGED` is damaged here too."""
        with self.transaction():
            for entry in entries:
                numbered = entry.events if partition_of(entry.topic) == NO_PARTITION else 0
                self._head = Head(entry.offset - entry.events, entry.event_number - numbered)
                self.append((entry,))
                if entry.kind == DAMAGED:
                    self._db.execute("UPDATE events SET crc = crc + 1 WHERE offset = ?", (entry.offset,))

    def keep_run(self, row: RunRow) -> None:
        """Say how a run stood there."""
        self.note_run(row.run_id, row.status, row.started_ns, row.ended_ns, row.publisher)

    def keep_lineage(self, lineage: Sequence[Segment], last_offset: int) -> None:
        """Name the streams that the offsets are of, and the last offset that there is."""
        with self.transaction():
            self._db.execute("UPDATE past SET offset = ?", (last_offset,))
            self._db.execute("DELETE FROM segments")
            self._db.executemany(_SEGMENT, map(astuple, lineage))

    def keep_dead_letters(self, letters: Sequence[DeadLetter], left_out: Mapping[str, int]) -> None:
        """Add dead letters under their numbers, and how many more there were by consumer."""
        with self.transaction():
            self._db.executemany(_LETTER, map(astuple, letters))
            self._db.executemany("INSERT INTO dead_letters_left_out VALUES (?, ?)", left_out.items())


def entry_of(topic: bytes, header: Header, frame: bytes, payload: bytes) -> Entry:
    """Return an event from elsewhere as a journal has it, at its header's offset.

    Args:
        frame: the header's bytes.

    Raises:
        WireError: a journal cannot hold it.
    """
    kind, run_id = parse_topic(topic)
    if max(header.offset, header.source_seq, header.event_number) >= _LARGEST:
        raise WireError("its numbers are too large", topic)
    return Entry(
        header.offset,
        topic,
        frame,
        payload,
        run_id,
        kind,
        header.source,
        header.source_seq,
        header.records,
        header.event_number,
        ts_ns=0,
    )
