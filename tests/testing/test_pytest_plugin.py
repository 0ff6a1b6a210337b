"""The pytest plugin, in projects of its own: with pytest-asyncio in each of its modes, and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.pytester import run_pytest

TEST = """
import pytest
from phase_bus.consumer.consumer import Consumer
from phase_bus.testing import make_run

class Phases(Consumer):
    def __init__(self):
        self.names = []
    async def on_phase_complete(self, event):
        self.names.append(event.phase.name)

def test_sync(phase_bus_memory):
    phase_bus_memory.publish(*make_run(records=5))
    assert phase_bus_memory.run_consumer_sync(Phases()).consumer.names == ["warmup", "profiling"]

def test_guide(mock_tracker, temp_dir):
    assert mock_tracker.create_stats().sent == 100
    (temp_dir / "file").write_text("x")

def test_live(phase_bus_live):
    phase_bus_live.publish(*make_run(records=5))
    assert phase_bus_live.run_consumer_sync(Phases()).receipt.complete
"""
ASYNC_TEST = """
async def test_async(phase_bus_memory):
    phase_bus_memory.publish(*make_run(records=5))
    run = await phase_bus_memory.run_consumer(Phases())
    assert run.consumer.names == ["warmup", "profiling"]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "test"),
    [
        (("-p", "no:asyncio"), TEST),
        (("--asyncio-mode=strict",), TEST + "\n@pytest.mark.asyncio" + ASYNC_TEST),
        (("--asyncio-mode=auto",), TEST + ASYNC_TEST),
    ],
    ids=["without", "strict", "auto"],
)
def test_fixtures(tmp_path: Path, options: tuple[str, ...], test: str) -> None:
    """The fixtures work however async tests are run, with warnings as errors."""
    (tmp_path / "test_it.py").write_text(test)
    said = run_pytest(tmp_path, *options)
    assert f"{test.count('def test_')} passed" in said


@pytest.mark.slow
def test_it_costs_others_nothing(tmp_path: Path) -> None:
    """In a project that does not use it, nothing of phase-bus but the plugin itself is imported."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_nothing():\n"
        "    ours = {name for name in sys.modules if name.startswith('phase_bus')}\n"
        "    assert ours == {'phase_bus', 'phase_bus.pytest_plugin'}\n"
        "    assert not {'zmq', 'msgspec', 'numpy', 'structlog'} & set(sys.modules)\n"
    )
    assert "1 passed" in run_pytest(tmp_path, "-p", "no:asyncio")
