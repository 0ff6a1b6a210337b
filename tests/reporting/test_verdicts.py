"""Verdicts as rows, text, Markdown, JUnit's XML and JSON."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phase_bus.core.printable import printable
from phase_bus.events import EventBase, RunComplete, RunStatus, Verdict
from phase_bus.journal.reader import JournalReader
from phase_bus.reporting.verdicts import (
    NO_FINAL,
    all_passed,
    describe_verdict,
    ended_because,
    last_verdicts,
    verdict_rows,
    verdicts_document,
    verdicts_in_brief,
    verdicts_junit,
    verdicts_markdown,
    verdicts_text,
)
from tests.support.journals import Made, write_journal

LATENCY = "profiling request_latency p99 < 500 ms"
SHARE = "profiling goodput(time_to_first_token < 500 ms, inter_token_latency < 20 ms) > 95 % over 30 s"
RATE = "profiling output_token_throughput > 100 tokens/s"
HOSTILE = 'a\x1b[2J|`b`<script>&"c"\n@all \u202e\ufffe\x00 | d'


def verdict(threshold: str = LATENCY, state: str = "passed", **fields: Any) -> Verdict:
    """Return a final verdict."""
    given: dict[str, Any] = {"value": 312.4e6, "limit": 5e8, "unit": "ns", "samples": 12345, "final": True}
    given |= {"run_id": "run", "producer": "thresholds", "ts_ns": 10**9} | fields
    return Verdict(threshold=threshold, state=state, **given)  # type: ignore[arg-type]


FINAL = (
    verdict(),
    verdict(SHARE, "failed", value=0.91234, limit=0.95, unit="fraction"),
    verdict(RATE, "unknown", value=None, limit=100, unit="tokens/sec", samples=0, reason="no tokens came"),
)


def cases(document: str) -> list[ET.Element]:
    """Return the test cases of a document, after a look at its shape: what JUnit's readers expect."""
    root = ET.fromstring(document)  # noqa: S314 - it is our own
    assert root.tag == "testsuites"
    found = []
    for suite in root:
        assert suite.tag == "testsuite"
        assert suite.attrib.keys() == {
            "name",
            "timestamp",
            "tests",
            "failures",
            "errors",
            "skipped",
            "time",
        }
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
        assert [child.tag for child in suite] == ["properties"] + ["testcase"] * (len(suite) - 1)
        assert {p.tag for p in suite[0]} == {"property"}
        assert {frozenset(p.attrib) for p in suite[0]} == {frozenset(("name", "value"))}
        of_suite = suite.findall("testcase")
        for case in of_suite:
            assert case.attrib.keys() == {"name", "classname", "time"}
            assert [child.tag for child in case] in (["failure"], ["system-out"])
            for failure in case.findall("failure"):
                assert failure.attrib.keys() == {"type", "message"}
        assert int(suite.attrib["tests"]) == len(of_suite)
        assert int(suite.attrib["failures"]) == sum(case.find("failure") is not None for case in of_suite)
        found += of_suite
    assert int(root.attrib["tests"]) == len(found)
    assert len({(case.attrib["classname"], case.attrib["name"]) for case in found}) == len(found)
    return found


def test_rows_are_in_the_units_that_people_read() -> None:
    rows = verdict_rows(FINAL)
    assert [row.measured for row in rows] == ["312.40 ms", "91.23 %", "-"]
    assert [row.limit for row in rows] == ["500 ms", "95 %", "100 tokens/s"]
    assert [row.samples for row in rows] == ["12,345", "12,345", "0"]
    assert rows[2].details == "nothing measured, limit 100 tokens/s, 0 samples; no tokens came"


def test_what_is_not_the_same_does_not_look_the_same() -> None:
    """Else a threshold would seem to fail at its limit."""
    (row,) = verdict_rows([verdict(state="failed", value=500_000_100.0)])
    assert (row.measured, row.limit) == ("500.0001 ms", "500 ms")
    (row,) = verdict_rows([verdict(state="failed", value=5e8)])
    assert (row.measured, row.limit) == ("500.00 ms", "500 ms")


def test_the_last_of_each_producer_counts() -> None:
    before = verdict(state="failed", final=False)
    other = verdict(producer="mine", state="failed")
    assert last_verdicts([before, verdict(), other]) == [verdict(), other]


@pytest.mark.parametrize("state", ["passed", "failed", "unknown"])
def test_without_a_final_verdict_it_is_unknown(state: str) -> None:
    """A consumer that died had no chance to see the end."""
    (last,) = last_verdicts([verdict(), verdict(state=state, final=False)])
    assert (last.state, last.final, last.reason) == ("unknown", True, NO_FINAL)
    (now,) = last_verdicts([verdict(state=state, final=False)], over=False)
    (row,) = verdict_rows([now])
    assert (row.state, row.passed) == (f"{state} so far", False)
    assert row.is_open is (state != "failed")
    assert not all_passed([now])


def test_nothing_is_no_pass() -> None:
    assert not all_passed([])
    assert all_passed([verdict()])
    assert not all_passed(FINAL)
    assert verdicts_in_brief([]) == "no threshold was judged"
    assert verdicts_in_brief(FINAL) == "1 of 3 thresholds passed, 1 failed, 1 unknown"
    assert verdicts_in_brief([verdict()] * 2) == "both thresholds passed"
    assert verdicts_in_brief([verdict()] * 3) == "all 3 thresholds passed"
    assert [verdicts_in_brief([each]) for each in FINAL] == [
        "the threshold passed",
        "the threshold failed",
        "the threshold is unknown",
    ]
    assert not verdicts_document([])["passed"]


def test_a_text_fits_80_columns_and_needs_no_colour() -> None:
    text = verdicts_text([*FINAL, verdict(run_id="other")])
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert text.splitlines()[0] == "Thresholds of run run:"
    assert re.findall("^(passed|failed|unknown)", text, re.MULTILINE) == [v.state for v in FINAL] + [
        "passed"
    ]
    words = " ".join(text.split())
    assert "no tokens came" in words
    assert "Thresholds of run other:" in words


def test_a_reason_keeps_its_indent_where_it_is_folded() -> None:
    """It belongs to the threshold above it."""
    told = verdict(SHARE, "failed", reason="in 12 of 60 windows, the first 17 s after the phase began")
    _, header, *lines = verdicts_text([told]).splitlines()
    column = header.index("THRESHOLD")
    first = next(n for n, line in enumerate(lines) if "in 12" in line)
    reason = lines[first : lines.index("")]
    assert len(reason) > 1
    assert all(line.startswith(" " * (column + 2)) for line in reason)


def test_a_line_says_all() -> None:
    assert describe_verdict(FINAL[0]) == (
        f"'{LATENCY}' passed: 312.40 ms measured, limit 500 ms, 12,345 samples"
    )
    assert describe_verdict(verdict(samples=1)).endswith("1 sample")


def test_markdown_is_one_table() -> None:
    lines = verdicts_markdown(FINAL).splitlines()
    assert lines[0] == "**Thresholds of run `run`: 1 of 3 thresholds passed, 1 failed, 1 unknown**"
    assert lines[4] == f"| passed | `{LATENCY}` | 312.40 ms | 500 ms | 12,345 |  |"
    assert lines[5].startswith(f"| **failed** | `{SHARE}` | 91.23 % | 95 % |")
    several = verdicts_markdown([*FINAL, verdict(run_id="other")]).splitlines()
    assert several[2].startswith("| run | verdict | threshold |")
    assert several[-1].startswith("| `other` | passed |")


def test_names_in_markdown_are_no_markup() -> None:
    hostile = verdict(HOSTILE, "failed", run_id=HOSTILE, producer=HOSTILE, reason=HOSTILE)
    *_, line = verdicts_markdown([hostile]).splitlines()
    cells = re.split(r"(?<!\\)\|", line)[1:-1]
    assert len(cells) == 6
    threshold, reason = cells[1].strip(), cells[5].strip()
    assert threshold == "``" + printable(HOSTILE).replace("|", "\\|") + "``"
    assert "\\<script\\>" in reason
    assert "\\@all" in reason


def test_junit_has_a_case_for_each_threshold() -> None:
    """And what is unknown fails."""
    passed, failed, unknown = cases(verdicts_junit(FINAL))
    assert passed.attrib["name"] == LATENCY
    assert passed.findtext("system-out") == "312.40 ms measured, limit 500 ms, 12,345 samples"
    failure = failed.find("failure")
    assert failure is not None
    assert failure.attrib == {"type": "failed", "message": "91.23 % measured, limit 95 %, 12,345 samples"}
    assert failure.text == f"'{SHARE}' failed: {failure.attrib['message']}; run run"
    failure = unknown.find("failure")
    assert failure is not None
    assert failure.attrib["type"] == "unknown"
    assert failure.attrib["message"].endswith("no tokens came")


def test_cases_of_the_next_pipeline_have_the_same_names() -> None:
    """CI compares by class and name; a run's id is new each time."""
    runs = [[verdict(run_id=name + number) for number in "12"] for name in "ab"]
    first, second = (
        [(c.attrib["classname"], c.attrib["name"]) for c in cases(verdicts_junit(v))] for v in runs
    )
    assert first == second
    cases(verdicts_junit([verdict(), verdict(producer="mine")]))  # that have names of their own, too


def test_junit_holds_whatever_a_name_is() -> None:
    (case,) = cases(
        verdicts_junit([verdict(HOSTILE, "failed", run_id=HOSTILE, producer=HOSTILE, reason=HOSTILE)])
    )
    assert case.attrib["name"] == printable(HOSTILE).replace("\ufffe", "\ufffd")
    assert cases(verdicts_junit([])) == []


def test_json_is_in_raw_units() -> None:
    changes = [verdict(state="failed", final=False)]
    document = json.loads(msgspec.json.encode(verdicts_document(FINAL, changes)))
    assert document["passed"] is False
    assert [each["value"] for each in document["verdicts"]] == [312.4e6, 0.91234, None]
    assert msgspec.convert(document["verdicts"], list[Verdict]) == list(FINAL)
    assert msgspec.convert(document["changes"], list[Verdict]) == changes


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        ([verdict(state="failed", final=False, abort=True)], "cancelled", True),
        ([verdict(state="failed", final=False, abort=True)], "lost", True),
        ([verdict(state="failed", final=False, abort=True)], "completed", False),
        ([verdict(state="failed", final=False, abort=True)], None, False),
        ([verdict(state="failed", final=False)], "cancelled", False),
        ([verdict(state="failed", abort=True)], "cancelled", False),  # final: the run was over
        ([verdict(state="passed", final=False, abort=True)], "cancelled", False),
        ([], "cancelled", False),
    ],
)
def test_why_a_run_was_cancelled(
    tmp_path: Path, more: list[EventBase], status: RunStatus | None, told: bool
) -> None:
    journal = write_journal(tmp_path, Made("run", status=status, more=more))
    with JournalReader(journal) as reader:
        reason = ended_because(reader, "run")
    assert reason == (f"ended because {describe_verdict(verdict(state='failed'))}" if told else "")


def test_what_comes_after_the_end_did_not_cause_it(tmp_path: Path) -> None:
    late = verdict(state="failed", final=False, abort=True)
    end = RunComplete(run_id="run", status="cancelled")
    journal = write_journal(tmp_path, Made("run", status=None, more=[end, late]))
    with JournalReader(journal) as reader:
        assert ended_because(reader, "run") == ""
