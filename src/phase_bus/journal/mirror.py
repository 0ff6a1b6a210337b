"""A copy of a part of another journal, for those who read a journal that is far away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import astuple

from phase_bus.core.position import Segment
from phase_bus.core.wire import NO_PARTITION, partition_of
from phase_bus.journal.rows import DeadLetter, Entry, Head
from phase_bus.journal.writer import Journal

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
                number = entry.event_number - (partition_of(entry.topic) == NO_PARTITION)
                self._head = Head(entry.offset - 1, number)
                self.append((entry,))
                if entry.kind == DAMAGED:
                    self._db.execute("UPDATE events SET crc = crc + 1 WHERE offset = ?", (entry.offset,))

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
