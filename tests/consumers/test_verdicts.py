"""Verdicts on thresholds at every system: the figures are those of the events, and each is there once."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest

from phase_bus import Secret
from phase_bus.cli.printer import describe
from phase_bus.events import (
    EventBase,
    PhaseRef,
    PhaseStart,
    PhaseStats,
    RunComplete,
    RunStart,
    Verdict,
    VerdictState,
)
from phase_bus.testing import PROFILING, MemoryBus, make_run
from phase_bus_consumers.alerting import PhaseAlerts
from phase_bus_consumers.alerting_apprise import message
from phase_bus_consumers.alerting_conditions import Conditions
from phase_bus_consumers.elasticsearch import ElasticsearchSink
from phase_bus_consumers.logging import PhaseLogger
from phase_bus_consumers.metrics import PhaseMetrics
from phase_bus_consumers.mongodb import MongoSink
from phase_bus_consumers.otlp import OtlpSink
from phase_bus_consumers.parquet import ParquetSink
from phase_bus_consumers.prometheus import PrometheusEndpoint
from phase_bus_consumers.prometheus_figures import Figures
from phase_bus_consumers.remote_write import RemoteWrite
from phase_bus_consumers.splunk import SplunkSink
from tests.consumers.test_prometheus import figures, scrape
from tests.support.recent import recent
from tests.support.servers.hec import TOKEN, Hec
from tests.support.servers.mongodb import MongoDB
from tests.support.servers.opensearch import OpenSearch
from tests.support.servers.otlp import OtlpReceiver, attributes_of
from tests.support.servers.prometheus import Prometheus
from tests.support.servers.webhook import Webhook
from tests.support.sql import JOURNAL, dump, feed, running

TTFT = "profiling time_to_first_token p99 < 500 ms"
RATE = "profiling error_rate < 1 %"
EMPTY = "warmup time_to_first_token p99 < 500 ms"
SECOND_NS = 10**9
NO_NUMBER = 1  # OTLP's flag of a point without a value


def verdict(
    state: VerdictState, threshold: str = TTFT, *, at_ns: int = 10**18, final: bool = False, **values: Any
) -> Verdict:
    """Return a verdict on the first run of the factories."""
    units = {"value": 612_345_678.0, "limit": 500_000_000.0, "unit": "ns"}
    if threshold == RATE:
        units = {"value": 0.004, "limit": 0.01, "unit": "fraction"}
    known = {"samples": 400, "phase": threshold.split()[0], **units, **values}
    return Verdict(
        run_id="run-1",
        ts_ns=at_ns,
        producer="thresholds",
        threshold=threshold,
        state=state,
        final=final,
        **known,
    )


def judged_run() -> list[EventBase]:
    """Return a run with verdicts within it, and final ones after its end: failed, passed and unknown."""
    run: list[EventBase] = [*make_run(records=300)]
    begin = next(
        n for n, event in enumerate(run) if isinstance(event, PhaseStart) and event.phase.index == 1
    )
    end = run[-1].ts_ns
    within = [
        verdict("unknown", at_ns=run[begin].ts_ns, value=None, samples=0, reason="no samples yet"),
        verdict("failed", at_ns=run[begin].ts_ns + 1),
        verdict("passed", RATE, at_ns=run[begin].ts_ns + 2),
    ]
    after = [
        verdict("failed", at_ns=end, final=True),
        verdict("passed", RATE, at_ns=end, final=True),
        verdict("unknown", EMPTY, at_ns=end, final=True, value=None, samples=0, reason="no samples"),
    ]
    return recent([*run[: begin + 1], *within, *run[begin + 1 :], *after])


def verdicts_of(events: Sequence[EventBase]) -> list[Verdict]:
    return [event for event in events if isinstance(event, Verdict)]


def told(events: Sequence[EventBase]) -> list[tuple[str, str, bool]]:
    return [(each.threshold, each.state, each.final) for each in verdicts_of(events)]


@pytest.fixture
def events() -> list[EventBase]:
    return judged_run()


@pytest.fixture
def bus(events: list[EventBase]) -> MemoryBus:
    bus = MemoryBus()
    bus.publish(*events)
    return bus


# ---- alerts ----

FIRES, OVER = "firing", "resolved"
END = RunComplete(run_id="run-1", status="completed")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([verdict("unknown"), verdict("passed")], []),
        ([verdict("failed"), verdict("failed"), verdict("passed")], [FIRES, OVER]),
        ([verdict("failed"), verdict("unknown"), verdict("passed")], [FIRES, OVER]),
        # What the last verdict comes after the run's end says, is told once.
        ([verdict("failed"), END, verdict("failed", final=True)], [FIRES]),
        ([verdict("failed"), END, verdict("passed", final=True)], [FIRES, OVER]),
        ([verdict("failed"), END], [FIRES]),
        ([END, verdict("failed", final=True), verdict("failed", final=True)], [FIRES]),
        ([verdict("unknown"), END, verdict("unknown", final=True)], [FIRES]),
        ([verdict("passed"), END, verdict("passed", final=True)], []),
    ],
)
def test_alerts_fire_and_are_resolved(given: list[EventBase], expected: list[str]) -> None:
    conditions = Conditions(60.0, None, 20, False)
    alerts = [alert for event in given for alert in conditions.take(event)]
    assert [alert.state for alert in alerts] == expected
    assert len({alert.key for alert in alerts}) <= 1


def test_thresholds_are_alerts_of_their_own() -> None:
    """One that fails says nothing about another, or about the same in another run."""
    conditions = Conditions(60.0, None, 20, False)
    changes = [
        (alert.threshold, alert.state)
        for event in (verdict("failed"), verdict("failed", RATE), verdict("passed"))
        for alert in conditions.take(event)
    ]
    assert changes == [(TTFT, FIRES), (RATE, FIRES), (TTFT, OVER)]


def test_an_alert_says_what_was_measured() -> None:
    conditions = Conditions(60.0, None, 20, False)
    (failed,) = conditions.take(verdict("failed"))
    (unknown,) = conditions.take(verdict("unknown", EMPTY, final=True, value=None, samples=0, reason="why"))
    assert failed.message == f"threshold failed: {TTFT}: 612.35 ms was measured, 400 samples"
    assert failed.details["value"] == 612_345_678.0
    assert unknown.message == (
        f"threshold is unknown in the end, which is no pass: {EMPTY}: nothing was measured, 0 samples (why)"
    )
    assert message([failed, unknown])[0] == "[FIRING] run run-1: threshold"
    assert message([failed, unknown])[1].count("\n") == 1


async def test_alerts_reach_a_webhook_and_pagerduty(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The incident of a threshold is resolved; those that failed in the end stay open."""
    monkeypatch.setenv("PD_KEY", "0" * 32)
    bus = MemoryBus()
    bus.publish(verdict("failed"), verdict("failed", RATE), verdict("passed", RATE))
    bus.publish(END, verdict("failed", final=True))
    await bus.run_consumer(
        PhaseAlerts,
        pagerduty=Secret("env:PD_KEY"),
        pagerduty_url=f"{webhook.url}/pagerduty",
        webhook=f"{webhook.url}/events",
        webhook_format="cloudevents",
    )
    sent = [each.json for each in webhook.received]
    incidents = [each for each in sent if "dedup_key" in each]
    clouds = [each for each in sent if "specversion" in each]
    keys = {each["dedup_key"] for each in incidents if each["event_action"] == "trigger"}
    assert len(keys) == 2
    (resolved,) = [each for each in incidents if each["event_action"] == "resolve"]
    assert resolved["dedup_key"] in keys
    assert resolved["payload"]["class"] == "threshold"
    assert {each["payload"]["severity"] for each in incidents} == {"error"}
    assert sorted((each["type"], each["data"]["threshold"]) for each in clouds) == [
        ("phase-bus.alert.firing", RATE),
        ("phase-bus.alert.firing", TTFT),
        ("phase-bus.alert.resolved", RATE),
    ]
    assert len({each["id"] for each in clouds}) == 3


# ---- Prometheus ----


def passed(threshold: str) -> str:
    phase = threshold.split()[0]
    return f'phase_bus_threshold_passed{{phase="{phase}",threshold="{threshold}"}}'


async def test_prometheus_shows_how_thresholds_stand(
    events: list[EventBase], promtool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phase_bus_consumers.prometheus._FRESH_S", 0.0)
    bus = MemoryBus()
    async with bus.consumer(PrometheusEndpoint(port=0)) as run:
        after = [n for n, event in enumerate(events) if isinstance(event, Verdict)]
        bus.publish(*events[: after[0] + 1])
        await run.catch_up()
        first = await figures(run.consumer)
        assert math.isnan(first[passed(TTFT)])
        assert not [name for name in first if name.startswith("phase_bus_threshold_value")]
        bus.publish(*events[after[0] + 1 :])
        await run.catch_up()
        last = await figures(run.consumer)
        text, _ = await scrape(run.consumer)
    assert [last[passed(each)] for each in (TTFT, RATE, EMPTY)] == [0, 1, 0]
    of_ttft = f'{{phase="profiling",threshold="{TTFT}",unit="seconds"}}'
    assert last[f"phase_bus_threshold_value{of_ttft}"] == 0.612345678
    assert last[f"phase_bus_threshold_limit{of_ttft}"] == 0.5
    of_rate = f'{{phase="profiling",threshold="{RATE}",unit="ratio"}}'
    assert last[f"phase_bus_threshold_limit{of_rate}"] == 0.01
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_of_runs_that_overlap_the_one_that_is_worst_off_counts() -> None:
    figures = Figures()
    for run, state in (("a", "passed"), ("b", "failed"), ("c", "unknown")):
        figures.take(PhaseStart(run_id=run, phase=PROFILING))
        figures.take(Verdict(run_id=run, producer="t", threshold="x", state=state))  # type: ignore[arg-type]
    figures.take(Verdict(run_id="nobody", producer="t", threshold="y", state="failed"))
    restored = Figures.restored(figures.saved())
    for each in (figures, restored):
        (family,) = [one for one in each.families(0) if one.of.name == "phase_bus_threshold_passed"]
        assert family.samples == [((("threshold", "x"), ("phase", "")), 0.0)]


@pytest.mark.parametrize("crash", [False, True])
async def test_remote_write_has_verdicts_of_after_the_end(
    events: list[EventBase], prometheus: Prometheus, crash: bool
) -> None:
    """Each has a time of its own then, after the end of the series; also if the run was let go of."""
    end = next(n for n, event in enumerate(events) if isinstance(event, RunComplete))
    bus = MemoryBus()
    bus.publish(*events[: end + 1])
    async with bus.consumer(RemoteWrite, name="prom", url=prometheus.write_url) as run:
        await run.catch_up()
        assert await run.flush()
        if crash:
            await run.crash()
            await run.consumer.stop()
        else:
            bus.publish(*events[end + 1 :])
            await run.catch_up()
    if crash:
        bus.publish(*events[end + 1 :])
        await bus.run_consumer(RemoteWrite, name="prom", url=prometheus.write_url)
    found = {}
    for series in prometheus.samples("phase_bus_threshold_passed"):
        values = [float(value) for _, value in series["values"]]
        found[series["metric"]["threshold"]] = values[-1], [v for v in values if not math.isnan(v)]
        assert series["metric"]["run_id"] == "run-1"
    assert {threshold: last for threshold, (last, _) in found.items()} == {TTFT: 0, RATE: 1, EMPTY: 0}
    assert len(found[EMPTY][1]) == 1
    assert {*found[TTFT][1]} == {0}
    shown = prometheus.query("phase_bus_threshold_passed == 0")
    assert {series["metric"]["threshold"] for series in shown} == {TTFT, EMPTY}


async def test_a_verdict_alone_begins_no_run(prometheus: Prometheus) -> None:
    bus = MemoryBus()
    bus.publish(*recent([verdict("failed", final=True)]))
    outcome = await bus.run_consumer(RemoteWrite(prometheus.write_url))
    assert not outcome.dead_letters
    assert not prometheus.series("{__name__!=''}")


# ---- OpenTelemetry ----


async def test_otlp_has_log_records_and_a_gauge(
    bus: MemoryBus, events: list[EventBase], otlp_receiver: OtlpReceiver
) -> None:
    outcome = await bus.run_consumer(OtlpSink, url=otlp_receiver.url, interval_s=0.5)
    assert outcome.receipt.complete
    records = [
        record for _, record in otlp_receiver.log_records() if record.event_name.endswith(".verdict")
    ]
    found = [attributes_of(record.attributes) for record in records]
    names = ("name", "state", "final")
    assert [tuple(each[f"phase_bus.threshold.{name}"] for name in names) for each in found] == told(events)
    assert [record.severity_text for record in records] == [
        "INFO",
        "WARN",
        "INFO",
        "ERROR",
        "INFO",
        "ERROR",
    ]
    assert found[1]["phase_bus.threshold.value"] == 612_345_678.0
    assert "phase_bus.threshold.value" not in found[0]
    points: dict[str, list[Any]] = {}
    for point in otlp_receiver.points("phase_bus.threshold.passed"):
        points.setdefault(point.attributes["phase_bus.threshold.name"], []).append(point.point)
    assert points[TTFT][0].flags == NO_NUMBER
    assert {each.as_int for each in points[TTFT][1:]} == {0}
    assert len(points[TTFT]) > 4  # it is told again with the other metrics
    assert {each.as_int for each in points[RATE]} == {1}
    assert [each.as_int for each in points[EMPTY]] == [0]
    for series in points.values():
        times = [each.time_unix_nano for each in series]
        assert times == sorted(set(times))
    assert otlp_receiver.repeated() == {"points": 0, "logs": 0, "spans": 0}


async def test_otlp_of_a_run_that_is_not_known(otlp_receiver: OtlpReceiver) -> None:
    bus = MemoryBus()
    bus.publish(verdict("failed", final=True))
    await bus.run_consumer(OtlpSink, url=otlp_receiver.url)
    (point,) = otlp_receiver.points()
    assert (point.name, point.point.time_unix_nano) == ("phase_bus.threshold.passed", 10**18)
    assert not otlp_receiver.spans()


# ---- rows and documents ----


async def test_sql_has_a_table(url: str, events: list[EventBase]) -> None:
    """Each verdict is a row of its own, once, however often it comes."""
    async with running(url) as sink:
        await feed(sink, list(enumerate(events, 1)))
        await sink.flush()
        await feed(sink, list(enumerate(events, 1)))
        await sink.flush()
    rows = dump(url)["verdicts"]
    rows.sort(key=lambda row: row["stream_offset"])
    assert [(row["threshold"], row["state"], bool(row["final"])) for row in rows] == told(events)
    for row, event in zip(rows, verdicts_of(events), strict=True):
        assert (row["value"], row["limit_value"], row["unit"]) == (event.value, event.limit, event.unit)
        assert (row["run_id"], row["phase"], row["ts_ns"]) == (event.run_id, event.phase, event.ts_ns)
        assert (row["stream"], row["reason"], row["samples"]) == (JOURNAL, event.reason, event.samples)


async def test_parquet_has_files_of_verdicts(
    tmp_path: Path, bus: MemoryBus, events: list[EventBase]
) -> None:
    for _ in range(2):
        await bus.run_consumer(ParquetSink, name="parquet", path=str(tmp_path / "data"), batch_rows=1)
    directory = tmp_path / "data"
    asked = 'SELECT threshold, state, final, value, "limit" FROM read_parquet(?) ORDER BY stream_offset'
    rows = duckdb.execute(asked, [f"{directory}/*/verdicts-*.parquet"]).fetchall()
    assert [row[:3] for row in rows] == told(events)
    assert [row[3:] for row in rows] == [(each.value, each.limit) for each in verdicts_of(events)]
    of_events = [f"{directory}/*/events-*.parquet"]
    kinds = duckdb.execute("SELECT kind FROM read_parquet(?)", of_events).fetchall()
    assert kinds.count(("verdict",)) == len(rows)


async def test_mongodb_has_a_collection(bus: MemoryBus, events: list[EventBase], mongodb: MongoDB) -> None:
    database = mongodb.new_database()
    for name in ("one", "two"):  # both send all of them
        await bus.run_consumer(MongoSink(mongodb.url, database=database), name=name)
    found = mongodb.documents(database, "verdicts")
    assert sorted((each["threshold"], each["state"], each["final"]) for each in found) == sorted(
        told(events)
    )
    assert all(each["run_id"] == "run-1" and each["phase"] for each in found)
    assert {each["ts"].timestamp() for each in found} <= {
        each.ts_ns // 10**6 / 1e3 for each in verdicts_of(events)
    }
    kinds = [each["kind"] for each in mongodb.documents(database, "events")]
    assert kinds.count("verdict") == len(found)


def check_documents(found: Sequence[Any], events: Sequence[EventBase]) -> None:
    """See that documents in the names of the schema say what the verdicts say."""
    by_name = {(each["rule"]["name"], each["phase_bus"]["final"]): each for each in found}
    failed, passes, unknown = (by_name[each, True] for each in (TTFT, RATE, EMPTY))
    assert [each["event"]["outcome"] for each in (failed, passes, unknown)] == [
        "failure",
        "success",
        "failure",
    ]
    assert [each["log"]["level"] for each in (failed, passes, unknown)] == ["error", "info", "error"]
    assert failed["phase_bus"]["value"] == 612_345_678.0
    assert (unknown["labels"]["phase"], unknown["error"]["message"]) == ("warmup", "no samples")
    assert failed["message"].startswith(f"VERDICT: {TTFT} | State: failed, Final: yes, Value: 612.35 ms")
    assert len(found) == len(verdicts_of(events))


async def test_elasticsearch_has_documents(
    bus: MemoryBus, events: list[EventBase], opensearch: OpenSearch
) -> None:
    await bus.run_consumer(
        ElasticsearchSink(opensearch.url, what="events", stream="verdicts", data_stream=False)
    )
    found = [each["_source"] for each in opensearch.documents("verdicts")]
    check_documents([each for each in found if each["event"]["action"] == "verdict"], events)


async def test_splunk_has_events(
    bus: MemoryBus, events: list[EventBase], hec: Hec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEC_TOKEN", TOKEN)
    await bus.run_consumer(SplunkSink(url=hec.url, token=Secret("env:HEC_TOKEN"), what="events"))
    found = [each["event"] for each in hec.indexed]
    check_documents([each for each in found if each["event"]["action"] == "verdict"], events)


# ---- files, and the screen ----


async def test_lines_of_logs(bus: MemoryBus, events: list[EventBase], tmp_path: Path) -> None:
    lines = {}
    for form in ("text", "json", "ecs"):
        await bus.run_consumer(PhaseLogger, name=form, log_file=tmp_path / form, format=form)
        lines[form] = (tmp_path / form).read_text().splitlines()
    text = [line.partition("VERDICT: ")[2] for line in lines["text"] if "VERDICT: " in line]
    assert len(text) == len(verdicts_of(events))
    assert text[0] == f"{TTFT} | State: unknown, Limit: 500.00 ms, Samples: 0, Reason: no samples yet"
    assert text[4] == f"{RATE} | State: passed, Final: yes, Value: 0.40 %, Limit: 1.00 %, Samples: 400"
    objects = [json.loads(line) for line in lines["json"]]
    states = [(o["threshold"], o["state"], o["final"]) for o in objects if o["event"] == "verdict"]
    assert states == told(events)
    documents = [json.loads(line) for line in lines["ecs"]]
    check_documents([each for each in documents if each["event"]["action"] == "verdict"], events)


async def test_the_file_of_metrics(bus: MemoryBus, tmp_path: Path) -> None:
    bus.publish(Verdict(run_id="nobody", producer="t", threshold="x", state="failed"))
    await bus.run_consumer(PhaseMetrics(tmp_path / "metrics.json"))
    runs = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    thresholds = runs["run-1"]["thresholds"]
    assert {name: (each["state"], each["final"]) for name, each in thresholds.items()} == {
        TTFT: ("failed", True),
        RATE: ("passed", True),
        EMPTY: ("unknown", True),
    }
    assert (thresholds[TTFT]["value"], thresholds[TTFT]["unit"]) == (612_345_678.0, "ns")
    assert list(runs) == ["run-1"]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (verdict("failed"), f'{TTFT}  failed value="612.35 ms" limit="500.00 ms"'),
        (verdict("passed", RATE, final=True), f'{RATE}  passed final=true value="0.40 %" limit="1.00 %"'),
        (verdict("unknown", value=None, reason="why"), f'{TTFT}  unknown limit="500.00 ms"'),
    ],
)
def test_tail_prints_what_people_read(event: Verdict, expected: str) -> None:
    line = describe(event)
    assert re.search(re.escape(expected), line.replace("producer=thresholds ", "")), line


def test_tail_prints_no_python() -> None:
    """Times are readable, numbers short; what is no word is as in JSON."""
    phase = PhaseStart(
        run_id="r",
        phase=PhaseRef("profiling"),
        stats=PhaseStats(start_ns=17 * 10**17, expected_duration_s=0.1 + 0.2),
    )
    assert re.search(r" start=\d\d:\d\d:\d\d\.\d{3} expected_duration_s=0\.3$", describe(phase))
    assert describe(RunStart(run_id="r", models=("a b", "c"))).endswith(' models=["a b","c"]')
