"""Another user of the machine, who was first at the place where somebody expects a bus."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path

import pytest
import zmq

from phase_bus.consumer.consumer import named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import Hello
from phase_bus.core.ipc_directory import check_directory
from phase_bus.core.sockets import dealer
from phase_bus.core.wire import encode_control, receive_reply
from phase_bus.errors import AddressError
from phase_bus.events import RunStart
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until, wait_until
from tests.support.buses import BusThread
from tests.support.processes import Killable
from tests.support.recorder import Recorder
from tests.support.stranger import CAUGHT, IS_OTHER, NOBODY, READY, open_to_all, stranger
from tests.support.workplace import Workplace, assert_one_line

pytestmark = pytest.mark.slow

REASON = f"belongs to another user (uid {NOBODY})" if IS_OTHER else "others may use it (mode 2770)"
COMMANDS = {
    "status": ("status",),
    "consume": ("consume", "logging"),
    "group": ("consume", "aggregator", "--group", "g"),
    "tail": ("tail",),
    "simulate": ("simulate", "--requests", "1"),
    "bus": ("bus", "--no-journal"),
    "exec": ("exec", "--with", "logging", "--", "true"),
    "up": ("up", "--with", "logging"),
}


def said(process: Killable, text: str) -> bool:
    """Whether a process has printed something, unless it has ended."""
    assert process.runs, process.tail()
    return text in process.log.read_text()


def test_nothing_is_said_to_another_users_bus(ipc_dir: Path, workplace: Workplace) -> None:
    """Commands end with one line, and have not even connected."""
    address = f"ipc://{open_to_all(ipc_dir)}"
    with stranger(workplace.directory / "log", "listen", address) as other:
        wait_until(lambda: said(other, READY))
        started = {
            name: workplace.phase_bus(*command[:1], "--address", address, *command[1:])
            for name, command in COMMANDS.items()
        }
        for process in started.values():
            done = workplace.finish(process)
            assert_one_line(done.returncode, done.stderr, repr(address), REASON, "choose another directory")
        with pytest.raises(AddressError, match="choose another directory"):
            Publisher(address)
        with pytest.raises(AddressError, match="choose another directory"):
            Publisher(bind=address)
        direct = workplace.run("consume", "logging", "--address", f"direct+{address}")
        assert_one_line(direct.returncode, direct.stderr, REASON)
        assert not said(other, CAUGHT)


async def test_another_user_takes_the_place_while_clients_look_for_a_bus(
    ipc_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has waited for a bus does not talk to that one either."""
    address = f"ipc://{open_to_all(ipc_dir)}"
    runner = ConsumerRunner(named(Recorder(), "c"), Address.parse(address))
    client = BusClient(Address.parse(address))
    with Publisher(address, name="p") as publisher, stranger(tmp_path / "log", "take", address) as other:
        running = asyncio.create_task(runner.run())
        publisher.publish(RunStart(run_id="r"))
        await until(lambda: said(other, READY))
        with pytest.raises(AddressError, match="choose another directory"):
            await asyncio.wait_for(running, 10.0)
        with pytest.raises(AddressError, match="choose another directory"):
            client.status()
        await until(lambda: "what is published waits here" in caplog.text)
        assert not await asyncio.to_thread(publisher.flush, 1.0)
        assert not said(other, CAUGHT)
        publisher.close(0.1)
    client.close()
    assert publisher.undelivered == {"run_start.r$": 1}
    errors = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(errors) == 1
    assert REASON in errors[0].getMessage()


async def test_another_user_takes_the_place_of_a_bus_that_went_away(ipc_dir: Path, tmp_path: Path) -> None:
    """Nothing goes to whoever comes after the bus; when that is back, it gets everything."""
    directory = open_to_all(ipc_dir)
    address = f"ipc://{directory}"
    recorder = Recorder()
    runner = ConsumerRunner(named(recorder, "c"), Address.parse(address))
    with Publisher(address) as publisher, stranger(tmp_path / "log", "take", address) as other:
        with BusThread(address):
            running = asyncio.create_task(runner.run())
            publisher.publish(RunStart(run_id="before"))
            assert await asyncio.to_thread(publisher.flush, 10.0)
            await until(lambda: runner.state == "ready")
        shutil.rmtree(directory)
        await until(lambda: said(other, READY))
        for number in range(20):
            publisher.publish(RunStart(run_id=f"after-{number}"))
        with pytest.raises(AddressError, match="choose another directory"):
            await asyncio.wait_for(running, 10.0)
        assert not await asyncio.to_thread(publisher.flush, 1.0)
        assert not said(other, CAUGHT)
        other.kill()
        shutil.rmtree(directory)
        with BusThread(address):
            assert await asyncio.to_thread(publisher.flush, 10.0)
    assert publisher.undelivered == {}


def test_another_users_directory_that_is_gone_when_it_is_looked_at(ipc_dir: Path, tmp_path: Path) -> None:
    """Whose socket it was that ZeroMQ found there, the system knows."""
    address = Address.parse(f"ipc://{open_to_all(ipc_dir)}")
    hello = Hello(client_id="0" * 32, role="publisher", name="p")
    with stranger(tmp_path / "log", "vanish", str(address)) as other, zmq.Context() as context:
        wait_until(lambda: said(other, READY))
        with dealer(context, address.control) as sock:
            wait_until(lambda: sock.poll(0, zmq.POLLOUT) > 0)
            sock.send(encode_control(hello))
            assert sock.poll(10_000)
            assert not check_directory(address)
            if IS_OTHER:  # else the system cannot tell one from the other
                with pytest.raises(AddressError, match="answers in the bus's place"):
                    receive_reply(sock, address)


def test_a_directory_shared_with_a_group(ipc_dir: Path, workplace: Workplace) -> None:
    """Said explicitly, another user of the group publishes and consumes, whatever the bus's umask."""
    directory = ipc_dir / "bus"
    ipc_dir.chmod(0o711)
    directory.mkdir()
    shutil.chown(directory, group=NOBODY if IS_OTHER else -1)
    directory.chmod(0o2770)
    address = f"group+ipc://{directory}"
    place = workplace.directory
    bus = Killable(
        place / "bus",
        "-c",
        "import os; os.umask(0o077); from phase_bus.cli import main; main()",
        *("bus", "--address", address, "--data", str(place / "journal")),
    )
    with bus, stranger(place / "consumer", "consume", address) as consumer:
        wait_until(lambda: said(bus, "bus ready at group+ipc://"))
        wait_until(lambda: said(consumer, READY))
        with stranger(place / "publisher", "publish", address, "theirs") as publisher:
            assert publisher.process.wait(20.0) == 0, publisher.tail()
        assert workplace.run("simulate", "--requests", "3", "--address", address).returncode == 0
        wait_until(lambda: consumer.log.read_text().count("consumed") == 2)
        assert said(consumer, "consumed theirs")
        assert "theirs" in workplace.run("status", "--address", address).stdout
        refused = workplace.run("status", "--address", address.removeprefix("group+"))
        assert_one_line(refused.returncode, refused.stderr, "others may use it", "write group+ipc://")
        assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o660}


@pytest.mark.skipif(not IS_OTHER, reason="one user's runs are all its own")
def test_users_of_a_group_are_kept_apart(ipc_dir: Path, tmp_path: Path) -> None:
    """Another user of the group says nothing of our runs, though it may publish its own."""
    directory = ipc_dir / "bus"
    ipc_dir.chmod(0o711)
    directory.mkdir()
    shutil.chown(directory, group=NOBODY)
    directory.chmod(0o2770)
    address = f"group+ipc://{directory}"
    with BusThread(address, journal=Journal(tmp_path / "journal")) as bus, Publisher(address) as publisher:
        publisher.publish(RunStart(run_id="ours"))
        assert publisher.flush(20.0)
        for run_id, refused in (("theirs", 0), ("ours", 2)):
            with stranger(tmp_path / run_id, "publish", address, run_id) as other:
                assert other.process.wait(20.0) == 0, other.tail()
            assert bus.bus.rejections.of("not_yours") == refused
        assert f"(uid {NOBODY})" in bus.bus.rejections.infos()[-1].last_from
        publisher.complete_run("ours", "completed")
        assert publisher.flush(20.0)
        with BusClient(Address.parse(address)) as client:
            status = client.status()
    assert publisher.rejected == 0
    assert [(run.run_id, run.status, run.events) for run in status.runs] == [
        ("ours", "completed", 2),
        ("theirs", "completed", 2),
    ]
