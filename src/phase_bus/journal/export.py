"""A journal's events as files for other programs, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from phase_bus.core.classes import import_extra
from phase_bus.core.files import replacing_output
from phase_bus.core.printable import printable_json
from phase_bus.core.records import to_plain
from phase_bus.core.wire import decode_event
from phase_bus.events import Event, Records
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.record_csv import csv_names, write_csv


def export_jsonl(reader: JournalReader, run_id: str | None, output: Path | None) -> int:
    """Write all events as lines of JSON to a file, or to standard output; return their number.

    Raises:
        JournalError, WireError: if the journal cannot be read.
        ConfigError: if the file cannot be written.
    """
    if output is None:
        return _write_lines(reader, run_id, sys.stdout.buffer)
    with replacing_output(output) as path, path.open("wb") as file:
        return _write_lines(reader, run_id, file)


def export_parquet(reader: JournalReader, run_id: str | None, output: Path) -> int:
    """Write all request records as rows of a Parquet file; return their number.

    Raises:
        JournalError, WireError: if the journal cannot be read.
        ConfigError: if pyarrow is not installed, or the file cannot be written.
    """
    import_extra("pyarrow", "parquet", "--format parquet: ")
    from phase_bus.journal.parquet import record_schema, write_parquet

    until = reader.head.offset  # for two passes over the same: a bus may be adding to it
    schema = record_schema(_records(reader, run_id, until))
    with replacing_output(output) as path:
        return write_parquet(path, schema, _records(reader, run_id, until))


def export_csv(reader: JournalReader, run_id: str | None, output: Path) -> int:
    """Write all request records as rows of a CSV file; return their number.

    Raises:
        JournalError, WireError: if the journal cannot be read.
        ConfigError: if the file cannot be written.
    """
    until = reader.head.offset  # for two passes over the same: a bus may be adding to it
    names = csv_names(_records(reader, run_id, until))
    with replacing_output(output) as path:
        return write_csv(path, names, _records(reader, run_id, until))


def _write_lines(reader: JournalReader, run_id: str | None, file: BinaryIO) -> int:
    encode = msgspec.json.Encoder().encode
    count = 0
    for event in _events(reader, run_id):
        file.write(printable_json(encode(to_plain(event)).decode()).encode() + b"\n")
        count += 1
    file.flush()
    return count


def _events(reader: JournalReader, run_id: str | None, until: int | None = None) -> Iterator[Event]:
    unknown = 0
    for entry in reader.entries(run_id, until):
        event = decode_event(entry.topic, entry.payload)
        if event is not None:
            yield event
        else:
            unknown += 1
    if unknown:
        print(
            f"phase-bus: {unknown} events are of kinds newer than this phase-bus, and were left out",
            file=sys.stderr,
        )


def _records(reader: JournalReader, run_id: str | None, until: int) -> Iterator[Records]:
    return (event for event in _events(reader, run_id, until) if isinstance(event, Records))
