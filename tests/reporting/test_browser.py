"""The report, opened in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from phase_bus.reporting.html import run_html, sweep_html
from phase_bus.reporting.source import compute
from phase_bus.reporting.sweep import Sweep
from tests.support.browser import browse
from tests.support.journals import HOSTILE, Made, Phase, sweep_of, write_journal

pytestmark = pytest.mark.slow  # each starts a browser

THREE = [
    Phase("warmup", 3, 60, kind="warmup"),
    Phase("steady", 40, 4000, 120, error_rate=0.01),
    Phase("peak", 30, 9000, 400, 0.5, error_rate=0.08, pause_s=5),
]


def points(plot: str) -> int:
    """Count the points that are drawn in a plot."""
    return plot.count('class="point"')


def lines(plot: str) -> list[int]:
    """Count the ends of strokes of each line in a plot; those in the legend are left out."""
    drawn = re.findall(r'<path class="js-line"[^>]* d="([^"]*)"', plot)
    ends = [len(re.findall(r"[MLHV]", path)) for path in drawn]
    return [number for number in ends if number > 1]


def test_the_plots_are_drawn(tmp_path: Path, no_leaks: None) -> None:
    """A point a window and percentile; steps of the distribution; no complaint, no request."""
    run = compute(write_journal(tmp_path, Made("r", THREE)), "r")
    (tmp_path / "r.html").write_text(run_html(run), "utf-8")
    seen = browse(tmp_path / "r.html", tmp_path / "profile")
    assert (seen.complaints, seen.requests) == ([], [])
    windows = run.summary["overall"]["windows"]
    for name, metric in windows["metrics"].items():
        with_values = sum(count > 0 for count in metric["count"])
        assert 50 < with_values < len(metric["count"])  # the pause
        assert points(seen.plot(name)) == 2 * with_values
    assert points(seen.plot("throughput")) == 2 * len(windows["requests"])
    distribution = lines(seen.plot("distribution"))
    assert len(distribution) == 2  # the warm-up is not shown until asked for
    assert min(distribution) > 40
    for phase in ("warmup", "steady", "peak"):
        assert f">{phase}</text>" in seen.plot("request_latency")


@pytest.mark.parametrize("width", [360, 800])
def test_it_fits_a_narrow_window(tmp_path: Path, width: int) -> None:
    """Tables scroll in themselves, plots are drawn as narrow as it takes."""
    run = compute(write_journal(tmp_path, Made("r" * 60, THREE)), "r" * 60)
    (tmp_path / "r.html").write_text(run_html(run), "utf-8")
    seen = browse(tmp_path / "r.html", tmp_path / "profile", width)
    assert seen.complaints == []
    assert 0 < seen.width <= width


@pytest.mark.parametrize(
    "made",
    [Made("r"), Made("r", [Phase("profiling", 20, 500, error_rate=1.0)]), HOSTILE],
    ids=["empty", "errors", "hostile"],
)
def test_odd_runs_draw_without_a_complaint(tmp_path: Path, made: Made) -> None:
    """No foreign script runs: it would be refused, and the console would say so."""
    run = compute(write_journal(tmp_path, made), made.run_id)
    (tmp_path / "r.html").write_text(run_html(run), "utf-8")
    seen = browse(tmp_path / "r.html", tmp_path / "profile")
    assert (seen.complaints, seen.requests) == ([], [])
    assert "Made by phase-bus" in seen.dom
    if made.phases:
        assert points(seen.plot("throughput")) > 0


def test_a_sweep_is_drawn_with_error_bars(tmp_path: Path) -> None:
    runs = sweep_of("s", [1, 2, 4], trials=3)
    runs[-1].status = runs[-2].status = "lost"  # one trial is left of the last variation: no interval
    journal = write_journal(tmp_path, *runs)
    sweep = Sweep("s")
    for run in runs:
        sweep.add(journal, compute(journal, run.run_id))
    (tmp_path / "s.html").write_text(sweep_html(sweep.document()), "utf-8")
    seen = browse(tmp_path / "s.html", tmp_path / "profile")
    assert (seen.complaints, seen.requests) == ([], [])
    plot = seen.plot("request_latency")
    assert points(plot) == 3 * 3
    assert plot.count('class="yerror"') == 3 * 2


def test_this_browser_would_tell(tmp_path: Path) -> None:
    """A page that fetches or complains is found out."""
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('oops')</script><img src='http://phase-bus.example/x.png'>")
    seen = browse(page, tmp_path / "profile")
    assert any("oops" in line for line in seen.complaints)
    assert seen.requests == ["http://phase-bus.example/x.png"]
