"""`phase-bus compare` as it is typed: sides, forms, exit codes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from phase_bus.journal.baselines import RunSource, set_baseline
from tests.support.commands import exit_code
from tests.support.journals import T0, Made, Phase, sweep_of, write_journal


def run(name: str, label: str, slower: float, seed: int) -> Made:
    return Made(
        name,
        [Phase("profiling", 10.0 * slower, 400, 100.0 * slower, 0.05, 0.01)],
        start={"label": label, "models": ("m",)},
        seed=seed,
        start_ns=T0 + seed * 60_000_000_000,
    )


RUNS = [
    *(run(f"a{n}", "before", 1 + n / 1000, n) for n in range(4)),
    *(run(f"s{n}", "same", 1.001 + n / 1000, 10 + n) for n in range(4)),
    *(run(f"b{n}", "after", 1.1 + n / 1000, 20 + n) for n in range(4)),
]


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the one journal of the user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return write_journal(tmp_path / "phase-bus" / "exec-1", *RUNS)


def compare(*arguments: str) -> int:
    return exit_code("compare", *arguments)


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    compare(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def test_text_has_the_verdict_first_and_fits(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("before", "after") == 1
    text = capsys.readouterr().out
    assert text.startswith("REGRESSED: 8 of 9 metrics regressed")
    assert max(map(len, text.splitlines())) <= 80
    assert compare("before", "same") == 0
    text = capsys.readouterr().out
    assert "regressed" not in text.lower()
    assert "95%" in text
    assert compare("after", "before") == 0
    assert capsys.readouterr().out.startswith("IMPROVED")


def test_sides_by_every_name(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_baseline("main", [RunSource(journal / "journal.sqlite", f"a{n}") for n in range(4)])

    def runs(text: str) -> list[str]:
        found = document(capsys, text, "s0,s1")
        return [run["run_id"] for run in found["base"]["runs"]]

    assert runs("main") == runs("baseline:main") == runs("before") == ["a0", "a1", "a2", "a3"]
    assert runs("a1") == runs("run:a1") == ["a1"]
    assert runs("latest") == ["b3"]
    assert runs("a1, after,a1") == ["a1", "b0", "b1", "b2", "b3"]
    assert "baselines" in document(capsys, "main", "s0")["base"]["runs"][0]["journal"]


def test_variations_of_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    data = write_journal(tmp_path / "sweep", *sweep_of("s", [1, 2]))
    found = document(capsys, "s/concurrency=1", "sweep:s/concurrency=2", "--data", str(data))
    assert found["verdict"] == "regressed"
    assert [len(found[side]["runs"]) for side in ("base", "candidate")] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("befor", "after"), ["'befor'", "did you mean 'before'"]),
        (("label:a0", "after"), ["'label:a0'"]),
        (("a0,nobody", "after"), ["'nobody'"]),
        (("before", "a1"), ["'a1'", "both sides"]),
        (("before", "after", "--margin", "0"), ["--margin '0'", "3%"]),
        (("before", "after", "--margin", "request_latencyy=3%"), ["did you mean 'request_latency"]),
        (("before", "after", "--metric", "error_rate:p5"), ["leave 'p5' out"]),
        (("before", "after", "--json", "--format", "html"), ["--json"]),
    ],
)
def test_errors_are_one_line(
    journal: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: list[str]
) -> None:
    assert compare(*arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line


def test_what_is_not_whole_is_refused_and_if_allowed_exits_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = run("s9", "same", 1.0, 30)
    lost.status = "lost"
    data = write_journal(tmp_path, *RUNS[:8], lost)
    arguments = ("before", "same", "--data", str(data))
    assert compare(*arguments) == 2
    assert "run s9: lost" in capsys.readouterr().err
    assert compare(*arguments, "--allow", "incomplete") == 3
    assert "compared all the same: run s9: lost" in " ".join(capsys.readouterr().out.split())


def test_margins_and_metrics(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ("--metric", "request_latency:p50", "--metric", "request_latency:p99", "--margin", "20%")
    found = document(capsys, "before", "after", *wanted, "--margin", "request_latency:p99=1%")
    assert [(each["margin_pct"], each["verdict"]) for each in found["metrics"]] == [
        (20.0, "equivalent"),
        (1.0, "regressed"),
    ]


def test_markdown_and_junit(journal: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert compare("before", "after", "--format", "markdown", "--junit", "v.xml") == 1
    text = capsys.readouterr().out
    assert text.startswith("**REGRESSED: 8 of 9 metrics regressed")
    assert "| **regressed** | latency p50, ms |" in text
    top = ET.parse(tmp_path / "v.xml").getroot()  # noqa: S314 - our own
    assert (top.get("tests"), top.get("failures"), top.get("skipped")) == ("9", "8", "1")
    failed = [case.get("name") for case in top.iter("testcase") if case.find("failure") is not None]
    assert "request_latency:p50" in failed


def test_html_goes_to_a_file(journal: Path, tmp_path: Path) -> None:
    assert compare("before", "after", "--format", "html", "--output", "c.html") == 1
    page = (tmp_path / "c.html").read_text()
    assert "REGRESSED" in page
    assert page.count("data-figure=") == 9
    assert page.count('class="difference"') == 9


def test_a_report_has_the_comparison_with_a_base(
    journal: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def report(*arguments: str) -> int:
        return exit_code("report", "b0", *arguments)

    assert report("--against", "before", "--format", "html", "--output", "r.html") == 0
    page = (tmp_path / "r.html").read_text()
    assert "Against before: 4 runs" in page
    assert 'class="differences"' in page
    assert report("--against", "before") == 2
    assert "--format html" in capsys.readouterr().err
    assert report("--format", "html", "--output", "plain.html") == 0
    assert "Against" not in (tmp_path / "plain.html").read_text()
