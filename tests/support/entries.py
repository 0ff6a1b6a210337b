"""Entries for journals, numbered as a bus does it, and a Python process that writes or reads them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from phase_bus.core.control import DeadLetterNote
from phase_bus.core.wire import encode_event, topic_of
from phase_bus.events import EventBase
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry, Head
from phase_bus.journal.writer import Journal
from phase_bus.testing.waiting import DEADLINE_S

_S = 1_000_000_000
_SOURCE = b"s" * 16


class Log:
    """Numbers entries as a bus does, and remembers them."""

    def __init__(self, head: Head | None = None) -> None:
        self.offset, self.event_number = head or (0, 0)
        self.entries: list[Entry] = []

    def entry(
        self,
        kind: str = "phase_progress",
        run_id: str = "r1",
        payload: bytes = b"x",
        source: bytes = _SOURCE,
    ) -> Entry:
        """Return the next entry."""
        self.offset += 1
        self.event_number += kind != "records"
        infix = "03." if kind == "records" else ""
        entry = Entry(
            offset=self.offset,
            topic=f"{kind}.{infix}{run_id}$".encode(),
            header=self.offset.to_bytes(56, "little"),
            payload=payload,
            run_id=run_id,
            kind=kind,
            source=source,
            source_seq=self.offset,
            records=7 if kind == "records" else 0,
            event_number=self.event_number,
            ts_ns=self.offset * _S,
        )
        self.entries.append(entry)
        return entry

    def of(self, event: EventBase) -> Entry:
        """Return the next entry, of an event."""
        entry = self.entry(event.kind, event.run_id, encode_event(event))
        assert entry.topic == topic_of(event)
        return entry


def read_all(journal: JournalReader, records: bool = True, run_id: str | None = None) -> list[Entry]:
    """Return everything, piece by piece."""
    found: list[Entry] = []
    while piece := journal.read(
        found[-1].offset if found else 0, records=records, run_id=run_id, limit=100
    ):
        found += piece
    return found


def run_child(code: str, *args: object, prefix: tuple[str, ...] = ()) -> str:
    """Run a Python program to its end; return what it printed."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dead_letter_at(
    journal: Journal, consumer: str, offset: int, run_id: str = "r1", attempts: int = 3, skipped: int = 0
) -> int:
    """Add a dead letter; return its id."""
    letter = DeadLetterNote(
        offset=offset,
        run_id=run_id,
        kind="records",
        error="KeyError: 'x'",
        traceback="Traceback ...",
        attempts=attempts,
        skipped=skipped,
    )
    return journal.add_dead_letter(consumer, letter, ts_ns=9)
