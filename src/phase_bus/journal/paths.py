"""Where journals are kept by default."""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from phase_bus.core.address import Address

_KEPT_EXEC_JOURNALS = 20


def state_directory() -> Path:
    """Return the user's directory for journals: below ``$XDG_STATE_HOME``, or ``~/.local/state``."""
    given = os.environ.get("XDG_STATE_HOME")
    return (Path(given) if given else Path.home() / ".local" / "state") / "phase-bus"


def journal_directory(address: Address) -> Path:
    """Return where the journal of a bus that stays at an address is kept."""
    return state_directory() / re.sub(r"[^\w.-]+", "-", str(address)).strip("-")


def exec_journal_directory() -> Path:
    """Return a new directory for the journal of one ``exec``; only the latest ones are kept."""
    base = state_directory()
    for old in sorted(base.glob("exec-*"))[: -_KEPT_EXEC_JOURNALS + 1]:
        shutil.rmtree(old, ignore_errors=True)
    return base / f"exec-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def all_journals() -> list[Path]:
    """Return the files of all journals in the user's directory, the latest used first."""
    found = state_directory().glob("*/journal.sqlite")
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
