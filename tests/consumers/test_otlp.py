"""The ``otlp`` sink, against a receiver that decodes with the official protocol."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from msgspec import structs

from phase_bus import (
    ConfigError,
    OptionError,
    PhaseComplete,
    PhaseEvent,
    PhaseTimeout,
    RecordBatch,
    Records,
    RunComplete,
    RunStart,
    StateError,
)
from phase_bus.aggregation import RunResult, RunState
from phase_bus.consumer.options import build_consumer
from phase_bus.testing import PROFILING, T0_NS, MemoryBus, make_event, make_run
from phase_bus_consumers.otlp import OtlpSink
from tests.support.servers.faults import LOSE_ANSWER, FaultProxy, answer
from tests.support.servers.otlp import OtlpReceiver, Point, attributes_of, plain
from tests.support.servers.webhook import Webhook

DURATION = "gen_ai.client.operation.duration"
FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
TOKENS = "gen_ai.client.token.usage"
BETWEEN_TOKENS = "phase_bus.request.inter_token_latency"
SERIES = {  # a metric of the records, what it becomes, and the factor to its unit there
    "request_latency": (DURATION, None, 1e-9),
    "time_to_first_token": (FIRST_CHUNK, None, 1e-9),
    "inter_token_latency": (BETWEEN_TOKENS, None, 1e-9),
    "input_sequence_length": (TOKENS, "input", 1.0),
    "output_sequence_length": (TOKENS, "output", 1.0),
}
SECRET = "s3cret-of-the-tests"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, unless the server asks for more."""
    monkeypatch.setattr("phase_bus.consumer.patience._back_off", lambda *_: 0.0)


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may send things by OpenTelemetry, too."""
    for name in ("ENDPOINT", "HEADERS", "METRICS_ENDPOINT", "LOGS_ENDPOINT", "TRACES_ENDPOINT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


def bus_with(records: int = 1000, error_rate: float = 0.05) -> MemoryBus:
    bus = MemoryBus()
    bus.publish(*make_run(records={"warmup": 50, "profiling": records}, error_rate=error_rate))
    return bus


def totals(points: Iterable[Point]) -> dict[tuple[Any, ...], list[Point]]:
    """Return the points of each series, in order."""
    found: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        named = point.attributes
        key = (
            named["phase_bus.phase.name"],
            point.name,
            named.get("gen_ai.token.type"),
            named.get("error.type"),
        )
        found.setdefault(key, []).append(point)
    return found


def truth(bus: MemoryBus) -> tuple[dict[tuple[str, str], list[float]], Counter[tuple[str, str | None]]]:
    """Return, apart from all that the bus computes, values by phase and metric, and requests by outcome."""
    values: dict[tuple[str, str], list[float]] = {}
    outcomes: Counter[tuple[str, str | None]] = Counter()
    for event in bus.events(Records):
        for record in RecordBatch(event):
            phase, error = record["phase"], record["error"]
            outcomes[phase, error and error["type"]] += 1
            for name in SERIES:
                if name in record:
                    values.setdefault((phase, name), []).append(record[name])
    return values, outcomes


def quantile(point: Any, q: float) -> float:
    """Return a quantile of a histogram of positive values, as the data model defines its buckets."""
    base = 2.0 ** (2.0**-point.scale)
    rank, seen = q * (point.count - 1), point.zero_count
    for place, count in enumerate(point.positive.bucket_counts):
        seen += count
        if seen > rank:
            index = point.positive.offset + place
            low, high = base**index, base ** (index + 1)
            middle: float = 2 * low * high / (low + high)
            return middle
    raise AssertionError(q)


def error_at(scale: int) -> float:
    """Return the largest relative error of a bucket's middle."""
    base: float = 2.0 ** (2.0**-scale)
    return (base - 1) / (base + 1)


# ---- metrics ----


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
async def test_counts_and_sums_are_those_of_the_records(
    otlp_receiver: OtlpReceiver, temporality: str, no_leaks: None
) -> None:
    bus = bus_with()
    outcome = await bus.run_consumer(
        OtlpSink, url=otlp_receiver.url, temporality=temporality, interval_s=0.1
    )
    assert outcome.receipt.complete
    values, outcomes = truth(bus)
    series = totals(otlp_receiver.points())
    delta = temporality == "delta"

    def last_or_all(key: tuple[Any, ...]) -> list[Any]:
        points = series[key]
        assert {point.temporality for point in points} == {1 if delta else 2}
        assert len(points) > (3 if key[0] == "profiling" else 0)
        return [point.point for point in (points if delta else points[-1:])]

    for (phase, name), numbers in values.items():
        metric, of_tokens, factor = SERIES[name]
        points = last_or_all((phase, metric, of_tokens, None))
        assert sum(point.count for point in points) == len(numbers)
        assert math.isclose(sum(point.sum for point in points), math.fsum(numbers) * factor, rel_tol=1e-9)
        assert math.isclose(min(point.min for point in points), min(numbers) * factor, rel_tol=1e-12)
        assert math.isclose(max(point.max for point in points), max(numbers) * factor, rel_tol=1e-12)
    for phase in ("warmup", "profiling"):
        points = last_or_all((phase, "phase_bus.requests", None, None))
        assert sum(p.as_int for p in points) == sum(n for (of, _), n in outcomes.items() if of == phase)
    for (phase, error), count in outcomes.items():
        if error is not None:
            points = last_or_all((phase, "phase_bus.request.errors", None, error))
            assert sum(point.as_int for point in points) == count
            durations = last_or_all((phase, DURATION, None, error))
            assert sum(point.count for point in durations) == count


async def test_a_failure_without_an_answer_has_no_duration(otlp_receiver: OtlpReceiver) -> None:
    """AIPerf gives it the same time twice, which is none of the time that it took."""
    bus = MemoryBus()
    with bus.publisher() as publisher:
        for end_ns in (T0_NS, T0_NS + 2_000_000_000):
            times = {"request_start_ns": T0_NS, "request_end_ns": end_ns}
            publisher.record("r", PROFILING, {"error_request_count": 1}, times, error=("Timeout", "", None))
        publisher.complete_run("r", "completed")
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url)
    series = totals(otlp_receiver.points())
    assert series["profiling", "phase_bus.request.errors", None, "Timeout"][-1].point.as_int == 2
    duration = series["profiling", DURATION, None, "Timeout"][-1].point
    assert (duration.count, duration.sum) == (1, 2.0)


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
async def test_times_of_a_series(otlp_receiver: OtlpReceiver, temporality: str) -> None:
    """Cumulative points have one start, deltas follow one another without gap or overlap."""
    await bus_with().run_consumer(OtlpSink, url=otlp_receiver.url, temporality=temporality, interval_s=0.1)
    for key, points in totals(otlp_receiver.points()).items():
        starts = [each.point.start_time_unix_nano for each in points]
        ends = [each.point.time_unix_nano for each in points]
        assert all(start < end for start, end in zip(starts, ends, strict=True)), key
        assert ends == sorted(set(ends)), key
        if temporality == "cumulative":
            assert len(set(starts)) == 1, key
        else:
            assert all(start >= end for start, end in zip(starts[1:], ends, strict=False)), key
    assert not any(otlp_receiver.repeated().values())


async def test_names_units_and_attributes(otlp_receiver: OtlpReceiver) -> None:
    bus = bus_with(100)
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url, provider="vllm", service="bench")
    points = otlp_receiver.points()
    assert {(point.name, point.unit, point.kind) for point in points} == {
        (DURATION, "s", "exponential_histogram"),
        (FIRST_CHUNK, "s", "exponential_histogram"),
        (BETWEEN_TOKENS, "s", "exponential_histogram"),
        (TOKENS, "{token}", "exponential_histogram"),
        ("phase_bus.requests", "{request}", "sum"),
        ("phase_bus.request.errors", "{request}", "sum"),
    }
    (start,) = bus.events(RunStart)
    for point in points:
        assert point.attributes["gen_ai.operation.name"] == "chat"
        assert point.attributes["gen_ai.provider.name"] == "vllm"
        assert point.attributes.get("gen_ai.request.model") == (start.models or (None,))[0]
        assert point.place.resource == {
            "service.name": "bench",
            "service.instance.id": start.run_id,
            "phase_bus.run_id": start.run_id,
        }
        assert point.place.scope == "phase-bus"
        assert point.place.resource_schema == "https://opentelemetry.io/schemas/1.41.0"


async def test_percentiles_agree_with_the_report(otlp_receiver: OtlpReceiver) -> None:
    """At the finest scale, computed from the histogram as the data model defines it."""
    bus = bus_with(2500)
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url, max_buckets=2000)
    result = RunResult(RunState(bus.events()[0].run_id))
    for event in bus.events():
        result.take(event)
    (report,) = [phase for phase in result.summary()["phases"] if phase["name"] == "profiling"]
    series = totals(otlp_receiver.points())
    for name, (metric, of_tokens, factor) in SERIES.items():
        point = series["profiling", metric, of_tokens, None][-1].point
        assert point.scale == 7
        for p in (50, 90, 99):
            wanted = report["metrics"][name][f"p{p}"] * factor
            # One from the bucket of this histogram, the other from that of the report's.
            between = 2 * error_at(7) + 1 / len(bus.events(Records))
            assert math.isclose(quantile(point, p / 100), wanted, rel_tol=between), (name, p)


async def test_fewer_buckets_are_wider(otlp_receiver: OtlpReceiver) -> None:
    bus = bus_with(1500, error_rate=0.0)
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url, max_buckets=40)
    values, _ = truth(bus)
    point = totals(otlp_receiver.points())["profiling", DURATION, None, None][-1].point
    assert 20 < len(point.positive.bucket_counts) <= 40
    assert point.scale < 7
    wanted = np.percentile(values["profiling", "request_latency"], 50, method="lower") / 1e9
    assert math.isclose(quantile(point, 0.5), wanted, rel_tol=error_at(point.scale) * 1.01)


# ---- logs ----


async def test_what_happens_is_logged_once(otlp_receiver: OtlpReceiver) -> None:
    bus = bus_with(500)
    run_id = bus.events()[0].run_id
    bus.publish(make_event(PhaseTimeout, run_id=run_id, requests_cut=3))
    bus.complete_run(run_id, "failed", "the server was gone")
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url)
    logged = [event for event in bus.events() if isinstance(event, PhaseEvent | RunComplete)]
    records = [record for _, record in otlp_receiver.log_records()]
    names = Counter(record.event_name for record in records)
    del names["phase_bus.run_start"]
    assert names == Counter(f"phase_bus.{event.kind}" for event in logged)
    uids = [attributes_of(record.attributes)["log.record.uid"] for record in records]
    assert len(set(uids)) == len(uids)
    (cut,) = [record for record in records if record.event_name == "phase_bus.phase_timeout"]
    assert cut.severity_text == "WARN"
    assert attributes_of(cut.attributes)["phase_bus.requests.cut"] == 3
    assert "Cut: 3" in plain(cut.body)
    last = records[-1]
    assert (last.event_name, last.severity_text) == ("phase_bus.run_complete", "ERROR")
    assert "the server was gone" in plain(last.body)


# ---- traces ----


async def test_a_run_is_a_trace(otlp_receiver: OtlpReceiver) -> None:
    bus = bus_with(300)
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url, trace_requests=1.0)
    spans = [span for _, span in otlp_receiver.spans()]
    assert len({span.trace_id for span in spans}) == 1
    (run,) = [span for span in spans if not span.parent_span_id]
    phases = {span.name: span for span in spans if span.parent_span_id == run.span_id}
    assert run.name == "run"
    assert set(phases) == {"phase warmup", "phase profiling"}
    requests = [span for span in spans if span.kind == span.SPAN_KIND_CLIENT]
    assert len(requests) == 350
    assert len({span.span_id for span in spans}) == len(spans) == 353
    parents = Counter(span.parent_span_id for span in requests)
    assert parents[phases["phase profiling"].span_id] == 300
    logs = [record for _, record in otlp_receiver.log_records()]
    assert {record.trace_id for record in logs} == {run.trace_id}
    assert {record.span_id for record in logs} == {run.span_id, *(span.span_id for span in phases.values())}


async def test_a_request_is_a_span(otlp_receiver: OtlpReceiver) -> None:
    bus = bus_with(200, error_rate=0.2)
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url, trace_requests=1.0)
    spans = {}
    for _, span in otlp_receiver.spans():
        named = attributes_of(span.attributes)
        if "phase_bus.request.id" in named:
            spans[named["phase_bus.request.id"]] = (span, named)
    for event in bus.events(Records):
        for record in RecordBatch(event):
            span, named = spans.pop(record["x_request_id"])
            assert span.start_time_unix_nano == record["request_start_ns"]
            assert span.end_time_unix_nano == record["request_end_ns"]
            assert span.name.startswith("chat")
            assert named["phase_bus.phase.name"] == record["phase"]
            if record["error"]:
                assert named["error.type"] == record["error"]["type"]
                assert named["http.response.status_code"] == 500
                assert span.status.code == span.status.STATUS_CODE_ERROR
                assert span.status.message == record["error"]["message"]
            else:
                assert named["gen_ai.usage.input_tokens"] == record["input_sequence_length"]
                assert named["gen_ai.usage.output_tokens"] == record["output_sequence_length"]
                first_s = record["time_to_first_token"] / 1e9
                assert named["gen_ai.response.time_to_first_chunk"] == first_s
                assert span.status.code == span.status.STATUS_CODE_UNSET
    assert not spans


async def test_the_sample_is_always_the_same(otlp_receiver: OtlpReceiver) -> None:
    bus = bus_with(2500)
    found = []
    for name in ("one", "two"):
        otlp_receiver.traces.clear()
        await bus.run_consumer(OtlpSink, name=name, url=otlp_receiver.url, trace_requests=0.1)
        found.append({span.span_id for _, span in otlp_receiver.spans() if span.kind == 3})
    assert found[0] == found[1]
    assert abs(len(found[0]) - 255) < 5 * math.sqrt(2550 * 0.1 * 0.9)


async def test_no_requests_are_traced(otlp_receiver: OtlpReceiver) -> None:
    await bus_with(500).run_consumer(OtlpSink, url=otlp_receiver.url, trace_requests=0.0)
    assert len(otlp_receiver.spans()) == 3


async def test_a_phase_that_did_not_complete(otlp_receiver: OtlpReceiver) -> None:
    bus = MemoryBus()
    events = make_run(100, phases=["profiling"])
    bus.publish(*(event for event in events if not isinstance(event, PhaseComplete | RunComplete)))
    bus.complete_run(events[0].run_id, "cancelled", "interrupted")
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url, trace_requests=0.0)
    spans = {span.name: span for _, span in otlp_receiver.spans()}
    assert set(spans) == {"run", "phase profiling"}
    assert all(span.status.code == span.status.STATUS_CODE_ERROR for span in spans.values())
    assert spans["run"].status.message == "interrupted"


# ---- what goes wrong ----


def points_of(receiver: OtlpReceiver) -> set[tuple[str, bytes]]:
    return {(each.name, each.point.SerializeToString(deterministic=True)) for each in receiver.points()}


def spans_of(receiver: OtlpReceiver) -> set[bytes]:
    return {span.SerializeToString(deterministic=True) for _, span in receiver.spans()}


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
async def test_after_a_crash_the_same_is_sent(temporality: str) -> None:
    """Every point and span is exactly that of a sink which nothing happened to."""
    bus = MemoryBus()
    options: dict[str, Any] = {"temporality": temporality, "interval_s": 0.2, "trace_requests": 0.1}
    events = make_run(records={"warmup": 50, "profiling": 1500}, error_rate=0.05)
    end = events.pop()
    assert isinstance(end, RunComplete)
    with OtlpReceiver() as disturbed, OtlpReceiver() as quiet:
        third = len(events) // 3
        bus.publish(*events[:third])
        async with bus.consumer(OtlpSink, name="a", url=disturbed.url, batch_rows=50, **options) as running:
            await running.catch_up()
            assert await running.flush()
            bus.publish(*events[third : 2 * third])
            await running.catch_up()
            await running.crash()
            await running.consumer.stop()  # whose connections would be closed by the process's end
        bus.publish(*events[2 * third :])
        bus.complete_run(end.run_id, end.status)
        outcome = await bus.run_consumer(OtlpSink, name="a", url=disturbed.url, **options)
        assert outcome.receipt.complete
        await bus.run_consumer(OtlpSink, name="b", url=quiet.url, **options)
        assert points_of(disturbed) == points_of(quiet)
        assert spans_of(disturbed) == spans_of(quiet)
        assert disturbed.repeated()["points"] > 0, "the crash came when nothing was sent yet"
        assert not any(quiet.repeated().values())


async def test_lost_answers_and_limits(
    otlp_receiver: OtlpReceiver, fault_proxy: Callable[..., FaultProxy]
) -> None:
    bus = bus_with()
    await bus.run_consumer(OtlpSink, name="quiet", url=otlp_receiver.url, trace_requests=0.1)
    points, spans = points_of(otlp_receiver), spans_of(otlp_receiver)
    logs = {record.SerializeToString(deterministic=True) for _, record in otlp_receiver.log_records()}
    with OtlpReceiver() as receiver:
        proxy = fault_proxy(receiver.url, only="/v1/")
        options = {"url": proxy.url, "trace_requests": 0.1, "batch_rows": 40}
        async with bus.consumer(build_consumer(OtlpSink, "faults", options)) as running:
            proxy.next(LOSE_ANSWER, answer(503), answer(429, Retry_After="1"), LOSE_ANSWER, answer(502))
            began_s = time.monotonic()
            await running.catch_up()
        assert time.monotonic() - began_s >= 1.0
        assert running.receipt.complete
        assert proxy.counts["lost"] == 2
        assert not proxy.script
        assert points_of(receiver) == points
        assert spans_of(receiver) == spans
        received = {record.SerializeToString(deterministic=True) for _, record in receiver.log_records()}
        assert received == logs


class Picky(OtlpReceiver):
    """Does not take the log records of completed phases: only these, or nothing that has one in it."""

    def __init__(self, as_a_whole: bool) -> None:
        super().__init__()
        self.as_a_whole = as_a_whole
        self.taken: list[str] = []

    async def _on_logs(self, request: Any) -> Any:
        answered: Any = await super()._on_logs(request)
        scoped = [s for each in self.logs.pop().resource_logs for s in each.scope_logs]
        names = [record.event_name for each in scoped for record in each.log_records]
        bad = names.count("phase_bus.phase_complete")
        if bad and self.as_a_whole:
            raise web.HTTPBadRequest(text="no such phase")
        self.taken += [name for name in names if name != "phase_bus.phase_complete"]
        answered.partial_success.rejected_log_records = bad
        answered.partial_success.error_message = "no such phase"
        return answered


@pytest.mark.parametrize("as_a_whole", [False, True])
async def test_what_is_rejected_is_named(as_a_whole: bool) -> None:
    """Neither a partial success nor a refusal says which: it is found, and all others are there."""
    bus = bus_with(300)
    with Picky(as_a_whole) as receiver:
        async with bus.consumer(OtlpSink, url=receiver.url) as running:
            await running.catch_up()
        assert not running.receipt.complete
        letters = bus.dead_letters["OtlpSink"]
        expected = [e for e in bus.events() if isinstance(e, PhaseEvent | RunComplete)]
        wanted = {f"phase_bus.{e.kind}" for e in expected} | {"phase_bus.run_start"}
        assert set(receiver.taken) == wanted - {"phase_bus.phase_complete"}
        assert len(letters) == 2
        said = "answers 400: no such phase" if as_a_whole else "rejected 1 of 1: no such phase"
        assert all(said in letter.error for letter in letters)


async def test_a_part_of_deltas_is_not_sent_twice(otlp_receiver: OtlpReceiver) -> None:
    """A receiver may count them twice: so all of that request are told as refused."""
    otlp_receiver.partial = 1
    bus = bus_with(300)
    async with bus.consumer(
        OtlpSink, url=otlp_receiver.url, temporality="delta", signals="metrics"
    ) as running:
        await running.catch_up()
    assert not running.receipt.complete
    assert not otlp_receiver.repeated()["points"]
    assert bus.dead_letters["OtlpSink"]


async def test_wrong_credentials_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_TOKEN", SECRET)
    with OtlpReceiver(headers={"Authorization": "Bearer right"}) as receiver:
        with pytest.raises(ConfigError) as raised:
            await bus_with(10).run_consumer(
                OtlpSink, url=receiver.url, headers="Authorization=env:THE_TOKEN"
            )
        assert "answers 401" in str(raised.value)
        assert SECRET not in str(raised.value)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["Authorization", "dd-api-key", "X-SF-Token", "x-secret", "Cookie"])
def test_no_secret_is_given_in_clear(name: str) -> None:
    with pytest.raises(OptionError, match="env:NAME") as raised:
        build_consumer(OtlpSink, "otlp", {"headers": f"x-tenant=7,{name}={SECRET}"})
    assert SECRET not in str(raised.value)


async def test_the_standard_variables_are_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are a secret, too, which may have %-signs."""
    with OtlpReceiver(headers={"authorization": f"Basic {SECRET}", "x-tenant": "7"}) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url + "/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Basic%20{SECRET}, x-tenant=7")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
        outcome = await bus_with(100).run_consumer(OtlpSink)
        assert outcome.receipt.complete
        (resource,) = {tuple(point.place.resource.items()) for point in receiver.points()}
        assert {("deployment.environment.name", "test"), ("service.name", "nightly")} <= set(resource)


async def test_signals_have_addresses_of_their_own(otlp_receiver: OtlpReceiver) -> None:
    """With no common address, those that have none are not sent."""
    addresses = {f"{signal}_url": f"{otlp_receiver.url}/v1/{signal}" for signal in ("metrics", "traces")}
    outcome = await bus_with(100).run_consumer(OtlpSink, **addresses)
    assert outcome.receipt.complete
    assert otlp_receiver.points()
    assert otlp_receiver.spans()
    assert not otlp_receiver.logs


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"signals": "metrics,profiles"}, "profiles"),
        ({"trace_requests": 2}, "part of 1"),
        ({"max_buckets": 5}, "at least 20"),
        ({"interval_s": 0}, "interval_s"),
        ({"temporality": "both"}, "cumulative"),
        ({"headers": "x-tenant"}, "name=value"),
        ({"url": "localhost:4318"}, "http://"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OptionError, match=re.escape(complaint)):
        build_consumer(OtlpSink, "otlp", options)


async def test_nobody_is_there_at_first(otlp_receiver: OtlpReceiver) -> None:
    otlp_receiver.kill()
    bus = bus_with(100)
    async with bus.consumer(OtlpSink, url=otlp_receiver.url) as running:
        otlp_receiver.start()
        await running.catch_up()
    assert running.receipt.complete
    assert otlp_receiver.points()


def test_a_state_of_other_temporality_is_refused() -> None:
    """To go on from it would give wrong figures."""
    with pytest.raises(StateError, match="temporality=cumulative"):
        OtlpSink(temporality="delta").restore(OtlpSink().state())


async def test_what_was_counted_is_not_counted_twice(otlp_receiver: OtlpReceiver) -> None:
    """As when its dead letter is tried again, or a journal that lost its end gets events again."""
    bus = bus_with(500)
    async with bus.consumer(OtlpSink, url=otlp_receiver.url) as running:
        await running.catch_up()
        before = points_of(otlp_receiver)
        bus.messages.extend(bus.messages[:])
        await running.catch_up()
    assert points_of(otlp_receiver) == before


async def test_a_batch_that_cannot_be_read_changes_nothing(otlp_receiver: OtlpReceiver) -> None:
    bus = bus_with(500)
    bad = structs.replace(bus.events(Records)[-1], count=7)  # its tables have more
    bus.publish(bad)
    bus.complete_run(bad.run_id)
    outcome = await bus.run_consumer(OtlpSink, url=otlp_receiver.url)
    assert [letter.kind for letter in outcome.dead_letters] == ["records"]
    last = totals(otlp_receiver.points())["profiling", "phase_bus.requests", None, None][-1]
    assert last.point.as_int == 500


async def test_a_run_that_goes_on_after_an_end(otlp_receiver: OtlpReceiver) -> None:
    """As one that was taken for lost: its series go on, and the last end counts."""
    bus = MemoryBus()
    events = make_run(400, phases=["profiling"])
    half = len(events) // 2
    bus.publish(*events[:half])
    bus.complete_run(events[0].run_id, "lost", "its publisher vanished")
    async with bus.consumer(OtlpSink, url=otlp_receiver.url) as running:
        await running.catch_up()
        bus.publish(*(event for event in events[half:] if not isinstance(event, RunComplete)))
        bus.complete_run(events[0].run_id)
        await running.catch_up()
    points = totals(otlp_receiver.points())["profiling", "phase_bus.requests", None, None]
    assert points[-1].point.as_int == 400
    assert len({point.point.start_time_unix_nano for point in points}) == 1
    runs = [span for _, span in otlp_receiver.spans() if span.name == "run"]
    assert [attributes_of(span.attributes)["phase_bus.status"] for span in runs] == ["lost", "completed"]


async def test_an_error_without_a_type_is_no_success(otlp_receiver: OtlpReceiver) -> None:
    bus = MemoryBus()
    with bus.publisher() as publisher:
        times = {"request_start_ns": T0_NS, "request_end_ns": T0_NS + 1_000_000_000}
        publisher.record("r", PROFILING, {"error_request_count": 1}, times, error=("", "x" * 9999, None))
        publisher.complete_run("r", "completed")
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url, trace_requests=1.0)
    series = totals(otlp_receiver.points())
    assert ("profiling", DURATION, None, None) not in series
    assert series["profiling", DURATION, None, "_OTHER"][-1].point.count == 1
    (span,) = (span for _, span in otlp_receiver.spans() if span.kind == span.SPAN_KIND_CLIENT)
    assert attributes_of(span.attributes)["error.type"] == "_OTHER"
    assert len(span.status.message) == 1000


async def test_it_is_no_group(otlp_receiver: OtlpReceiver) -> None:
    with pytest.raises(ConfigError, match="without a group"):
        await bus_with(10).run_group(OtlpSink, url=otlp_receiver.url)


@pytest.mark.parametrize("body", ['{"a":[1]}', "all right", "[]"])
async def test_an_answer_that_is_none_is_no_success(body: str, webhook: Webhook) -> None:
    """Whatever is there, it is not known to have taken anything."""
    webhook.body = body
    with pytest.raises(ConfigError, match="an answer that is none of OTLP; check url"):
        await bus_with(10).run_consumer(OtlpSink, url=webhook.url)


@pytest.mark.parametrize("body", ["", "{}", '{"partialSuccess":{}}'])
async def test_an_answer_in_json_is_read(body: str, webhook: Webhook) -> None:
    webhook.body = body
    assert (await bus_with(10).run_consumer(OtlpSink, url=webhook.url)).receipt.complete


async def test_a_part_that_is_refused_in_json(webhook: Webhook) -> None:
    webhook.body = '{"partialSuccess":{"rejectedSpans":"1"}}'
    outcome = await bus_with(10).run_consumer(OtlpSink, url=webhook.url, signals="traces")
    assert not outcome.receipt.complete
