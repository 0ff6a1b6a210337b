"""The guides' code is run."""

from __future__ import annotations

import re
from pathlib import Path

from phase_bus import testing
from tests.e2e.test_readme import README, ROOT
from tests.testing.test_pytest_plugin import run_pytest

GUIDE = ROOT / "docs" / "guide"


def files(text: str) -> dict[str, str]:
    """Return the Python files in a text, by the name in their first line."""
    blocks = re.findall(r"```python\n(# (\S+\.py)\n.*?)```", text, re.DOTALL)
    return {name: code for code, name in blocks}


def test_the_tests_of_the_testing_guide(tmp_path: Path) -> None:
    """Typed in as a reader would, beside the README's consumer, they pass."""
    found = files((GUIDE / "testing.md").read_text())
    assert set(found) == {"test_slow.py", "test_steps.py"}
    for name, code in {**found, "slow.py": files(README)["slow.py"]}.items():
        (tmp_path / name).write_text(code)
    said = run_pytest(tmp_path, "-p", "asyncio", "--asyncio-mode=auto")
    assert "3 passed" in said


def test_names_in_the_guides_exist() -> None:
    """Every factory, and every file of the repository, that a guide names."""
    for guide in GUIDE.glob("*.md"):
        text = guide.read_text()
        for name in set(re.findall(r"\b(make_\w+\b(?!\.py)|run_consumer\w*|MemoryBus|LiveBus)\b", text)):
            assert hasattr(testing, name), name
        for path in re.findall(r"`(examples/[\w./]+|tests/\w+/)`", text):
            assert (ROOT / path).exists(), path
        for link in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (guide.parent / link).exists(), link
