"""The records of one phase, in a file, and as the sequence of dicts that a post-processor reads.

The file holds the batches packed as they came, each after its length and its number of records. So
memory holds the dicts of one batch at a time, however many records there are.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event, encode_event
from phase_bus.events import Records

_HEAD = struct.Struct("<II")  # the bytes of the batch that follows, the number of its records
_TOPIC = b"records.00.spill$"  # of no consequence: it says that these are records


class Spill:
    """Batches of records in a file.

    Args:
        path: the file.
        size: how many bytes of it to go on from; what follows them is written over.

    Attributes:
        count: how many records there are.
        size: how many bytes are in use.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.count = 0
        self.size = 0
        self._places: list[int] = []  # where each batch begins
        self._ends: list[int] = []  # how many records there are up to its end
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._synced = size
        while self.size < size:
            length, records = _HEAD.unpack(os.pread(self._descriptor, _HEAD.size, self.size))
            self._add(_HEAD.size + length, records)

    def append(self, event: Records) -> None:
        """Add a batch; one that cannot be written leaves no trace.

        Raises:
            OSError: it cannot be written.
        """
        payload = encode_event(event)
        block = memoryview(_HEAD.pack(len(payload), event.count) + payload)
        done = 0
        while done < len(block):
            done += os.pwrite(self._descriptor, block[done:], self.size + done)
        self._add(len(block), event.count)

    def sync(self) -> None:
        """See that all of it outlives this process and this machine's next crash.

        Raises:
            OSError: it cannot be written.
        """
        if self.size != self._synced:
            os.fsync(self._descriptor)
            self._synced = self.size

    def finish(self) -> None:
        """Let go of the records. An empty file stays, which says that they are done with."""
        os.ftruncate(self._descriptor, 0)
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def batches(self) -> int:
        """Return how many batches there are."""
        return len(self._places)

    def batch_of(self, index: int) -> tuple[int, int]:
        """Return which batch a record is in, and how many records are before that batch."""
        number = bisect_right(self._ends, index)
        return number, self._ends[number - 1] if number else 0

    def read(self, number: int) -> list[dict[str, Any]]:
        """Return the records of a batch."""
        place = self._places[number]
        end = self._places[number + 1] if number + 1 < len(self._places) else self.size
        payload = os.pread(self._descriptor, end - place - _HEAD.size, place + _HEAD.size)
        event = decode_event(_TOPIC, payload)
        assert isinstance(event, Records)
        return [_as_result(record) for record in RecordBatch(event)]

    def _add(self, size: int, records: int) -> None:
        self._places.append(self.size)
        self.size += size
        self.count += records
        self._ends.append(self.count)


class PhaseResults(Sequence[dict[str, Any]]):
    """The requests of a phase, for a post-processor: a sequence of dicts that is read when it is used.

    It can be gone through more than once, by batches or by index. A request is what
    :class:`~phase_bus.core.records.RecordBatch` gives, with ``latency_ms`` (if it has a latency) and
    ``status`` (``success`` or ``error``) as the example plugin's processors expect them.

    Args:
        spill: where they are, None if there are none.
    """

    def __init__(self, spill: Spill | None) -> None:
        self._spill = spill
        self._held: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return self._spill.count if self._spill else 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._spill is not None:
            for number in range(self._spill.batches()):
                yield from self._spill.read(number)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._at(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} results, and none at {index}")
        return self._at(index % len(self))

    def _at(self, index: int) -> dict[str, Any]:
        assert self._spill is not None
        number, before = self._spill.batch_of(index)
        if self._held[0] != number:
            self._held = number, self._spill.read(number)
        return self._held[1][index - before]


def _as_result(record: dict[str, Any]) -> dict[str, Any]:
    latency_ns = record.get("request_latency")
    if latency_ns is not None:
        record["latency_ms"] = latency_ns / 1e6
    record["status"] = "error" if record["error"] else "success"
    return record
