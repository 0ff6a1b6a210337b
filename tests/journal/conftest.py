"""A journal for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phase_bus.journal.writer import Journal


@pytest.fixture
def journal(tmp_path: Path, no_leaks: None) -> Iterator[Journal]:
    """An empty journal."""
    with Journal(tmp_path) as opened:
        yield opened
