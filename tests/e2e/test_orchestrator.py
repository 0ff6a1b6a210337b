"""``examples/orchestrator.py``: the same four classes in the benchmark's process and as processes."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import EXAMPLES, Workplace, json_lines

SCRIPT = EXAMPLES / "orchestrator.py"
FILES = ["metrics.json", "phases.json", "phases.log", "results.json"]


def shown_command() -> list[str]:
    """Return the command that the example shows, for the processes."""
    text = SCRIPT.read_text().replace("\\\\\n", " ")
    (line,) = re.findall(r"^ +(phase-bus exec .*)$", text, re.MULTILINE)
    words = shlex.split(line)
    return [sys.executable, "-m", "phase_bus", *words[1:-3], sys.executable, str(SCRIPT), words[-1]]


def lines_without_times(path: Path) -> list[str]:
    """Return the log's lines, without when each was written and when the phase ended."""
    return [re.sub(r"^\[.*?\] ", "", line) for line in path.read_text().splitlines()]


def without_times(phases: Any) -> Any:
    """Return the phases' metrics without when each event came to each hook."""
    for phase in phases["phases"].values():
        for event in phase["events"]:
            del event["ts_ns"]
    return phases


def test_without_a_bus(workplace: Workplace) -> None:
    """No bus, no network: hooks and processors are called in the process."""
    done = workplace.finish(workplace.start(sys.executable, str(SCRIPT), "alone"))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (workplace.directory / "alone").iterdir()) == FILES
    results = workplace.json("alone/results.json")
    assert results["overall"]["request_counts"]["total"] == 210
    assert list(results["phases"]) == ["warmup", "profiling"]


@pytest.mark.slow
def test_the_same_output_both_ways(workplace: Workplace) -> None:
    """In one run, the classes in the process and those on the bus come to the same."""
    done = workplace.finish(workplace.start(*shown_command()))
    assert done.returncode == 0, done.stderr
    mine, theirs = workplace.directory, workplace.directory / "in-process"
    assert (mine / "results.json").read_bytes() == (theirs / "results.json").read_bytes()
    assert without_times(workplace.json("phases.json")) == without_times(
        workplace.json("in-process/phases.json")
    )
    assert len(lines_without_times(mine / "phases.log")) == 6
    assert lines_without_times(mine / "phases.log") == lines_without_times(theirs / "phases.log")
    (journal,) = (workplace.directory / "state").rglob("journal.sqlite")
    exported = workplace.run("journal", "export", "--data", str(journal.parent))
    results = [event["result"] for event in json_lines(exported.stdout) if event["kind"] == "summary"]
    assert workplace.json("in-process/metrics.json") == [
        {"phase": result["phase"], "metrics": result["metrics"]}
        for result in results
        if result["processor"] == "example_metrics"
    ]
