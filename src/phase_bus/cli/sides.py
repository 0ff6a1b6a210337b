"""Finding the runs that one side of a comparison names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from phase_bus.cli.journals import (
    LATEST,
    Found,
    Past,
    find_runs,
    match_run,
    run_starts,
    too_short,
    where_in_words,
    whole,
)
from phase_bus.errors import ConfigError, suggest
from phase_bus.events import RunStart
from phase_bus.journal.baselines import baseline_journal, baseline_names
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.sweep import identify

_SUGGESTED = 10  # of the newest runs


class SideRuns(NamedTuple):
    """The runs of a side, and what it is called."""

    name: str
    runs: list[Found]


class Sides:
    """All runs there are, by every name that a side can be given by.

    A side is, in this order of precedence: a run's id or ``latest``, a baseline, a label of runs, a
    sweep's variation as ``SWEEP/VARIATION``, the beginning of one id alone; or several of these, with
    commas between them. ``run:``, ``baseline:``, ``label:`` or ``sweep:`` before a name says which of them
    is meant.
    """

    def __init__(self, past: Past) -> None:
        self._past = past
        found = find_runs(past)
        # The last one of an id is the newest, or in the journal that was used last.
        self._runs = {run.row.run_id: run for run in found if run.row.status != "unknown"}
        self._finders: dict[str, Callable[[str], Sequence[Found] | None]] = {
            "run": self._run,
            "baseline": self._baseline,
            "label": lambda name: self._labels.get(name),
            "sweep": lambda name: self._variations.get(name),
        }

    def resolve(self, text: str) -> SideRuns:
        """Return the runs that a side names.

        Raises:
            ConfigError: if there are none.
        """
        runs = self._find(text)
        if runs is None and "," in text:
            words = [word.strip() for word in text.split(",") if word.strip()]
            several = [self._find(word) or self._refuse(word) for word in words]
            runs = list({run.row.run_id: run for found in several for run in found}.values())
        kind, _, name = text.partition(":")
        found = [whole(run, self._past) for run in runs or self._refuse(text)]
        return SideRuns(name if kind in self._finders else text, found)

    @cached_property
    def _starts(self) -> list[tuple[Found, RunStart]]:
        """The runs with their starts, for which each of their journals is read."""
        runs = list(self._runs.values())
        starts = zip(runs, run_starts(runs), strict=True)
        return [(run, start) for run, start in starts if start is not None]

    @cached_property
    def _labels(self) -> dict[str, list[Found]]:
        labels: dict[str, list[Found]] = {}
        for run, start in self._starts:
            if start.label:
                labels.setdefault(start.label, []).append(run)
        return labels

    @cached_property
    def _variations(self) -> dict[str, list[Found]]:
        variations: dict[str, list[Found]] = {}
        for run, start in self._starts:
            if start.sweep_id is not None:
                _, variation = identify(start)
                variations.setdefault(f"{start.sweep_id}/{variation}", []).append(run)
        return variations

    def _find(self, text: str) -> list[Found] | None:
        """Return the runs of one name, None if there is none of it."""
        kind, colon, name = text.partition(":")
        kinds = [kind] if colon and kind in self._finders else list(self._finders)
        name = name if len(kinds) == 1 else text
        for each in kinds:
            if found := self._finders[each](name):
                return list(found)
        return self._beginning_with(name) if "run" in kinds else None

    def _run(self, name: str) -> list[Found] | None:
        return self._beginning_with(name) if name == LATEST or name in self._runs else None

    def _beginning_with(self, name: str) -> list[Found] | None:
        run_id = match_run(name, list(self._runs))
        return None if run_id is None else [self._runs[run_id]]

    def _baseline(self, name: str) -> list[Found] | None:
        if name not in baseline_names():
            return None
        with JournalReader(baseline_journal(name)) as reader:
            return [Found(reader.path, row) for row in reader.runs()]

    def _refuse(self, text: str) -> list[Found]:
        newest = list(reversed(self._runs))[:_SUGGESTED]
        names = [LATEST, *newest, *baseline_names(), *self._labels, *self._variations]
        where = f" {where_in_words(self._past)}" if self._past else ""
        known = too_short(text, list(self._runs))
        known += suggest(text, names, ordered=True) if self._runs or baseline_names() else ""
        raise ConfigError(f"there is no run, baseline, label or SWEEP/VARIATION {text!r}{where}{known}")
