"""`phase-bus baseline` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from phase_bus.events import Receipt, TopicReceipt
from phase_bus.journal.baselines import baseline_names
from tests.support.commands import exit_code
from tests.support.journals import Made, Phase, write_journal

SHORT = Receipt(run_id="d", consumer="logging", topics={"run_start.d$": TopicReceipt(published=1)})
RUNS = [
    *(Made(name, [Phase("profiling", 1.0, 10)], start={"label": "before"}) for name in ("a", "b")),
    Made("cut", [Phase("profiling", 1.0, 10)], status="cancelled"),
    Made("open", [Phase("profiling", 1.0, 10)], status=None),
    Made("dropped", [Phase("profiling", 1.0, 10)], dropped={"records.00.dropped$": 1}),
    Made("d", [Phase("profiling", 1.0, 10)], more=[SHORT]),
]


@pytest.fixture(autouse=True)
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one journal of the user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return write_journal(tmp_path / "phase-bus" / "exec-1", *RUNS)


def baseline(*arguments: str) -> int:
    return exit_code("baseline", *arguments)


def test_set_show_list_remove(capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline("list") == 0
    assert "no baselines yet" in capsys.readouterr().out
    assert baseline("set", "v1", "a", "b", "a") == 0
    assert "baseline v1 has 2 runs" in capsys.readouterr().err
    assert baseline("show", "v1") == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()] == ["RUN", "a", "b"]
    assert "before" in shown.out
    assert baseline("list", "--json") == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["run_count"], listed["records"]) == ("v1", 2, 20)
    assert baseline("show", "v1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["start"]["label"] for run in told["runs"]] == ["before", "before"]
    assert exit_code("report", "a", "--data", told["journal"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["run_id"] == "a"
    assert baseline("remove", "v1") == 0
    assert baseline_names() == []


def test_runs_by_a_label(capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline("set", "v1", "before") == 0
    assert baseline("set", "v2", "v1", "before") == 0, "another baseline's, each once"
    assert baseline("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(each["name"], each["run_count"]) for each in listed] == [("v1", 2), ("v2", 2)]


@pytest.mark.parametrize("run", ["cut", "open", "dropped", "d"])
def test_what_is_not_whole_is_refused_unless_told(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline("set", "v1", "a", run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"phase-bus: run {run!r}: ")
    assert line.endswith("or allow it with --allow-incomplete")
    assert baseline_names() == []
    assert baseline("set", "v1", "a", run, "--allow-incomplete") == 0
    assert baseline_names() == ["v1"]


def test_mistakes_are_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert baseline("set", "v1", "a") == 0
    capsys.readouterr()
    for arguments, words in (
        (("set", "v1"), "RUN"),
        (("set", "v1", "none"), "'none'"),
        (("set", "no/name", "a"), "not a name"),
        (("show", "v2"), "no baseline 'v2'"),
        (("remove", "v2"), "no baseline 'v2'"),
    ):
        assert baseline(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


@pytest.mark.parametrize("kept", [0, 4 * 4096])
def test_one_that_is_damaged_does_not_hide_the_others(
    kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert baseline("set", "v1", "a") == baseline("set", "v2", "a") == 0
    journal = tmp_path / "phase-bus" / "baselines" / "v1" / "journal.sqlite"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:kept] + b"no journal" * ((len(whole) - kept) // 10))
    capsys.readouterr()
    assert baseline("list") == 0
    said = capsys.readouterr()
    assert "v2" in said.out
    assert "left out" in said.err
