"""Consumers on the bus's machine read the journal's files themselves, and ask the bus whenever in doubt.

What they are to have had is known from what was published, in this process; the bus is another one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from phase_bus.consumer import local
from phase_bus.consumer.consumer import named
from phase_bus.consumer.local import LocalJournal
from phase_bus.consumer.replay import ReplayClient
from phase_bus.core.control import Hello, JournalFile, Welcome
from phase_bus.core.session import introduce, pid_space
from phase_bus.events import EventBase, Receipt, Summary
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.testing import LiveBus
from phase_bus.testing.waiting import until
from tests.support import groups
from tests.support.clients import RawClient
from tests.support.recorder import Recorder, WithRecords, publish, running

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def bus() -> Iterator[LiveBus]:
    """A bus in a process of its own."""
    with LiveBus() as bus:
        yield bus


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the consumers of this process ask a bus's replay socket for."""
    requests: list[Any] = []
    ask = ReplayClient._ask

    async def counting(self: ReplayClient, request: Any) -> Any:
        requests.append(request)
        return await ask(self, request)

    monkeypatch.setattr(ReplayClient, "_ask", counting)
    return requests


def file_of(
    bus: LiveBus, role: str = "consumer", space: str | None = None
) -> tuple[JournalFile | None, str]:
    """What a bus says of its journal's files, and its stream."""
    hello = introduce("c" * 32, "consumer", "looking")
    hello = replace(hello, role=role, pid_space=pid_space() if space is None else space)
    with RawClient(bus.address) as client:
        welcome = client.ask(hello)
    assert isinstance(welcome, Welcome)
    return welcome.journal, welcome.bus_id


def open_files(directory: Path) -> list[str]:
    """What this process has open below a directory."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(link.readlink()))
        except OSError:  # the directory's own descriptor, closed by now
            continue
    return [name for name in found if name.startswith(str(directory))]


# ---- it happens ----


@pytest.mark.parametrize("kind", [Recorder, WithRecords])
async def test_the_bus_is_asked_for_nothing(kind: type[Recorder], bus: LiveBus, asked: list[Any]) -> None:
    """A consumer that comes late has everything, in order, once, and goes on live."""
    await asyncio.to_thread(publish, bus.address, 3000)
    consumer = kind()
    async with running(consumer, bus.address) as runner:
        await until(lambda: len(consumer.numbers) == 3000)
        await until(lambda: not runner.share.follower.replaying)
        await asyncio.to_thread(publish, bus.address, 100, 3000, end=True)
        await until(lambda: consumer.ended)
    assert consumer.numbers == list(range(3100))
    if isinstance(consumer, WithRecords):
        assert consumer.counted == 3100
    assert asked == []
    with bus_reader(bus) as reader:
        (receipt,) = reader.events("r", Receipt)
    assert receipt.complete
    assert receipt.topics["phase_start.r$"].replayed >= 3000


async def test_a_group_asks_for_nothing(bus: LiveBus, asked: list[Any]) -> None:
    """Neither for records nor for what its members have committed; nor who takes over what another had."""
    await asyncio.to_thread(groups.publish, bus.address, 2000)
    async with groups.members(2, bus.address):
        assert not (await groups.handled(bus.address)).incomplete_runs
    async with groups.members(1, bus.address):
        await asyncio.to_thread(groups.publish, bus.address, 70, "s")
        assert not (await groups.handled(bus.address, "s")).incomplete_runs
    result = await until(lambda: totals(bus, "r"))
    assert result == {"records": 2000, "sum": sum(range(2000)), "phases": 1}
    assert asked == []


def totals(bus: LiveBus, run_id: str) -> dict[str, int]:
    """What the group's leader published at a run's end."""
    with bus_reader(bus) as reader:
        summaries = [event for event in reader.events(run_id, Summary) if event.final]
    return dict(summaries[-1].result) if summaries else {}


def bus_reader(bus: LiveBus) -> JournalReader:
    """A reader of the journal of a bus."""
    return JournalReader(bus.directory / "journal")


async def test_nothing_is_open_while_a_handler_works(bus: LiveBus, asked: list[Any]) -> None:
    """Whatever holds a consumer up between two pieces, the bus's log is held by nobody."""
    journal = bus.directory / "journal"
    seen: list[list[str]] = []

    async def look(_event: EventBase) -> None:
        seen.append(open_files(journal))

    await asyncio.to_thread(publish, bus.address, 50, end=True)
    consumer = Recorder(look)
    async with running(consumer, bus.address):
        await until(lambda: consumer.ended)
        assert open_files(journal) == []
    assert seen == [[]] * 51
    assert asked == []


async def test_a_reader_changes_nothing(bus: LiveBus) -> None:
    """It copies no log, and makes no file."""
    await asyncio.to_thread(publish, bus.address, 50)
    file, stream = file_of(bus)
    assert file is not None
    journal = bus.directory / "journal"
    before = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in journal.iterdir()}
    del before[f"{FILE_NAME}-shm"]  # where readers say what they are at
    assert await LocalJournal(file, stream).read(lambda reader: reader.head.offset) == 100
    after = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in journal.iterdir()}
    del after[f"{FILE_NAME}-shm"]
    assert after == before


# ---- who is told ----


def test_only_consumers_of_this_machine_are_told(bus: LiveBus) -> None:
    """In whatever container, and who only looks on likewise; the path is nobody else's business."""
    boot, space = pid_space().split()
    here, _ = file_of(bus)
    assert here is not None
    assert Path(here.path) == bus.directory / "journal" / FILE_NAME
    assert file_of(bus, space=f"{boot} pid:[1]")[0] == here
    for other in (f"{'0' * 36} {space}", "", " ", " " + space):
        assert file_of(bus, space=other)[0] is None
    assert file_of(bus, role="client")[0] == here
    assert file_of(bus, role="publisher")[0] is None


def test_a_path_that_is_no_text_is_not_told(tmp_path: Path) -> None:
    """No welcome can hold it, and consumers are welcomed all the same."""
    with Journal(tmp_path / os.fsdecode(b"\xff")) as journal:
        assert journal.file is None


# ---- refusals ----


def copied(file: JournalFile, where: Path) -> JournalFile:
    """A copy of the journal, with everything told of it as it is; no bus has it."""
    shutil.copytree(Path(file.path).parent, where)
    path = where / FILE_NAME
    inodes = tuple(path.with_name(f"{FILE_NAME}{end}").stat().st_ino for end in ("", "-wal", "-shm"))
    return JournalFile(path=str(path), device=path.stat().st_dev, inodes=inodes)


REFUSALS: dict[str, Callable[[JournalFile, Path], JournalFile]] = {
    "a path of another host": lambda file, tmp: replace(file, path=str(tmp / "nowhere" / FILE_NAME)),
    "another file at the path": lambda file, tmp: replace(file, path=copied(file, tmp / "copy").path),
    "another device": lambda file, _: replace(file, device=file.device + 1),
    "another log": lambda file, _: replace(file, inodes=(file.inodes[0], 1, file.inodes[2])),
    "a copy that no bus has": lambda file, tmp: copied(file, tmp / "copy"),
    "too few files": lambda file, _: replace(file, inodes=()),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_what_is_not_the_bus_s_own_is_not_read(
    refusal: str,
    bus: LiveBus,
    tmp_path: Path,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The bus is asked instead, silently, and nothing is lost."""
    monkeypatch.setattr(
        "phase_bus.consumer.replay.LocalJournal",
        lambda file, stream: LocalJournal(REFUSALS[refusal](file, tmp_path), stream),
    )
    await everything_comes(bus)
    assert asked
    assert not [line for line in caplog.messages if "asking the bus" in line]


async def everything_comes(bus: LiveBus, count: int = 50) -> None:
    """Publish a run, and let a consumer that comes late have all of it."""
    await asyncio.to_thread(publish, bus.address, count, end=True)
    consumer = WithRecords()
    async with running(consumer, bus.address):
        await until(lambda: consumer.ended)
    assert (consumer.numbers, consumer.counted) == (list(range(count)), count)


async def test_another_bus_s_journal(
    bus: LiveBus, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is on this machine, and locked, and all that; but its stream is another."""
    with LiveBus() as other:
        await asyncio.to_thread(publish, other.address, 70)
        theirs, _ = file_of(other)
        assert theirs is not None
        monkeypatch.setattr(
            "phase_bus.consumer.replay.LocalJournal", lambda _file, stream: LocalJournal(theirs, stream)
        )
        await everything_comes(bus)
    assert asked


async def test_who_may_not_read_the_file_asks(
    bus: LiveBus, asked: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """That is ordinary, and no word is lost about it."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not str(path).startswith(str(bus.directory)) and access(path, mode)
    )
    await everything_comes(bus)
    assert asked
    assert not [line for line in caplog.messages if "asking the bus" in line]


async def test_a_schema_of_another_version(
    bus: LiveBus, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus may be of another version than its consumer; on the wire they understand each other."""
    monkeypatch.setattr(local, "SCHEMA_VERSION", 99)
    await everything_comes(bus)
    assert asked


async def test_a_log_that_does_not_start_over(
    bus: LiveBus, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers may be why: they leave the file alone until the log is short again."""
    file, stream = file_of(bus)
    assert file is not None
    reading = LocalJournal(file, stream)
    await asyncio.to_thread(publish, bus.address, 10)
    monkeypatch.setattr(local, "_LONG_BYTES", 0)
    assert await reading.read(lambda reader: reader.head.offset) is None
    monkeypatch.undo()
    assert await reading.read(lambda reader: reader.head.offset) == 20


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), OSError("gone"), UnicodeError("damaged")]
)
async def test_whatever_fails_is_told_once(
    error: Exception,
    bus: LiveBus,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In one line; then the bus is asked."""

    def fail(*_args: object, **_named: object) -> None:
        raise error

    monkeypatch.setattr("phase_bus.consumer.local.connect", fail)
    await everything_comes(bus)
    assert asked
    (line,) = [line for line in caplog.messages if "asking the bus" in line]
    assert str(error) in line


async def test_a_disk_that_hangs(bus: LiveBus, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The bus hears from the consumer all the while, and then is asked; the process can be stopped."""
    release = threading.Event()
    monkeypatch.setattr(local, "_TIMEOUT_S", 1.5)
    monkeypatch.setattr("phase_bus.consumer.local.connect", lambda *_: release.wait(60) and 1 / 0)
    try:
        await everything_comes(bus)
    finally:
        release.set()
    assert asked


async def test_damage_is_told_as_the_bus_tells_it(bus: LiveBus, asked: list[Any]) -> None:
    """What does not match its checksum is asked for: the bus says in its log that it leaves it out."""
    await asyncio.to_thread(publish, bus.address, 3000, end=True)
    with closing(sqlite3.connect(bus.directory / "journal" / FILE_NAME)) as db, db:
        db.execute("UPDATE events SET crc = crc + 1 WHERE offset IN (11, 13)")  # numbers 5 and 6
    consumer = WithRecords()
    async with running(named(consumer, "plain"), bus.address):
        await until(lambda: consumer.ended)
        assert consumer.numbers == [n for n in range(3000) if n not in (5, 6)]
        log = (bus.directory / "bus.log").read_text()
        assert "2 events do not match their checksums and are left out (offset 11, 13)" in log
        losses = await until(
            lambda: [loss for each in bus.status().clients for loss in each.journal_losses]
        )
    assert {(loss.first, loss.last) for loss in losses} == {(11, 11), (13, 13)}
    assert len(asked) == 1  # the piece with the damage in it


async def test_a_damaged_checkpoint_is_told_once(
    bus: LiveBus, asked: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """However often the leader of a group looks at it; the share begins anew, and the result is whole."""
    await asyncio.to_thread(groups.publish, bus.address, 700)
    async with groups.members(1, bus.address):
        await groups.handled(bus.address)
    with closing(sqlite3.connect(bus.directory / "journal" / FILE_NAME)) as db, db:
        db.execute("UPDATE checkpoints SET crc = crc + 1 WHERE consumer = 'totals/03'")
    async with groups.members(1, bus.address):
        await asyncio.to_thread(groups.publish, bus.address, 70, "s")
        assert not (await groups.handled(bus.address, "s")).incomplete_runs
    assert await until(lambda: totals(bus, "s")) == {"records": 70, "sum": sum(range(70)), "phases": 2}
    assert caplog.text.count("the checkpoint of consumer 'totals/03' is damaged") == 1
    assert asked


# ---- buses that come and go ----


async def test_a_bus_that_is_killed_while_somebody_catches_up(bus: LiveBus, asked: list[Any]) -> None:
    """With each bus it reads again by itself, and has everything once."""
    await asyncio.to_thread(publish, bus.address, 2500)
    streams: list[str] = []

    async def slow(_event: EventBase) -> None:
        await asyncio.sleep(0)
        if len(consumer.numbers) in (400, 1300):
            await asyncio.to_thread(bus.kill)
            await asyncio.to_thread(bus.start)
            await until(lambda: runner._bus_id not in streams)
            streams.append(runner._bus_id)

    consumer = Recorder(slow)
    async with running(consumer, bus.address) as runner:
        streams.append(runner._bus_id)
        await until(lambda: len(consumer.numbers) == 2500)
        before = len(asked)
        await asyncio.to_thread(publish, bus.address, 10, 2500, end=True)
        await until(lambda: consumer.ended)
    assert consumer.numbers == list(range(2510))
    assert len(streams) == 3
    assert before <= 2


async def test_a_bus_that_is_gone_is_not_read_from(bus: LiveBus) -> None:
    """Its files are there; but who knows what becomes of them."""
    await asyncio.to_thread(publish, bus.address, 10)
    file, stream = file_of(bus)
    assert file is not None
    reading = LocalJournal(file, stream)
    assert await reading.read(lambda reader: reader.head.offset) == 20
    await asyncio.to_thread(bus.kill)
    assert await reading.read(lambda reader: reader.head.offset) is None
    assert not reading.usable
    await asyncio.to_thread(bus.start)
    assert await reading.read(lambda reader: reader.head.offset) is None  # that is another stream
    assert await LocalJournal(file, stream).read(lambda reader: reader.head.offset) is None


async def test_a_bus_that_comes_in_the_middle_of_a_read(bus: LiveBus) -> None:
    """What was read may be of the new one: it counts for nothing."""
    await asyncio.to_thread(publish, bus.address, 10)
    file, stream = file_of(bus)
    assert file is not None

    def restart(reader: JournalReader) -> int:
        bus.kill()
        bus.start()
        return reader.head.offset

    assert await LocalJournal(file, stream).read(restart) is None


def test_an_older_consumer_says_nothing_of_its_machine() -> None:
    """And is told of no file."""
    assert Hello(client_id="c" * 32, role="consumer", name="old").pid_space == ""
