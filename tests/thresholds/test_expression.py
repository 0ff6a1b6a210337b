"""The language of thresholds: what its words mean, the one spelling, and what is said of an error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phase_bus.aggregation.units import METRICS
from phase_bus.errors import ConfigError
from phase_bus.thresholds import parse_threshold, parse_thresholds, with_abort
from phase_bus.thresholds.threshold import (
    BaselineLimit,
    Condition,
    Goodput,
    Metric,
    Rate,
    Saturation,
    Threshold,
)

TTFT = Metric("time_to_first_token", "p99")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("time_to_first_token p99 < 500 ms", {"quantity": TTFT, "operator": "<", "limit": 5e8}),
        ("Time_To_First_Token P99<.5s", {"quantity": TTFT, "operator": "<", "limit": 5e8}),
        ("time_to_first_token p99 <= 500000 µs", {"quantity": TTFT, "operator": "<=", "limit": 5e8}),
        ("request_latency avg ≥ 1.5 min", {"quantity": Metric("request_latency", "mean"), "limit": 9e10}),
        ("request_latency median > 3 ns", {"quantity": Metric("request_latency", "p50"), "limit": 3.0}),
        ("request_latency p099.90 > 3 ns", {"quantity": Metric("request_latency", "p99.9")}),
        ("request_latency count > 100", {"quantity": Metric("request_latency", "count"), "limit": 100.0}),
        ("error_rate < 1 %", {"quantity": Rate("error_rate"), "limit": 0.01, "phase": "profiling"}),
        ("error_rate < 0.01", {"quantity": Rate("error_rate"), "limit": 0.01}),
        ("request_throughput > 20/s", {"quantity": Rate("request_throughput"), "limit": 20.0}),
        ("output_token_throughput > 2e3 tokens/s", {"limit": 2000.0}),
        ("requests >= 1000 requests", {"quantity": Rate("requests"), "limit": 1000.0}),
        ("http_req_data_sent sum < 3 MiB", {"limit": 3.0 * 2**20}),
        ("video_peak_memory max < 2 GB", {"limit": 2000.0}),
        ("audio_duration mean < 1500 ms", {"limit": 1.5}),
        ("http_req_connection_reused mean > 90 %", {"limit": 0.9}),
        ("osl_mismatch_diff_pct mean > -5 %", {"limit": -5.0}),
        ("my_score mean > -0.5", {"quantity": Metric("my_score", "mean"), "limit": -0.5}),
        ("warmup error_rate < 1 %", {"phase": "warmup"}),
        ("ramp-2 error_rate < 1 %", {"phase": "ramp-2"}),
        ("'ramp 2' error_rate < 1 %", {"phase": "ramp 2"}),
        ("WARMUP error_rate < 1 %", {"phase": "warmup"}),
        ("profiling-2 error_rate < 1 %", {"phase": "profiling-2"}),
        ("error_rate < main", {"limit": BaselineLimit("main")}),
        ("error_rate < main-2", {"limit": BaselineLimit("main-2")}),
        ("error_rate < main-2 over 5 s", {"limit": BaselineLimit("main-2"), "over_s": 5.0}),
        ("request_latency p50 < main+5%", {"limit": BaselineLimit("main", factor=1.05)}),
        ("request_latency p50 < v1.2-rc1 - 5 %", {"limit": BaselineLimit("v1.2-rc1", factor=0.95)}),
        ("request_latency p50 < 'a b' + 5 ms", {"limit": BaselineLimit("a b", plus=5e6)}),
        ("request_latency p50 < main - 5 ms", {"limit": BaselineLimit("main", plus=-5e6)}),
        ("error_rate < main + 0.01", {"limit": BaselineLimit("main", plus=0.01)}),
        (
            "goodput(time_to_first_token < 500 ms, request_latency <= 2 s and my_score > 3) > 95 %",
            {
                "limit": 0.95,
                "quantity": Goodput(
                    (
                        Condition("time_to_first_token", "<", 5e8),
                        Condition("request_latency", "<=", 2e9),
                        Condition("my_score", ">", 3.0),
                    )
                ),
            },
        ),
        (
            "no saturation",
            {"quantity": Saturation("request_latency"), "operator": "<", "limit": 0.1, "over_s": 60.0},
        ),
        (
            "warmup no saturation of time_to_first_token over 2 min",
            {"quantity": Saturation("time_to_first_token"), "phase": "warmup", "over_s": 120.0},
        ),
        (
            "error_rate<1%over 30s,for 500ms at least 1 sample abort",
            {"over_s": 30.0, "for_s": 0.5, "at_least": 1, "abort": True},
        ),
        ("error_rate < 1 % abort at least 1e2 samples over 1.5 min", {"over_s": 90.0, "at_least": 100}),
        ("error_rate < 1 %\n  over 30 s", {"over_s": 30.0}),
    ],
)
def test_what_it_means(text: str, expected: dict[str, Any]) -> None:
    """Each part is read, in whatever spelling."""
    threshold = parse_threshold(text)
    assert {name: getattr(threshold, name) for name in expected} == expected
    assert parse_threshold(threshold.text) == threshold


@pytest.mark.parametrize(
    ("texts", "spelling"),
    [
        (
            ["TIME_TO_FIRST_TOKEN p99<0.5s at least 100 samples for 10s over 0.5 min"],
            "profiling time_to_first_token p99 < 500 ms over 30 s for 10 s, at least 100 samples",
        ),
        (["error_rate < 0.01", "profiling error_rate<1%", '"profiling" error_rate < 1.0 %'],
         "profiling error_rate < 1 %"),
        (["request_throughput > 20/s", "request_throughput > 20"],
         "profiling request_throughput > 20 requests/s"),
        (["no saturation", "no saturation of request_latency over 1 min"],
         "profiling no saturation of request_latency over 60 s"),
        (["error_rate < 1% abort, over 5 s"], "profiling error_rate < 1 % over 5 s, abort"),
        (["error_rate < main + 0 %", "error_rate < 'main'"], "profiling error_rate < main"),
        (["request_latency p50 < main + 5%"], "profiling request_latency p50 < main + 5 %"),
        (['"over" "no" p50 < "at"'], '"over" "no" p50 < "at"'),
        (["""'say "x"' error_rate < 1 %"""], """'say "x"' error_rate < 1 %"""),
        (["request_latency p50 < 0.1 ns"], "profiling request_latency p50 < 0.0000001 ms"),
    ],
)  # fmt: skip
def test_one_spelling(texts: list[str], spelling: str) -> None:
    """Equal thresholds have one text, by which they are called everywhere."""
    assert {parse_threshold(text).text for text in texts} == {spelling}
    assert parse_threshold(spelling).text == spelling


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", 1, "expected here, as in 'time_to_first_token p99 < 500 ms'"),
        ("< 500 ms", 1, "a metric with its statistic"),
        ("time_to_first_tokn p99 < 500 ms", 1, "did you mean 'time_to_first_token'?"),
        ("time_to_first_tokens p99 < 500 ms", 1, "did you mean 'time_to_first_token'?"),
        ("profilng error_rate < 1 %", 1, "did you mean 'profiling'?"),
        ("error_rat < 1 %", 1, "did you mean 'error_rate'?"),
        ("profiling p99 < 5", 1, "a metric is expected here, and that is a phase"),
        ("error_rate request_latency p99 < 5 ms", 1, "a phase is expected here"),
        ("p99 < 5 ms", 1, "a metric is expected before it"),
        ("p99 request_latency < 5 ms", 1, "request_latency p99"),
        ("request_latency < 5 ms", 17, "a statistic of request_latency is expected here: p0 to p100"),
        ("request_latency p101 < 5 ms", 17, "p0 to p100"),
        ("request_latency maen < 5 ms", 17, "did you mean 'mean'?"),
        ("a b request_latency p50 < 5 ms", 3, "one phase"),
        ("request_latency p50 over 5 s", 21, "<, <=, > or >="),
        ("request_latency p50 = 5 ms", 21, "<, <=, > or >="),
        ("request_latency p50 == 5 ms", 21, "<, <=, > or >="),
        ("request_latency p50 <", 22, "a number with its unit"),
        ("request_latency p50 < 500", 23, "a unit is missing after it: ns, us, ms"),
        ("request_latency p50 < 500 over 30 s", 23, "a unit is missing after it"),
        ("request_latency p50 < 500 %", 27, "the unit here is ns, us, ms, s"),
        ("request_latency p50 < 500 tokens", 27, "the unit here is ns, us, ms, s"),
        ("my_latency p50 < 500 ms", 22, "none: it is a plain number"),
        ("request_latency p50 < -500 ms", 23, "never negative"),
        ("request_latency p50 < nan", 23, "a number or a baseline"),
        ("request_latency p50 < inf ms", 23, "a number or a baseline"),
        ("request_latency p50 < 1e999 ms", 23, "at most 1e+18"),
        ("request_latency p50 < 1e17 s", 23, "at most"),
        ("request_latency p50 < 1e-99 s", 23, "less than is ever measured"),
        ("error_rate < 5", 14, "at most 100 % makes sense here; write 5 %"),
        ("error_rate < 500 %", 14, "at most 100 %"),
        ("error_rate < over 30 s", 14, "a number or a baseline"),
        ("error_rate < main-5 %", 14, "a '-' has a space before it"),
        ("error_rate < main - 100 %", 21, "less than 100 taken away"),
        ("error_rate < main + 5e7 %", 21, "at most a million percent"),
        ("request_latency p50 < main + 5", 30, "a unit is missing"),
        ("error_rate < 'main", 14, "is not closed"),
        ("error_rate < ''", 14, "name is empty"),
        ("goodput > 95 %", 9, "'(' is expected here"),
        ("goodput() > 95 %", 9, "a metric is expected here"),
        ("goodput(request_latency p99 < 5 s) > 95 %", 25, "leave the statistic out"),
        ("goodput(request_latency < main) > 95 %", 27, "a number with its unit"),
        ("goodput(request_latency < 5 s > 95 %", 31, "')' or ','"),
        (f"goodput({'x < 5, ' * 30}x < 6) > 1 %", 154, "at most 20 conditions"),
        ("no staturation", 4, "'saturation' is expected here"),
        ("no saturation of 5", 18, "a metric is expected here"),
        ("error_rate < 1 % ovr 30 s", 18, "did you mean 'over'?"),
        ("error_rate < 1 % 30 s", 18, "'at least 100 samples', 'abort' or the end"),
        ("error_rate < 1 % over 0 s", 23, "more than nothing"),
        ("error_rate < 1 % over 30", 23, "a unit is missing after it"),
        ("error_rate < 1 % over 1.5 s", 23, "whole seconds"),
        ("error_rate < 1 % over 2 h", 23, "an hour at most"),
        ("error_rate < 1 % over -5 s", 23, "a duration"),
        ("error_rate < 1 % for 0 s", 22, "more than nothing"),
        ("error_rate < 1 % at least 0 samples", 27, "a whole number"),
        ("error_rate < 1 % at least 1.5 samples", 27, "a whole number"),
        ("error_rate < 1 % at least 10", 29, "'samples' is expected here"),
        ("error_rate < 1 % at 10 samples", 21, "'least' is expected here"),
        ("error_rate < 1 % over 5 s over 5 s", 27, "given twice"),
        ("error_rate < 1 %; error_rate", 17, "means nothing here"),
        ("error_rate < 1 %\x00", 17, r"'\x00'"),
        ("error_rate < 1 %\u202e", 17, r"'\u202e'"),
    ],
)  # fmt: skip
def test_what_is_wrong(text: str, place: int, said: str) -> None:
    """An error is one line, with the word's place and what is allowed there."""
    with pytest.raises(ConfigError) as caught:
        parse_threshold(text)
    message = str(caught.value)
    assert message.startswith("threshold ")
    assert f"character {place}" in message
    assert said in message
    assert message.isprintable()


def test_a_megabyte() -> None:
    """It is refused at once, and not repeated."""
    for text in ("x" * 2**20, "error_rate < 1 % " * 2**16, "(" * 2**20, " " * 2**20):
        with pytest.raises(ConfigError, match="at most 2,000") as caught:
            parse_threshold(text)
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_of_aiperf(name: str) -> None:
    """A limit in the unit that a metric is shown in is read as what is on the bus, and spelled alike."""
    unit = METRICS[name].unit
    shown, factor = {"ns": ("ms", 1e6), "sec": ("s", 1.0), "ms/image": ("ms", 1.0)}.get(unit, ("", 1.0))
    threshold = parse_threshold(f"{name} p50 < 7 {shown}")
    assert threshold.limit == 7 * factor
    assert parse_threshold(threshold.text) == threshold


def test_entries_of_yaml() -> None:
    """A text, or a mapping with `abort`; what is there twice counts once."""
    mapping = {"threshold": "error_rate < 5 %", "abort": True}
    found = parse_thresholds(["error_rate < 1 %", mapping, {"threshold": "error_rate < 0.01"}])
    assert [each.text for each in found] == [
        "profiling error_rate < 1 %",
        "profiling error_rate < 5 %, abort",
    ]
    assert found[1] == with_abort(parse_threshold("error_rate < 5 %"))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ("error_rate < 1 %", "has to be a list"),
        (None, "has to be a list"),
        ([5], "thresholds[0]"),
        (["error_rate < 1 %", {"abort": True}], "thresholds[1]"),
        ([{"threshold": "error_rate < 1 %", "abrot": True}], "'abrot'"),
        ([{"threshold": "error_rate < 1 %", "abort": "yes"}], "'bool'"),
        ([{"threshold": "error_rate"}], "threshold 'error_rate'"),
    ],
)
def test_wrong_entries(entries: object, said: str) -> None:
    """Whatever YAML has, the error is one line that says where it is."""
    with pytest.raises(ConfigError) as caught:
        parse_thresholds(entries)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


# ---- whatever is given ----

names = st.sampled_from(
    ["time_to_first_token", "my_metric", "'my metric'", '"over"', "profiling", "warmup", "p99", "x-1", "é"]
)
numbers = st.one_of(
    st.integers(0, 10**20).map(str),
    st.floats(0, 1e20, allow_subnormal=True).map(repr),
    st.sampled_from(["1", "0.1", "5e-324", "1e400", "00.50", ".5", "99.9"]),
)
units = st.sampled_from(["ms", "s", "%", "", "ns", "/s", "tokens/s", "min", "µs", "GiB"])
words = st.one_of(
    names,
    numbers,
    units,
    st.sampled_from(
        ["<", "<=", ">", "≥", "+", "-", ",", "(", ")", "goodput", "no", "saturation", "of", "and"]
    ),
    st.sampled_from(["over", "for", "at", "least", "samples", "abort", "error_rate", "request_throughput"]),
    st.sampled_from(
        ["mean", "p50", "p99.9", "p100.0", "count", "main", "nan", "\t", "'", '"', "\x1b", "\ud800"]
    ),
)


def refused_or_one_spelling(text: str) -> None:
    """See that a text is refused in one line, or has one spelling that means the same."""
    refused = ""
    try:
        threshold = parse_threshold(text)
    except ConfigError as error:
        refused = str(error)
    assert refused.isprintable()
    if refused:
        return
    assert parse_threshold(threshold.text) == threshold
    assert threshold.text.isprintable()


@given(st.one_of(st.text(), st.lists(words, max_size=20).map(" ".join), st.lists(words).map("".join)))
@example("time_to_first_token p99 < 5e-324 ns")
@example("error_rate < main + 5e-324 %")
@settings(max_examples=200, deadline=None)
def test_any_text(text: str) -> None:
    """No other exception than a ConfigError, in one line."""
    refused_or_one_spelling(text)


@given(
    phase=st.sampled_from(["", "warmup", "'x y'", "p-1"]),
    condition=st.one_of(
        st.sampled_from(sorted(METRICS)).map(lambda name: f"{name} p50 <"),
        st.sampled_from(["error_rate >", "requests >=", "my_metric sum <", "input_token_throughput >"]),
        st.builds("goodput(request_latency < {} {}) >".format, numbers, units),
    ),
    limit=st.one_of(
        st.builds("{} {}".format, numbers, units),
        st.builds("base {} {} {}".format, st.sampled_from("+-"), numbers, units),
    ),
    qualifiers=st.lists(
        st.one_of(
            st.builds("over {} s".format, st.integers(1, 3600)),
            st.builds("for {} {}".format, numbers, st.sampled_from(["s", "ms", "min"])),
            st.builds("at least {} samples".format, st.integers(1, 10**6)),
            st.just("abort"),
        ),
        max_size=3,
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_threshold(phase: str, condition: str, limit: str, qualifiers: list[str]) -> None:
    """What is nearly right or right, with any number: no rounding changes what it means."""
    refused_or_one_spelling(" ".join([phase, condition, limit, *qualifiers]))


def test_it_is_a_struct_of_numbers() -> None:
    """The default is the phase up to now, judged by one sample, without an end to the run."""
    assert parse_threshold("error_rate < 1 %") == Threshold(
        text="profiling error_rate < 1 %", quantity=Rate("error_rate"), operator="<", limit=0.01
    )
