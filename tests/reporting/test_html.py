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

import pytest

from phase_bus.errors import ConfigError
from phase_bus.reporting.figures import run_figures
from phase_bus.reporting.html import run_html, sweep_html
from phase_bus.reporting.source import PastRun, compute, published
from phase_bus.reporting.sweep import Sweep
from tests.support.journals import HOSTILE, Made, Phase, a_summary, sweep_of, write_journal


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
    p99, p50 = figures["request_latency"].data
    assert (p99["name"], p50["name"]) == ("p99", "p50")
    for trace in (p99, p50):
        expected = windows["metrics"]["request_latency"][trace["name"]]
        assert len(trace["x"]) == len(trace["y"]) == len(expected)
        assert [y is None for y in trace["y"]] == [value is None for value in expected]
        assert None in trace["y"]
        pairs = [(y, v / 1e6) for y, v in zip(trace["y"], expected, strict=True) if v is not None]
        assert all(y == pytest.approx(value, rel=1e-4) for y, value in pairs)
    good, failed = figures["throughput"].data
    width_s = windows["width_s"]
    assert sum(good["y"]) * width_s == pytest.approx(run.summary["overall"]["successful"], rel=1e-3)
    assert sum(failed["y"]) * width_s == pytest.approx(run.summary["overall"]["failed"], rel=1e-3)
    look = figures["request_latency"].layout
    assert [note["text"] for note in look["annotations"]] == ["warmup", "steady", "peak"]
    marked = [shape[end] for shape in look["shapes"] for end in ("x0", "x1")]
    assert marked == pytest.approx([0, 3, 3, 23, 28, 38], abs=1.0)


def test_time_counts_from_the_phase_not_from_the_first_answer(tmp_path: Path) -> None:
    run = compute(write_journal(tmp_path, Made("r", [Phase("profiling", 100, 2)])), "r")
    figure = run_figures(run.summary, run.phases)[0]
    places = [x for x, y in zip(figure.data[0]["x"], figure.data[0]["y"], strict=True) if y is not None]
    assert places == pytest.approx([25, 75], abs=1.0)
    assert figure.layout["shapes"][0]["x0"] == 0
    assert figure.layout["xaxis"]["range"][0] == 0


def test_the_distribution_has_every_request_of_each_phase(tmp_path: Path) -> None:
    run = compute(write_journal(tmp_path, Made("r", THREE)), "r")
    (figure,) = (f for f in run_figures(run.summary, run.phases) if f.key == "distribution")
    assert [trace["name"] for trace in figure.data] == ["warmup", "steady", "peak"]
    assert [trace["visible"] for trace in figure.data] == ["legendonly", True, True]
    for trace, phase in zip(figure.data, run.summary["phases"], strict=True):
        assert sum(trace["y"]) == pytest.approx(100.0)
        assert trace["x"] == figure.data[0]["x"] == sorted(trace["x"])
        # Half of the requests lie below the median, wherever the bins are.
        median_ms = phase["metrics"]["request_latency"]["p50"] / 1e6
        below = sum(y for x, y in zip(trace["x"][1:], trace["y"], strict=False) if x <= median_ms)
        above = sum(y for x, y in zip(trace["x"], trace["y"], strict=True) if x >= median_ms)
        assert below <= 52
        assert above <= 52
    assert figure.layout["xaxis"]["type"] == "log"


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
    # Plotly takes texts for HTML: there it must be escaped once more.
    figures = figures_of(page)
    assert (
        figures["distribution"]["data"][0]["name"]
        == "&lt;b&gt;ph&lt;/b&gt;&lt;script&gt;alert(2)&lt;/script&gt;"
    )
    assert "<" not in json.dumps([f["layout"] for f in figures.values()])
    assert "<" not in page.scripts[0]


def test_a_sweep_too(tmp_path: Path) -> None:
    runs = sweep_of("s", [1], trials=2)
    for run in runs:
        run.start = {**run.start, "variation": HOSTILE.start["variation"]}
    runs[0].status, runs[0].reason = "failed", HOSTILE.reason
    journal = write_journal(tmp_path, *runs)
    sweep = Sweep("<script>alert(9)</script>")
    for run in runs:
        sweep.add(journal, compute(journal, run.run_id))
    page = Page(sweep_html(sweep.document()))
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


@pytest.mark.parametrize("module", ["jinja2", "plotly.offline"])
def test_without_the_libraries_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{module}.*pip install 'phase-bus\[report\]'"):
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
