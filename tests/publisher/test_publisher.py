"""The benchmark's side: never blocks, never raises, loses nothing silently."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq

from phase_bus.core.wire import send_frames
from phase_bus.errors import AddressError
from phase_bus.events import (
    Drop,
    EventBase,
    PhaseComplete,
    PhaseRef,
    PhaseStart,
    Records,
    RunComplete,
    RunStart,
)
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import DEADLINE_S, wait_until
from tests.support.buses import BusThread
from tests.support.clients import RawClient, Subscriber

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASE = PhaseRef("profiling")


def start(number: int, run_id: str = "r") -> PhaseStart:
    """An event with a number in it."""
    return PhaseStart(run_id=run_id, phase=PHASE, ts_ns=number)


def record_count(events: list[Records]) -> int:
    """Return how many records are in some batches."""
    return sum(event.count for event in events)


def test_everything_arrives_in_order(bus: BusThread) -> None:
    """Events and records come out as they went in, and run_complete counts them."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address) as publisher:
        publisher.publish(start(1))
        for number in range(1000):
            publisher.record("r", PHASE, {"n": number}, {})
        publisher.publish(PhaseComplete(run_id="r", phase=PHASE))
        publisher.complete_run("r", "completed")
        assert publisher.flush(10)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        kinds = [event.kind for event in subscriber.events if event is not None]
        assert kinds[0] == "phase_start"
        assert kinds[-2:] == ["phase_complete", "run_complete"]
        assert record_count(subscriber.of(Records)) == end.records == 1000
        assert sum(end.published.values()) == len(kinds) - 1
        assert [header.source_seq for header in subscriber.headers] == list(range(1, len(kinds) + 1))
        assert publisher.pending == 0
    assert publisher.undelivered == {}


def test_what_is_acknowledged_is_let_go_of_while_events_come(bus: BusThread) -> None:
    """Replies are not read at each event, but in time, though nobody waits for them."""
    with Publisher(bus.address) as publisher:
        assert publisher.flush(DEADLINE_S)

        def published() -> bool:
            publisher.publish(start(1))
            return publisher._sender._outbox.next_seq > 20

        wait_until(published)


def test_a_batch_is_closed_by_its_age(bus: BusThread) -> None:
    """A single record does not wait for others, time after time."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address, batch_s=0.01) as publisher:
        for number in range(1, 6):
            publisher.record("r", PHASE, {"n": 1}, {})
            wait_until(lambda: record_count(subscriber.of(Records)) == number, 5)  # noqa: B023


def test_partitions_go_round(bus: BusThread) -> None:
    """Batches are spread over the partitions."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address, batch_records=1) as publisher:
        for number in range(40):
            publisher.record("r", PHASE, {"n": number}, {})
        assert publisher.flush(5)
        batches = wait_until(lambda: len(b := subscriber.of(Records)) == 40 and b)
    assert [batch.partition for batch in batches] == [number % 16 for number in range(40)]


def test_unreachable_bus_delays_nobody(ipc_dir: Path) -> None:
    """With no bus, calls return at once, close keeps its time, and what is left is named."""
    publisher = Publisher(f"ipc://{ipc_dir}")
    begin_s = time.monotonic()
    for number in range(1000):
        publisher.publish(start(number))
        publisher.record("r", PHASE, {"n": number}, {})
    publisher.complete_run("r", "failed")
    assert time.monotonic() - begin_s < 2
    assert not publisher.flush(0.05)
    assert not publisher.connected
    begin_s = time.monotonic()
    publisher.close(0.2)
    assert time.monotonic() - begin_s < 1.5
    assert publisher.undelivered["phase_start.r$"] == 1000
    assert publisher.undelivered["run_complete.r$"] == 1


def test_full_buffer(ipc_dir: Path) -> None:
    """Records go first, phase events never, and the run's end says what was dropped."""
    with Publisher(f"ipc://{ipc_dir}", buffer_bytes=100_000, batch_records=50) as publisher:
        for number in range(5000):
            publisher.record("r", PHASE, {"n": number, "m": [0.5] * 5}, {})
            if number % 100 == 0:
                publisher.publish(start(number))
        publisher.complete_run("r", "completed")
        # An empty inbox does not say that what was last in it is done; that its thread sleeps again does.
        wait_until(lambda: not publisher._sender._inbox and bool(publisher._sender._sleep))
        waiting = publisher._sender._outbox.remaining()
        publisher.close(0.0)
    assert waiting["phase_start.r$"] == 50
    assert waiting["run_complete.r$"] == 1
    assert waiting["drop.r$"] > 0
    assert publisher._sender._outbox.size_bytes < 150_000


@pytest.mark.parametrize("threads", [1, 8])
def test_published_and_dropped_make_up_offered(threads: int) -> None:
    """Whatever the rate, and from however many threads: no record vanishes uncounted."""
    offered = 20_000
    publisher = Publisher(bind="direct+tcp://127.0.0.1:0", buffer_bytes=1000, batch_records=64)
    puts: list[EventBase] = []
    inner = publisher._sender._outbox.put

    def put(event: EventBase, payload: bytes | None = None) -> bytes | None:
        taken = inner(event, payload)
        if taken:
            puts.append(event)
        return taken

    publisher._sender._outbox.put = put  # type: ignore[method-assign]

    def offer() -> None:
        for number in range(offered // threads):
            publisher.record("r", PHASE, {"n": number}, {})

    workers = [threading.Thread(target=offer) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    publisher.complete_run("r", "completed")
    publisher.close(10)
    end = next(event for event in puts if isinstance(event, RunComplete))
    assert puts[-1] is end, "all drops are told before the run's end"
    dropped = sum(event.records for event in puts if isinstance(event, Drop))
    assert end.records == sum(event.count for event in puts if isinstance(event, Records))
    assert end.records + dropped == offered
    assert end.dropped_records == dropped > 0


class Unknown(EventBase, frozen=True, kw_only=True, tag="unknown"):
    """An event of no kind."""


@pytest.mark.parametrize(
    "bad",
    [
        Unknown(run_id="r"), start(2**70), PhaseStart(run_id="r", phase=object()),  # type: ignore[arg-type]
        "text", None, 5,
    ],
)  # fmt: skip
def test_a_bad_event_is_survived(bus: BusThread, bad: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is dropped with a warning, and the next one arrives."""
    with Subscriber(bus.address, "phase_complete.") as subscriber, Publisher(bus.address) as publisher:
        publisher.publish(bad)
        publisher.publish(PhaseComplete(run_id="r", phase=PHASE))
        assert publisher.flush(5)
        wait_until(lambda: subscriber.of(PhaseComplete))
        assert any(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(
    "bad",
    [
        (None, {}), ({"x": 1}, None), ({"x": object()}, {}), ({"x": ["a", None]}, {}), ({"x": 10**400}, {}),
        ({5: 1}, {}), ({"x": "\ud800"}, {}), ({}, {}, ("too", "few")), ({}, {}, 5),
    ],
)  # fmt: skip
def test_a_bad_record_is_survived(bus: BusThread, bad: tuple[Any, ...]) -> None:
    """The other records of the batch, and the run's end, arrive; what cannot is counted."""
    with Subscriber(bus.address) as subscriber, Publisher(bus.address) as publisher:
        publisher.record("r", PHASE, {"n": 1}, {})
        publisher.record("r", PHASE, *bad)
        publisher.record("r", PHASE, {"n": 2}, {})
        publisher.complete_run("r", "failed", "because of \ud800")
        assert publisher.flush(5)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        assert end.records + sum(drop.records for drop in subscriber.of(Drop)) == 3
        assert end.records >= 2


def test_odd_runs_and_phases(bus: BusThread) -> None:
    """Nothing that stands for a run or a phase raises in the caller, or ends the publisher."""
    with Subscriber(bus.address, "phase_complete.") as subscriber, Publisher(bus.address) as publisher:
        for run_id, phase in ((None, None), ([], []), ("\ud800", PHASE), (5, "profiling")):
            publisher.record(run_id, phase, {"n": 1}, {})  # type: ignore[arg-type]
            publisher.complete_run(run_id, "completed")  # type: ignore[arg-type]
        publisher.flush(5)
        publisher.publish(PhaseComplete(run_id="r", phase=PHASE))
        wait_until(lambda: subscriber.of(PhaseComplete))


def test_after_close() -> None:
    """A closed publisher takes everything, keeps nothing, and waits for nothing."""
    publisher = Publisher(bind="direct+tcp://127.0.0.1:0")
    publisher.close()
    for number in range(1000):
        publisher.publish(start(number))
        publisher.record("r", PHASE, {}, {})
    assert publisher.pending == 0
    begin_s = time.monotonic()
    assert not publisher.flush(30)
    publisher.close()
    assert time.monotonic() - begin_s < 5


def test_flush_is_ended_by_close(ipc_dir: Path) -> None:
    """A thread that waits for a flush is released when the publisher closes."""
    publisher = Publisher(f"ipc://{ipc_dir}")
    publisher.publish(start(1))
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(publisher.flush(60)))
    waiter.start()
    wait_until(lambda: publisher._sender._flushes)
    publisher.close(0.0)
    waiter.join(10)
    assert results == [False]


def test_publishers_that_are_forgotten(bus: BusThread) -> None:
    """Fifty that nobody closed and nobody refers to deliver what they have, and end by themselves."""

    def one(number: int) -> None:
        publisher = Publisher(bus.address)
        publisher.publish(RunStart(run_id=f"r{number}"))
        for _ in range(10):
            publisher.record(f"r{number}", PHASE, {"n": number}, {})
        publisher.complete_run(f"r{number}", "completed")

    before = set(threading.enumerate())
    with Subscriber(bus.address, "records.") as subscriber:
        for number in range(50):
            one(number)
        gc.collect()
        wait_until(lambda: record_count(subscriber.of(Records)) == 500)
    wait_until(lambda: not set(threading.enumerate()) - before)
    with RawClient(bus.address) as client:
        runs = client.status().runs
    assert {run.run_id: run.status for run in runs} == {f"r{number}": "completed" for number in range(50)}
    assert {run.events for run in runs} == {3}


def test_a_forgotten_publisher_without_a_bus(
    ipc_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It gives up in time, and says what is lost; what it publishes meanwhile is not."""
    monkeypatch.setattr("phase_bus.publisher.publisher._ABANDONED_S", 0.2)
    publisher = Publisher(f"ipc://{ipc_dir}")
    record, thread = publisher.record, publisher._sender._thread
    del publisher
    gc.collect()
    record("r", PHASE, {"n": 1}, {})
    assert thread.is_alive(), "a method of it is in use"
    del record
    gc.collect()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert "closed before" in caplog.text
    encoded, not_yet = (
        "1 events not delivered (records: 1), 0 not",
        "0 events not delivered, 1 not yet encoded",
    )
    assert encoded in caplog.text or not_yet in caplog.text


def test_many_publishers(bus: BusThread) -> None:
    """Each publisher's events stay in order, and none is lost."""
    with Subscriber(bus.address) as subscriber:
        publishers = [Publisher(bus.address) for _ in range(10)]
        for number in range(50):
            for index, publisher in enumerate(publishers):
                publisher.publish(start(number, f"run-{index}"))
        for publisher in publishers:
            publisher.close()
            assert publisher.undelivered == {}
        wait_until(
            lambda: len(subscriber.of(PhaseStart)) == 500
        )  # fewer than the bus queues for a subscriber
        for index in range(10):
            numbers = [e.ts_ns for e in subscriber.of(PhaseStart) if e.run_id == f"run-{index}"]
            assert numbers == list(range(50))


def test_direct_mode() -> None:
    """Without a bus, every connected consumer gets everything."""
    with Publisher(bind="tcp://127.0.0.1:0") as publisher, Subscriber(publisher.address) as subscriber:

        def heard() -> bool:
            publisher.publish(start(0, "probe"))
            return bool(subscriber.read())

        wait_until(heard)
        for number in range(100):
            publisher.publish(start(number))
        wait_until(lambda: len([e for e in subscriber.of(PhaseStart) if e.run_id == "r"]) == 100)
        assert publisher.flush(1)
        assert publisher.connected


@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
def test_direct_address_in_use(scheme: str, ipc_dir: Path) -> None:
    """A second publisher does not take the first one's address."""
    bind = f"ipc://{ipc_dir}" if scheme == "ipc" else "tcp://127.0.0.1:0"
    with Publisher(bind=bind) as first, pytest.raises(AddressError):
        Publisher(bind=first.address)
    with Publisher(bind=first.address):
        pass


def test_direct_mode_does_not_take_a_buses_address(bus: BusThread) -> None:
    """Nor that of a bus."""
    with pytest.raises(AddressError):
        Publisher(bind=bus.address)


@pytest.mark.parametrize(
    "address", ["nonsense", "tcp://127.0.0.1:0", "tcp://*:0", "direct+ipc:///proc/nowhere"]
)
def test_bad_address(address: str) -> None:
    """An address that cannot be used is an AddressError, from the constructor only."""
    with pytest.raises(AddressError):
        Publisher(address)


def test_bus_killed_and_started_again(bus_process: BusProcess) -> None:
    """What the bus did not acknowledge is sent to the next one: in order, without duplicates or gaps."""
    with Publisher(bus_process.address) as publisher:
        received: list[int] = []
        for generation in range(3):
            with Subscriber(bus_process.address, "phase_start.") as subscriber:
                publisher.publish(start(generation * 1000))
                wait_until(lambda: subscriber.of(PhaseStart))
                for number in range(1, 500):
                    publisher.publish(start(generation * 1000 + number))
                wait_until(lambda: len(subscriber.of(PhaseStart)) >= 100)
                bus_process.kill()
                wait_until(lambda: not publisher._sender._inbox)
                subscriber.read()
                received += [event.ts_ns for event in subscriber.of(PhaseStart)]
                assert [h.source_seq for h in subscriber.headers] == sorted(
                    {h.source_seq for h in subscriber.headers}
                )
            bus_process.start()
        publisher.publish(start(3000))  # the last bus may have acknowledged everything before it
        assert publisher.flush(20)
        with RawClient(bus_process.address) as client:
            (run,) = client.status().runs
        assert run.events == 1501, "the last topic sequence, so that no event was left out"
    assert publisher.undelivered == {}


def test_bus_restart_while_nobody_listens(bus_process: BusProcess) -> None:
    """Events published while there is no bus reach the next one's consumers: all, once, in order."""
    with Publisher(bus_process.address) as publisher:
        publisher.publish(start(0))
        assert publisher.flush(10)
        bus_process.kill()
        for number in range(1, 901):  # fewer than the bus's high-water mark: it has no journal
            publisher.publish(start(number))
        bus_process.start()
        with Subscriber(bus_process.address, "phase_start.") as subscriber:
            publisher.publish(start(901))
            assert publisher.flush(20)
            wait_until(lambda: any(e.ts_ns == 901 for e in subscriber.of(PhaseStart)))
            numbers = [event.ts_ns for event in subscriber.of(PhaseStart)]
        assert numbers == list(range(902 - len(numbers), 902))


def test_lost_with_a_connection(bus: BusThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events lost on the way, with none after them, are noticed by a beat and sent again."""
    swallowed: list[Sequence[bytes | zmq.Frame]] = []

    def send(socket: zmq.Socket[bytes], frames: Sequence[bytes | zmq.Frame], flags: int = 0) -> None:
        if time.monotonic() < until_s:
            swallowed.append(frames)
        else:
            send_frames(socket, frames, flags)

    with Subscriber(bus.address, "phase_start.") as subscriber, Publisher(bus.address) as publisher:
        publisher.publish(start(0))
        assert publisher.flush(10)
        until_s = time.monotonic() + 0.3
        monkeypatch.setattr("phase_bus.publisher.link.send_frames", send)
        for number in range(1, 11):
            publisher.publish(start(number))
        assert publisher.flush(10)
        wait_until(lambda: len(subscriber.of(PhaseStart)) == 11)
        assert [event.ts_ns for event in subscriber.of(PhaseStart)] == list(range(11))
    assert swallowed


def test_garbage_from_the_bus_is_survived() -> None:
    """A reply that cannot be understood does not end the publisher."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    publisher = Publisher(f"tcp://127.0.0.1:{port}")
    for _ in range(2):  # a second hello shows that the thread lives
        assert router.poll(10_000)
        router.send_multipart([router.recv_multipart()[0], b"\xc1garbage"])
    publisher.close(0.1)
    context.destroy(linger=0)


def test_suspended_bus(bus_process: BusProcess) -> None:
    """A bus that is stopped for a while gets everything once, and loses no run."""
    with Publisher(bus_process.address) as publisher:
        publisher.publish(start(0))
        assert publisher.flush(10)
        bus_process.process.send_signal(signal.SIGSTOP)
        for number in range(1, 300):
            publisher.publish(start(number))
        assert not publisher.flush(0.3)
        bus_process.process.send_signal(signal.SIGCONT)
        assert publisher.flush(10)
        with RawClient(bus_process.address) as client:
            (run,) = client.status().runs
        assert (run.events, run.status) == (300, "running")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # that is what is tried here
def test_fork(bus: BusThread) -> None:
    """In a forked child the publisher does nothing, and neither waits nor disturbs the parent."""
    with Publisher(bus.address) as publisher:
        publisher.publish(start(0))
        assert publisher.flush(10)
        publisher._sender._waker._lock.acquire()  # as if another thread were at it just now
        child = os.fork()
        if child == 0:
            try:
                other = threading.Thread(target=lambda: publisher.publish(start(1)), daemon=True)
                other.start()
                other.join(5)
                publisher.record("r", PHASE, {}, {})
                publisher.complete_run("r", "completed")
                os._exit(0 if not other.is_alive() and not publisher.flush(60) else 1)
            finally:
                os._exit(2)
        publisher._sender._waker._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        publisher.publish(start(2))
        assert publisher.flush(10)


def test_interpreter_exit(bus: BusThread) -> None:
    """A program that forgets to close still delivers, and ends soon."""
    code = f"""
from phase_bus.events import PhaseRef, PhaseStart
from phase_bus.publisher.publisher import Publisher
publisher = Publisher({bus.address!r})
for number in range(100):
    publisher.publish(PhaseStart(run_id="r", phase=PhaseRef("p"), ts_ns=number))
"""
    with Subscriber(bus.address, "phase_start.") as subscriber:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: len(subscriber.of(PhaseStart)) == 100)
