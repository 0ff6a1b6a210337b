"""Finding journals and the runs in them, for the commands that look at the past."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

from cyclopts import Parameter

from phase_bus.cli.options import check_nats
from phase_bus.cli.output import EXIT_NOT_WHOLE, make_console, say
from phase_bus.core.address import StreamAddress, default_address, parse_any
from phase_bus.errors import ConfigError, JournalError, suggest
from phase_bus.events import RunStart
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.paths import all_journals, state_directory
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import RunRow

if TYPE_CHECKING:
    from phase_bus.jetstream.past import StreamPast
    from phase_bus.journal.remote import RemoteJournal

Past: TypeAlias = "Path | RemoteJournal | StreamPast | None"
"""Where to look: in a journal, in that of a bus, in a stream that buses forward to, or in all journals."""

DataOption: TypeAlias = Annotated[
    Path | None, Parameter(name="--data", help="A journal: its directory or file. Default: all of yours.")
]
OneDataOption: TypeAlias = Annotated[
    Path | None,
    Parameter(name="--data", help="The journal: its directory or file. Default: yours that was used last."),
]

PastAddressOption: TypeAlias = Annotated[
    str | None,
    Parameter(
        name=["--address", "-a"],
        help="Ask the bus at this address for its journal instead, also on another host; or look in the "
        "stream at nats://HOST that buses forward to.",
    ),
]

LATEST = "latest"
_SUGGESTED = 10  # of the newest runs, for a word that is none
_SHORTEST = 4  # letters of an id that stand for it


class Found(NamedTuple):
    """A run, and the file of the journal it is in.

    Attributes:
        address: of the bus that has the run, if the journal is a copy that is about to go.
    """

    journal: Path
    row: RunRow
    address: str = ""

    @property
    def where(self) -> str:
        """Where the run is, for people: the journal's file, or the bus's address."""
        return self.address or str(self.journal)


@contextmanager
def looking(data: Path | None, address: str | None) -> Iterator[Past]:
    """Give where to look for past runs; what is copied for that is removed afterwards.

    Raises:
        ConfigError: if both are given.
    """
    if address is None:
        yield data
        return
    if data is not None:
        raise ConfigError(f"--data {str(data)!r} and --address {address!r}: give one of them")
    with TemporaryDirectory(prefix="phase-bus-") as directory, _open(address, Path(directory)) as past:
        yield past


def _open(address: str, directory: Path) -> RemoteJournal | StreamPast:
    where = parse_any(address or default_address())
    if isinstance(where, StreamAddress):
        check_nats()
        from phase_bus.jetstream.past import StreamPast

        return StreamPast(where, directory, partial(_showing, "the stream"))
    from phase_bus.journal.remote import RemoteJournal

    return RemoteJournal(where, directory, partial(_showing, "the bus"))


@contextmanager
def _showing(source: str, size_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show in a terminal how a copy of so many bytes, 0 if that is unknown, gets on."""
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    from rich.progress import DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(f"copying from {source}"), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("copy", total=size_bytes or None)
        yield lambda copied_bytes: progress.advance(task, copied_bytes)


def exit_code(reader: JournalReader, where: str = "") -> int:
    """Say what was left out of a journal because it is damaged; return the exit code that follows."""
    if not (damage := reader.damage()):
        return 0
    say(f"{where or reader.path}: {damage}; 'phase-bus journal verify' says more")
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


def whole_journal(past: Past) -> tuple[Path, str]:
    """Return the journal given, a copy of a bus's, or the user's that was used last; and where it is."""
    if not isinstance(past, Path | None):
        return past.everything, str(past.address)
    path = one_journal(past)
    return path, str(path)


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


def find_runs(past: Past) -> list[Found]:
    """Return the runs of a journal, or of all journals of the user, the newest by their own start last.

    A run that is in several, as one that was replayed, comes last from the journal that was used last.
    """
    if not isinstance(past, Path | None):
        runs = [Found(outline, row, str(past.address)) for outline, row in past.listed()]
        return sorted(runs, key=lambda found: found.row.started_ns)
    journals = [[Found(reader.path, row) for row in reader.runs()] for reader in readable_journals(past)]
    runs = [found for journal in reversed(journals) for found in journal]
    return sorted(runs, key=lambda found: found.row.started_ns)


def whole(found: Found, past: Past, *, records: bool = True) -> Found:
    """Return a run in a journal that has all of it, or all but its records: that of a bus is copied now."""
    if isinstance(past, Path | None) or not found.address:
        return found
    return found._replace(journal=past.run(found.row.run_id, found.journal, records=records))


def find_run(run: str | None, past: Past, *, records: bool = True) -> Found:
    """Return the run that a user names; of several of one id the newest.

    A run is named as :func:`match_run` says. Of one on a bus elsewhere the records are not needed always.

    Raises:
        ConfigError: if none is named, or there is none or more than one such; it says which there are.
    """
    if run is None:
        raise none_given(past)
    runs = find_runs(past)
    real = [found for found in runs if found.row.status != "unknown"]
    ids = [found.row.run_id for found in real]
    others = [found.row.run_id for found in runs]
    labelled = cache(lambda: _ids_by_label(real))  # for which each of their journals is read
    named = run if run in others and run != LATEST else match_run(run, ids, lambda: _newest(labelled()))
    if named is None:
        short = too_short(run, ids)
        raise _not_found(f"run {run!r}", past, run, ids, [*others, *labelled()], short)
    if named != run and run != LATEST and (count := len(set(labelled().get(run, ())))) > 1:
        say(f"label {run!r} has {count:,} runs; this is the newest, {named}")
    wanted = [found for found in runs if found.row.run_id == named]
    if len(wanted) > 1 and run != LATEST:
        several = len(wanted)
        say(
            f"run {named} is of {several} buses; this is the newest of them"
            if wanted[-1].address
            else f"run {named} is in {several} journals; this is the newest of them, in "
            f"{wanted[-1].journal} (--data chooses another)"
        )
    return whole(wanted[-1], past, records=records)


def match_run(word: str, ids: Sequence[str], labels: Callable[[], Mapping[str, str]] = dict) -> str | None:
    """Return the id of the run that a word names, None if it names none.

    That is, the first that fits: the ``latest``, the id itself, a label, the beginning of one id alone.

    Args:
        ids: those of all runs, the newest last.
        labels: gives the labels, each with the id of its newest run; asked only if need be.

    Raises:
        ConfigError: if several ids begin so.
    """
    if word == LATEST:
        return ids[-1] if ids else None
    if word in ids:
        return word
    return labels().get(word) or _beginning_with(word, ids)


def _beginning_with(word: str, ids: Sequence[str]) -> str | None:
    found = sorted(
        {run_id for run_id in ids if run_id.startswith(word)}, key=lambda each: (len(each), each)
    )
    if len(word) < _SHORTEST or not found:
        return None
    shortest, *others = found
    if any(not each.startswith(f"{shortest}#") for each in others):  # further attempts are of one run
        more = f" and {len(found) - _SUGGESTED} more" if len(found) > _SUGGESTED else ""
        several = ", ".join(found[:_SUGGESTED])
        raise ConfigError(f"run {word!r} could be any of {several}{more}; give more of its id")
    return shortest


def too_short(word: str, ids: Sequence[str]) -> str:
    """Return ``; give ...`` if a word is the beginning of an id, but too short to stand for it."""
    if len(word) < _SHORTEST and any(run_id.startswith(word) for run_id in ids):
        return f"; give at least {_SHORTEST} letters of an id"
    return ""


def labels_of(runs: Sequence[Found]) -> dict[str, str]:
    """Return the labels of runs, each with the id of the newest."""
    return _newest(_ids_by_label(runs))


def _ids_by_label(runs: Sequence[Found]) -> dict[str, list[str]]:
    """Return the labels of runs, each with their ids, the newest last."""
    labelled: dict[str, list[str]] = {}
    for found, start in zip(runs, run_starts(runs), strict=True):
        if start and start.label:
            labelled.setdefault(start.label, []).append(found.row.run_id)
    return labelled


def _newest(labelled: Mapping[str, Sequence[str]]) -> dict[str, str]:
    return {label: ids[-1] for label, ids in labelled.items()}


def none_given(past: Past, what: str = "name a run") -> ConfigError:
    """Return the error that tells somebody who named no run which ones there are."""
    runs = [found for found in find_runs(past) if found.row.status != "unknown"]
    if not runs:
        return ConfigError(
            f"there is no run {where_in_words(past)}; run something with 'phase-bus exec' first"
        )
    labels = {run_id: label for label, run_id in labels_of(runs[-_SUGGESTED:]).items()}
    ids = dict.fromkeys(found.row.run_id for found in reversed(runs))
    newest = [f"{each} ({labels[each]})" if each in labels else each for each in ids][:_SUGGESTED]
    return ConfigError(
        f"{what} by its id or at least its first 4 letters, a label, or 'latest'; the newest are "
        f"{', '.join(newest)}; 'phase-bus runs' lists them all"
    )


def find_sweep(sweep_id: str, past: Past) -> tuple[str, list[Found]]:
    """Return a sweep's id and its runs by that id, or the ``latest``, wherever they are, the oldest first.

    A run that is in several journals is taken from where it came to last.
    """
    found: dict[str, dict[str, Found]] = {}
    runs = find_runs(past)
    for run, start in zip(runs, run_starts(runs), strict=True):
        if start is not None and start.sweep_id is not None:
            others = found.pop(start.sweep_id, {})  # the sweep of the newest run comes last
            found[start.sweep_id] = {**others, run.row.run_id: run}
    chosen = next(reversed(found), sweep_id) if sweep_id == LATEST else sweep_id
    if chosen not in found:
        raise _not_found(f"run of a sweep {sweep_id!r}", past, sweep_id, list(found))
    return chosen, [whole(each, past) for each in found[chosen].values()]


def _not_found(
    what: str, past: Past, word: str, known: Sequence[str], more: Sequence[str] = (), hint: str = ""
) -> ConfigError:
    """Return the error; the nearest of all words is suggested, or else the newest known ones are listed.

    Args:
        known: the ids, the newest last.
        more: other words that would do.
        hint: what is to be said before that.
    """
    words = [LATEST, *known] if known else []
    near = get_close_matches(word, [*words, *more], n=1)
    hint += suggest(word, near or [*words[:1], *reversed(known[-_SUGGESTED:])], ordered=True)
    return ConfigError(f"there is no {what} {where_in_words(past)}{hint}")


def where_in_words(past: Past) -> str:
    """Return where runs are looked for, for people."""
    if not isinstance(past, Path | None):
        return past.place
    return f"in journal {str(past)!r}" if past else f"in any journal in {str(state_directory())!r}"


def run_starts(runs: Sequence[Found]) -> list[RunStart | None]:
    """Return the start of each run, None where the journal has none."""
    with ExitStack() as open_readers:
        paths = dict.fromkeys(run.journal for run in runs)
        readers = {path: open_readers.enter_context(JournalReader(path)) for path in paths}
        return [next(iter(readers[run.journal].events(run.row.run_id, RunStart)), None) for run in runs]


def short_name(journal: Path) -> str:
    """Return a journal's directory, without the place where all of the user's are."""
    directory = journal.parent
    return directory.name if directory.parent == state_directory() else str(directory)
