"""Finding journals and the runs in them, for the commands that look at the past."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

from cyclopts import Parameter

from phase_bus.cli.output import EXIT_NOT_WHOLE, say
from phase_bus.errors import ConfigError, JournalError, suggest
from phase_bus.events import RunStart
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.paths import all_journals, state_directory
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import RunRow

DataOption: TypeAlias = Annotated[
    Path | None, Parameter(name="--data", help="A journal: its directory or file. Default: all of yours.")
]
OneDataOption: TypeAlias = Annotated[
    Path | None,
    Parameter(name="--data", help="The journal: its directory or file. Default: yours that was used last."),
]

LATEST = "latest"
_SUGGESTED = 10  # of the newest runs, for a word that is none


class Found(NamedTuple):
    """A run, and the file of the journal it is in."""

    journal: Path
    row: RunRow


def exit_code(reader: JournalReader) -> int:
    """Say what was left out of a journal because it is damaged; return the exit code that follows."""
    if not (damage := reader.damage()):
        return 0
    say(f"{reader.path}: {damage}; 'phase-bus journal verify' says more")
    return EXIT_NOT_WHOLE


def one_journal(data: Path | None) -> Path:
    """Return the journal given, or the user's that was used last."""
    if data is not None:
        return data
    found = all_journals()
    if not found:
        raise ConfigError(
            f"there is no journal in {str(state_directory())!r}; run something with 'phase-bus exec' or "
            "'phase-bus bus' first, or give --data DIRECTORY"
        )
    return found[0]


def readable_journals(data: Path | None) -> Iterator[JournalReader]:
    """Yield the journal given, or all of the user's, the one used last first, each open for its turn.

    Of all journals, one that cannot be read is reported and left out.
    """
    for path in all_journals() if data is None else [data]:
        try:
            with JournalReader(path) as reader:
                yield reader
        except JournalError as error:
            if data is not None:
                raise
            say(f"{error}; left out")


def journal_to_write(data: Path) -> Path:
    """Return the directory of an existing journal."""
    with JournalReader(data) as reader:  # which fails, rather than begin one, if there is none
        path = reader.path
    if path.name != FILE_NAME:
        raise ConfigError(
            f"--data {str(data)!r}: only a journal called {FILE_NAME!r} can be changed; rename it first"
        )
    return path.parent


def find_runs(data: Path | None) -> list[Found]:
    """Return the runs of a journal, or of all journals of the user, the newest by their own start last.

    A run that is in several, as one that was replayed, comes last from the journal that was used last.
    """
    journals = [[Found(reader.path, row) for row in reader.runs()] for reader in readable_journals(data)]
    runs = [found for journal in reversed(journals) for found in journal]
    return sorted(runs, key=lambda found: found.row.started_ns)


def find_run(run: str, data: Path | None) -> Found:
    """Return a run by its id, or the ``latest``; of several of one id the newest."""
    runs = find_runs(data)
    if run == LATEST:
        wanted = [found for found in runs if found.row.status != "unknown"]
    else:
        wanted = [found for found in runs if found.row.run_id == run]
    if not wanted:
        raise _not_found(f"run {run!r}", data, run, [*(found.row.run_id for found in runs), LATEST])
    if len(wanted) > 1 and run != LATEST:
        say(
            f"run {run} is in {len(wanted)} journals; this is the newest of them, in "
            f"{wanted[-1].journal} (--data chooses another)"
        )
    return wanted[-1]


def find_sweep(sweep_id: str, data: Path | None) -> tuple[str, list[Found]]:
    """Return a sweep's id and its runs by that id, or the ``latest``, wherever they are, the oldest first.

    A run that is in several journals is taken from where it came to last.
    """
    found: dict[str, dict[str, Found]] = {}
    runs = find_runs(data)
    for run, start in zip(runs, run_starts(runs), strict=True):
        if start is not None and start.sweep_id is not None:
            others = found.pop(start.sweep_id, {})  # the sweep of the newest run comes last
            found[start.sweep_id] = {**others, run.row.run_id: run}
    chosen = next(reversed(found), sweep_id) if sweep_id == LATEST else sweep_id
    if chosen not in found:
        raise _not_found(f"run of a sweep {sweep_id!r}", data, sweep_id, list(found))
    return chosen, list(found[chosen].values())


def _not_found(what: str, data: Path | None, word: str, known: list[str]) -> ConfigError:
    where = f"journal {str(data)!r}" if data else f"any journal in {str(state_directory())!r}"
    return ConfigError(f"there is no {what} in {where}{suggest(word, known[-_SUGGESTED:])}")


def run_starts(runs: list[Found]) -> list[RunStart | None]:
    """Return the start of each run, None where the journal has none."""
    with ExitStack() as open_readers:
        paths = dict.fromkeys(run.journal for run in runs)
        readers = {path: open_readers.enter_context(JournalReader(path)) for path in paths}
        return [next(iter(readers[run.journal].events(run.row.run_id, RunStart)), None) for run in runs]


def short_name(journal: Path) -> str:
    """Return a journal's directory, without the place where all of the user's are."""
    directory = journal.parent
    return directory.name if directory.parent == state_directory() else str(directory)
