"""The forms of a comparison, with names that would do harm if they were taken for anything else."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import msgspec
import pytest

from phase_bus.comparison import Comparison, MeasuredRun, Side, compare, parse_measures
from phase_bus.reporting.comparison_text import comparison_junit, comparison_markdown, comparison_text
from phase_bus.reporting.html import comparison_html
from tests.support.hostile import HOSTILE, harmful

MARKUP = "<script>alert(1)</script>|`*"


@pytest.fixture
def comparison() -> Comparison:
    """Return one all of whose names are hostile."""
    metric = f"{MARKUP}{HOSTILE}".replace(":", "")
    measures = parse_measures([f"{metric}:mean:lower", "request_latency:p50", "error_rate"])

    def side(name: str, value: float) -> Side:
        runs = (
            MeasuredRun(
                run_id=f"{name}{n}",
                journal=MARKUP,
                started_ns=n,
                traits={"model": {"": f"{name} model"}},
                requests=100,
                values={measure.key: value + n / 1000 for measure in measures[:2]},
            )
            for n in range(3)
        )
        return Side(name, tuple(runs))

    return compare(
        side(f"{MARKUP}a{HOSTILE}", 1.0), side(f"{MARKUP}b{HOSTILE}", 2.0), measures, allow=["model"]
    )


def test_text_and_markdown_send_nothing_to_a_terminal(comparison: Comparison) -> None:
    for text in (comparison_text(comparison), comparison_markdown(comparison)):
        assert not harmful(text)
        assert "all is well" not in [line.strip() for line in text.splitlines()]
        assert "REGRESSED: 2 of 2 metrics regressed" in text


def test_an_interval_is_never_folded(comparison: Comparison) -> None:
    metrics = [
        msgspec.structs.replace(each, low_pct=-94.1, high_pct=1200.0, difference_pct=-50.0)
        for each in comparison.metrics
    ]
    for width in (60, 80, 120):
        text = comparison_text(msgspec.structs.replace(comparison, metrics=tuple(metrics)), width)
        assert text.count("-94.1 to >+1000 %") == len(metrics)


def test_what_more_runs_would_settle(comparison: Comparison) -> None:
    first, second = (
        msgspec.structs.replace(each, verdict="cannot tell", runs_to_tell=runs, title=title)
        for each, runs, title in zip(comparison.metrics, (8, 13), ("TTFT p99", "latency p50"), strict=True)
    )
    open_ = msgspec.structs.replace(comparison, verdict="cannot tell", metrics=(first, second))
    text = " ".join(comparison_text(open_).split())
    assert "CANNOT TELL: 2 of 2 metrics inconclusive." in text
    assert "about 5 more runs per side would settle TTFT p99, and 10 all of them." in text


def test_markdown_has_no_markup_of_others(comparison: Comparison) -> None:
    rows = [line for line in comparison_markdown(comparison).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}
    outside = re.sub(r"(`+).*?\1", "", comparison_markdown(comparison))
    assert not re.findall(r"(?<!\\)<script", outside)


def test_junit_is_xml_with_a_case_for_each(comparison: Comparison) -> None:
    top = ET.fromstring(comparison_junit(comparison))  # noqa: S314 - our own
    cases = list(top.iter("testcase"))
    assert len(cases) == 3
    assert [[child.tag for child in case] for case in cases] == [["failure"], ["failure"], ["skipped"]]


def test_html_runs_no_script_of_others(comparison: Comparison) -> None:
    page = comparison_html(comparison)
    assert "<script>alert(1)" not in page
    assert page.count("<script") == 3
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    figures = json.loads(data[1])
    assert len(figures) == 2
    assert "<" not in data[1]
    assert page.count('class="difference"') == 2


def test_json_holds_each_number(comparison: Comparison) -> None:
    document = msgspec.to_builtins(comparison)
    assert (document["version"], document["verdict"], document["whole"]) == (1, "regressed", True)
    assert [each["aspect"] for each in document["allowed"]] == ["model"]
    first = document["metrics"][0]
    assert first["low_pct"] < first["difference_pct"] < first["high_pct"]
