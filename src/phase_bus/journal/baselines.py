"""Baselines: journals with copies of runs that later ones are held against.

Each is a directory below the user's journals, where no bus writes and nobody prunes. Its journal is one
file without a log beside it, so that another one takes its place in one step, and who reads the old one
goes on with that.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from heapq import merge
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from phase_bus.core.files import make_private_directory
from phase_bus.core.wire import NO_PARTITION, partition_of
from phase_bus.errors import ConfigError, JournalError, JournalInUseError, suggest
from phase_bus.journal.files import FILE_NAME, connect, failing_clearly, lock, sync_directory
from phase_bus.journal.paths import make_state_directory, state_directory
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry, Head
from phase_bus.journal.writer import Journal

_ASIDE = "aside"  # in a baseline's directory: the journal that is to take the place of the one there
_COPIED_AT_ONCE = 500  # events in one transaction

# What a threshold can name, a file system keeps, and nobody takes for a run, a number or a path.
_NAME = re.compile(r"[^\W\d_][\w.-]{0,63}")
_RUN_ID = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4,})*", re.IGNORECASE)
_NO_NAMES = frozenset(("latest",))


class RunSource(NamedTuple):
    """A run, and the journal that it is in."""

    journal: Path
    run_id: str


def baselines_directory() -> Path:
    """Return where the user's baselines are."""
    return state_directory() / "baselines"


def baseline_names() -> list[str]:
    """Return the names of the user's baselines, in their order."""
    return sorted(path.parent.name for path in baselines_directory().glob(f"[!.]*/{FILE_NAME}"))


def baseline_journal(name: str) -> Path:
    """Return the file of a baseline's journal.

    Raises:
        ConfigError: if there is no such baseline.
    """
    names = baseline_names()
    if name not in names:
        known = suggest(name, names) or "; 'phase-bus baseline set' makes one"
        raise ConfigError(f"there is no baseline {name!r}{known}")
    return baselines_directory() / name / FILE_NAME


def check_name(name: str) -> None:
    """Check that a baseline may have a name.

    Raises:
        ConfigError: if it may not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"baseline {name!r}: not a name; give a letter and up to 63 letters, digits, '-', '_' or '.'"
        )
    if name in _NO_NAMES or _RUN_ID.fullmatch(name):
        raise ConfigError(f"baseline {name!r}: that would be taken for a run; choose another name")


def set_baseline(name: str, runs: Sequence[RunSource], *, allow_damaged: bool = False) -> Path:
    """Make a baseline of copies of runs, instead of the one of that name; return its journal's file.

    The copies have all events of the runs, also what consumers said of them, with the frames as they were;
    only their offsets are new. Whoever reads meanwhile has the old ones or the new ones, and so it is after
    a kill.

    Args:
        allow_damaged: leave damaged events out, rather than refuse them.

    Raises:
        ConfigError: if the name may not be used, or another process is at this baseline.
        JournalError: if a run cannot be read, or its copy not be written.
    """
    check_name(name)
    with _changing(name) as directory:
        aside = directory / _ASIDE
        try:
            _copy(runs, aside, allow_damaged=allow_damaged)
            for beside in ("wal", "shm"):  # of a bus that somebody had started here
                (directory / f"{FILE_NAME}-{beside}").unlink(missing_ok=True)
            (aside / FILE_NAME).replace(directory / FILE_NAME)
            sync_directory(directory)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            _remove_if_empty(directory)
    return directory / FILE_NAME


def remove_baseline(name: str) -> None:
    """Remove a baseline.

    Raises:
        ConfigError: if there is none of that name, or another process is at it.
    """
    baseline_journal(name)
    with _changing(name) as directory:
        (directory / FILE_NAME).unlink(missing_ok=True)
        _remove_if_empty(directory)


@contextmanager
def _changing(name: str) -> Iterator[Path]:
    """Keep other processes from changing a baseline; give its directory, new if there was none."""
    directory = baselines_directory() / name
    with ExitStack() as stack:
        try:
            make_state_directory()
            stack.enter_context(lock(directory))
            shutil.rmtree(directory / _ASIDE, ignore_errors=True)  # a process was killed as it made it
            yield directory
        except JournalInUseError as error:
            raise ConfigError(f"baseline {name!r}: another process is at it; try again") from error
        except OSError as error:
            raise JournalError(
                directory / FILE_NAME,
                f"cannot be made ({error.strerror or error})",
                "see that the directory above can be written to, or set XDG_STATE_HOME to another",
            ) from error


def _remove_if_empty(directory: Path) -> None:
    if not (directory / FILE_NAME).exists():
        shutil.rmtree(directory, ignore_errors=True)


def _copy(runs: Sequence[RunSource], to: Path, *, allow_damaged: bool) -> None:
    """Write a new journal with copies of runs, and let it be one file without a log."""
    by_journal: dict[Path, dict[str, None]] = {}  # each run once, in the order given
    for run in runs:
        by_journal.setdefault(run.journal, {})[run.run_id] = None
    make_private_directory(to)
    with Journal(to) as journal:
        for path, run_ids in by_journal.items():
            with JournalReader(path) as reader:
                _copy_runs(reader, list(run_ids), journal)
                there = sum(stream.events for run_id in run_ids for stream in reader.streams(run_id))
                copied = sum(stream.events for run_id in run_ids for stream in journal.streams(run_id))
                if (damage := reader.damage(there - copied)) and not allow_damaged:
                    raise JournalError(path, damage, "'phase-bus journal verify' says more")
    file = to / FILE_NAME
    with failing_clearly(file), closing(connect(file, "mode=rw")) as db:
        if (mode := db.execute("PRAGMA journal_mode = DELETE").fetchone()[0]) != "delete":
            raise sqlite3.OperationalError(f"its journal mode is {mode}")


def _copy_runs(reader: JournalReader, run_ids: Sequence[str], journal: Journal) -> None:
    """Append runs of one journal, in its order: a source may have said something of each of them."""
    until = reader.head.offset
    rows = {row.run_id: row for row in reader.runs()}
    entries = merge(*(reader.entries(run_id, until) for run_id in run_ids), key=attrgetter("offset"))
    while piece := list(islice(entries, _COPIED_AT_ONCE)):
        journal.append(list(_placed_after(journal.head, piece)))
    for run_id in run_ids:
        row, (attempt_of, parts) = rows[run_id], reader.run_state(run_id)
        times = (row.started_ns, row.ended_ns)
        journal.note_run(run_id, row.status, *times, row.publisher, attempt_of=attempt_of, parts=parts)


def _placed_after(head: Head, entries: Iterable[Entry]) -> Iterator[Entry]:
    offset, event_number = head
    for entry in entries:
        offset += 1
        event_number += partition_of(entry.topic) == NO_PARTITION
        yield entry._replace(offset=offset, event_number=event_number)
