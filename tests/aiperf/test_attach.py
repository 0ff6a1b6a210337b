"""Following AIPerf from outside, against a bus that replays the messages of a real run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

from phase_bus.aiperf.attach import AttachReport, ipc_address, run_attach, tcp_address
from phase_bus.aiperf.listener import BusListener
from phase_bus.cli.attach import source_of
from phase_bus.events import EventBase, RunStatus, Summary

DATA = Path(__file__).parent / "data"
MESSAGES: list[dict[str, Any]] = json.loads((DATA / "messages_hang.json").read_text())
ATTACH_TOPICS = 10


class Sink:
    """Keeps what is published."""

    pending = 0

    def __init__(self) -> None:
        self.events: list[EventBase] = []
        self.ends: list[tuple[str, RunStatus, str]] = []

    def record(self, *_record: Any) -> None:
        pytest.fail("an attachment has no records")

    def publish(self, event: EventBase) -> None:
        self.events.append(event)

    def complete_run(self, run_id: str, status: RunStatus, reason: str = "") -> None:
        self.ends.append((run_id, status, reason))

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events if event.kind != "phase_progress"]


class AiperfBus:
    """AIPerf's event bus in one socket: waits until its subscriber has joined, then sends."""

    def __init__(self, directory: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.bind(ipc_address(directory))

    def joined(self, topics: int = ATTACH_TOPICS) -> AiperfBus:
        for _ in range(topics):
            assert self.socket.poll(5000)
            self.socket.recv()
        return self

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            topic = f"{message['message_type']}$".encode()
            self.socket.send_multipart([topic, json.dumps(message).encode()])


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[AiperfBus]:
    bus = AiperfBus(tmp_path)
    yield bus
    bus.context.destroy(linger=0)


@pytest.fixture
def attach(tmp_path: Path) -> Iterator[Callable[..., Future[AttachReport]]]:
    with ThreadPoolExecutor(1) as pool:
        yield lambda sink, **options: pool.submit(run_attach, ipc_address(tmp_path), sink, **options)


def test_a_whole_run(bus: AiperfBus, attach: Callable[..., Future[AttachReport]]) -> None:
    sink = Sink()
    future = attach(sink)
    bus.joined().send(*MESSAGES)
    report = future.result(10)
    assert report.run_id.startswith("attach-")
    assert (report.status, report.phases) == ("completed", 2)
    assert sink.kinds() == [
        "run_start",
        *["phase_start", "phase_sending_complete", "phase_complete"],
        *["phase_start", "phase_sending_complete", "phase_timeout", "phase_complete"],
        "summary",
    ]
    assert sink.ends == [(report.run_id, "completed", "")]
    summary = sink.events[-1]
    assert isinstance(summary, Summary)
    assert (summary.producer, summary.final) == ("aiperf", True)
    assert summary.result["successful_request_count"] == 25


def test_attaching_in_the_middle_makes_up_for_what_was_missed(
    bus: AiperfBus, attach: Callable[..., Future[AttachReport]]
) -> None:
    last = max(i for i, m in enumerate(MESSAGES) if m["message_type"] == "credit_phase_complete")
    sink = Sink()
    future = attach(sink, run_id="mine")
    bus.joined().send(*MESSAGES[last:])
    assert future.result(10).run_id == "mine"
    assert sink.kinds()[1:5] == [
        "phase_start",
        "phase_sending_complete",
        "phase_timeout",
        "phase_complete",
    ]


def test_silence_is_a_lost_run(bus: AiperfBus, attach: Callable[..., Future[AttachReport]]) -> None:
    sink = Sink()
    future = attach(sink, timeout_s=0.3)
    bus.joined().send(*MESSAGES[:3])
    report = future.result(10)
    assert report.status == "lost"
    assert sink.ends == [(report.run_id, "lost", "AIPerf said nothing for 0.3 s")]


def test_an_aiperf_that_shuts_down_without_results_failed(
    bus: AiperfBus, attach: Callable[..., Future[AttachReport]]
) -> None:
    future = attach(Sink())
    bus.joined().send({"message_type": "system_state_changed", "state": "shutdown"})
    assert future.result(10).status == "failed"


def test_messages_not_understood_do_no_harm(
    bus: AiperfBus, attach: Callable[..., Future[AttachReport]]
) -> None:
    sink = Sink()
    future = attach(sink)
    bus.joined()
    bus.socket.send_multipart([b"credit_phase_start$", b"{"])
    bus.socket.send_multipart([b"credit_phase_start$"])
    bus.socket.send_multipart([b"credit_phase_start$", b"{}", b""])
    bus.socket.send_multipart([b"process_records_result$", b"[1]"])
    bus.send({"message_type": "system_state_changed", "state": "shutdown"})
    report = future.result(10)
    assert (report.status, report.reason) == ("completed", "AIPerf's results were not understood")
    assert sink.kinds() == ["run_start"]


def test_nobody_there(tmp_path: Path) -> None:
    sink = Sink()
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    report = run_attach(ipc_address(tmp_path / "none"), sink, stop=stop)
    assert report.status is None
    assert sink.events == []
    assert sink.ends == []


def test_it_can_be_stopped(bus: AiperfBus, attach: Callable[..., Future[AttachReport]]) -> None:
    stop, sink = threading.Event(), Sink()
    future = attach(sink, stop=stop)
    bus.joined()
    stop.set()
    assert future.result(10).status is None
    assert sink.events == []


def test_addresses() -> None:
    assert ipc_address("/x/y") == "ipc:///x/y/event_bus_proxy_backend.ipc"
    assert tcp_address("host") == "tcp://host:5664"
    assert tcp_address("::1", 7) == "tcp://[::1]:7"


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("host", "tcp://host:5664"),
        ("host:7", "tcp://host:7"),
        ("::1", "tcp://[::1]:5664"),
        ("[::1]", "tcp://[::1]:5664"),
        ("[::1]:7", "tcp://[::1]:7"),
        ("0.0.0.0", "tcp://127.0.0.1:5664"),
    ],
)
def test_where_aiperf_is(given: str, address: str) -> None:
    """A host, with a port or without, IPv6 with brackets or without."""
    assert source_of(None, given) == address


def test_a_listener_survives_its_callbacks(
    bus: AiperfBus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard, enough = [], threading.Event()

    def fail(topic: str, _payload: bytes) -> None:
        heard.append(topic)
        if len(heard) == 3:
            enough.set()
        raise ValueError("boom")

    listener = BusListener(ipc_address(tmp_path), ["heartbeat"], fail)
    listener.start()
    bus.joined(1)
    bus.send(*[{"message_type": "heartbeat"}] * 3, {"message_type": "heartbeat_of_another_kind"})
    assert enough.wait(5)
    listener.stop(5)
    assert heard == ["heartbeat"] * 3
    assert len(caplog.records) == 1


def test_a_listener_without_a_usable_address_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    listener = BusListener("nonsense", ["heartbeat"], lambda topic, payload: None)
    listener.start()
    listener._thread.join(5)
    assert not listener._thread.is_alive()
    assert len(caplog.records) == 1
