"""The pages of the reference that are made of the code: ``python -m scripts.reference`` writes them.

They are committed, so that they are read where the project is; a test says when one is stale.
"""

from __future__ import annotations

from pathlib import Path

from scripts.reference.api import page_from
from scripts.reference.commands import commands_page
from scripts.reference.consumers import consumers_page
from scripts.reference.outputs import outputs_page

DIRECTORY = Path(__file__).resolve().parents[2] / "docs" / "reference"


def pages() -> dict[Path, str]:
    """Return what each page should hold."""
    return {
        DIRECTORY / "commands.md": commands_page(),
        DIRECTORY / "consumers.md": consumers_page(),
        DIRECTORY / "outputs.md": outputs_page(),
        DIRECTORY / "events.md": page_from("events.md"),
        DIRECTORY / "api.md": page_from("api.md"),
    }


def stale() -> dict[Path, str]:
    """Return the pages that do not hold what they should, and what that is."""
    return {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
