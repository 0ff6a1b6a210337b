"""The ``mongodb`` sink, with MongoDB's client against a server of its protocol, which is not MongoDB."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import bson
import pytest
from structlog.testing import capture_logs

from phase_bus import ConfigError, RecordBatch, Secret
from phase_bus.consumer.options import build_consumer
from phase_bus.errors import OptionError
from phase_bus.events import Records, RunComplete, RunStart, Summary
from phase_bus.testing import MemoryBus, make_event, make_records, make_run, until
from phase_bus_consumers.mongodb import MongoSink
from phase_bus_consumers.mongodb_documents import record_documents
from tests.support.servers.mongodb import PASSWORD, USER, MongoDB
from tests.support.servers.tcp_faults import TcpProxy

RECORDS = 300


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come soon."""
    monkeypatch.setattr("phase_bus.consumer.patience._back_off", lambda *_: 0.05)


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
def bus() -> MemoryBus:
    """A bus with a run of 300 records, some of which are errors."""
    bus = MemoryBus()
    bus.publish(*make_run(records=RECORDS, phases=["profiling"], error_rate=0.1))
    return bus


def sink(server: MongoDB, database: str, **options: Any) -> MongoSink:
    # A client that has lost the primary looks for it again that soon.
    return MongoSink(server.url + "/?heartbeatFrequencyMS=500", database=database, **options)


async def test_records_and_events_are_documents(bus: MemoryBus, mongodb: MongoDB) -> None:
    database = mongodb.new_database()
    outcome = await bus.run_consumer(sink(mongodb, database))
    assert outcome.receipt.complete
    records = mongodb.documents(database, "records")
    assert len(records) == RECORDS
    expected = [record for event in bus.events(Records) for record in _plain(event)]
    assert sorted(record["fields"]["x_request_id"] for record in records) == sorted(
        record["x_request_id"] for record in expected
    )
    assert sum(record["error"] is not None for record in records) == sum(
        record["error"] is not None for record in expected
    )
    one = next(record for record in records if record["error"] is None)
    (like,) = [each for each in expected if each["x_request_id"] == one["fields"]["x_request_id"]]
    assert one["metrics"]["request_latency"] == like["request_latency"]
    assert (one["run_id"], one["phase"]) == ("run-1", "profiling")
    kinds = [document["kind"] for document in mongodb.documents(database, "events")]
    assert {"run_start", "phase_complete", "run_complete"} <= set(kinds)
    with mongodb.client() as client:
        indexes = client[database]["records"].index_information()
    assert [("run_id", 1), ("phase", 1)] in [index["key"] for index in indexes.values()]


def _plain(event: Records) -> list[dict[str, Any]]:
    return list(RecordBatch(event))


async def test_what_is_there_already_stays_once(bus: MemoryBus, mongodb: MongoDB) -> None:
    """A sink of another name sends the same rows; nothing is refused, nothing doubled."""
    database = mongodb.new_database()
    for name in ("first", "second"):
        outcome = await bus.run_consumer(sink(mongodb, database, prefix="my_"), name=name)
        assert outcome.receipt.complete
    assert mongodb.count(database, "my_records") == RECORDS


async def test_a_document_that_is_not_valid_is_refused_alone(bus: MemoryBus, mongodb: MongoDB) -> None:
    """The collection's own rules, and another unique index, refuse rows; all others are there."""
    database = mongodb.new_database()
    ids = [record["x_request_id"] for event in bus.events(Records) for record in _plain(event)]
    with mongodb.client() as client:
        rule = {"fields.x_request_id": {"$ne": ids[7]}}
        client[database].create_collection("records", validator=rule)
        client[database]["records"].create_index("fields.x_request_id", unique=True)
        client[database]["records"].insert_one({"_id": "other", "fields": {"x_request_id": ids[150]}})
    async with bus.consumer(sink(mongodb, database)) as run:
        await run.catch_up()
    assert mongodb.count(database, "records") == RECORDS - 2 + 1
    assert not run.receipt.complete
    reasons = [str(letter.error) for letter in run.dead_letters]
    assert len(reasons) == 2
    assert "validation" in reasons[0]
    assert "(code 121)" in reasons[0]
    assert "(code 11000)" in reasons[1]


async def test_what_bson_cannot_hold(mongodb: MongoDB) -> None:
    """Large integers become texts, and keys lose what MongoDB takes apart."""
    database = mongodb.new_database()
    bus = MemoryBus()
    odd = {"a.b": math.nan, "$c": 1, "d\0": 2}
    bus.publish(
        make_event(RunStart),
        make_records([odd]),
        make_event(Summary, result={"n": 2**63, "a.b": {"$c": 1}}),
    )
    bus.complete_run("run-1")
    outcome = await bus.run_consumer(sink(mongodb, database))
    assert outcome.receipt.complete
    (record,) = mongodb.documents(database, "records")
    metrics = record["metrics"]
    assert math.isnan(metrics.pop("a\uff0eb"))
    assert metrics == {"\uff04c": 1, "d\ufffd": 2}
    (summary,) = [each for each in mongodb.documents(database, "events") if each["kind"] == "summary"]
    assert summary["event"]["result"] == {"n": str(2**63), "a\uff0eb": {"\uff04c": 1}}


@pytest.mark.slow
async def test_a_document_that_is_too_large_is_refused_alone(mongodb: MongoDB) -> None:
    """Larger than MongoDB's limit, though smaller than the bus's."""
    database = mongodb.new_database()
    bus = MemoryBus()
    bus.publish(make_event(RunStart), make_event(Summary, result={"numbers": [1] * 1_600_000}))
    bus.complete_run("run-1")
    async with bus.consumer(sink(mongodb, database)) as run:
        await run.catch_up()
    kinds = {document["kind"] for document in mongodb.documents(database, "events")}
    assert kinds >= {"run_start", "run_complete"}
    assert "summary" not in kinds
    (letter,) = run.dead_letters
    assert letter.kind == "summary"
    assert "16 MiB" in str(letter.error)


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoDB]:
    """A server that fails when it is told to."""

    class Failing(MongoDB):
        def command(self) -> list[str]:
            return [*super().command(), "--enable-test-commands"]

    with Failing(tmp_path_factory.mktemp("failing")) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"errorCode": 10107}, "code 10107"),
        ({"errorCode": 13}, "code 13"),
        ({"errorCode": 14031}, "code 14031"),
        ({"closeConnection": True}, "cannot be reached"),
        ({"writeConcernError": {"code": 64, "errmsg": "waiting for replication"}}, "how many members"),
    ],
)
async def test_what_may_pass_is_sent_again(
    bus: MemoryBus,
    failing: MongoDB,
    fault: dict[str, Any],
    told: str,
    logs: list[MutableMapping[str, Any]],
) -> None:
    """Whatever fails as a whole is tried again; what was inserted nevertheless is there once."""
    database = failing.new_database()
    with failing.client() as client:
        data = {"failCommands": ["insert"], **fault}
        client.admin.command("configureFailPoint", "failCommand", mode={"times": 3}, data=data)
    async with bus.consumer(sink(failing, database)) as run:
        await run.catch_up()
    assert run.receipt.complete
    assert not run.dead_letters
    assert failing.count(database, "records") == RECORDS
    assert any(told in str(line.get("reason")) for line in logs)


@pytest.mark.slow
async def test_answers_that_are_lost(
    bus: MemoryBus, mongodb: MongoDB, tcp_proxy: Callable[[int], TcpProxy]
) -> None:
    """The server has the rows, the sink does not know: they are sent again, and are there once."""
    database = mongodb.new_database()
    proxy = tcp_proxy(mongodb.port)
    proxy.lose_answers(3, when=b"insert")
    options = "/?heartbeatFrequencyMS=500&directConnection=true"
    consumer = MongoSink(proxy.through(mongodb.url) + options, database=database)
    outcome = await bus.run_consumer(consumer)
    assert proxy.counts["lost"] >= 1
    assert outcome.receipt.complete
    assert mongodb.count(database, "records") == RECORDS


@pytest.mark.slow
async def test_a_server_that_is_killed_in_the_middle(mongodb: MongoDB) -> None:
    """SIGKILL, and back with all that it had acknowledged: nothing is missing or doubled."""
    database = mongodb.new_database()
    bus = MemoryBus()
    bus.publish(*make_run(records=20_000, phases=["profiling"]))
    consumer = sink(mongodb, database, batch_rows=500, max_rows_per_s=10_000, timeout_s=1.0)
    async with bus.consumer(consumer) as run:
        catching_up = asyncio.create_task(run.catch_up())
        await until(lambda: mongodb.count(database, "records") > 2000)
        mongodb.kill()
        await until(lambda: bool(consumer._patience._told_s))
        assert not catching_up.done()
        mongodb.start()
        await catching_up
    assert run.receipt.complete
    assert mongodb.count(database, "records") == 20_000


@pytest.mark.slow
async def test_a_server_that_comes_later(
    bus: MemoryBus, mongodb: MongoDB, logs: list[MutableMapping[str, Any]]
) -> None:
    """The sink starts without it, says so in a line, and makes the indexes when it is there."""
    database = mongodb.new_database()
    mongodb.kill()
    async with bus.consumer(sink(mongodb, database, timeout_s=0.5)) as run:
        mongodb.start()
        await run.catch_up()
    assert run.receipt.complete
    assert mongodb.count(database, "records") == RECORDS
    with mongodb.client() as client:
        assert len(client[database]["records"].index_information()) == 2
    reasons = [str(line["reason"]) for line in logs if "reason" in line]
    assert "MongoDB cannot be reached" in reasons[0]
    assert "Topology" not in "".join(reasons)


@pytest.mark.slow
async def test_a_password(bus: MemoryBus, mongodb_auth: MongoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the environment, by itself or in the whole address."""
    monkeypatch.setenv("MONGO_PASSWORD", PASSWORD)
    monkeypatch.setenv("MONGO_URL", mongodb_auth.url)
    database = mongodb_auth.new_database()
    plain = f"mongodb://127.0.0.1:{mongodb_auth.port}/?authSource=admin"
    for number, options in enumerate(
        [
            {"url": plain, "user": USER, "password": Secret("env:MONGO_PASSWORD")},
            {"url": "env:MONGO_URL"},
        ]
    ):
        outcome = await bus.run_consumer(
            MongoSink(database=database, prefix=f"p{number}_", **options),  # type: ignore[arg-type]
            name=f"n{number}",
        )
        assert outcome.receipt.complete
        assert mongodb_auth.count(database, f"p{number}_records") == RECORDS


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
async def test_a_wrong_password_is_one_line_without_it(
    bus: MemoryBus,
    mongodb_auth: MongoDB,
    tmp_path: Path,
    whole: bool,
    logs: list[MutableMapping[str, Any]],
) -> None:
    file = tmp_path / "secret"
    file.write_text((mongodb_auth.url_with("wr0ng-one") if whole else "wr0ng-one") + "\n")
    plain = f"mongodb://127.0.0.1:{mongodb_auth.port}/?authSource=admin"
    consumer = (
        MongoSink(f"file:{file}") if whole else MongoSink(plain, user=USER, password=Secret(f"file:{file}"))
    )
    with pytest.raises(ConfigError, match=r"(?i)authentication failed \(code 18\)") as caught:
        await bus.run_consumer(consumer)
    assert "\n" not in str(caught.value)
    assert "wr0ng-one" not in str(caught.value) + str(logs)


async def test_an_address_that_is_none(bus: MemoryBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is a secret is not shown."""
    with pytest.raises(ConfigError, match="url is no address of MongoDB's"):
        await bus.run_consumer(MongoSink("mongodb://host:port"))
    monkeypatch.setenv("MONGO_URL", "mongodb://me:s3cret%@host")
    with pytest.raises(ConfigError, match="env:MONGO_URL") as caught:
        await bus.run_consumer(MongoSink("env:MONGO_URL"))
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="env:NO_SUCH_THING"):
        await bus.run_consumer(MongoSink("env:NO_SUCH_THING"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "mongodb://me:s3cret@host"}, "password in it: give user=... and password=env:NAME"),
        ({"url": "mongodb://host/?tlsCertificateKeyFilePassword=s3cret"}, "password in it"),
        ({"url": "host:27017"}, "must begin with mongodb://"),
        ({"password": "s3cret"}, "not given in clear"),
        ({"user": "me"}, "belong together"),
        ({"write_concern": "0"}, "would be lost"),
        ({"database": "a.b"}, "database must be"),
        ({"prefix": "$x"}, "prefix must be"),
        ({"timeout_s": "0"}, "timeout_s must be"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_consumer(MongoSink, "mongodb", options)
    assert message in str(caught.value)


def test_an_end_is_no_record() -> None:
    """What has no phase has no field for it."""
    document = MongoSink().rows(make_event(RunComplete))[0]
    assert document.collection == "events"


def test_names_that_become_alike_stay_apart() -> None:
    metrics = {"a\uff0eb": 1.0, "a.b": 2.0, "a\uff0eb_": 3.0, "a\0": 4.0, "a\ufffd": 5.0}
    (document,) = record_documents(make_records([metrics]))
    assert sorted(bson.decode(document)["metrics"].values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
