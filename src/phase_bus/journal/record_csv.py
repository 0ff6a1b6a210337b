"""Request records as rows of CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from phase_bus.core.printable import printable
from phase_bus.core.records import RecordBatch
from phase_bus.events import Records
from phase_bus.journal.record_columns import OURS, own_columns, record_columns

# A spreadsheet takes a text that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_names(batches: Iterable[Records]) -> list[str]:
    """Return the columns that batches of records need, in the order in which they stand in the file."""
    names = {name for event in batches for name in record_columns(RecordBatch(event))}
    return [*OURS, *sorted(names)]


def write_csv(path: Path, names: list[str], batches: Iterable[Records]) -> int:
    """Write batches as rows with these columns; return how many rows there are.

    Values are those of the bus, in its units; a list is JSON, and the cell of a record without a
    value is empty.
    """
    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(csv_cell, names))
        for event in batches:
            writer.writerows(_rows(event, names))
            rows += event.count
    return rows


def csv_cell(value: Any) -> Any:
    """Return a value for a cell; a text in one line, and so that no spreadsheet runs it as a formula."""
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(_FORMULA) else value)


def _rows(event: Records, names: list[str]) -> Iterator[tuple[Any, ...]]:
    columns = {name: [*map(csv_cell, values)] for name, values in own_columns(event).items()}
    for name, column in record_columns(RecordBatch(event)).items():
        cells = columns[name] = [None] * event.count
        for row, value in column.items():
            cells[row] = csv_cell(value)
    absent = [None] * event.count
    return zip(*(columns.get(name, absent) for name in names), strict=True)
