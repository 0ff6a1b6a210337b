"""The contract in a few seconds; what takes longer is in tests/sinks/test_contract.py."""

from __future__ import annotations

from pathlib import Path

from tests.sinks import scenarios
from tests.sinks.cases import ReferenceCase
from tests.sinks.world import a_world


def test_answers_are_lost(tmp_path: Path, ipc_dir: Path) -> None:
    with a_world(tmp_path, ipc_dir, [ReferenceCase(tmp_path)], batch_rows="100") as world:
        assert not scenarios.answers_are_lost(world, "lost", 2000, 2000)
