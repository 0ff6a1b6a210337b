"""What a process of post-processors keeps of the runs that go on: their phases, with the records."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from phase_bus.errors import ConfigError
from phase_bus.events import PhaseRef, PhaseStats, Records
from phase_bus.journal.paths import state_directory
from phase_bus.plugins.adapters.spill import Spill

_KEPT_S = 60.0


class SavedPhase(Struct, frozen=True):
    """A phase, to be kept with the position."""

    ref: PhaseRef
    requests: int | None
    file: str
    size: int


class Phase:
    """A phase whose run goes on.

    Attributes:
        ref: which phase.
        requests: how many requests it had, once that is known.
        spill: its records, None while there are none.
        processed: the processors have had it.
    """

    def __init__(self, ref: PhaseRef) -> None:
        self.ref = ref
        self.requests: int | None = None
        self.spill: Spill | None = None
        self.processed = False

    @property
    def count(self) -> int:
        """How many records there are."""
        return self.spill.count if self.spill else 0

    @property
    def whole(self) -> bool:
        """Whether it is over and each of its requests has its record."""
        return bool(self.requests) and self.count >= (self.requests or 0)

    def complete(self, stats: PhaseStats) -> None:
        """Note that it is over: no more records can come than requests were sent."""
        self.requests = max(stats.sent, stats.completed + stats.cancelled)


class Run:
    """A run that goes on.

    Attributes:
        phases: its phases, by name.
        processors: what is called for it, with their names; None until its first event.
        over: everything was done for it by an earlier process.
    """

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self.processors: list[tuple[str, Any]] | None = None
        self.over = False

    def phase(self, ref: PhaseRef) -> Phase:
        """Return a phase."""
        phase = self.phases.get(ref.name)
        if phase is None:
            phase = self.phases[ref.name] = Phase(ref)
        return phase

    def in_order(self) -> list[Phase]:
        """Return the phases, first to last."""
        return sorted(self.phases.values(), key=lambda phase: phase.ref.index)


class Store:
    """The directory in which the records of phases wait.

    It is made when the first records come: below the user's directory for state, under the name of the
    consumer and its journal; a temporary one if there is no journal, and so nothing to come back to.
    """

    def __init__(self) -> None:
        self.directory: Path | None = None
        self._passing = False
        self._made = 0
        self._finished: deque[tuple[float, Path]] = deque()

    def append(self, phase: Phase, event: Records, journal_id: str, name: str) -> None:
        """Add a batch to a phase.

        Raises:
            OSError: it cannot be written.
        """
        if self.directory is None:
            self.directory = self._make(journal_id, name)
        if phase.spill is None:
            phase.spill = Spill(self.directory / f"{self._made:06d}.records")
            self._made += 1
        phase.spill.append(event)

    def open(self, directory: str, runs: dict[str, list[SavedPhase]]) -> dict[str, Run]:
        """Take over what an earlier process left; a file that is shorter than it was is done with.

        Raises:
            ConfigError: it is gone.
        """
        self.directory = Path(directory) if directory else None
        found = {}
        for run_id, phases in runs.items():
            run = found[run_id] = Run()
            for saved in phases:
                phase = run.phases[saved.ref.name] = Phase(saved.ref)
                phase.requests = saved.requests
                run.over |= not self._take_over(phase, saved)
        return found

    def finish(self, run: Run) -> None:
        """Let go of a run's records. The empty files stay until the bus surely knows of the run's end."""
        for phase in run.phases.values():
            if phase.spill is not None:
                phase.spill.finish()
                self._finished.append((time.monotonic(), phase.spill.path))

    def tidy(self) -> None:
        """Remove the files of runs that ended a while ago."""
        while self._finished and time.monotonic() - self._finished[0][0] > _KEPT_S:
            self._finished.popleft()[1].unlink(missing_ok=True)

    def close(self, *, empty: bool) -> None:
        """Remove the directory, unless what is in it is needed again."""
        if self.directory is not None and (empty or self._passing):
            shutil.rmtree(self.directory, ignore_errors=True)

    def _make(self, journal_id: str, name: str) -> Path:
        self._passing = not journal_id
        if self._passing:
            return Path(tempfile.mkdtemp(prefix="phase-bus-"))
        directory = state_directory() / "records" / f"{journal_id}-{quote(name, safe='')}"
        shutil.rmtree(directory, ignore_errors=True)  # of a process that never said where it was
        directory.mkdir(parents=True)
        return directory

    def _take_over(self, phase: Phase, saved: SavedPhase) -> bool:
        """Open a phase's records again; return False if they are done with."""
        if not saved.file:
            return True
        assert self.directory is not None
        path = self.directory / saved.file
        if not path.exists():
            raise ConfigError(
                f"the records that waited in {str(path)!r} are gone; have all again with --from start"
            )
        self._made = max(self._made, int(path.stem) + 1)
        if path.stat().st_size < saved.size:
            return False
        phase.spill = Spill(path, saved.size)
        return True
