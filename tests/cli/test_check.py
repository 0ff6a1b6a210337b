"""`phase-bus check`: verdicts from journals with known runs, in every form, and the exit code."""

from __future__ import annotations

import json
import sqlite3
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from phase_bus.events import Records, Verdict
from phase_bus.journal.baselines import RunSource, set_baseline
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.source import compute
from tests.support.commands import run_here
from tests.support.journals import T0, Made, Phase, write_journal
from tests.support.workplace import Workplace

PHASES = [
    Phase("warmup", 1, 20, latency_ms=300.0, kind="warmup"),
    Phase("profiling", 10, 500, error_rate=0.05),
]
ONE = Made("one", PHASES)
FAILURES = sum(len(event.errors) for event in ONE.events() if isinstance(event, Records))


class Done(NamedTuple):
    """What came of the command."""

    code: int
    out: str
    err: str


Check = Callable[..., Done]


@pytest.fixture
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's journals are."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state" / "phase-bus"


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str], journals: Path) -> Check:
    """Run ``phase-bus check`` with thresholds; there are the runs `one` and `two`, the later one."""
    write_journal(journals / "a", ONE)
    write_journal(journals / "b", Made("two", PHASES, start_ns=T0 + 10**12, missing=3))

    def run(run: str, *thresholds: str, more: tuple[str, ...] = ()) -> Done:
        given = [word for each in thresholds for word in ("--threshold", each)]
        done = Done(*run_here(capsys, "check", run, *given, *more))
        assert all(line.startswith("phase-bus: ") for line in done.err.splitlines()), done.err
        return done

    return run


def document(done: Done) -> dict[str, Any]:
    """Return what was printed as JSON."""
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_a_run_that_keeps_to_it(check: Check, journals: Path) -> None:
    """What is measured is what the report says, and every threshold passes."""
    (profiling,) = [
        phase
        for phase in compute(journals / "a" / "journal.sqlite", "one").summary["phases"]
        if phase["name"] == "profiling"
    ]
    done = check(
        "one",
        "time_to_first_token p99 < 1 s",
        "error_rate<=10%",
        "request_throughput > 20/s",
        more=("--json",),
    )
    assert done.code == 0
    found = document(done)
    assert found["run_id"] == "one"
    assert found["passed"]
    assert [(each["threshold"], each["state"], each["value"]) for each in found["verdicts"]] == [
        (
            "profiling time_to_first_token p99 < 1000 ms",
            "passed",
            pytest.approx(profiling["metrics"]["time_to_first_token"]["p99"]),
        ),
        ("profiling error_rate <= 10 %", "passed", pytest.approx(FAILURES / 500)),
        (
            "profiling request_throughput > 20 requests/s",
            "passed",
            pytest.approx((500 - FAILURES) / 10),
        ),
    ]
    assert [each["state"] for each in found["changes"]] == ["passed"] * 3
    assert all(each["final"] for each in found["verdicts"])


@pytest.mark.parametrize(
    ("run", "thresholds", "code", "said"),
    [
        ("one", ["error_rate < 1 %"], 4, ["failed", "1 %", "the threshold failed"]),
        ("one", ["error_rate < 50 %", "error_rate < 1 %"], 4, ["1 of 2 thresholds passed, 1 failed"]),
        ("one", ["my_metric p50 < 1"], 4, ["unknown", "the threshold is unknown"]),
        ("one", ["error_rate < 50 %, at least 501 samples"], 4, ["unknown"]),
        ("one", ["warmup request_latency p50 > 1 ms"], 0, ["the threshold passed"]),
        ("latest", ["error_rate < 50 %"], 4, ["run two", "unknown", "3 records"]),
        ("latest", ["error_rate < 1 %"], 4, ["run two", "failed"]),
    ],
)
def test_exit_codes(check: Check, run: str, thresholds: list[str], code: int, said: list[str]) -> None:
    """What failed, has no data, or is of a run that lacks records, is no pass."""
    done = check(run, *thresholds)
    assert done.code == code
    for words in said:
        assert words in done.out


def test_each_change_is_shown(check: Check, journals: Path) -> None:
    """With its time in the run, and its place in the journal: here the end of the profiling phase."""
    lines = check("one", "request_latency p50 < 1 ms").out.splitlines()
    assert lines[0].split() == ["AFTER", "OFFSET", "STATE", "THRESHOLD", "MEASURED", "SAMPLES"]
    done = check("one", "request_latency p50 < 1 ms", more=("--json",))
    (told,) = document(done)["changes"]
    assert lines[1].split()[:4] == [
        f"{(told['ts_ns'] - T0) / 1e9:,.0f}",
        "s",
        str(told["offset"]),
        "failed",
    ]


def test_files_for_others(check: Check, tmp_path: Path) -> None:
    """JUnit's XML and a table in Markdown have every threshold, by its one spelling."""
    more = ("--junit", "v.xml", "--markdown", "v.md")
    assert check("one", "error_rate<1%", "error_rate<50%", more=more).code == 4
    suite = ET.parse(tmp_path / "v.xml").getroot().find("testsuite")  # noqa: S314 - ours
    assert suite is not None
    failed = {case.get("name"): case.find("failure") is not None for case in suite.iter("testcase")}
    assert failed == {"profiling error_rate < 1 %": True, "profiling error_rate < 50 %": False}
    table = (tmp_path / "v.md").read_text()
    assert "| **failed** | `profiling error_rate < 1 %` |" in table
    assert "| passed | `profiling error_rate < 50 %` |" in table


def test_what_was_judged_is_judged_again(check: Check, journals: Path) -> None:
    """Without thresholds, by those whose verdicts are in the run's journal."""
    verdicts: list[Any] = [
        Verdict(
            run_id="three", ts_ns=T0, producer="thresholds", threshold=text, state="unknown", final=final
        )
        for text in ("profiling error_rate < 1 %", "profiling error_rate < 50 %, abort")
        for final in (False, True)
    ]
    write_journal(journals / "c", Made("three", PHASES, more=verdicts))
    done = check("three", more=("--json",))
    assert done.code == 4
    assert [(each["threshold"], each["state"]) for each in document(done)["verdicts"]] == [
        ("profiling error_rate < 1 %", "failed"),
        ("profiling error_rate < 50 %, abort", "passed"),
    ]


def test_a_file_of_thresholds(check: Check, tmp_path: Path) -> None:
    """Those that a file lists are judged, those of its consumers, and those of the command line."""
    (tmp_path / "bus.yaml").write_text("""
thresholds: ["error_rate < 1 %", {threshold: "error_rate < 50 %", abort: true}]
consumers: [{use: thresholds, name: other, set: {thresholds: [error_rate < 60 %], abort_on_failure: true}}]
""")
    done = check("one", "error_rate < 0.01", "error_rate < 70 %", more=("-c", "bus.yaml", "--json"))
    assert done.code == 4
    assert {each["threshold"]: each["state"] for each in document(done)["verdicts"]} == {
        "profiling error_rate < 1 %": "failed",
        "profiling error_rate < 50 %, abort": "passed",
        "profiling error_rate < 60 %, abort": "passed",
        "profiling error_rate < 70 %": "passed",
    }


def test_a_baseline(check: Check, journals: Path) -> None:
    """A limit by a baseline is its runs' value, with what is added to it."""
    slow = Made("slow", [Phase("profiling", 10, 500, latency_ms=50.0)])
    source = write_journal(journals / "d", slow) / "journal.sqlite"
    value = compute(source, "slow").summary["phases"][0]["metrics"]["request_latency"]["p50"]
    set_baseline("main", [RunSource(source, "slow")])
    done = check(
        "one", "request_latency p50 < main + 5 %", "request_latency p50 < main + 1 s", more=("--json",)
    )
    first, second = document(done)["verdicts"]
    assert (first["state"], second["state"]) == ("failed", "passed")
    assert (first["limit"], second["limit"]) == (pytest.approx(value * 1.05), pytest.approx(value + 1e9))


def test_a_run_that_goes_on(check: Check, journals: Path) -> None:
    """What stands so far is no pass: the exit code is 3, or 4 for what has failed already."""
    write_journal(journals / "e", Made("on", PHASES, status=None))
    done = check("on", "error_rate < 50 %", "my_metric p50 < 1")
    assert done.code == 3
    assert "passed so far" in done.out
    assert "unknown so far" in done.out
    assert "has no end yet" in done.err
    assert check("on", "error_rate < 1 %").code == 4


def test_a_damaged_journal(check: Check, journals: Path) -> None:
    """A pass over a journal of which something is left out has the exit code 3."""
    path = journals / "a" / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("UPDATE events SET crc = crc + 1 WHERE offset = 1")  # the run's start
    db.close()
    done = check("one", "error_rate < 50 %")
    assert done.code == 3
    assert "1 event is damaged" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("one",), "was not judged by any threshold"),
        (("nine", "--threshold", "error_rate < 1 %"), "there is no run 'nine'"),
        (("one", "--threshold", "error_rate"), "character 11"),
        (("one", "--threshold", ""), "character 1"),
        (("one", "--threshold", "error_rate < nowhere"), "there is no baseline 'nowhere'"),
        (("one", "--threshold", "error_rate < 1 %", "--junit", "no/where/at/all.xml"), "--junit"),
        (("one", "-c", "empty.yaml"), "there are no thresholds in it"),
        (("one", "-c", "wrong.yaml"), "character 11"),
    ],
)
def test_one_clear_line(check: Check, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """What the user can put right is one line, and exit code 2."""
    (tmp_path / "empty.yaml").write_text("consumers: [logging]\n")
    (tmp_path / "wrong.yaml").write_text(
        "consumers: [{use: thresholds, set: {thresholds: ['error_rate']}}]\n"
    )
    done = check(arguments[0], more=arguments[1:])
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert said in line


@pytest.mark.slow
def test_the_same_as_live(workplace: Workplace) -> None:
    """What was judged while a run went on is judged again: each change and end, at its place."""
    texts = [
        "time_to_first_token p99 < 40 ms over 1 s",
        "request_throughput > 100/s for 1 s",
        "error_rate < 50 %",
        "goodput(time_to_first_token < 30 ms, request_latency < 1 s) > 90 %",
        "my_metric p50 < 1",
    ]
    config = {"consumers": [{"use": "thresholds", "set": {"thresholds": texts}}]}
    (workplace.directory / "bus.yaml").write_text(json.dumps(config))
    simulate = (sys.executable, "-m", "phase_bus", "simulate", "--requests", "1500", "--rate", "500")
    workplace.run("exec", "-c", "bus.yaml", "--", *simulate)
    (path,) = (workplace.directory / "state" / "phase-bus").glob("*/journal.sqlite")
    with JournalReader(path) as reader:
        (row,) = reader.runs()
        live = reader.events(row.run_id, Verdict)
    done = workplace.run("check", "latest", "--json")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    again = [msgspec.convert(each, Verdict) for each in found["changes"] + found["verdicts"]]
    assert {verdict.state for verdict in again} == {"passed", "failed", "unknown"}
    assert by_place(again) == by_place(live)


def by_place(verdicts: list[Verdict]) -> list[Verdict]:
    """Return verdicts in their order, whoever gave them."""
    found = [msgspec.structs.replace(verdict, producer="") for verdict in verdicts]
    return sorted(
        found, key=lambda verdict: (verdict.offset, verdict.ts_ns, verdict.final, verdict.threshold)
    )
