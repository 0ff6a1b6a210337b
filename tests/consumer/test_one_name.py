"""One name, one consumer: who has it keeps it while it is alive, and does nothing under it afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
from pathlib import Path

import pytest

from phase_bus import Consumer, PhaseStart, Publisher, Receipt, Records, RunComplete, run_consumer
from phase_bus.core.control import Beat, DeadLetterNote, Goodbye, Heard, Hello, NameTaken, Reply, Welcome
from phase_bus.core.position import Position
from phase_bus.core.session import introduce, is_gone, pid_space
from phase_bus.errors import NameTakenError
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.testing import LiveBus, MemoryBus, make_event, make_run, until, wait_until
from phase_bus.testing.process import PythonProcess
from tests.support.buses import BusThread, DurableBus
from tests.support.clients import RawClient
from tests.support.entries import Log
from tests.support.recorder import publish

pytestmark = pytest.mark.usefixtures("no_leaks")

FIRST, SECOND = "1" * 32, "2" * 32
FAR = "a machine that is not this one"


class Counting(Consumer):
    """Counts records."""

    def __init__(self) -> None:
        self.records = 0
        self.ended: list[str] = []

    async def on_records(self, event: Records) -> None:
        self.records += event.count

    async def on_run_complete(self, event: RunComplete) -> None:
        self.ended.append(event.run_id)


def hello(client_id: str, *, pid: int = 4711, space: str = FAR) -> Hello:
    """A consumer named `one`, by default in a process that the bus cannot see."""
    return Hello(client_id=client_id, role="consumer", name="one", pid=pid, host="far", pid_space=space)


def alive(client_id: str, position: Position | None = None) -> Beat:
    """What it says from time to time."""
    saved = b"state of " + client_id.encode()
    return Beat(client_id=client_id, state="ready", position=position, saved=saved)


def is_ready(bus: BusThread) -> bool:
    """Whether the one consumer on the bus is ready."""
    return [client.info.state for client in bus.bus._clients.by_id.values()] == ["ready"]


def answer(client: RawClient, client_id: str) -> Reply:
    """Say hello until the answer is no longer that the other one does not answer."""

    replies: list[Reply] = []

    def is_final() -> bool:
        replies.append(client.ask(hello(client_id)))
        return not (isinstance(replies[-1], NameTaken) and not replies[-1].answers)

    wait_until(is_final)
    return replies[-1]


def test_a_newcomer_is_refused_once_the_first_one_has_said_something(bus: BusThread) -> None:
    """The answer names its process; until that has said anything, the newcomer waits."""
    with RawClient(bus.address) as first, RawClient(bus.address) as second:
        assert isinstance(first.ask(hello(FIRST, pid=17)), Welcome)
        waiting = second.ask(hello(SECOND))
        assert waiting == NameTaken(name="one", pid=17, host="far", answers=False)

        def refusal() -> Reply | None:
            assert isinstance(first.ask(alive(FIRST)), Heard)
            reply = second.ask(hello(SECOND))
            return reply if reply != waiting else None

        assert wait_until(refusal) == NameTaken(name="one", pid=17, host="far", answers=True)
        first.ask(Goodbye(client_id=FIRST))
        assert isinstance(second.ask(hello(SECOND)), Welcome)


def test_a_group_and_an_onlooker_are_no_consumers_of_a_name(bus: BusThread) -> None:
    with RawClient(bus.address) as client:
        assert isinstance(client.ask(hello(FIRST)), Welcome)
        assert isinstance(client.ask(introduce("3" * 32, "client", "one")), Welcome)
        assert isinstance(client.ask(introduce("4" * 32, "publisher", "one")), Welcome)
        assert isinstance(client.ask(introduce("5" * 32, "consumer", "one", group="one")), Welcome)


def test_the_name_of_a_process_that_was_killed_is_free_at_once(bus: BusThread) -> None:
    """If the bus can see that it is gone; it does not take another machine's process for it."""
    with PythonProcess(Path(os.devnull), "-c", "") as ended:
        ended.process.wait()
    with RawClient(bus.address) as client:
        assert isinstance(client.ask(hello(FIRST, pid=ended.pid, space=pid_space())), Welcome)
        assert isinstance(client.ask(hello(SECOND, pid=ended.pid)), Welcome)
        assert isinstance(client.ask(hello("3" * 32)), NameTaken)
    assert is_gone(ended.pid, pid_space())
    assert not is_gone(ended.pid, FAR)
    assert not is_gone(os.getpid(), pid_space())
    assert not is_gone(1, pid_space())  # it is another user's, or we may do everything
    assert not is_gone(2**64, pid_space())


def test_who_was_away_changes_nothing(kept: DurableBus) -> None:
    """Neither while its successor is here, nor after that has come and gone."""
    kept.close()
    kept.options = type(kept.options)(heartbeat_s=0.05, silent_after_s=0.1)
    kept.open()
    publish(kept.address, 5)
    at = kept.journal.lineage.position
    letter = DeadLetterNote(offset=1, run_id="r", kind="records", error="late")
    with RawClient(kept.address) as first, RawClient(kept.address) as second:
        assert isinstance(first.ask(hello(FIRST)), Welcome)
        first.ask(alive(FIRST, at(3)))
        welcome = answer(second, SECOND)
        assert isinstance(welcome, Welcome)
        assert (welcome.checkpoint, welcome.state) == (at(3), b"state of " + FIRST.encode())
        second.ask(alive(SECOND, at(9)))
        late = Beat(client_id=FIRST, state="ready", position=at(5), saved=b"late", dead_letters=(letter,))
        assert first.ask(late) == Heard(bus_id=kept.bus.bus_id, known=False)
        assert first.ask(hello(FIRST)) == NameTaken(name="one", pid=4711, host="far")
        second.ask(Goodbye(client_id=SECOND))
        assert first.ask(hello(FIRST)) == NameTaken(name="one", pid=4711, host="far")
        assert first.ask(late) == Heard(bus_id=kept.bus.bus_id, known=False)
        checkpoint = kept.journal.checkpoint("one")
        assert checkpoint is not None
        assert (checkpoint.offset, checkpoint.state) == (9, b"state of " + SECOND.encode())


def test_an_onlooker_keeps_nothing(kept: DurableBus) -> None:
    """Whatever it says: it has no checkpoint, and failed on nothing that was its own."""
    letter = DeadLetterNote(offset=1, run_id="r", kind="records", error="broken pipe")
    with RawClient(kept.address) as client:
        client.ask(introduce(FIRST, "client", "tail"))
        at = kept.journal.lineage.position(5)
        said = Beat(client_id=FIRST, state="ready", position=at, saved=b"", dead_letters=(letter,))
        assert client.ask(said) == Heard(bus_id=kept.bus.bus_id)
    with JournalReader(kept.data) as reader:
        assert reader.dead_letters() == []
        assert reader.checkpoint("tail") is None


async def test_two_that_compete_after_a_restart_of_the_bus(kept: DurableBus) -> None:
    """One of them has the name, the other is told; who is alone keeps it."""
    old = asyncio.create_task(run_consumer(first := Counting(), kept.address, name="one"))
    await until(lambda: is_ready(kept))
    await asyncio.to_thread(kept.close)
    new = asyncio.create_task(run_consumer(second := Counting(), kept.address, name="one"))
    kept.open()
    done, running = await asyncio.wait({old, new}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == len(running) == 1
    with pytest.raises(NameTakenError, match=f"pid {os.getpid()}"):
        done.pop().result()
    with Publisher(kept.address) as publisher:
        for event in make_run(10):
            publisher.publish(event)
    winner, loser = (second, first) if new in running else (first, second)
    await until(lambda: winner.records == 20)
    assert loser.records == 0
    (last,) = running
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last


async def test_a_successor_that_has_come_and_gone_with_another_bus(kept: DurableBus) -> None:
    """The new bus knows of neither; the checkpoint tells."""
    running = asyncio.create_task(run_consumer(Counting(), kept.address, name="one"))
    await until(lambda: is_ready(kept))
    kept.close()
    with Journal(kept.data) as journal:
        log = Log(journal.head)
        journal.append([log.entry() for _ in range(9)])
    kept.open()
    with RawClient(kept.address) as other:  # all at once: the first one cannot come in between
        assert isinstance(other.ask(hello(SECOND)), Welcome)
        other.ask(alive(SECOND, kept.journal.lineage.position(9)))
        other.ask(Goodbye(client_id=SECOND))
    with pytest.raises(NameTakenError, match="another process took the name over"):
        await asyncio.wait_for(running, 10)


def test_a_consumer_that_slept_leaves_all_to_its_successor(tmp_path: Path) -> None:
    """Its own events come to it when it wakes, and nothing comes of them, the receipt least of all."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from pathlib import Path
            from phase_bus import Consumer

            class Recorder(Consumer):
                def __init__(self, output: Path) -> None:
                    self.output, self.records = output, 0
                async def on_records(self, event):
                    self.records += event.count
                async def on_run_complete(self, event):
                    pass
                async def flush(self):
                    self.output.write_text(str(self.records))
                def state(self):
                    return str(self.records).encode()
                def restore(self, state):
                    self.records = int(state)
        """)
    )

    def consumer(number: int, bus: LiveBus) -> PythonProcess:
        place = f"output={tmp_path / str(number)}"
        arguments = ("consume", "mine:Recorder", "--name", "one", "--address", bus.address, "--set", place)
        return PythonProcess(tmp_path / f"{number}.log", "-m", "phase_bus", *arguments, cwd=tmp_path)

    def records(number: int) -> int:
        output = tmp_path / str(number)
        return int(output.read_text() or 0) if output.exists() else 0

    def ready(bus: LiveBus, process: PythonProcess) -> bool:
        return any(c.pid == process.pid and c.state == "ready" for c in bus.status().clients)

    with LiveBus("--silent-after-s", "1.5") as bus, consumer(1, bus) as first:
        wait_until(lambda: ready(bus, first))
        bus.publish(*make_run(100, run_id="before"))
        wait_until(lambda: records(1) == 200)
        with consumer(2, bus) as refused:
            assert refused.process.wait(30) == 2
        line = refused.log.read_text()
        assert line.count("\n") == 1
        assert f"pid {first.pid}" in line
        assert "--name" in line
        assert "--group" in line
        first.process.send_signal(signal.SIGSTOP)
        with consumer(3, bus) as second:
            wait_until(lambda: ready(bus, second), 30)
            bus.publish(*make_run(50, run_id="meanwhile"))
            wait_until(lambda: records(3) == 300)
            wait_until(lambda: len(bus.events(Receipt)) == 2)  # else its successor gives it
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(30) == 2
            told = first.log.read_text()
            assert f"pid {second.pid}" in told
            assert "Traceback" not in told
            second.kill()
            bus.publish(*make_run(25, run_id="after"))
            with consumer(4, bus) as third:
                wait_until(lambda: records(4) == 350)
                wait_until(lambda: len(bus.events(Receipt)) == 3)
                third.terminate()
        assert records(1) == 200
        ids = [receipt.consumer_id for receipt in bus.events(Receipt)]
        assert len(set(ids)) == 3
        assert all(receipt.complete for receipt in bus.events(Receipt))


async def test_in_memory_as_on_a_real_bus() -> None:
    bus = MemoryBus()
    bus.publish(make_event(PhaseStart))
    async with bus.consumer(Counting, name="one"):
        with pytest.raises(NameTakenError, match=r"--name.*--group"):
            await bus.run_consumer(Counting, name="one")
        await bus.run_consumer(Counting, name="two")
    async with bus.consumer(Counting, name="one") as crashed:
        await crashed.crash()
        await bus.run_consumer(Counting, name="one")
