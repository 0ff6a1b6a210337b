"""The process around a consumer: readiness, order, failures, receipts, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from phase_bus.bus.options import BusOptions
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.control import ClientInfo, Hello
from phase_bus.core.wire import Header
from phase_bus.events import (
    EventBase,
    PhaseStart,
    Receipt,
    Records,
    RunComplete,
    Summary,
)
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until
from tests.support.buses import BusThread, plain_bus
from tests.support.clients import SOURCE, RawClient, Subscriber
from tests.support.recorder import PHASE, running, start

pytestmark = pytest.mark.usefixtures("no_leaks")


class Recorder(Consumer):
    """Remembers all events; does more with some, if the test wants."""

    def __init__(self, then: Callable[[EventBase], Awaitable[None]] | None = None) -> None:
        self.events: list[EventBase] = []
        self.calls: list[str] = []
        self._then = then

    async def start(self) -> None:
        self.calls.append("start")

    async def flush(self) -> None:
        self.calls.append("flush")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def on_phase_start(self, event: PhaseStart) -> None:
        await self._on(event)

    async def on_records(self, event: Records) -> None:
        await self._on(event)

    async def on_run_complete(self, event: RunComplete) -> None:
        await self._on(event)

    async def _on(self, event: EventBase) -> None:
        self.events.append(event)
        if self._then is not None:
            await self._then(event)


async def info_of(bus: BusThread, name: str = "recorder") -> ClientInfo:
    """Return what the bus knows of a consumer."""
    with RawClient(bus.address) as client:
        status = await asyncio.to_thread(client.status)
    return next(info for info in status.clients if info.name == name)


async def test_nothing_after_ready_is_lost(bus: BusThread) -> None:
    """What is published once a consumer is ready arrives, on all its topics, at the first attempt."""
    for _ in range(10):
        consumer = Recorder()
        async with running(consumer, bus.address):
            with Publisher(bus.address, batch_records=1) as publisher:
                publisher.record("r", PHASE, {"n": 1}, {})
                publisher.publish(start())
                publisher.complete_run("r", "completed")
                await until(lambda: len(consumer.events) == 3)  # noqa: B023


async def test_life(bus: BusThread) -> None:
    """start, flushes at the run's end and before stop, stop."""
    consumer = Recorder()
    async with running(consumer, bus.address):
        with Publisher(bus.address) as publisher:
            publisher.complete_run("r", "completed")
            await until(lambda: "flush" in consumer.calls)
    assert [consumer.calls[0], *consumer.calls[-2:]] == ["start", "flush", "stop"]
    assert set(consumer.calls[1:-1]) == {"flush"}
    assert len(consumer.calls) >= 4


async def test_handlers_run_one_after_another(bus: BusThread) -> None:
    """In the order of the events, however long each takes."""
    active = 0
    done: list[int] = []

    async def then(event: EventBase) -> None:
        nonlocal active
        active += 1
        assert active == 1
        await asyncio.sleep(0.001 * (event.ts_ns % 3))
        active -= 1
        done.append(event.ts_ns)

    async with running(Recorder(then), bus.address):
        with Publisher(bus.address) as publisher:
            for number in range(200):
                publisher.publish(start(number))
            await until(lambda: len(done) == 200)
    assert done[:200] == list(range(200))


async def test_a_failing_handler(bus: BusThread, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and counted, the next event is handled, and the receipt says so."""

    async def then(event: EventBase) -> None:
        if event.ts_ns in (3, 5):
            raise ValueError("as the test wants")

    consumer = Recorder(then)
    with Subscriber(bus.address, "receipt.") as subscriber:
        async with running(consumer, bus.address), running(Healthy(), bus.address):
            with Publisher(bus.address) as publisher:
                for number in range(10):
                    publisher.publish(start(number))
                publisher.complete_run("r", "completed")
            receipts = await until(lambda: len(r := subscriber.of(Receipt)) == 2 and r)
            await until_handled(bus, "recorder")
            assert (await info_of(bus)).incomplete_runs == ("r",)
            assert (await info_of(bus)).failed == 2
            await until_handled(bus, "healthy")
            assert (await info_of(bus, "healthy")).incomplete_runs == ()
    by_name = {receipt.consumer: receipt for receipt in receipts}
    topic = by_name["recorder"].topics["phase_start.r$"]
    assert (topic.published, topic.received, topic.handled, topic.failed) == (10, 10, 8, 2)
    assert not by_name["recorder"].complete
    assert by_name["healthy"].complete
    assert caplog.text.count("; it is a dead letter now") == 2


class Healthy(Consumer):
    """Takes phase events and fails on none."""

    name = "healthy"

    async def on_phase_start(self, event: PhaseStart) -> None: ...


async def until_handled(bus: BusThread, name: str) -> None:
    """Wait until a consumer has told the bus that it handled the run's end."""
    while "r" not in (await info_of(bus, name)).handled_runs:  # noqa: ASYNC110 - the bus is asked
        await asyncio.sleep(0.01)


async def test_gaps_and_repetitions(bus: BusThread) -> None:
    """A gap in a topic is counted as missed; a repetition is dropped."""
    consumer = Recorder()
    with Subscriber(bus.address, "receipt.") as subscriber, RawClient(bus.address) as client:
        client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="raw"))
        async with running(consumer, bus.address):
            for seq, topic_seq in enumerate((1, 2, 2, 5, 4, 6), 1):
                client.publish(start(topic_seq), SOURCE, seq, topic_seq)
            end = RunComplete(
                run_id="r", status="completed", published={"phase_start.r$": 6, "other.r$": 3}
            )
            client.publish(end, SOURCE, 7, 1)
            (receipt,) = await until(lambda: subscriber.of(Receipt))
    assert [event.ts_ns for event in consumer.events[:-1]] == [1, 2, 5, 6]
    topic = receipt.topics["phase_start.r$"]
    assert (topic.published, topic.received, topic.missed, topic.handled) == (6, 4, 2, 4)
    assert "other.r$" not in receipt.topics, "only what it subscribed to counts"
    assert not receipt.complete


async def test_events_that_cannot_be_understood(bus: BusThread) -> None:
    """A bad payload is refused by the bus, an unknown kind is skipped; both are in the receipt."""
    consumer = Recorder()
    topics = ("phase_start.", "brand_new.")
    with Subscriber(bus.address, "receipt.") as subscriber, RawClient(bus.address) as client:
        client.ask(Hello(client_id=SOURCE.hex(), role="publisher", name="raw"))
        async with running(consumer, bus.address, topics=topics):
            client.socket.send_multipart((b"phase_start.r$", Header(SOURCE, 1, 1).pack(), b"\xc1"))
            client.socket.send_multipart((b"brand_new.r$", Header(SOURCE, 2, 1).pack(), b"\xc1"))
            client.publish(start(3), SOURCE, 3, 2)
            published = {"phase_start.r$": 2, "brand_new.r$": 1}
            client.publish(RunComplete(run_id="r", status="completed", published=published), SOURCE, 4, 1)
            (receipt,) = await until(lambda: subscriber.of(Receipt))
    bad, new = receipt.topics["phase_start.r$"], receipt.topics["brand_new.r$"]
    assert (bad.received, bad.handled, bad.missed) == (1, 1, 1)
    assert (new.received, new.handled, new.failed) == (1, 1, 0)


async def test_a_slow_handler_does_not_stop_heartbeats(ipc_dir: Path) -> None:
    """While a handler waits, the bus hears the consumer; the loop does not spin."""
    options = BusOptions(heartbeat_s=0.05, silent_after_s=0.3)
    release = asyncio.Event()

    async def then(event: EventBase) -> None:
        await release.wait()

    consumer = Recorder(then)
    with BusThread(f"ipc://{ipc_dir}", options=options) as bus:
        async with running(consumer, bus.address):
            with Publisher(bus.address) as publisher:
                for number in range(100):
                    publisher.publish(start(number))
                await until(lambda: consumer.events)
                assert await asyncio.to_thread(publisher.flush, 5)
            await busy_share(bus, release)
            await until(lambda: len(consumer.events) >= 100)


async def busy_share(bus: BusThread, release: asyncio.Event) -> None:
    """See for a while that a consumer whose handler waits is alive and idle; then let it go on."""
    begin_s, cpu_s = time.monotonic(), time.thread_time()
    try:
        while time.monotonic() < begin_s + 0.6:
            assert (await info_of(bus)).state == "ready"
            await asyncio.sleep(0.05)
        busy = (time.thread_time() - cpu_s) / (time.monotonic() - begin_s)
        assert busy < 0.5, f"the loop is busy {busy:.0%} of the time"
    finally:
        release.set()


async def test_the_bus_learns_news_at_once(ipc_dir: Path) -> None:
    """That a consumer is ready, or has handled a run, does not wait for the next heartbeat."""
    options = BusOptions(heartbeat_s=5.0)
    with BusThread(f"ipc://{ipc_dir}", options=options) as bus:
        async with running(Recorder(), bus.address):
            begin_s = time.monotonic()
            while (await info_of(bus)).state != "ready":  # noqa: ASYNC110 - the bus is asked
                await asyncio.sleep(0.01)
            with Publisher(bus.address) as publisher:
                publisher.complete_run("r", "completed")
            await until_handled(bus, "recorder")
            assert time.monotonic() < begin_s + 4


async def test_what_a_consumer_publishes(bus: BusThread) -> None:
    """Its results are on the bus before it says that it handled the run."""

    class Summing(Consumer):
        """Publishes a summary."""

        name = "summing"

        async def on_run_complete(self, event: RunComplete) -> None:
            self.publish(Summary(run_id=event.run_id, producer="summing", final=True))

    with Subscriber(bus.address, "summary.", "receipt.") as subscriber:
        async with running(Summing(), bus.address):
            with Publisher(bus.address) as publisher:
                publisher.complete_run("r", "completed")
            await until_handled(bus, "summing")
            await until(lambda: len(subscriber.read()) == 2)
    assert [event.kind for event in subscriber.events if event] == ["summary", "receipt"]


async def test_stop_finishes_what_has_arrived(bus: BusThread) -> None:
    """Events that wait in the consumer's queue are handled before it ends."""

    async def then(event: EventBase) -> None:
        await asyncio.sleep(0.001)

    consumer = Recorder(then)
    async with running(consumer, bus.address):
        with Publisher(bus.address) as publisher:
            for number in range(300):
                publisher.publish(start(number))
            await asyncio.to_thread(publisher.flush, 10)
        await until(lambda: consumer.events)
    assert len([event for event in consumer.events if isinstance(event, PhaseStart)]) == 300


async def test_a_start_that_fails(bus: BusThread) -> None:
    """The exception comes out of run, and nothing stays open."""

    class Broken(Recorder):
        """Cannot start."""

        async def start(self) -> None:
            raise OSError("as the test wants")

    runner = ConsumerRunner(Broken(), Address.parse(bus.address))
    with pytest.raises(OSError, match="as the test wants"):
        await runner.run()


async def test_onlookers_neither_spin_nor_give_receipts(bus: BusThread) -> None:
    """A runner without receipts (``tail``) is known to the bus, and talks no more than others."""
    consumer = Recorder()
    with Subscriber(bus.address, "receipt.") as subscriber:
        async with running(consumer, bus.address, receipts=False, topics=("phase_start.",)) as runner:
            beats = 0
            inner = runner._transport.session._beat

            def beat() -> Any:
                nonlocal beats
                beats += 1
                return inner()

            runner._transport.session._beat = beat
            await until(lambda: beats >= 3)
            begin_s, beats = time.monotonic(), 0
            await until(lambda: time.monotonic() > begin_s + 0.3)
            assert beats < 10
            with Publisher(bus.address) as publisher:
                publisher.publish(start())
                await until(lambda: consumer.events)
                publisher.complete_run("r", "completed")
        assert subscriber.of(Receipt) == []


async def test_direct_mode() -> None:
    """Without a bus, a consumer connects to the publisher itself."""
    consumer = Recorder()
    with Publisher(bind="tcp://127.0.0.1:0") as publisher:
        async with running(consumer, publisher.address):

            def heard() -> bool:
                publisher.publish(start(0, "probe"))
                return bool(consumer.events)

            await until(heard)
            publisher.publish(start(1))
            publisher.complete_run("r", "completed")
            await until(lambda: isinstance(consumer.events[-1], RunComplete))


async def test_a_consumer_that_is_there_before_the_bus(ipc_dir: Path) -> None:
    """It does not matter which of them comes first."""
    address = f"ipc://{ipc_dir}"
    consumer = named(Recorder(), "early")
    runner = ConsumerRunner(consumer, Address.parse(address))
    task = asyncio.create_task(runner.run())
    await until(lambda: consumer.calls)
    assert runner.state == "starting"
    with BusThread(address):
        await until(lambda: runner.state == "ready")
        with Publisher(address) as publisher:
            publisher.publish(start())
            await until(lambda: consumer.events)
        runner.stop()
        await task


@pytest.mark.chaos
@pytest.mark.parametrize("scheme", ["ipc", "tcp"])
async def test_bus_killed_and_started_again(scheme: str, ipc_dir: Path) -> None:
    """A consumer finds the next bus, handles in order and nothing twice, and counts what it missed."""
    bus = plain_bus(ipc_dir, f"ipc://{ipc_dir}" if scheme == "ipc" else "tcp://127.0.0.1:0")
    consumer = Recorder()
    with bus:
        async with running(consumer, bus.address) as runner:
            with Publisher(bus.address) as publisher:
                for number in range(500):
                    publisher.publish(start(number))
                await until(lambda: len(consumer.events) > 50)
                bus.kill()
                for number in range(500, 1000):
                    publisher.publish(start(number))
                bus.start()
                assert await asyncio.to_thread(publisher.flush, 20)

                def heard() -> bool:
                    publisher.publish(start(1000))
                    return consumer.events[-1].ts_ns == 1000

                await until(heard)
                publisher.complete_run("r", "completed")
                await until(lambda: isinstance(consumer.events[-1], RunComplete))
                end = consumer.events[-1]
                assert isinstance(end, RunComplete)
                account = runner.share.dispatcher._accounts["r"].topics[b"phase_start.r$"]
        numbers = [event.ts_ns for event in consumer.events[:-1] if event.ts_ns < 1000]
        assert numbers == sorted(set(numbers))
        assert account.received == account.handled == len(consumer.events) - 1
        assert account.received + account.missed == end.published["phase_start.r$"]


_PROGRAM = """
import asyncio, json, sys
from phase_bus.core.address import Address
from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.harness.ending import Ending

class Counting(Consumer):
    count = 0
    async def on_phase_start(self, event):
        self.count += 1
        print("event", flush=True)
        await asyncio.sleep({sleep})
    async def flush(self):
        print(json.dumps({{"flushed": self.count}}), flush=True)

async def main(ending):
    consumer = named(Counting(), "counting")
    runner = ConsumerRunner(
        consumer, Address.parse(sys.argv[1]), on_ready=lambda: print("ready", flush=True)
    )
    loop = asyncio.get_running_loop()
    ending.begin("counting", lambda: loop.call_soon_threadsafe(runner.stop))
    await runner.run()

with Ending(print, 10.0, eof={eof}) as ending:
    asyncio.run(main(ending))
"""


def start_program(
    address: str, *, sleep: float = 0.0, eof: int | None = None, **options: Any
) -> subprocess.Popen[str]:
    """Start a consumer in a process of its own, and wait until it is ready."""
    program = textwrap.dedent(_PROGRAM).format(sleep=sleep, eof=eof)
    process = subprocess.Popen(
        [sys.executable, "-c", program, address], stdout=subprocess.PIPE, text=True, **options
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_and_flushes(bus: BusThread, signum: signal.Signals) -> None:
    """The first signal: what has arrived is handled, the flush runs, the exit code is 0."""
    process = start_program(bus.address, sleep=0.01)
    with process, Publisher(bus.address) as publisher:
        assert process.stdout is not None
        for number in range(50):
            publisher.publish(start(number))
        assert publisher.flush(5)
        assert process.stdout.readline() == "event\n"
        process.send_signal(signum)
        lines = process.stdout.read().splitlines()
        assert process.wait(20) == 0
    assert json.loads(lines[-1]) == {"flushed": 50}
    with RawClient(bus.address) as client:
        states = {info.name: info.state for info in client.status().clients}
    assert states["counting"] == "stopped"


def test_a_second_signal_ends_at_once(bus: BusThread) -> None:
    """A second signal does not wait for a slow handler."""
    process = start_program(bus.address, sleep=60)
    with process, Publisher(bus.address) as publisher:
        assert process.stdout is not None
        publisher.publish(start())
        assert process.stdout.readline() == "event\n"
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        assert process.returncode == 128 + signal.SIGTERM


def test_the_end_of_the_parent(bus: BusThread) -> None:
    """A consumer whose supervisor is gone finishes by itself."""
    read, write = os.pipe()
    process = start_program(bus.address, eof=read, pass_fds=(read,))
    os.close(read)
    with process:
        os.close(write)
        assert process.wait(20) == 0
