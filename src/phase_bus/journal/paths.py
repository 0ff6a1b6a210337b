"""Where journals are kept by default."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from phase_bus.core.address import Address
from phase_bus.core.files import make_private_directory, tighten


def state_directory() -> Path:
    """Return the user's directory for journals: below ``$XDG_STATE_HOME``, or ``~/.local/state``."""
    given = os.environ.get("XDG_STATE_HOME")
    return (Path(given) if given else Path.home() / ".local" / "state") / "phase-bus"


def make_state_directory() -> Path:
    """Make that directory for its owner only; one that others could read is taken from them.

    Raises:
        OSError: if it cannot be made.
    """
    directory = state_directory()
    make_private_directory(directory)
    tighten(directory)
    return directory


def journal_directory(address: Address) -> Path:
    """Return where the journal of a bus that stays at an address is kept."""
    return state_directory() / re.sub(r"[^\w.-]+", "-", str(address)).strip("-")


def all_journals() -> list[Path]:
    """Return the files of all journals in the user's directory, the latest used first."""
    found = []
    for path in state_directory().glob("[!.]*/journal.sqlite"):  # with a dot: about to be removed
        with suppress(FileNotFoundError):  # so was this one
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]
