"""The plugin in process: off by default, fenced everywhere, the end of the run published once and last."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq

from phase_bus.aiperf import exporter as module
from phase_bus.aiperf.exporter import RunExporter
from phase_bus.aiperf.listener import BusListener
from phase_bus.aiperf.options import read_options
from phase_bus.aiperf.plugin import PhaseBusExporter
from phase_bus.events import EventBase, PhaseRef
from phase_bus.testing.waiting import until

RECORDS: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "records.json").read_text())
RESULTS = {
    "message_type": "process_records_result",
    "results": {"results": {"records": [{}], "successful_request_count": 3}},
}


class FakePublisher:
    """Keeps what is published, in order; fails on demand."""

    def __init__(self, address: str = "", **options: Any) -> None:
        self.address, self.options = address, options
        self.connected = True
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        self.closed_s: float | None = None

    def publish(self, event: EventBase) -> None:
        self._call(event.kind, event)

    def record(
        self,
        run_id: str,
        phase: PhaseRef,
        metrics: Mapping[str, Any],
        fields: Mapping[str, Any],
        error: tuple[str, str, int | None] | None = None,
    ) -> None:
        self._call("record", (run_id, phase, metrics, fields, error))

    def complete_run(self, run_id: str, status: str, reason: str = "") -> None:
        self._call("run_complete", (run_id, status, reason))

    def close(self, timeout_s: float = 2.0) -> None:
        self.closed_s = timeout_s

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.calls]

    def _call(self, kind: str, what: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append((kind, what))


class Bus:
    """AIPerf's event bus, as far as it sends."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.address = f"tcp://127.0.0.1:{self.port}"

    def wait_for_subscriptions(self, count: int) -> None:
        for _ in range(count):
            assert self.socket.poll(5000)
            self.socket.recv()

    def send(self, message: dict[str, Any]) -> None:
        topic = f"{message['message_type']}$".encode()
        self.socket.send_multipart([topic, json.dumps(message).encode()])

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    bus.close()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ADDRESS", "BUFFER_MIB", "LISTS"):
        monkeypatch.delenv(f"PHASE_BUS_{name}", raising=False)


def run_of(**variables: Any) -> SimpleNamespace:
    phases = [
        SimpleNamespace(name="warmup", kind="warmup", requests=2, concurrency=4),
        SimpleNamespace(name="profiling", kind="profiling", duration=5.0, grace_period=1.0),
    ]
    endpoint = SimpleNamespace(urls=["http://127.0.0.1:1"])
    cfg = SimpleNamespace(phases=phases, endpoint=endpoint, get_model_names=lambda: ["mock"])
    return SimpleNamespace(
        benchmark_id="abc",
        cfg=cfg,
        variables=variables,
        sweep_id=None,
        trial=2,
        label="",
        variation=SimpleNamespace(label="c=4", values={"concurrency": 4}),
    )


def record_of(name: str) -> SimpleNamespace:
    sample = RECORDS[name]
    error = sample["error"]
    return SimpleNamespace(
        record_type="metric_records",
        metadata=SimpleNamespace(**sample["metadata"]),
        metrics=sample["metrics"],
        error=None if error is None else SimpleNamespace(**error),
    )


def stats_of(step: int, sent: int = 0, index: int = 1) -> Any:
    from phase_bus.aiperf.mapping import CreditStats

    stats = CreditStats(
        phase_index=index,
        phase_name="profiling" if index else "warmup",
        phase_kind="profiling" if index else "warmup",
        start_ns=1,
        sent_end_ns=2 if step >= 2 else None,
        requests_end_ns=3 if step >= 3 else None,
        requests_sent=sent,
        requests_completed=sent,
    )
    return SimpleNamespace(record_type="credit_phase_stats", **msgspec.structs.asdict(stats))


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch, bus: Bus) -> Iterator[RunExporter]:
    monkeypatch.setattr(module, "Publisher", FakePublisher)
    topics = ("all_records_received", "process_records_result")
    monkeypatch.setattr(
        module,
        "_listener",
        lambda run, on_message, on_tick: BusListener(bus.address, topics, on_message, on_tick),
    )
    made = PhaseBusExporter(
        service_id="s", run=run_of(phase_bus={"address": "ipc:///x"}), pub_client=None, later=1
    )
    yield made
    assert made._listener is not None
    made._listener.stop(5.0)


def published(exporter: RunExporter) -> FakePublisher:
    publisher = exporter._publisher
    assert isinstance(publisher, FakePublisher)
    return publisher


def test_it_is_off_without_an_address_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Exception, match="no address is set"):
        PhaseBusExporter(run=run_of())
    assert caplog.records == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"address": "nonsense"}, "nonsense"),
        ({"address": "tcp://host:port"}, "port"),
        ({"address": "nats://host:4222"}, "phase-bus bus --forward nats://HOST:4222"),
        ({"address": "tls://host"}, "phase-bus bus --forward nats://HOST:4222"),
        ({"address": "ipc:///x", "lists": "some"}, "lists"),
        ({"address": "ipc:///x", "adress": "y"}, "adress"),
        ("ipc:///x", "options are wrong"),
    ],
)
def test_a_wrong_option_is_one_clear_warning(
    caplog: pytest.LogCaptureFixture, variables: Any, words: str
) -> None:
    with pytest.raises(Exception, match="phase-bus"):
        PhaseBusExporter(run=run_of(phase_bus=variables))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "off for this run" in record.getMessage()
    assert words in record.getMessage()
    assert record.exc_info is None


def test_the_environment_goes_before_the_yaml() -> None:
    given = {"phase_bus": {"address": "ipc:///yaml", "lists": "omit"}}
    environ = {"PHASE_BUS_ADDRESS": "ipc:///env", "PHASE_BUS_BUFFER_MIB": "2", "PHASE_BUS_LISTS": ""}
    options = read_options(given, environ)
    assert (options.address, options.buffer_mib, options.lists) == ("ipc:///env", 2.0, "omit")


async def test_a_whole_run_in_order(exporter: RunExporter, bus: Bus) -> None:
    await exporter.initialize()
    await exporter.start()
    bus.wait_for_subscriptions(2)
    for step in (1, 2, 3):
        await exporter.process_record(stats_of(step, step, index=0))
    await exporter.process_record(stats_of(1, 0))
    for name in RECORDS:
        await exporter.process_record(record_of(name))
    await exporter.process_record(stats_of(3, 3))
    bus.send({"message_type": "all_records_received"})
    await exporter.finalize()
    publisher = published(exporter)
    assert "run_complete" not in publisher.kinds()
    bus.send(RESULTS)
    await until(lambda: "run_complete" in publisher.kinds(), 5.0)
    await exporter.stop()
    assert publisher.kinds() == [
        "run_start",
        "phases_configured",
        *["phase_start", "phase_sending_complete", "phase_complete", "phase_start"],
        *["record"] * len(RECORDS),
        *["phase_sending_complete", "phase_complete", "run_complete"],
    ]
    assert publisher.calls[-1][1] == ("abc", "completed", "")
    start = publisher.calls[0][1]
    assert (start.run_id, start.models, start.trial, start.label) == ("abc", ("mock",), 2, None)
    assert start.variation == {"label": "c=4", "concurrency": 4}
    assert publisher.closed_s is not None


async def test_records_are_handed_over_as_they_are(exporter: RunExporter) -> None:
    record = record_of("error_500")
    await exporter.process_record(record)
    ((_, (run_id, phase, metrics, fields, error)),) = published(exporter).calls
    assert run_id == "abc"
    assert phase == PhaseRef("warmup", "warmup", 0)
    assert metrics is record.metrics
    assert fields["request_start_ns"] == record.metadata.request_start_ns
    assert error == ("Internal Server Error", record.error.message, 500)


async def test_records_after_an_interrupt_come_before_the_end(exporter: RunExporter, bus: Bus) -> None:
    await exporter.initialize()
    bus.wait_for_subscriptions(2)
    await exporter.process_record(stats_of(1, 5))
    await exporter.finalize()
    results = {"results": {"results": {"was_cancelled": True, "incomplete_reason": "why"}}}
    bus.send({"message_type": "process_records_result", **results})
    await exporter.process_record(record_of("profiling_ok"))
    await exporter.stop()
    publisher = published(exporter)
    assert publisher.kinds()[-2:] == ["record", "run_complete"]
    assert publisher.calls[-1][1] == ("abc", "cancelled", "why")


async def test_records_after_the_end_are_counted_and_told(
    exporter: RunExporter, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    await exporter.initialize()
    bus.wait_for_subscriptions(2)
    await exporter.finalize()
    bus.send({"message_type": "all_records_received"})
    bus.send(RESULTS)
    publisher = published(exporter)
    await until(lambda: "run_complete" in publisher.kinds(), 5.0)
    await exporter.process_record(record_of("profiling_ok"))
    await exporter.stop()
    assert publisher.kinds()[-2:] == ["run_complete", "drop"]
    assert publisher.calls[-1][1].records == 1
    assert "1 records came after" in caplog.text


@pytest.mark.parametrize("finalized", [False, True])
async def test_stop_tells_the_end_although_aiperf_told_nothing(
    exporter: RunExporter, finalized: bool
) -> None:
    await exporter.process_record(stats_of(1, 5))
    if finalized:
        await exporter.finalize()
    began_s = time.monotonic()
    await exporter.stop()
    assert time.monotonic() - began_s < 0.45  # AIPerf kills at 0.5 s
    assert published(exporter).calls[-1][1][1] == ("cancelled" if finalized else "failed")
    assert published(exporter).kinds().count("run_complete") == 1


async def test_an_unreachable_bus_is_not_waited_for(exporter: RunExporter) -> None:
    published(exporter).connected = False
    await exporter.stop()
    assert published(exporter).closed_s == 0.0


def _calls(exporter: RunExporter) -> list[Callable[[], Awaitable[None]]]:
    return [
        exporter.initialize,
        exporter.start,
        lambda: exporter.process_record(record_of("profiling_ok")),
        lambda: exporter.process_record(stats_of(3, 3)),
        lambda: exporter.process_record(SimpleNamespace()),
        lambda: exporter.process_record(None),
        exporter.finalize,
        exporter.stop,
    ]


async def test_no_fault_gets_out_and_each_kind_is_logged_once(
    exporter: RunExporter, caplog: pytest.LogCaptureFixture
) -> None:
    exporter._record = published(exporter).record
    published(exporter).error = RuntimeError("boom")
    for call in _calls(exporter) + _calls(exporter):
        await call()
    kinds = [record.getMessage() for record in caplog.records if "goes on" in record.getMessage()]
    assert len(kinds) == len(set(kinds))
    assert any("boom" in text for text in kinds)
    assert "failures counted" in caplog.text


async def test_cancellation_passes(exporter: RunExporter) -> None:
    task = asyncio.create_task(exporter.stop())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_aiperf_that_has_fewer_fields_loses_no_record(exporter: RunExporter) -> None:
    record = record_of("profiling_ok")
    del record.metadata.turn_index, record.metadata.phase_name
    await exporter.process_record(record)
    (_, (_, phase, _, fields, _)) = published(exporter).calls[0]
    assert phase == PhaseRef("profiling", "profiling", 1)
    assert "turn_index" not in fields
    assert fields["session_num"] == record.metadata.session_num
