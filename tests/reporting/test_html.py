"""Results as one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phase_bus.errors import ConfigError
from phase_bus.events import EventBase, Verdict
from phase_bus.reporting.figures import run_figures
from phase_bus.reporting.html import run_html, sweep_html
from phase_bus.reporting.source import PastRun, compute, published
from tests.support.journals import HOSTILE, T0, Made, Phase, a_summary, sweep_of, write_journal
from tests.support.sweeps import sweep_document


class Page(HTMLParser):
    """What a browser makes of a page: its elements, the text between them, and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element of a kind."""
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(tmp_path: Path, made: Made) -> Page:
    """Return a run's page."""
    return Page(run_html(compute(write_journal(tmp_path, made), made.run_id)))


def figures_of(page: Page) -> Any:
    """Return the plots of a page by key."""
    return json.loads(page.scripts[0])


THREE = [
    Phase("warmup", 3, 60, kind="warmup"),
    Phase("steady", 20, 2000, 120, error_rate=0.01),
    Phase("peak", 10, 3000, 400, error_rate=0.08, pause_s=5),
]


def test_the_plots_have_a_point_for_each_window(tmp_path: Path) -> None:
    """With the numbers of the summary, in ms; a pause is a gap, not a line."""
    run = compute(write_journal(tmp_path, Made("r", THREE)), "r")
    windows = run.summary["overall"]["windows"]
    figures = {figure.key: figure for figure in run_figures(run.summary, run.phases)}
    assert list(figures) == [
        "request_latency",
        "distribution",
        "throughput",
        "time_to_first_token",
        "inter_token_latency",
        "output_token_throughput_per_user",
    ]
    assert set(windows["metrics"]) == set(figures) - {"distribution", "throughput"}
    p50, p99 = figures["request_latency"].series
    assert (p99.name, p50.name) == ("p99", "p50")
    for line in (p99, p50):
        expected = windows["metrics"]["request_latency"][line.name]
        assert len(figures["request_latency"].x.values) == len(line.y) == len(expected)
        assert [y is None for y in line.y] == [value is None for value in expected]
        assert None in line.y
        pairs = [(y, v / 1e6) for y, v in zip(line.y, expected, strict=True) if v is not None]
        assert all(y == pytest.approx(value, rel=1e-4) for y, value in pairs)
    good, failed = (sum(y for y in line.y if y) for line in figures["throughput"].series)
    width_s = windows["width_s"]
    assert good * width_s == pytest.approx(run.summary["overall"]["successful"], rel=1e-3)
    assert failed * width_s == pytest.approx(run.summary["overall"]["failed"], rel=1e-3)
    bands = figures["request_latency"].bands
    assert [band["name"] for band in bands] == ["warmup", "steady", "peak"]
    marked = [band[end] for band in bands for end in ("from", "to")]
    assert marked == pytest.approx([0, 3, 3, 23, 28, 38], abs=1.0)


def test_percentiles_of_plots_are_as_fine_as_others(tmp_path: Path) -> None:
    """Not in steps of 4 %, as those of a state that is kept; nothing else differs."""
    journal = write_journal(tmp_path, Made("r", [Phase("profiling", 10, 5000)]))
    coarse, fine = compute(journal, "r"), compute(journal, "r", fine=True)
    lines = [
        run.summary["overall"]["windows"]["metrics"]["request_latency"]["p50"] for run in (coarse, fine)
    ]
    assert len(set(lines[0])) < len(set(lines[1])) > 5
    assert lines[0] == pytest.approx(lines[1], rel=0.025)
    assert fine.summary["overall"]["windows"]["relative_error"] == coarse.summary["relative_error"]
    for run in (coarse, fine):
        for part in (*run.summary["phases"], run.summary["overall"]):
            del part["windows"]
    assert coarse.summary == fine.summary


@pytest.mark.parametrize(
    ("before_s", "begins_s", "since"),
    [
        (0, 0, "the run began"),
        (7, 7, "the run began"),
        (4000, 0, "the first phase began"),
        (-5, 0, "the first phase began"),
    ],
)
def test_time_counts_from_the_start_of_the_run(
    tmp_path: Path, before_s: int, begins_s: int, since: str
) -> None:
    """Not from the first answer; and not from a start that a clock has put anywhere."""
    run = compute(write_journal(tmp_path, Made("r", [Phase("profiling", 100, 2)])), "r")
    figure = run_figures(run.summary, run.phases, T0 - before_s * 10**9)[0]
    places = [x for x, y in zip(figure.x.values, figure.series[0].y, strict=True) if y is not None]
    assert places == pytest.approx([25 + begins_s, 75 + begins_s], abs=1.0)
    assert figure.bands[0]["from"] == pytest.approx(begins_s)
    assert figure.x.range[0] == 0
    assert figure.x.title == f"s since {since}"


def test_the_distribution_has_every_request_of_each_phase(tmp_path: Path) -> None:
    run = compute(write_journal(tmp_path, Made("r", THREE)), "r")
    (figure,) = (f for f in run_figures(run.summary, run.phases) if f.key == "distribution")
    assert [line.name for line in figure.series] == ["warmup", "steady", "peak"]
    assert [line.hidden for line in figure.series] == [True, False, False]
    edges = figure.x.values
    assert edges == sorted(edges)
    for line, phase in zip(figure.series, run.summary["phases"], strict=True):
        shares = [y or 0.0 for y in line.y]
        assert sum(shares) == pytest.approx(100.0, rel=1e-3)
        assert 0 <= min(shares) <= max(shares) <= 100
        # Half of the requests lie below the median, wherever the bins are.
        median_ms = phase["metrics"]["request_latency"]["p50"] / 1e6
        below = sum(y for x, y in zip(edges[1:], shares, strict=False) if x <= median_ms)
        above = sum(y for x, y in zip(edges, shares, strict=True) if x >= median_ms)
        assert below <= 52
        assert above <= 52
    assert figure.x.log


def test_a_page_is_light(tmp_path: Path) -> None:
    """Also one of many windows and phases; a plotting library alone had 4.6 MB."""
    made = Made("r", [Phase(f"phase {n}", 100, 1500, error_rate=0.1) for n in range(12)])
    page = run_html(compute(write_journal(tmp_path, made), "r", fine=True))
    assert len(page.encode()) < 400_000


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    """No element refers to anything outside, and only our two scripts may run."""
    page = page_of(tmp_path, Made("r", THREE))
    for tag, attributes in page.tags:
        assert "src" not in attributes, tag
        assert attributes.get("href", "data:,") == "data:,", tag
    assert "url(" not in (Path(sys.modules["phase_bus.reporting.html"].__file__ or "").parent).joinpath(
        "templates", "page.css"
    ).read_text("utf-8")
    (policy,) = (
        str(meta["content"])
        for meta in page.attributes("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    _, *running = page.scripts
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in running]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    assert len(digests) == 2


def test_what_comes_from_outside_stays_text(tmp_path: Path) -> None:
    """Markup in ids, labels, models, URLs, phases and reasons is shown as it is."""
    honest = page_of(tmp_path / "honest", Made("r", [Phase("profiling", 5, 100, error_rate=0.1)]))
    page = page_of(tmp_path / "hostile", HOSTILE)
    known = {tag for tag, _ in honest.tags} | {"section", "p"}
    assert {tag for tag, _ in page.tags} <= known
    assert len(page.scripts) == len(honest.scripts) == 3
    assert page.scripts[1:] == honest.scripts[1:]
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    for text in (
        HOSTILE.run_id,
        HOSTILE.reason,
        HOSTILE.phases[0].name,
        *HOSTILE.start["models"],
        *HOSTILE.start["urls"],
        HOSTILE.start["label"],
        *HOSTILE.start["variation"],
        *HOSTILE.start["variation"].values(),
    ):
        assert text in page.text, text
    # Names in plots are drawn, or put into the page as text.
    figures = figures_of(page)
    assert figures["distribution"]["series"][0]["name"] == HOSTILE.phases[0].name
    assert "<" not in page.scripts[0]


def test_a_sweep_too(tmp_path: Path) -> None:
    runs = sweep_of("s", [1], trials=2)
    for run in runs:
        run.start = {**run.start, "variation": HOSTILE.start["variation"]}
    runs[0].status, runs[0].reason = "failed", HOSTILE.reason
    page = Page(sweep_html(sweep_document(tmp_path, *runs, sweep_id="<script>alert(9)</script>")))
    assert len(page.scripts) == 3
    assert not {tag for tag, _ in page.tags} & {"img", "svg", "b", "a"}
    assert "<script>alert(9)</script>" in page.text
    assert HOSTILE.reason in page.text
    assert "<" not in page.scripts[0]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (Made("r"), ["The run has no request records"]),
        (
            Made("r", [Phase("profiling", 5, 50, error_rate=1.0)], status="failed", reason="all failed"),
            [
                "ended as failed: all failed",
                "No request succeeded",
                "50 \u00d7 Internal Server Error (500)",
            ],
        ),
        (
            Made("r", [Phase("profiling", 5, 50)], missing=3, dropped={"records.00.r$": 4}),
            ["INCOMPLETE: 3 of 53 published records did not arrive", "had to drop 4 events"],
        ),
        (Made("r", [Phase("profiling", 5, 50)], status=None), ["The run has not ended"]),
        (
            Made("r", [Phase("profiling", 5, 50)], status="lost", missing=-50),
            ["ended as lost", "announced 0"],
        ),
    ],
)
def test_what_a_reader_must_know_first(tmp_path: Path, made: Made, words: list[str]) -> None:
    """It stands above every number, and the badge is not green."""
    page = page_of(tmp_path, made)
    for text in words:
        assert text in page.text
    assert [section for section in page.attributes("section") if section.get("class") == "warning"]
    assert page.text.index(words[0]) < page.text.index("Made by phase-bus")
    (badge,) = (str(a["class"]) for a in page.attributes("span") if "badge" in str(a.get("class")))
    assert "good" not in badge


def test_a_good_run_has_no_warning(tmp_path: Path) -> None:
    page = page_of(tmp_path, Made("r", [Phase("profiling", 5, 50)]))
    assert not [section for section in page.attributes("section") if section.get("class") == "warning"]
    assert "badge good" in [a.get("class") for a in page.attributes("span")]


def test_an_empty_run_needs_no_plotting_library(tmp_path: Path) -> None:
    assert page_of(tmp_path, Made("r")).scripts == []


def test_what_a_consumer_published_has_no_distribution(tmp_path: Path) -> None:
    """A note says so; all else is there."""
    made = Made("r", THREE)
    own = compute(write_journal(tmp_path / "own", made), "r")
    made.more = [a_summary("r", "group", own.summary)]
    run = published(write_journal(tmp_path / "by", made), "r", "group")
    assert run.summary == own.summary
    page = Page(run_html(run))
    assert "distribution" not in figures_of(page)
    assert "request_latency" in figures_of(page)
    assert "consumer 'group' published" in page.text


def test_without_jinja_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"jinja2.*pip install 'phase-bus\[report\]'"):
        run_html(PastRun(summary=EMPTY))


EMPTY: dict[str, Any] = {
    "run_id": "r",
    "status": "running",
    "final": False,
    "records": 0,
    "missing_records": None,
    "dropped": {},
    "dropped_records": 0,
    "relative_error": 0.005,
    "phases": [],
    "overall": {"windows": None, "successful": 0},
}


def verdicts_of(run_id: str) -> list[EventBase]:
    """Return the verdicts of a run that a threshold ended."""
    first = Verdict(run_id=run_id, producer="thresholds", threshold="a <b> & c", state="passed", ts_ns=T0)
    told = msgspec.structs.replace(
        first, state="failed", abort=True, value=7e8, limit=5e8, unit="ns", samples=3
    )
    other = Verdict(
        run_id=run_id, producer="thresholds", threshold="d", state="unknown", reason="<i>no</i>"
    )
    return [
        first,
        told,
        msgspec.structs.replace(told, final=True),
        msgspec.structs.replace(other, final=True),
    ]


def test_the_verdicts_of_a_run(tmp_path: Path) -> None:
    """The last ones, in a section of their own; and why the run was cancelled."""
    made = Made("r", THREE, status="cancelled", more=verdicts_of("r"))
    page = page_of(tmp_path, made)
    assert "Thresholds" in page.text
    assert page.text.index("Thresholds") < page.text.index("Phases")
    assert "It ended because 'a <b> & c' failed: 700.00 ms measured, limit 500 ms, 3 samples." in page.text
    assert "<i>no</i>" in page.text
    assert not page.attributes("i")
    badges = [found["class"] for found in page.attributes("span") if "badge" in (found.get("class") or "")]
    assert badges == ["badge bad"] * 3
    assert "0 of 2 thresholds passed, 1 failed, 1 unknown. Judged by thresholds." in page.text
    assert "Thresholds" not in page_of(tmp_path / "other", Made("r", THREE)).text


def test_verdicts_are_no_events_of_the_run(tmp_path: Path) -> None:
    """They neither make it incomplete nor go on with it, whenever they come."""
    journal = write_journal(tmp_path, Made("r", THREE, more=verdicts_of("r")), Made("s", THREE))
    run, other = compute(journal, "r"), compute(journal, "s")
    assert run.is_complete
    assert run.damage == other.damage == ""
    assert {**run.summary, "run_id": "s"} == other.summary
    assert [v.state for v in run.last_verdicts] == ["failed", "unknown"]
    assert run.ended_because == ""  # it completed all the same
