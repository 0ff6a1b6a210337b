"""The settings of a run, and its report as Markdown."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import msgspec
import pytest

from phase_bus.events import PhasePlan, PhaseRef, PhasesConfigured
from phase_bus.journal.export import export_csv
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.markdown import run_markdown, sweep_markdown
from phase_bus.reporting.settings import run_settings, settings_document
from phase_bus.reporting.source import PastRun, compute
from tests.support.hostile import harmful
from tests.support.journals import HOSTILE, T0, Made, Phase, sweep_of, write_journal
from tests.support.sweeps import sweep_document

PLANS = (
    PhasePlan(phase=PhaseRef("warmup", "warmup", 0), expected_requests=20, concurrency=2),
    PhasePlan(
        phase=PhaseRef("steady", "profiling", 1),
        expected_duration_s=60.0,
        grace_period_s=30.0,
        concurrency=8,
        request_rate=2.5,
    ),
)
START = {
    "producer": "aiperf 0.13.0",
    "command": "aiperf profile --api-key ***",
    "host": "load-1",
    "version": "0.1.0",
    "models": ("m",),
    "urls": ("http://user:pw@h:1/v1",),
    "label": "nightly",
    "trial": 0,
    "options": {"endpoint.streaming": True},
}


def run_of(tmp_path: Path, plans: tuple[PhasePlan, ...] = PLANS) -> PastRun:
    configured = PhasesConfigured(run_id="r", ts_ns=T0, phases=plans)
    phases = [Phase("warmup", 2, 20, kind="warmup"), Phase("steady", 10, 100, error_rate=0.1)]
    made = Made("r", phases, start=START, more=[configured])
    return compute(write_journal(tmp_path, made), "r")


def test_settings_tell_runs_apart(tmp_path: Path) -> None:
    """All that is known, and no trial without a sweep, nor a password of an earlier version."""
    settings = dict(run_settings(run_of(tmp_path)))
    assert settings["command"] == "aiperf profile --api-key ***"
    assert settings["concurrency"] == "8"
    assert settings["request rate"] == "2.5/s"
    assert settings["phases"] == "warmup (20 requests, concurrency 2); steady (60 s, 30 s of grace)"
    assert settings["endpoints"] == "http://***@h:1/v1"
    assert (settings["label"], settings["host"], settings["phase-bus"]) == ("nightly", "load-1", "0.1.0")
    assert (settings["duration"], settings["status"]) == ("12.0 s", "completed")
    assert settings["requests"] == "endpoint.streaming=true"
    assert "trial" not in settings


def test_what_differs_between_phases_is_told_of_each(tmp_path: Path) -> None:
    more = msgspec.structs.replace(PLANS[1], phase=PhaseRef("peak", "profiling", 2), concurrency=16)
    settings = dict(run_settings(run_of(tmp_path, (*PLANS, more))))
    assert settings["concurrency"] == "steady: 8, peak: 16"
    assert settings["request rate"] == "2.5/s"


def test_settings_in_json(tmp_path: Path) -> None:
    document = settings_document(run_of(tmp_path))
    assert document["phases"][1] == {
        "phase": "steady",
        "expected_requests": None,
        "expected_duration_s": 60.0,
        "expected_sessions": None,
        "grace_period_s": 30.0,
        "concurrency": 8,
        "request_rate": 2.5,
    }
    assert document["urls"] == ["http://***@h:1/v1"]
    assert (document["started_ns"], document["duration_s"], document["status"]) == (T0, 12.0, "completed")
    assert msgspec.json.decode(msgspec.json.encode(document)) == document


def test_a_run_without_a_start_has_some(tmp_path: Path) -> None:
    run = PastRun(summary={"run_id": "r", "status": "running"})
    assert run_settings(run) == [("status", "running")]
    assert settings_document(run)["urls"] == []


def test_markdown_begins_with_the_brief_table(tmp_path: Path) -> None:
    """Profiling first; the settings are folded."""
    lines = run_markdown(run_of(tmp_path)).splitlines()
    assert lines[0] == "**Run `r`: completed, 120 records**"
    names = [line.split(" | ")[0] for line in lines if line.startswith("| `")]
    assert names[:3] == ["| `steady`", "| `warmup`", "| `all phases`"]
    assert lines.index("<details><summary>Settings</summary>") > lines.index("")
    assert "| command | `aiperf profile --api-key ***` |" in lines


def test_markdown_has_no_markup_of_others(tmp_path: Path) -> None:
    text = run_markdown(compute(write_journal(tmp_path, HOSTILE), HOSTILE.run_id))
    outside = re.sub(r"(`+).*?\1", "", text)
    assert not re.findall(r"(?<!\\)<(?!/?details>|/?summary>)", outside)
    assert "INCOMPLETE" in text
    assert not harmful(text)


def test_a_sweep_as_markdown(tmp_path: Path) -> None:
    runs = sweep_of("s", [1, 2], trials=2)
    runs[0].status = "lost"
    text = sweep_markdown(sweep_document(tmp_path, *runs))
    assert "- left out: run `s-1-0`" in text
    assert [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| `")] == ["1", "2"]


@pytest.mark.parametrize("name", ["=1+1", "plain"])
def test_records_as_csv(tmp_path: Path, name: str) -> None:
    """A row for each request, with what it has; no text is a formula."""
    made = Made(name, [Phase("profiling", 5, 300, error_rate=0.1)])
    with JournalReader(write_journal(tmp_path / "journal", made)) as reader:
        assert export_csv(reader, name, tmp_path / "r.csv") == 300
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 300
    failed = [row for row in rows if row["error_type"]]
    assert 10 < len(failed) < 60
    assert all(row["error_code"] == "500" and not row["request_latency"] for row in failed)
    assert all(int(row["request_latency"]) > 0 for row in rows if row not in failed)
    assert {row["run_id"] for row in rows} == {f"'{name}" if name.startswith("=") else name}
