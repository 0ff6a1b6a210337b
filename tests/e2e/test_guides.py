"""The guides' code is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from phase_bus import testing
from tests.e2e.pages import ROOT, Page
from tests.support.pytester import run_pytest

SCAFFOLD = ROOT / "src" / "phase_bus" / "plugins" / "scaffold" / "consumer"
DOCS = sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.slow
def test_the_tests_of_the_testing_guide(tmp_path: Path) -> None:
    """Typed in as a reader would, beside the README's consumer, they pass."""
    found = Page("docs/guide/testing.md").files()
    assert set(found) == {"test_slow.py", "test_steps.py"}
    for name, code in {**found, "slow.py": Page("README.md").files()["slow.py"]}.items():
        (tmp_path / name).write_text(code)
    said = run_pytest(tmp_path, "-p", "asyncio", "--asyncio-mode=auto")
    assert "3 passed" in said


def test_names_in_the_pages_exist() -> None:
    """Every factory and file that a page names, here or in the scaffold; links lead there on GitHub too."""
    names = r"(?<!scripts\.)\b(make_\w+\b(?!\.py)|run_consumer\w*|MemoryBus|LiveBus)\b"
    for page in DOCS:
        text = page.read_text()
        for name in set(re.findall(names, text)):
            assert hasattr(testing, name), name
        for path in re.findall(r"`((?:examples|tests|schemas|benchmarks|consumers)/[\w./]*)`", text):
            assert (ROOT / path).exists() or (SCAFFOLD / f"{path}.tmpl").exists(), path
        for link in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (page.parent / link).exists(), link


def test_messages_that_a_page_quotes_are_said() -> None:
    """What a reader looks for in a log is what the code writes."""
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # texts over several lines
    for message in (
        *(
            "the disk is full",
            "the bus cannot keep events",
            "was moved or deleted",
            "is in use by another bus",
        ),
        *("gave no receipt", "cannot be imported", "is silent", "not installed in this environment"),
        *(
            "AIPerf does not see it",
            "no bus answers at",
            "phase-bus is off for this run",
            "published no run",
        ),
    ):
        assert message in source, message
        pages = (ROOT / "docs" / f"{name}.md" for name in ("operating", "troubleshooting"))
        assert any(message in page.read_text() for page in pages), message
