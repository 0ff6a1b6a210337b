"""Where a bus binds, where clients reach it, and whose sockets are whose."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from phase_bus import Consumer, Publisher, RunStart
from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.consumer import replay
from phase_bus.consumer.consumer import named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.ipc_directory import lock_directory
from phase_bus.errors import AddressError
from phase_bus.journal.writer import Journal
from phase_bus.testing.waiting import wait_until
from tests.support.buses import FAST, BusThread
from tests.support.processes import Forwarder


class Runs(Consumer):
    """Keeps the ids of runs."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def on_run_start(self, event: RunStart) -> None:
        self.seen.append(event.run_id)


def publish(address: str, run_id: str) -> None:
    """Publish the start of a run, acknowledged."""
    with Publisher(address) as publisher:
        publisher.publish(RunStart(run_id=run_id))
        assert publisher.flush(5.0)


async def consume(address: str, *run_ids: str) -> None:
    """Receive the starts of these runs."""
    consumer = named(Runs(), "runs")
    runner = ConsumerRunner(consumer, Address.parse(address))
    running = asyncio.create_task(runner.run())
    await asyncio.to_thread(wait_until, lambda: consumer.seen == list(run_ids))
    runner.stop()
    await running


def free_ports(count: int) -> int:
    """Return a port that is free, as are those after it."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
        try:
            for number in range(count):
                socket.create_server(("127.0.0.1", port + number)).close()
        except OSError:
            continue
        return port


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "[::]", "[::1]", "lo", "localhost"])
async def test_every_way_to_bind_can_be_connected_to(host: str, tmp_path: Path, no_leaks: None) -> None:
    """By the very address that the bus was given, with a publisher, a consumer and a client."""
    with BusThread(f"tcp://{host}:0", journal=Journal(tmp_path), insecure=True) as bus:
        address = bus.address
        await asyncio.to_thread(publish, address, "one")
        await consume(address, "one")
        with BusClient(Address.parse(address)) as client:
            assert client.status().addresses == (address,)


def other_ports(bus: BusThread) -> tuple[int, int]:
    """Return where live events and past ones are at."""
    sockets = bus.bus._sockets
    assert sockets.replay_endpoint is not None
    return sockets.events_endpoint.tcp_port, sockets.replay_endpoint.tcp_port


def test_the_three_ports_follow_each_other(tmp_path: Path) -> None:
    """So that a firewall can know them."""
    port = free_ports(3)
    with BusThread(f"tcp://127.0.0.1:{port}", journal=Journal(tmp_path)) as bus:
        assert other_ports(bus) == (port + 1, port + 2)


def test_each_port_can_be_given(tmp_path: Path) -> None:
    """So that all three fit through what there is; one that is in use is an error, which names it."""
    port = free_ports(4)
    address = f"tcp://127.0.0.1:{port}"
    options = replace(FAST, events_port=port + 3, replay_port=port + 1)
    with BusThread(address, options=options, journal=Journal(tmp_path)) as bus:
        assert other_ports(bus) == (port + 3, port + 1)
    with (
        socket.create_server(("127.0.0.1", port + 1)),
        pytest.raises(AddressError, match=f"tcp://127.0.0.1:{port + 1}': is in use"),
    ):
        BusThread(address, options=options, journal=Journal(tmp_path))


@pytest.mark.parametrize("name", ["events_port", "replay_port"])
@pytest.mark.parametrize("port", [0, -1, 65536])
def test_what_is_no_port_is_refused(name: str, port: int) -> None:
    with pytest.raises(ValueError, match=name):
        BusOptions(**{name: port})  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_replaced_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Clients learn the other; who set up a firewall learns it from the log."""
    port = free_ports(3)
    with (
        socket.create_server(("127.0.0.1", port + 2)),
        BusThread(f"tcp://127.0.0.1:{port}", journal=Journal(tmp_path)) as bus,
    ):
        _, other = other_ports(bus)
    (line,) = caplog.messages
    assert f"port {port + 2} cannot be had" in line
    assert f"past events are at port {other} instead" in line


async def test_one_forwarded_port_is_too_few(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`status` works over it; a consumer says within seconds which port it lacks."""
    with BusThread("tcp://127.0.0.1:0", journal=Journal(tmp_path)) as bus:
        missing = bus.bus._sockets.events_endpoint.tcp_port
        # The forwarder is on another address of this machine, where the bus's other ports are not.
        with Forwarder(Address.parse(bus.address).port, host="127.0.0.2") as forwarder:
            address = Address.parse(f"tcp://127.0.0.2:{forwarder.port}")
            with BusClient(address) as client:
                assert client.status().pid
            runner = ConsumerRunner(named(Runs(), "runs"), address)
            running = asyncio.create_task(runner.run())
            where = f"tcp://127.0.0.2:{missing}"
            await asyncio.to_thread(
                wait_until, lambda: any(where in line and "live stream" in line for line in caplog.messages)
            )
            runner.stop()
            await running


async def test_the_journals_port_is_forwarded_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, elsewhere: None
) -> None:
    """Or the consumer says so: what came before it is out of its reach."""
    monkeypatch.setattr(replay, "_TIMEOUT_S", 0.5)
    with BusThread("tcp://127.0.0.1:0", journal=Journal(tmp_path)) as bus, ExitStack() as forwarded:
        await asyncio.to_thread(publish, bus.address, "one")
        events, missing = other_ports(bus)
        to_control = Forwarder(Address.parse(bus.address).port, "127.0.0.2")
        forwarded.enter_context(to_control)
        forwarded.enter_context(Forwarder(events, "127.0.0.2", events))
        runner = ConsumerRunner(named(Runs(), "runs"), Address.parse(f"tcp://127.0.0.2:{to_control.port}"))
        running = asyncio.create_task(runner.run())
        where = f"its journal at tcp://127.0.0.2:{missing}"
        await asyncio.to_thread(wait_until, lambda: any(where in line for line in caplog.messages))
        runner.stop()
        await running


async def test_sockets_that_were_removed_are_there_again(
    ipc_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, no_leaks: None
) -> None:
    """By a cleaner of temporary files: who is connected stays, who comes finds the bus, the log says it."""
    directory = ipc_dir / "bus"
    with BusThread(f"ipc://{directory}", journal=Journal(tmp_path)) as bus:
        with Publisher(bus.address) as publisher:
            publisher.publish(RunStart(run_id="before"))
            assert publisher.flush(5.0)
            shutil.rmtree(directory)
            await asyncio.to_thread(wait_until, lambda: (directory / "replay.ipc").exists())
            publisher.publish(RunStart(run_id="after"))
            assert publisher.flush(5.0)
        await consume(bus.address, "before", "after")
        (line,) = (line for line in caplog.messages if "somebody has removed" in line)
        assert "there again" in line
    assert [path.name for path in directory.iterdir()] == ["bus.lock"]


def test_a_bus_removes_only_its_own_sockets(
    ipc_dir: Path, caplog: pytest.LogCaptureFixture, no_leaks: None
) -> None:
    """Not those of the bus that was started in the same place since."""
    directory = ipc_dir / "bus"
    first = Bus([Address.parse(f"ipc://{directory}")], FAST)
    first.bind()
    directory.rename(ipc_dir / "moved")
    with BusThread(f"ipc://{directory}") as second:
        running = threading.Thread(target=first.run)
        running.start()
        wait_until(lambda: any("no client can connect any more" in line for line in caplog.messages))
        first.stop()
        running.join()
        first.close()
        publish(second.address, "one")
        with BusClient(Address.parse(second.address)) as client:
            assert [run.run_id for run in client.status().runs] == ["one"]
    assert len([line for line in caplog.messages if "no client can connect any more" in line]) == 1


def test_a_publisher_removes_only_its_own_sockets(ipc_dir: Path) -> None:
    """In direct mode, too."""
    directory = ipc_dir / "direct"
    with Publisher(bind=f"ipc://{directory}"):
        directory.rename(ipc_dir / "moved")
        lock_directory(Address.parse(f"ipc://{directory}")).release()
        (directory / "events.ipc").touch()
    assert (directory / "events.ipc").exists()
