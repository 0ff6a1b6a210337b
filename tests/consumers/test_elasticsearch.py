"""The ``elasticsearch`` sink, against OpenSearch's interface in memory, also through a proxy with faults.

That server knows no data streams: it is given plain indexes, which are written by the same requests.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from aiohttp import web

from phase_bus import ConfigError, EventBase, OptionError, PhaseRef, Records, RunStart
from phase_bus.consumer.options import build_consumer
from phase_bus.publisher.record_builder import RecordBuilder
from phase_bus.testing import MemoryBus, make_run
from phase_bus.testing.outcome import Outcome
from phase_bus_consumers.elasticsearch import ElasticsearchSink, template
from tests.support.servers.app import App
from tests.support.servers.faults import CUT, LOSE_ANSWER, FaultProxy, answer, delay
from tests.support.servers.opensearch import OpenSearch, PlainIndexes
from tests.support.workplace import Workplace

RECORDS = "logs-phase_bus.records-default"
EVENTS = "logs-phase_bus.events-default"
PASSWORD = "s3cret-7f3a"
PROFILING = PhaseRef("profiling", "profiling", 0)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr("phase_bus.consumer.patience._back_off", lambda *_: 0.0)


def bus_with(*events: EventBase) -> MemoryBus:
    bus = MemoryBus()
    bus.publish(*events)
    return bus


async def fill(url: str, *events: EventBase, **options: Any) -> Outcome[ElasticsearchSink]:
    """Send events to plain indexes."""
    return await bus_with(*events).run_consumer(ElasticsearchSink, url=url, data_stream=False, **options)


def made(*rows: tuple[dict[str, Any], dict[str, Any]]) -> Records:
    """Return a batch of records, each of its metrics and fields."""
    builder = RecordBuilder(lists="full")
    for metrics, fields in rows:
        builder.add(metrics, fields)
    tables, fields_, errors, _ = builder.build()
    return Records(
        run_id="r", phase=PROFILING, count=len(rows), metrics=tables, fields=fields_, errors=errors
    )


class Scripted(App):
    """A server whose answers to bulk requests a test gives."""

    def __init__(self, *answers: Callable[[list[str]], Any]) -> None:
        super().__init__({"* /{path:.*}": self._on_request})
        self.answers = list(answers)
        self.ids: list[list[str]] = []

    async def _on_request(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.path != "/_bulk" or not body:
            return web.json_response({}, status=400 if request.path == "/_bulk" else 200)
        ids = [json.loads(line)["create"]["_id"] for line in body.splitlines()[::2]]
        self.ids.append(ids)
        said = self.answers.pop(0)(ids) if self.answers else taken(ids)
        return said if isinstance(said, web.Response) else web.json_response(said)


def item(status: int, kind: str = "", reason: str = "") -> dict[str, Any]:
    error = {"error": {"type": kind, "reason": reason}} if kind else {}
    return {"create": {"status": status, **error}}


def taken(ids: list[str]) -> Any:
    return {"errors": False, "items": [item(201)] * len(ids)}


# ---- what arrives ----


async def test_every_record_and_event_is_there_once(opensearch: OpenSearch, no_leaks: None) -> None:
    run = make_run(records=200)
    outcome = await fill(opensearch.url, *run, batch_rows=64)
    assert outcome.receipt.complete
    assert opensearch.count(RECORDS) == sum(event.count for event in run if isinstance(event, Records))
    events = [found["_source"]["event"]["action"] for found in opensearch.documents(EVENTS)]
    assert sorted(events) == sorted(["receipt", *(e.kind for e in run if not isinstance(e, Records))])


async def test_documents_have_the_names_of_the_schema(opensearch: OpenSearch) -> None:
    start_ns, end_ns = 1_769_860_810_250_000_001, 1_769_860_811_250_000_003
    fields = {
        "x_request_id": "q1",
        "request_start_ns": start_ns,
        "request_end_ns": end_ns,
        "session_num": 7,
    }
    builder = RecordBuilder()
    builder.add({"request_latency": 10**9, "time_to_first_token": 5.5}, fields)
    builder.add({}, {"was_cancelled": True})
    builder.add({}, {}, ("Server Error", "it\nbroke", 500))
    metrics, tables, errors, _ = builder.build()
    batch = Records(
        run_id="r", ts_ns=start_ns, phase=PROFILING, count=3, metrics=metrics, fields=tables, errors=errors
    )
    await fill(opensearch.url, RunStart(run_id="r", producer="gen 1", models=("m",)), batch, service="llm")
    documents = {found["_id"]: found["_source"] for found in opensearch.documents(RECORDS)}
    assert all(document["event"]["id"] == key for key, document in documents.items())
    first, cancelled, failed = documents.values()
    assert first["@timestamp"] == "2026-01-31T12:00:11.250000003Z"
    assert first["event"]["start"] == "2026-01-31T12:00:10.250000001Z"
    assert first["event"]["duration"] == 1_000_000_002
    assert first["event"]["outcome"] == "success"
    assert first["event"]["dataset"] == "phase_bus.records"
    assert first["service"] == {"name": "llm"}
    assert first["labels"] == {"run_id": "r", "phase": "profiling", "phase_kind": "profiling"}
    assert first["http"]["request"]["id"] == "q1"
    assert first["phase_bus"]["metrics"] == {"request_latency": 10**9, "time_to_first_token": 5.5}
    assert first["phase_bus"]["request"]["session_num"] == 7
    assert cancelled["event"]["outcome"] == "unknown"
    assert failed["event"]["outcome"] == "failure"
    assert failed["error"] == {"type": "Server Error", "message": "it\nbroke", "code": "500"}
    (begun,) = (found["_source"] for found in opensearch.documents(EVENTS))
    assert begun["event"]["action"] == "run_start"
    assert begun["message"].startswith("RUN_START: r")
    assert begun["phase_bus"]["models"] == ["m"]
    assert json.loads(begun["event"]["original"])["producer"] == "gen 1"


async def test_only_what_is_wanted(opensearch: OpenSearch) -> None:
    run = make_run(records=50)
    await fill(opensearch.url, *run, what="records", stream="only-records")
    await fill(opensearch.url, *run, what="events", stream="only-events")
    count = sum(event.count for event in run if isinstance(event, Records))
    assert opensearch.count("only-records") == count
    receipt = 1
    assert opensearch.count("only-events") == sum(not isinstance(event, Records) for event in run) + receipt


async def test_odd_values_are_no_obstacle(opensearch: OpenSearch) -> None:
    """What JSON or an index cannot hold is changed, not refused: or its event would be a dead letter."""
    nan, long = float("nan"), "x" * 100_000
    batch = made(
        ({"request_latency": nan, "a": 1, "a.b": float("inf"), "": 3, "  ": 4}, {"x_request_id": "a\0b"}),
        (
            {"a_b": 5, "a.b": 6, ".a.": 7, "list": [1, 2]},
            {"note": long, "request_end_ns": -5, "x_request_id": 9},
        ),
        (
            {"a": 2**63 - 1},
            {"request_start_ns": 2**63 - 1, "request_end_ns": 10, "error": "x", "phase": "y"},
        ),
        ({"a": "text"}, {"session_num": "seven", "request_end_ns": 1.5, "note": "\ud83d\ude00 \x1b[1m"}),
    )
    start = RunStart(run_id="r", variation={"": {"a.b": [nan, {"": 1}]}, "long": long}, label=long + "\0")
    outcome = await fill(opensearch.url, start, batch)
    assert not outcome.dead_letters
    first, second, third, _ = (found["_source"]["phase_bus"] for found in opensearch.documents(RECORDS))
    assert first["metrics"] == {"request_latency": None, "a": 1, "a_b_": None, "_": 3, "__": 4}
    assert second["metrics"] == {"a_b": 5, "a_b_": 6, "_a_": 7, "list": [1, 2]}
    assert second["request"]["x_request_id"] == 9
    assert third["request"]["error"] == "x"
    (begun,) = opensearch.documents(EVENTS)
    assert json.loads(begun["_source"]["event"]["original"])["variation"]["long"] == long


# ---- what goes wrong ----


@pytest.mark.slow
async def test_faults_change_nothing(
    opensearch: OpenSearch, fault_proxy: Callable[..., FaultProxy]
) -> None:
    """Lost answers, cut connections, 429, 503, slow answers: the counts are the same, nothing is double."""
    proxy = fault_proxy(opensearch.url, only="/_bulk")
    run = make_run(records=250)
    async with bus_with(*run).consumer(
        ElasticsearchSink, url=proxy.url, data_stream=False, batch_rows=50, timeout_s=0.5
    ) as running:
        proxy.next(LOSE_ANSWER, CUT, answer(429), answer(503), LOSE_ANSWER, delay(0.1))
        proxy.next(
            answer(200, "<html>log in</html>"), answer(200, '{"errors":false,"items":[]}'), delay(0.8)
        )
        await running.catch_up()
    assert running.receipt.complete
    assert opensearch.count(RECORDS) == sum(event.count for event in run if isinstance(event, Records))
    assert proxy.counts["lost"] == 2
    assert proxy.counts["429"] == proxy.counts["503"] == proxy.counts["cut"] == 1
    assert not proxy.script


async def test_a_server_that_is_away_at_first(opensearch: OpenSearch) -> None:
    """The sink waits for it; the templates are installed once it is there."""
    opensearch.kill()
    run = make_run(records=100)
    bus = bus_with(*run)
    async with bus.consumer(ElasticsearchSink, url=opensearch.url, data_stream=False) as running:
        opensearch.start()
        await running.catch_up()
    assert running.receipt.complete
    assert opensearch.ask("GET", f"/_index_template/{RECORDS}")["index_templates"]


async def test_what_becomes_of_each_document() -> None:
    """Taken, there already, later, or never: each by its own status."""

    def mixed(ids: list[str]) -> Any:
        statuses = [
            item(201),
            item(409, "version_conflict_engine_exception", "document already exists"),
            item(429, "es_rejected_execution_exception", "busy"),
            item(503, "unavailable_shards_exception", "no shard"),
            item(403, "cluster_block_exception", "disk full"),
            item(400, "document_parsing_exception", "failed to parse\nfield [x]"),
            item(500, "odd_exception", ""),
        ]
        return {"errors": True, "items": [*statuses, *[item(201)] * (len(ids) - len(statuses))]}

    with Scripted(mixed) as server:
        bus = bus_with(*make_run(records=20, phases=["profiling"], run_id="r"))
        async with bus.consumer(ElasticsearchSink, url=server.url, what="records") as running:
            await running.catch_up()
        first, second = server.ids
        assert second == first[2:5]
        failed = sum(topic.failed for topic in running.receipt.topics.values())
        assert failed == 1
        assert not running.receipt.complete


async def test_a_dead_letter_has_the_reason(opensearch: OpenSearch) -> None:
    """Here, that the server has no data streams."""
    bus = bus_with(*make_run(records=20, phases=["profiling"]))
    outcome = await bus.run_consumer(ElasticsearchSink, url=opensearch.url, what="records")
    assert not outcome.receipt.complete
    (letter,) = outcome.dead_letters
    assert "row 0: 400 unsupported_operation_exception: data streams are not supported" in letter.error


@pytest.mark.slow
async def test_more_fields_than_an_index_may_have(opensearch: OpenSearch) -> None:
    """A generator that invents names of metrics meets the server's limit, which the dead letter tells."""
    known = made(({"request_latency": 1}, {}))
    invented = made(*[({f"own_{number}": 1}, {}) for number in range(1100)])
    outcome = await fill(opensearch.url, invented, known, what="records")
    (letter,) = outcome.dead_letters
    assert "illegal_argument_exception: Limit of total fields [1000] has been exceeded" in letter.error
    assert opensearch.count(RECORDS) > 500
    last = opensearch.documents(RECORDS, 2000)[-1]["_source"]
    assert last["phase_bus"]["metrics"] == {"request_latency": 1}


@pytest.mark.parametrize(
    "nonsense",
    [
        web.json_response({"errors": False, "items": [item(201)]}),
        web.json_response({"errors": False, "items": [{}]}),
        web.json_response({"errors": False}),
        web.json_response([]),
        web.Response(text="<html>log in</html>"),
        web.Response(body=b"\xff"),
    ],
)
async def test_what_is_no_answer_is_not_taken_for_one(nonsense: web.Response) -> None:
    body, kind = nonsense.body, nonsense.content_type
    answers = [lambda _ids: web.Response(body=body, content_type=kind)] * 2
    with Scripted(*answers) as server:
        bus = bus_with(*make_run(records=50, phases=["profiling"]))
        outcome = await bus.run_consumer(ElasticsearchSink, url=server.url, what="records")
        assert len(server.ids) == 3
        assert server.ids[0] == server.ids[2]
    assert outcome.receipt.complete


async def test_a_batch_that_is_too_large_is_sent_in_parts() -> None:
    def limited(ids: list[str]) -> Any:
        return taken(ids) if len(ids) <= 7 else web.Response(status=413)

    with Scripted(*[limited] * 100) as server:
        bus = bus_with(*make_run(records=50, phases=["profiling"]))
        outcome = await bus.run_consumer(ElasticsearchSink, url=server.url, what="records")
        assert outcome.receipt.complete
        there = [key for ids in server.ids if len(ids) <= 7 for key in ids]
    assert len(there) == len({*there}) == 50


# ---- who may ----


@pytest.mark.parametrize(
    ("options", "authorization"),
    [
        ({"user": "me", "password": "env:ES_SECRET"}, base64.b64encode(f"me:{PASSWORD}".encode()).decode()),
        ({"api_key": "env:ES_SECRET"}, PASSWORD),
    ],
)
async def test_credentials(
    options: dict[str, str],
    authorization: str,
    opensearch: OpenSearch,
    fault_proxy: Callable[..., FaultProxy],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheme = "ApiKey" if "api_key" in options else "Basic"
    proxy = fault_proxy(opensearch.url, authorization=f"{scheme} {authorization}")
    values = {"url": proxy.url, "data_stream": False, **options}
    monkeypatch.setenv("ES_SECRET", PASSWORD)
    sink = build_consumer(ElasticsearchSink, "es", values)
    outcome = await bus_with(*make_run(records=10)).run_consumer(sink)
    assert outcome.receipt.complete
    monkeypatch.setenv("ES_SECRET", "wrong-7f3a")
    with pytest.raises(ConfigError) as caught:
        await bus_with(*make_run(records=10)).run_consumer(build_consumer(ElasticsearchSink, "es", values))
    assert str(caught.value).endswith("answers 401: unauthorized")
    assert "7f3a" not in str(caught.value)


@pytest.mark.slow
def test_wrong_credentials_are_one_line(
    workplace: Workplace, opensearch: OpenSearch, fault_proxy: Callable[..., FaultProxy]
) -> None:
    """The command ends with 2; the secret is in no command line, output or file."""
    proxy = fault_proxy(opensearch.url, authorization="Basic nobody")
    sink = f"elasticsearch:url={proxy.url},user=me,password=env:ES_SECRET"
    done = workplace.run(
        "exec",
        "--with",
        sink,
        "--",
        sys.executable,
        "-m",
        "phase_bus",
        "simulate",
        "-n",
        "100",
        ES_SECRET=PASSWORD,
    )
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "401" in line]
    assert len(lines) == 1
    assert "'elasticsearch'" in lines[0]
    encoded = base64.b64encode(f"me:{PASSWORD}".encode())
    for file in workplace.directory.rglob("*"):
        if file.is_file():
            assert PASSWORD.encode() not in file.read_bytes()
            assert encoded not in file.read_bytes()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"user": "me"}, "a login is user and password, or api_key"),
        ({"password": "env:X"}, "a login is user and password, or api_key"),
        (
            {"user": "me", "password": "env:X", "api_key": "env:X"},
            "a login is user and password, or api_key",
        ),
        ({"stream": "Logs"}, "no name of an index"),
        ({"stream": "logs/{kind}"}, "no name of an index"),
        ({"stream": "-logs"}, "no name of an index"),
        ({"what": "all of it"}, "what"),
        ({"url": "http://me:s3cret-7f3a@host"}, "must not have a user or password"),
        ({"password": "s3cret-7f3a"}, "not given in clear"),
        ({"timeout_s": "0"}, "timeout_s must be more than 0"),
    ],
)
def test_options(values: dict[str, str], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        build_consumer(ElasticsearchSink, "es", values)


# ---- the template ----


async def test_a_template_is_installed_and_replaced_only_if_it_is_ours(opensearch: OpenSearch) -> None:
    def installed() -> Any:
        (found,) = opensearch.ask("GET", f"/_index_template/{RECORDS}")["index_templates"]
        return found["index_template"]

    await fill(opensearch.url)
    assert installed()["version"] == template()["version"]
    assert installed()["index_patterns"] == [RECORDS]
    assert "data_stream" not in installed()
    old = {"index_patterns": [RECORDS], "priority": 7, "version": 0, "_meta": {"managed_by": "phase-bus"}}
    opensearch.ask("PUT", f"/_index_template/{RECORDS}", old)
    await fill(opensearch.url)
    assert installed()["version"] == template()["version"]
    theirs = {"index_patterns": [RECORDS], "priority": 7}
    opensearch.ask("PUT", f"/_index_template/{RECORDS}", theirs)
    await fill(opensearch.url)
    assert installed()["priority"] == 7


async def test_a_template_for_a_data_stream(opensearch: OpenSearch) -> None:
    await bus_with().run_consumer(ElasticsearchSink, url=opensearch.url)
    (found,) = opensearch.ask("GET", f"/_index_template/{EVENTS}")["index_templates"]
    assert "data_stream" in found["index_template"]


async def test_all_by_default(opensearch: OpenSearch) -> None:
    """As users have it, but for the data streams that this server does not know."""
    run = make_run(records=50)
    with PlainIndexes(opensearch.url) as proxy:
        outcome = await bus_with(*run).run_consumer(ElasticsearchSink, url=proxy.url)
    assert outcome.receipt.complete
    assert opensearch.count(RECORDS) == sum(event.count for event in run if isinstance(event, Records))


async def test_without_a_template(opensearch: OpenSearch) -> None:
    await fill(opensearch.url, template=False)
    assert not opensearch.ask("GET", "/_index_template")["index_templates"]


async def test_a_template_that_the_server_refuses(
    opensearch: OpenSearch, fault_proxy: Callable[..., FaultProxy]
) -> None:
    proxy = fault_proxy(opensearch.url, only="/_index_template")
    said = '{"error":{"type":"illegal_argument_exception","reason":"another one has this priority"}}'
    proxy.next(answer(404), answer(400, said))
    with pytest.raises(ConfigError, match=r"index template .* another one has .*; .* set template=false"):
        await fill(proxy.url)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ('{"index_templates":[{"index_template":{"_meta":"a","version":"b"}}]}', None),
        ("[]", None),
        ("welcome", ConfigError),
        ("<html>log in</html>", ConfigError),
    ],
)
async def test_a_template_that_is_none(
    opensearch: OpenSearch, fault_proxy: Callable[..., FaultProxy], said: str, kind: type[Exception] | None
) -> None:
    """Another server, or a portal before it, is told in a line."""
    proxy = fault_proxy(opensearch.url, only="/_index_template")
    proxy.next(answer(200, said), answer(200, said))
    with pytest.raises(kind, match="check url") if kind else nullcontext():
        assert (await fill(proxy.url, *make_run(records=10))).receipt.complete


async def test_the_template_makes_numbers_of_metrics_and_words_of_texts(opensearch: OpenSearch) -> None:
    await fill(opensearch.url, made(({"request_latency": 5, "own": 1}, {"note": "2026-01-01", "n": 1})))
    own = opensearch.ask("GET", f"/{RECORDS}/_mapping")[RECORDS]["mappings"]["properties"]
    names = own["phase_bus"]["properties"]
    assert own["@timestamp"]["type"] == "date_nanos"
    assert names["metrics"]["properties"]["request_latency"]["meta"] == {"unit": "nanos"}
    assert names["metrics"]["properties"]["own"]["type"] == "double"
    assert names["request"]["properties"]["note"]["type"] == "keyword"
    assert names["request"]["properties"]["n"]["type"] == "long"
