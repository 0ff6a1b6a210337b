"""The records of one phase, in a file, as the sequence of dicts that a post-processor reads."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import IO, Any, overload

from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event, encode_event
from phase_bus.events import Records
from phase_bus.journal.paths import make_state_directory

_TOPIC = b"records.00.phase$"  # of no consequence: it says that these are records


class PhaseResults(Sequence[dict[str, Any]]):
    """The requests of a phase, for a post-processor: a sequence of dicts that is read when it is used.

    It can be gone through more than once, by batches or by index. A request is what
    :class:`~phase_bus.core.records.RecordBatch` gives, with ``latency_ms`` (if it has a latency) and
    ``status`` (``success`` or ``error``) as the example plugin's processors expect them.

    Batches wait, encoded, in a file without a name in the user's state directory, which may be on a larger
    disk than ``/tmp``. So memory holds the dicts of one batch, however many records there are.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._places = [0]  # where each batch begins, and where the next one will
        self._counts = [0]  # how many records there are before each batch, and in all
        self._held: tuple[int, list[dict[str, Any]]] = (-1, [])

    def add(self, event: Records) -> None:
        """Add a batch; one that cannot be written (OSError) leaves no trace."""
        if self._file is None:
            directory = make_state_directory()
            self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by close()
        rest, place = memoryview(encode_event(event)), self._places[-1]
        while rest:
            written = os.pwrite(self._file.fileno(), rest, place)
            rest, place = rest[written:], place + written
        self._places.append(place)
        self._counts.append(len(self) + event.count)

    def close(self) -> None:
        """Let go of the records."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return self._counts[-1]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self._places) - 1):
            yield from self._read(number)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range: there are {len(self)} results")
        return self._at(index % len(self))

    def _at(self, index: int) -> dict[str, Any]:
        number = bisect_right(self._counts, index) - 1
        if self._held[0] != number:
            self._held = number, self._read(number)
        return self._held[1][index - self._counts[number]]

    def _read(self, number: int) -> list[dict[str, Any]]:
        """Return the records of a batch."""
        assert self._file is not None
        begin, end = self._places[number : number + 2]
        event = decode_event(_TOPIC, os.pread(self._file.fileno(), end - begin, begin))
        assert isinstance(event, Records)
        return [_as_result(record) for record in RecordBatch(event)]


def _as_result(record: dict[str, Any]) -> dict[str, Any]:
    latency_ns = record.get("request_latency")
    if latency_ns is not None:
        record["latency_ms"] = latency_ns / 1e6
    record["status"] = "error" if record["error"] else "success"
    return record
