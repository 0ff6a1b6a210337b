"""The page about what consumers write names every key of the file of ``metrics``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phase_bus.events import Verdict
from phase_bus.plugins.registry import Registry
from phase_bus.testing import make_event, make_run, run_consumer

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "outputs.md").read_text()
BY_NAME = ("runs", "phases", "thresholds")  # the keys below these are names of other things


def keys_of(document: Any, *, named: bool = False) -> Iterator[str]:
    """Yield all keys in a document, but names of runs, phases and thresholds."""
    if isinstance(document, dict):
        for key, value in document.items():
            if not named:
                yield key
            yield from keys_of(value, named=not named and key in BY_NAME)
    elif isinstance(document, list):
        for each in document:
            yield from keys_of(each)


async def test_every_key_of_the_file_of_metrics(tmp_path: Path) -> None:
    """And none that is not there."""
    section = PAGE.partition("\n## Counts of the phases\n")[2].partition("\n## ")[0]
    output = tmp_path / "output.json"
    start, *events = make_run(error_rate=0.2)
    metrics = Registry.load().class_of("consumer", "metrics")
    await run_consumer(metrics, start, make_event(Verdict), *events, output=output)
    found = {*keys_of(json.loads(output.read_text()))}
    assert found - {*re.findall(r"`(\w+)`", section)} == {"runs"}
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    assert {*re.findall(r"`(\w+)`", " ".join(first_cells))} - found == set()
