"""docs/security.md: each threat has a test, and it is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_each_threat_has_a_test() -> None:
    """Every row of the table names a test function, or a file of tests, that exists."""
    rows = PAGE.partition("## Threats")[2].partition("\n\n## ")[0].split("|---|---|---|\n")[1].splitlines()
    assert len(rows) > 5
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert named, row
        for file, function in named:
            assert f"def {function}" in (ROOT / file).read_text(), row
