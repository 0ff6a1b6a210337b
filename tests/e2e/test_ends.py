"""How everything ends: by a signal, by a second one, in time though something hangs, and after SIGKILL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.workplace import Workplace, wait_for

pytestmark = pytest.mark.slow

SIMULATE = (sys.executable, "-m", "phase_bus", "simulate", "-n", "50", "-r", "0")
# Consumers that hang where their option says: in a handler or at the flush, with or without the loop.
HANGING = """
import asyncio, time
from pathlib import Path

from phase_bus.consumer.consumer import Consumer


class Hanging(Consumer):
    def __init__(self, where: str = "", blocking: bool = False) -> None:
        self.where, self.blocking = where, blocking

    async def hang(self, where: str) -> None:
        if where == self.where:
            Path("hangs").touch()
            if self.blocking:
                time.sleep(600)
            await asyncio.sleep(600)

    async def on_records(self, event) -> None:
        await self.hang("handler")

    async def flush(self) -> None:
        if Path("published").exists():
            await self.hang("flush")

    async def stop(self) -> None:
        await self.hang("stop")
"""


@pytest.fixture
def place(workplace: Workplace) -> Iterator[Workplace]:
    """A place whose commands that still run at the end are ended; what they leave behind fails the test."""
    yield workplace
    for process in workplace.started:
        process.terminate()
        process.wait(30)


@pytest.fixture
def temporary(place: Workplace, ipc_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory of the processes' own, with a short name, as sockets are to be in it."""
    monkeypatch.setenv("TMPDIR", str(ipc_dir))
    (place.directory / "hanging.py").write_text(HANGING)
    return ipc_dir


def address_in(workplace: Workplace) -> str:
    return f"ipc://{workplace.directory}/bus"


def start_bus(workplace: Workplace, *addresses: str) -> subprocess.Popen[str]:
    """Start a bus, and wait until it is ready."""
    places = [word for address in addresses for word in ("--address", address)]
    bus = workplace.phase_bus("bus", *places)
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    return bus


def start_consumer(workplace: Workplace, *options: str) -> subprocess.Popen[str]:
    """Start the consumer that hangs, and wait until it is ready."""
    consumer = workplace.phase_bus(
        "consume", "hanging:Hanging", "--name", "hanging", "--address", address_in(workplace), *options
    )
    wait_for(lambda: is_ready(workplace), "the consumer")
    return consumer


def is_ready(workplace: Workplace) -> bool:
    said = workplace.run("status", "--json", "--address", address_in(workplace)).stdout
    return '"state": "ready"' in said


def publish(workplace: Workplace) -> None:
    """Publish a run, and wait until something hangs in consequence."""
    (workplace.directory / "published").touch()
    done = workplace.run(*SIMULATE[3:], "--address", address_in(workplace))
    assert done.returncode == 0, done.stderr
    wait_for((workplace.directory / "hangs").exists, "the consumer to hang")


def ends_within(process: subprocess.Popen[str], seconds: float) -> int:
    """Return a process's exit code, and see that it comes soon."""
    began_s = time.monotonic()
    code = process.wait(60)
    assert time.monotonic() - began_s < seconds
    return code


def stopped(process: subprocess.Popen[str]) -> psutil.Process:
    """Return a process that is stopped, and can take no signal but SIGKILL until it is continued."""
    found = psutil.Process(process.pid)
    found.suspend()
    return found


@pytest.mark.parametrize("blocking", ["true", "false"])
@pytest.mark.parametrize("where", ["handler", "flush"])
def test_what_hangs_is_cut_off_in_time_and_comes_again(
    place: Workplace, temporary: Path, where: str, blocking: str
) -> None:
    """A handler or flush that hangs, at SIGTERM: code 3, a line that says what, it comes again."""
    start_bus(place, address_in(place))
    options = ("--set", f"where={where}", "--set", f"blocking={blocking}", "--stop-timeout-s", "1")
    consumer = start_consumer(place, *options)
    publish(place)
    consumer.terminate()
    assert ends_within(consumer, 6) == 3
    (line,) = [each for each in place.stderr(consumer).splitlines() if "1 s" in each]
    assert "not written out and committed" in line
    assert "comes again" in line
    assert ("the handler of that at offset" in line) == (where == "handler")
    (place.directory / "published").unlink()
    again = start_consumer(place)
    receipt = wait_for(lambda: receipts(place), "the receipt")
    assert "hanging" in receipt
    again.terminate()
    assert ends_within(again, 10) == 0


def receipts(workplace: Workplace) -> str:
    done = workplace.run("receipts", "latest")
    return done.stdout if done.returncode == 0 else ""


def test_a_second_signal_ends_a_consumer_that_blocks(place: Workplace, temporary: Path) -> None:
    """Though its loop has no turn in which it could notice."""
    start_bus(place, address_in(place))
    consumer = start_consumer(place, "--set", "where=handler", "--set", "blocking=true")
    publish(place)
    consumer.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        consumer.wait(0.5)
    consumer.send_signal(signal.SIGINT)
    assert ends_within(consumer, 5) == 128 + signal.SIGINT
    assert "ended by a second signal" in place.stderr(consumer)


def test_a_pool_is_forced_as_a_whole(place: Workplace, temporary: Path) -> None:
    """A second signal, while its workers hang: they are gone with it."""
    start_bus(place, address_in(place))
    pool = start_consumer(place, "--workers", "2", "--set", "where=handler", "--set", "blocking=true")
    publish(place)
    workers = psutil.Process(pool.pid).children()
    assert len(workers) == 2
    pool.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        pool.wait(0.5)
    pool.terminate()
    assert ends_within(pool, 5) == 128 + signal.SIGTERM
    assert psutil.wait_procs(workers, 5)[1] == []


def test_a_pool_kills_a_worker_that_hangs(place: Workplace, temporary: Path) -> None:
    """Workers give themselves less time than their pool gives them, which says who was cut off."""
    start_bus(place, address_in(place))
    options = ("--workers", "2", "--set", "where=handler", "--stop-timeout-s", "1")
    pool = start_consumer(place, *options)
    publish(place)
    pool.terminate()
    assert ends_within(pool, 10) == 3
    said = place.stderr(pool) + place.stdout(pool)
    assert "not written out and committed" in said
    assert "not all is written out and committed by worker" in said


def test_a_second_signal_ends_a_bus(place: Workplace) -> None:
    """Its sockets are gone, and the next one has all that the first acknowledged."""
    bus = start_bus(place, address_in(place))
    assert place.run(*SIMULATE[3:], "--address", address_in(place)).returncode == 0
    # Two different signals wait for it, in whichever order it gets them.
    held = stopped(bus)
    bus.send_signal(signal.SIGTERM)
    bus.send_signal(signal.SIGINT)
    held.resume()
    assert ends_within(bus, 5) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    assert list((place.directory / "bus").glob("*.ipc")) == []
    start_bus(place, address_in(place))
    assert '"completed"' in place.run("status", "--json", "--address", address_in(place)).stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_next_bus_comes_up_at_once_after_a_kill(place: Workplace) -> None:
    """At its address of each kind, with a client connected all the time; the journal is whole."""
    addresses = (address_in(place), f"tcp://127.0.0.1:{free_port()}")
    bus = start_bus(place, *addresses)
    consumer = place.phase_bus("consume", "logging", "--address", addresses[1])
    for number in range(3):
        run = ("-n", "2000", "-r", "2000", "--run-id", str(number), "--address", addresses[number % 2])
        publisher = place.phase_bus("simulate", *run)
        wait_for(lambda n=number: str(n) in runs_at(place), "the run")  # type: ignore[misc]
        bus.kill()
        bus.wait()
        began_s = time.monotonic()
        bus = start_bus(place, *addresses)
        assert time.monotonic() - began_s < 10
        assert publisher.wait(30) == 0
    bus.terminate()
    assert ends_within(bus, 10) == 0
    consumer.terminate()
    assert ends_within(consumer, 15) == 0
    assert place.run("journal", "verify").returncode == 0


def runs_at(workplace: Workplace) -> list[str]:
    done = workplace.run("status", "--json", "--address", address_in(workplace))
    return [part.split('"')[0] for part in done.stdout.split('"run_id": "')[1:]]


Start = Callable[[], subprocess.Popen[str]]


def rig(place: Workplace, command: str) -> Start:
    """Return what starts ``up``, or ``exec`` with a command that goes on, with a consumer and a pool."""
    rest = ("--", "sleep", "600") if command == "exec" else ("--address", "tcp://127.0.0.1:0")

    def start() -> subprocess.Popen[str]:
        name = len(place.started)
        (place.directory / f"{name}.yaml").write_text(f"data: journal-{name}\n")
        options = ("-c", f"{name}.yaml", "--with", "hanging:Hanging", "--workers", "aggregator=2")
        process = place.phase_bus(command, *options, "--with", f"aggregator:output={name}.json", *rest)
        wait_for(lambda: "consumers ready" in place.stderr(process), "the consumers")
        return process

    return start


@pytest.mark.parametrize("command", ["exec", "up"])
def test_nothing_is_left_of_a_killed_rig(place: Workplace, temporary: Path, command: str) -> None:
    """SIGKILL: its processes end by themselves, the next rig removes its directory, no living one's."""
    start = rig(place, command)
    first = start()
    second = start() if command == "up" else None
    (killed, *_) = [path for path in temporary.iterdir() if second is None or is_of(path, first)]
    children = psutil.Process(first.pid).children(recursive=True)
    assert len(children) == 5 + (command == "exec")
    first.kill()
    first.wait()
    for child in children:
        if child.name() == "sleep":
            child.kill()
    assert psutil.wait_procs(children, 30)[1] == []
    assert killed.exists()
    if second is not None:
        (living,) = set(temporary.iterdir()) - {killed}
        third = start()
        assert not killed.exists()
        assert living.exists()
        for process in (second, third):
            process.terminate()
            assert ends_within(process, 20) == 0
    else:
        assert place.run("exec", "--allow-no-run", "--", "true").returncode == 0
    assert list(temporary.iterdir()) == []


def is_of(directory: Path, process: subprocess.Popen[str]) -> bool:
    """Return whether a rig's process has its directory's lock open."""
    files = Path(f"/proc/{process.pid}/fd").iterdir()
    return any(
        os.path.samestat(path.stat(), (directory / "rig.lock").stat()) for path in files if path.exists()
    )


@pytest.mark.parametrize("command", ["exec", "up"])
@pytest.mark.parametrize("signals", [1, 2])
def test_a_rig_that_is_to_end_while_a_consumer_hangs(
    place: Workplace, temporary: Path, command: str, signals: int
) -> None:
    """The first signal waits for what hangs no longer than it may take, a second one not at all."""
    (place.directory / "bus.yaml").write_text("stop_timeout_s: 1\ndrain_timeout_s: 300\n")
    hanging = ("-c", "bus.yaml", "--with", "hanging:Hanging:where=handler,blocking=true")
    if command == "exec":
        process = place.phase_bus("exec", *hanging, "--", *SIMULATE)
        wait_for(lambda: " completed: 100 records" in place.stderr(process), "the run's end")
        wait_for(lambda: not runs(process, "simulate"), "the command's end")
    else:
        process = place.phase_bus("up", *hanging, "--address", address_in(place))
        wait_for(lambda: "consumers ready" in place.stderr(process), "the consumer")
        assert place.run(*SIMULATE[3:], "--address", address_in(place)).returncode == 0
    wait_for((place.directory / "hangs").exists, "the consumer to hang")
    children = psutil.Process(process.pid).children(recursive=True)
    for number in range(signals):
        if number:
            time.sleep(0.3)  # else both are one
        process.terminate()
    code = ends_within(process, 12 if signals == 1 else 8)  # of the 300 that it would wait
    assert code == (3 if signals == 1 else 128 + signal.SIGTERM), place.stderr(process)
    assert psutil.wait_procs(children, 5)[1] == []
    assert list(temporary.iterdir()) == []
    if signals == 1:
        assert "not written out and committed" in place.stderr(process)


def runs(process: subprocess.Popen[str], word: str) -> bool:
    """Return whether a rig's process has a child that runs, with a word on its command line."""
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):  # or a zombie, which is one of those
            if word in child.cmdline():
                return True
    return False


@pytest.mark.parametrize("command", ["exec", "up"])
def test_a_signal_while_a_rig_starts(place: Workplace, temporary: Path, command: str) -> None:
    """A consumer that never gets ready is not waited for, and the benchmark's command does not run."""
    (place.directory / "late.py").write_text(
        "import time\nfrom phase_bus.consumer.consumer import Consumer\n"
        "class Late(Consumer):\n"
        "    async def on_event(self, event) -> None: ...\n"
        "    async def start(self) -> None:\n        open('starts', 'w').close()\n        time.sleep(600)\n"
    )
    (place.directory / "bus.yaml").write_text("stop_timeout_s: 1\nready_timeout_s: 300\n")
    rest = ("--", "touch", "ran") if command == "exec" else ("--address", address_in(place))
    process = place.phase_bus(command, "-c", "bus.yaml", "--with", "late:Late", *rest)
    wait_for((place.directory / "starts").exists, "the consumer to start")
    process.terminate()
    assert ends_within(process, 10) == (128 + signal.SIGTERM if command == "exec" else 0)
    assert not (place.directory / "ran").exists()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("arguments", [("simulate", "-n", "100000", "-r", "500"), ("tail",), ("attach",)])
def test_the_others_end_by_a_signal(place: Workplace, arguments: tuple[str, ...]) -> None:
    """Soon, and in order: what was published is delivered, and its run has an end."""
    start_bus(place, address_in(place))
    more: tuple[str, ...] = ("--ipc-path", str(place.directory)) if arguments[0] == "attach" else ()
    process = place.phase_bus(*arguments, *more, "--address", address_in(place))
    if arguments[0] == "simulate":
        wait_for(lambda: runs_at(place), "the run")
    else:
        word = "listening" if arguments[0] == "tail" else "waiting for AIPerf"
        wait_for(lambda: word in place.stderr(process), "it to run")
    process.terminate()
    code = ends_within(process, 10)
    assert code == {"simulate": 128 + signal.SIGTERM, "tail": 0, "attach": 1}[arguments[0]]
    if arguments[0] == "simulate":
        runs: Any = place.run("status", "--json", "--address", address_in(place)).stdout
        assert '"cancelled"' in runs
