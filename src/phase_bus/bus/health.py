"""What a bus tells of its health."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from phase_bus.core.control import RejectionInfo
from phase_bus.core.health import Metric, Values
from phase_bus.errors import JournalError
from phase_bus.journal.reader import JournalReader

_SQLITE_FILES = ("", "-wal")


class BusSnapshot(Struct, frozen=True, kw_only=True):
    """What a bus leaves at a turn of its loop; see :class:`phase_bus.core.health.Snapshot`.

    Attributes:
        events, records, payload_bytes: what has come into the stream since its start.
        clients: how many there are, by role and state.
        journal: its file, None without one.
    """

    taken_s: float
    patience_s: float
    problem: str
    events: int
    records: int
    payload_bytes: int
    offset: int
    clients: Values
    connections: int
    open_runs: int
    rejected: tuple[RejectionInfo, ...]
    journal: Path | None

    def metrics(self) -> Iterator[Metric]:
        """Yield the metrics. What is read of the disk is read here, beside the loop."""
        size, letters = self._read_journal()
        for name, text, count in (
            ("events", "Events that came into the stream since the bus's start.", self.events),
            ("records", "Request records in these.", self.records),
            ("payload_bytes", "Bytes of payload of these.", self.payload_bytes),
        ):
            yield Metric(f"phase_bus_bus_{name}_total", "counter", text, {(): count})
        rejected: Values = {(info.reason,): float(info.count) for info in self.rejected}
        text = "What was refused; 'phase-bus status' says where the last came from."
        yield Metric("phase_bus_bus_rejected_total", "counter", text, rejected, ("reason",))
        text = "Clients, the latest of those that left included."
        yield Metric("phase_bus_bus_clients", "gauge", text, self.clients, ("role", "state"))
        for name, text, value in (
            ("offset", "The offset of the last event in the stream.", self.offset),
            ("connections", "Connections; a client has one or several.", self.connections),
            ("open_runs", "Runs that have not ended.", self.open_runs),
            ("journal_size_bytes", "What the journal's files take on the disk.", size),
            ("dead_letters", "Events in the journal that a consumer failed on.", letters),
        ):
            values: Values = {} if value is None else {(): value}
            yield Metric(f"phase_bus_bus_{name}", "gauge", text, values)

    def _read_journal(self) -> tuple[int | None, int | None]:
        """Return its size and the number of its dead letters, None where that is not known."""
        if self.journal is None:
            return None, None
        size = letters = None
        with suppress(OSError):
            size = sum(Path(f"{self.journal}{end}").stat().st_size for end in _SQLITE_FILES)
        with suppress(JournalError), JournalReader(self.journal) as journal:
            letters = journal.dead_letter_count()
        return size, letters
