"""The fixtures for pytest: loaded wherever phase-bus is installed, so it imports nothing before it is used.

A fixture of the same name in a project's own ``conftest.py`` goes before these, as with every plugin.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import MagicMock

import pytest

if TYPE_CHECKING:
    from phase_bus.testing import LiveBus, MemoryBus


@pytest.fixture
def phase_bus_memory() -> MemoryBus:
    """A bus in memory that really encodes: ``publish(...)``, ``run_consumer(...)``."""
    from phase_bus.testing import MemoryBus

    return MemoryBus()


@pytest.fixture
def phase_bus_live() -> Iterator[LiveBus]:
    """A real bus in a process of its own, with sockets and a journal; the same methods."""
    from phase_bus.testing import LiveBus

    with LiveBus() as bus:
        yield bus


@pytest.fixture
def mock_tracker() -> MagicMock:
    """A tracker as phase hooks are given, whose counts a test can set: 100 sent, 95 answered."""
    tracker = MagicMock()
    tracker.create_stats.return_value = MagicMock(sent=100, completed=95, in_flight=5)
    return tracker


@pytest.fixture
def temp_dir() -> Iterator[Path]:
    """A directory for the test's files, removed at its end."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
