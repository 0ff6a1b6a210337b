"""`phase-bus report` in all its forms: real processes, over journals with known runs."""

from __future__ import annotations

import csv
import json
import os
import pty
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from phase_bus.reporting.source import compute
from tests.support.journals import Made, Phase, a_summary, sweep_of, write_journal
from tests.support.workplace import Finished, Workplace, assert_one_line, wait_for

SIMULATE = (sys.executable, "-m", "phase_bus", "simulate")
PHASES = [Phase("warmup", 1, 20, kind="warmup"), Phase("profiling", 10, 500, error_rate=0.05)]


@pytest.fixture
def journals(workplace: Workplace) -> Path:
    """The user's journals: a run `one` in one, a sweep `s` spread over two others."""
    state = workplace.directory / "state" / "phase-bus"
    runs = sweep_of("s", [2, 1], trials=3)
    runs[1].status = "lost"
    one = Made("one", PHASES, start_ns=runs[0].start_ns - 10**12)
    computed = compute(write_journal(workplace.directory / "draft", one), "one").summary
    one.more = [
        a_summary("one", "group", {**computed, "records": 1}, final=False),
        a_summary("one", "group", computed),
        a_summary("one", "other", {"mine": True}),
    ]
    write_journal(state / "a", one)
    write_journal(state / "b", *runs[:2])
    write_journal(state / "c", *runs[2:])
    return state


def report(workplace: Workplace, *arguments: str, code: int = 0) -> Finished:
    """Run the command to its end."""
    done = workplace.run("report", *arguments)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_the_forms_of_a_run(workplace: Workplace, journals: Path) -> None:
    """All of them have the same numbers; a file contains what would be printed."""
    summary = json.loads(report(workplace, "one", "--json").stdout)
    assert report(workplace, "one", "--format", "json").stdout == report(workplace, "one", "--json").stdout
    assert summary["records"] == 520
    text = report(workplace, "one").stdout
    assert "== profiling ==" in text
    assert "== warmup ==" not in text
    assert "== warmup ==" in report(workplace, "one", "--all").stdout
    markdown = report(workplace, "one", "--format", "markdown", "--records", "one.csv").stdout
    assert "| `profiling` | 500 |" in markdown
    with (workplace.directory / "one.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert len(records) == 520
    assert sum(1 for row in records if row["error_type"]) == summary["overall"]["failed"]
    assert report(workplace, "one", "--format", "text").stdout == text
    table = report(workplace, "one", "--format", "csv").stdout
    rows = [r for r in csv.DictReader(StringIO(table)) if r["metric"] == "request_latency"]
    assert [float(r["p99"]) for r in rows[:2]] == [
        phase["metrics"]["request_latency"]["p99"] for phase in summary["phases"]
    ]
    page = report(workplace, "one", "--format", "html").stdout
    assert page.startswith("<!doctype html>")
    assert "<h1>Run <span" in page
    for form, printed in (("csv", table), ("html", page), ("text", text)):
        done = report(workplace, "one", "--format", form, "--output", "report.out")
        assert done.stdout == ""
        assert "report.out" in done.stderr
        assert (workplace.directory / "report.out").read_text("utf-8") == printed
    report(workplace, "one", "--json", "-o", "report.json")
    assert workplace.json("report.json") == summary


def test_html_on_a_terminal_goes_to_a_file(workplace: Workplace, journals: Path) -> None:
    """A page on the screen helps nobody."""
    ours, theirs = pty.openpty()
    try:
        command = "import sys, phase_bus.cli; phase_bus.cli.main()"
        process = workplace.start(
            "/bin/sh",
            "-c",
            f'"$@" >{os.ttyname(theirs)}',
            "sh",
            sys.executable,
            "-c",
            command,
            "report",
            "one",
            "--format",
            "html",
        )
        done = workplace.finish(process)
    finally:
        os.close(theirs)
        os.close(ours)
    assert done.returncode == 0, done.stderr
    assert "phase-bus-one.html" in done.stderr
    assert (workplace.directory / "phase-bus-one.html").read_text("utf-8").startswith("<!doctype html>")


@pytest.mark.slow
def test_what_a_consumer_published(workplace: Workplace, journals: Path) -> None:
    """The last summary of that name; one in another form is printed as it is, and as nothing else."""
    by = json.loads(report(workplace, "one", "--by", "group", "--json").stdout)
    assert by == json.loads(report(workplace, "one", "--json").stdout)
    assert "520 records" in report(workplace, "one", "--by", "group").stdout
    assert (
        "consumer &#39;group&#39; published"
        in report(workplace, "one", "--by", "group", "--format", "html").stdout
    )
    assert json.loads(report(workplace, "one", "--by", "other", "--json").stdout) == {"mine": True}


@pytest.mark.slow
def test_a_sweep_over_several_journals(workplace: Workplace, journals: Path) -> None:
    """All runs of it count, wherever they are; `latest` is the sweep of the newest run."""
    document = json.loads(report(workplace, "--sweep", "s", "--json").stdout)
    assert [v["name"] for v in document["variations"]] == ["concurrency=1", "concurrency=2"]
    assert [v["trials"] for v in document["variations"]] == [3, 2]
    assert len({run["journal"] for run in document["runs"]}) == 2
    assert [run["run_id"] for run in document["runs"] if run["left_out"]] == ["s-2-1"]
    text = report(workplace, "--sweep", "latest").stdout
    assert "LEFT OUT: run s-2-1" in text
    assert "== concurrency=2: 2 complete trials, 1 left out ==" in text
    rows = list(csv.DictReader(StringIO(report(workplace, "--sweep", "s", "--format", "csv").stdout)))
    assert {row["variation.concurrency"] for row in rows} == {"1", "2"}
    assert "<h1>Sweep <span" in report(workplace, "--sweep", "s", "--format", "html").stdout
    one = json.loads(report(workplace, "--sweep", "s", "--data", str(journals / "b"), "--json").stdout)
    assert len(one["runs"]) == 2
    runs = json.loads(workplace.run("runs", "--json").stdout)
    assert [(run["sweep_id"], run["trial"]) for run in runs if run["run_id"] == "s-1-2"] == [("s", 2)]
    assert "s #2" in workplace.run("runs").stdout


CASES = {
    "neither run nor sweep": ([], ["name a run", "'latest'", "phase-bus runs"]),
    "both": (["one", "--sweep", "s"], ["'one'", "--sweep"]),
    "no such sweep": (["--sweep", "t"], ["'t'", "known: latest, s"]),
    "no such consumer": (["one", "--by", "grup"], ["'grup'", "did you mean 'group'"]),
    "a form of its own": (["one", "--by", "other"], ["'other'", "--format json"]),
    "by, of a sweep": (["--sweep", "s", "--by", "group"], ["--by"]),
    "warm-up of a run": (["one", "--warmup"], ["--warmup", "--sweep"]),
    "two forms": (["one", "--json", "--format", "csv"], ["--json", "--format csv"]),
    "all, but no text": (["one", "--all", "--format", "html"], ["--all", "text"]),
    "records of an unknown kind": (["one", "--records", "r.xlsx"], ["r.xlsx", ".csv", ".parquet"]),
    "records of a sweep": (["--sweep", "s", "--records", "r.csv"], ["--records", "one run"]),
    "unknown form": (["one", "--format", "pdf"], ["pdf"]),
    "no such directory": (["one", "-o", "/proc/nothing/r.txt"], ["/proc/nothing/r.txt", "--output"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line(workplace: Workplace, journals: Path, name: str) -> None:
    arguments, words = CASES[name]
    done = workplace.run("report", *arguments)
    assert_one_line(done.returncode, done.stderr, *words)


@pytest.mark.slow
def test_a_simulated_sweep(workplace: Workplace) -> None:
    """Two variations, two trials each, by `simulate` on one bus, are one sweep in the report."""
    address = f"ipc://{workplace.directory}/bus"
    bus = workplace.phase_bus("bus", "--address", address)
    wait_for(lambda: "bus ready at" in workplace.stdout(bus), "the bus")
    medians_ms = {1: 20, 8: 60}
    for concurrency, ttft_ms in medians_ms.items():
        done = workplace.run(
            *("simulate", "-n", "400", "-r", "0", "--runs", "2", "--address", address),
            *("--sweep-id", "try", "--variation", f"concurrency={concurrency}"),
            *("--ttft-ms", str(ttft_ms)),
        )
        assert done.returncode == 0, done.stderr
    bus.terminate()
    assert workplace.finish(bus).returncode == 0
    document = json.loads(report(workplace, "--sweep", "latest", "--json").stdout)
    assert document["sweep_id"] == "try"
    assert [(run["variation"], run["trial"]) for run in document["runs"]] == [
        ("concurrency=1", 0),
        ("concurrency=1", 1),
        ("concurrency=8", 0),
        ("concurrency=8", 1),
    ]
    for variation, ttft_ms in zip(document["variations"], medians_ms.values(), strict=True):
        metric = variation["phases"][0]["metrics"]["time_to_first_token"]["statistics"]["p50"]
        assert metric["n"] == 2
        assert metric["mean"] == pytest.approx(ttft_ms * 1e6, rel=0.1)


@pytest.mark.slow
@pytest.mark.aiperf
@pytest.mark.timeout(400)
def test_a_sweep_of_aiperf(
    workplace: Workplace, aiperf: Callable[..., list[str]], mock_llm: Callable[..., str]
) -> None:
    """Means and confidence intervals are those that AIPerf itself writes for each variation, down to 0."""
    options = ("--concurrency", "2,8", "--num-profile-runs", "2", "--request-count", "30")
    command = workplace.phase_bus("exec", "--", *aiperf(mock_llm(), *options))
    done = workplace.finish(command, 350.0)
    assert done.returncode == 0, done.stderr[-4000:]
    document = json.loads(report(workplace, "--sweep", "latest", "--json").stdout)
    assert [run["trial"] for run in document["runs"]] == [0, 0, 1, 1]
    assert len(document["variations"]) == 2
    for variation in document["variations"]:
        (concurrency,) = variation["variation"].values()
        directory = f"aiperf-out/aggregate/concurrency_{concurrency}"
        theirs = workplace.json(f"{directory}/profile_export_aiperf_aggregate.json")["metrics"]
        ours = variation["phases"][0]["metrics"]
        for metric in ("request_latency", "time_to_first_token", "inter_token_latency"):
            for statistic, suffix in (("mean", "avg"), ("p50", "p50"), ("p99", "p99")):
                found, expected = ours[metric]["statistics"][statistic], theirs[f"{metric}_{suffix}"]
                assert found["n"] == 2
                for name, key in (("mean", "mean"), ("ci95_low", "ci_low"), ("ci95_high", "ci_high")):
                    # A time is not negative; Student's t does not know that, nor does AIPerf say it.
                    wanted = max(expected[key], 0.0)
                    assert found[name] / 1e6 == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variation", "concurrency"], ["--variation", "key=value"]),
        (["--ttft-ms", "0"], ["--ttft-ms"]),
    ],
)
def test_simulate_says_what_is_wrong(workplace: Workplace, arguments: list[str], words: list[str]) -> None:
    done = workplace.run("simulate", *arguments)
    assert_one_line(done.returncode, done.stderr, *words)
