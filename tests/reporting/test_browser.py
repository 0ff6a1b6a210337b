"""The report, opened in a real browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from phase_bus.reporting.html import run_html, sweep_html
from phase_bus.reporting.source import compute
from phase_bus.reporting.sweep_figures import sweep_figures
from tests.support.browser import Seen, Tab, browse, opened
from tests.support.journals import HOSTILE, Made, Phase, sweep_of, write_journal
from tests.support.sweeps import sweep_document

pytestmark = pytest.mark.slow  # each starts a browser

THREE = [
    Phase("warmup", 3, 60, kind="warmup"),
    Phase("steady", 40, 4000, 120, error_rate=0.01),
    Phase("peak", 30, 9000, 400, 0.5, error_rate=0.08, pause_s=5),
]


# How many pixels of a plot have nearly a colour of the page.
PIXELS = """((key, name) => {
    const canvas = document.querySelector(`[data-figure="${key}"] canvas`);
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const wanted = getComputedStyle(probe).color.match(/[0-9]+/g).map(Number);
    probe.remove();
    const [width, height] = [canvas.width, canvas.height];
    const copy = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, width, height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4) {
        const near = wanted.every((value, part) => Math.abs(value - data[at + part]) < 24);
        if (near && data[at + 3] > 200) count += 1;
    }
    return count;
})"""


def pixels(tab: Tab, key: str, color: str) -> int:
    """Count the pixels of a plot that have a colour."""
    return int(tab.value(f"{PIXELS}({key!r}, {color!r})"))


def legend(tab: Tab, key: str) -> list[str]:
    """Return what the legend of a plot says."""
    parts = f"document.querySelector('[data-figure={key}]').previousElementSibling.children"
    return [str(text) for text in tab.value(f"[...{parts}].map(part => part.textContent)")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_plots_are_drawn(tmp_path: Path, no_leaks: None, scheme: str) -> None:
    """Each line in its colour, with the values at the cursor; no complaint, no request."""
    run = compute(write_journal(tmp_path, Made("r", THREE)), "r", fine=True)
    page = tmp_path / "r.html"
    page.write_text(run_html(run), "utf-8")
    seen = Seen()
    with opened(page.as_uri(), tmp_path / "profile", seen) as tab:
        tab.prefer(scheme)
        tab.reload()
        assert set(run.summary["overall"]["windows"]["metrics"]) < set(
            tab.value("[...document.querySelectorAll('[data-figure]')].map(at => at.dataset.figure)")
        )
        for key in run.summary["overall"]["windows"]["metrics"]:
            assert legend(tab, key)[:2] == ["p50", "p99"]
            assert min(pixels(tab, key, "series-1"), pixels(tab, key, "series-2")) > 200
        assert min(pixels(tab, "throughput", name) for name in ("series-3", "bad")) > 200
        # The warm-up is not shown until asked for.
        assert pixels(tab, "distribution", "series-1") == 0
        assert pixels(tab, "distribution", "series-2") > 100
        button = "document.querySelector('[data-figure=distribution]').previousElementSibling.firstChild"
        tab.value(f"{button}.click()")
        tab.until(f"{PIXELS}('distribution', 'series-1') > 100")
        # In the middle of the plot is the second phase.
        over = "document.querySelector('[data-figure=throughput] .u-over')"
        tab.value(
            f"(at => {over}.dispatchEvent(new MouseEvent('mousemove', "
            "{bubbles: true, clientX: at.x + at.width * 0.3, clientY: at.y + at.height / 2})))"
            f"({over}.getBoundingClientRect())"
        )
        tab.until("document.body.innerText.includes(', steady')")
        successful = legend(tab, "throughput")[0]
        assert successful.startswith("successful")
        assert successful.endswith("requests/s")
    assert (seen.complaints, seen.requests[2:]) == ([], [])


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
        assert "<canvas" in seen.plot("throughput")


def test_a_sweep_is_drawn_with_error_bars(tmp_path: Path) -> None:
    runs = sweep_of("s", [1, 2, 4], trials=3)
    runs[-1].status = runs[-2].status = "lost"  # one trial is left of the last variation: no interval
    document = sweep_document(tmp_path, *runs)
    (tmp_path / "s.html").write_text(sweep_html(document), "utf-8")
    (latency,) = (figure for figure in sweep_figures(document) if figure.key == "request_latency")
    for line in latency.series:
        assert [value is None for value in line.low] == [value is None for value in line.high]
        assert [value is None for value in line.low] == [False, False, True]
        assert line.open == [2]
    seen = Seen()
    with opened((tmp_path / "s.html").as_uri(), tmp_path / "profile", seen) as tab:
        assert legend(tab, "request_latency")[:3] == ["mean", "p50", "p99"]
        for color in ("series-1", "series-2", "series-3"):
            assert pixels(tab, "request_latency", color) > 100
    assert (seen.complaints, seen.requests[1:]) == ([], [])


def test_this_browser_would_tell(tmp_path: Path) -> None:
    """A page that fetches or complains is found out."""
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('oops')</script><img src='http://phase-bus.example/x.png'>")
    seen = browse(page, tmp_path / "profile")
    assert any("oops" in line for line in seen.complaints)
    assert seen.requests == ["http://phase-bus.example/x.png"]
