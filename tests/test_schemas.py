"""The files in ``schemas/`` are those that the event types make."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_no_schema_is_stale() -> None:
    """Each file is as `make schemas` would write it, and there is no other."""
    wanted = runpy.run_path(str(ROOT / "scripts" / "make_schemas.py"))["files"]()
    there = {path: path.read_text() for path in (ROOT / "schemas").glob("*.json")}
    assert there == wanted, "run 'make schemas'"
