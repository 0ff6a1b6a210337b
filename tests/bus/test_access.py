"""Who is let in on a bus that has a key, and what each may say: with an honest run beside every try."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import zmq

from phase_bus.bus.access import Access
from phase_bus.bus.options import BusOptions
from phase_bus.bus.rejections import Rejections
from phase_bus.cli.options import check_delivered
from phase_bus.core.address import Address
from phase_bus.core.authorized import Authorized, authorize, authorized_file
from phase_bus.core.client import BusClient
from phase_bus.core.control import (
    Ack,
    Assigned,
    Beat,
    EndRuns,
    Fetch,
    FetchStates,
    Goodbye,
    Heard,
    Hello,
    ReadFailed,
    Refused,
    Rejected,
    RemoveDeadLetter,
    Reply,
    Request,
    Welcome,
)
from phase_bus.core.keys import Key, check_all_guarded, read_key
from phase_bus.core.position import Position
from phase_bus.core.sockets import connect, dealer
from phase_bus.core.wire import Header, decode_reply, encode_control
from phase_bus.errors import AddressError, BusUnreachableError, PhaseBusError, RefusedError, WireError
from phase_bus.events import Drop, PhaseRef, Receipt, RunComplete, RunStart, Summary
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import until, wait_until
from tests.support import groups
from tests.support.buses import BusThread
from tests.support.clients import RawClient
from tests.support.keys import Keyring
from tests.support.recorder import WithRecords, running, start

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASE = PhaseRef("profiling")
RECORDS = 3000
OTHER = uuid.UUID(int=9)


class Place(NamedTuple):
    """A bus with a key, and who may come to it: a publisher, a consumer, and somebody honest."""

    bus: BusThread
    keys: Keyring
    publisher: Key
    consumer: Key

    def rejected(self, reason: str) -> int:
        """How often the bus has refused something for a reason."""
        return self.bus.bus.rejections.of(reason)


class Honest(NamedTuple):
    """A run that goes on, its publisher, and its consumer."""

    source: bytes
    client_id: str


@contextmanager
def guarded_bus(keys: Keyring, data: Path) -> Iterator[BusThread]:
    """A bus that asks for keys, with a journal."""
    with BusThread("tcp://127.0.0.1:0", journal=Journal(data), key=keys.bus) as bus:
        yield bus


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keyring:
    """The key of a bus; this process has that of somebody honest."""
    keyring = Keyring(tmp_path / "keys")
    keyring.client("honest", "publish", "consume")
    monkeypatch.setenv("PHASE_BUS_KEY_FILE", keyring.file("honest"))
    return keyring


@pytest.fixture
def place(keys: Keyring, tmp_path: Path) -> Iterator[Place]:
    """A bus with a key."""
    publisher, consumer = keys.client("alice", "publish"), keys.client("bob", "consume")
    with guarded_bus(keys, tmp_path / "data") as bus:
        yield Place(bus, keys, publisher, consumer)


@asynccontextmanager
async def honest_run(place: Place) -> AsyncIterator[Honest]:
    """An honest run: half of it goes before what a test does, half after; its consumer gets all of it."""
    consumer = WithRecords()
    with Publisher(place.bus.address, name="honest") as publisher:
        async with running(consumer, place.bus.address) as runner:
            publisher.publish(RunStart(run_id="r"))
            for half in range(2):
                publisher.publish(start(half))
                for number in range(RECORDS // 2):
                    publisher.record("r", PHASE, {"latency": float(number)}, {})
                assert await asyncio.to_thread(publisher.flush, 20)
                if not half:
                    yield Honest(publisher.source, runner.client_id)
            publisher.complete_run("r", "completed")
            assert await asyncio.to_thread(publisher.flush, 20)
            await asyncio.to_thread(wait_until, lambda: consumer.ended and consumer.counted == RECORDS)
    assert consumer.numbers == [0, 1]
    end = consumer.events[-1]
    assert isinstance(end, RunComplete)
    assert (end.status, end.records, end.dropped) == ("completed", RECORDS, {})
    with BusClient(Address.parse(place.bus.address)) as client:
        status = client.status()
    assert [(run.run_id, run.status, run.dropped) for run in status.runs] == [("r", "completed", 0)]


def ask(place: Place, key: Key | None, *requests: Request) -> Reply:
    """Ask a bus something under a key; return the last answer."""
    with RawClient(place.bus.address, key) as client:
        return [client.ask(request) for request in requests][-1]


def hello(
    client_id: str = OTHER.hex, role: Any = "publisher", name: str = "somebody", **more: Any
) -> Hello:
    """A hello of somebody."""
    return Hello(client_id=client_id, role=role, name=name, **more)


def say(place: Place, key: Key, event: Any, *, source: bytes = OTHER.bytes, seq: int = 1) -> Reply:
    """Publish an event as a publisher; return what the bus says to it."""
    with RawClient(place.bus.address, key) as client:
        if source == OTHER.bytes:
            assert isinstance(client.ask(hello()), Welcome)
        client.publish(event, source, seq, 1)
        return client.reply()


NO_ANSWER: list[tuple[str, str]] = [
    ("nobody", "handshake"),
    ("stranger", "unknown_key"),
    ("lost", "handshake"),
]


@pytest.mark.parametrize(("who", "reason"), NO_ANSWER)
async def test_who_is_not_let_in(place: Place, who: str, reason: str) -> None:
    """Without a key, with one that the bus does not know, with one for another bus: there is no answer."""
    key = None
    if who != "nobody":
        key = place.keys.stranger(who, bus=place.publisher.public if who == "lost" else "")
    async with honest_run(place):
        with RawClient(place.bus.address, key) as client:
            client.socket.send(encode_control(hello()))
            await asyncio.to_thread(wait_until, lambda: place.rejected(reason) > 0)
            assert not client.socket.poll(0)


REFUSED: list[tuple[str, str, Callable[[Place, Honest], Reply]]] = [
    ("a consumer publishes", "role", lambda p, _: say(p, p.consumer, start(7, "mine"))),
    (
        "a consumer ends a run",
        "role",
        lambda p, _: say(p, p.consumer, RunComplete(run_id="r", status="failed")),
    ),
    ("a publisher consumes", "role", lambda p, _: ask(p, p.publisher, hello(role="consumer"))),
    ("a publisher looks on", "role", lambda p, _: ask(p, p.publisher, hello(role="client"))),
    (
        "a publisher commits for a consumer",
        "not_yours",
        lambda p, h: ask(
            p,
            p.publisher,
            Beat(client_id=h.client_id, state="ready", position=Position(p.bus.bus.bus_id, 1)),
        ),
    ),
    (
        "another's source id",
        "not_yours",
        lambda p, h: say(p, p.publisher, start(), source=h.source, seq=99),
    ),
    ("a hello under it", "not_yours", lambda p, h: ask(p, p.publisher, hello(h.source.hex()))),
    ("a goodbye for it", "not_yours", lambda p, h: ask(p, p.publisher, Goodbye(client_id=h.source.hex()))),
    ("another's run", "not_yours", lambda p, _: say(p, p.publisher, start(7, "r"))),
    ("an end of it", "not_yours", lambda p, _: say(p, p.publisher, RunComplete(run_id="r", status="lost"))),
    ("a start of it", "not_yours", lambda p, _: say(p, p.publisher, RunStart(run_id="r"))),
    ("the end of all runs", "role", lambda p, _: ask(p, p.publisher, EndRuns(reason="fun"))),
    ("a dead letter", "role", lambda p, _: ask(p, p.consumer, RemoveDeadLetter(letter_id=1))),
    ("a name", "not_yours", lambda p, _: ask(p, p.consumer, hello(role="consumer", name="recorder"))),
    ("a group", "not_yours", lambda p, _: ask(p, p.consumer, hello(role="consumer", group="recorder"))),
    (
        "a name, in a group of one's own",
        "not_yours",
        lambda p, _: ask(p, p.consumer, hello(role="consumer", name="recorder", group="own")),
    ),
    (
        "a share's name",
        "not_yours",
        lambda p, _: ask(p, p.consumer, hello(role="consumer", name="recorder/events")),
    ),
    ("a receipt", "not_yours", lambda p, _: say(p, p.consumer, Receipt(run_id="r", consumer="recorder"))),
    ("a result", "not_yours", lambda p, _: say(p, p.consumer, Summary(run_id="r", producer="recorder"))),
]


@pytest.mark.parametrize(("what", "reason", "attack"), REFUSED, ids=[each[0] for each in REFUSED])
async def test_what_is_refused(
    place: Place, what: str, reason: str, attack: Callable[[Place, Honest], Reply]
) -> None:
    """Who is let in may do what its roles say, with what is its own; the rest is refused and told."""
    async with honest_run(place) as honest:
        reply = await asyncio.to_thread(attack, place, honest)
        assert isinstance(reply, Refused | Rejected)
        assert ("alice" in reply.reason) != ("bob" in reply.reason)
        await asyncio.to_thread(wait_until, lambda: place.rejected(reason) == 1)


NONSENSE: list[tuple[bytes, bytes, int]] = [
    (b"phase_start.r$", b"no event", 1),
    (b"receipt.r$", b"no event", 1),
    (b"records.00.r$", b"no event", 1000),
    (b"new_kind.r$", b"no event", 0),
]


@pytest.mark.parametrize("who", ["alice", "bob"])
async def test_nonsense_about_another_s_run_is_no_loss_of_it(
    place: Place, tmp_path: Path, who: str
) -> None:
    """What somebody else says of a run and is malformed is refused, and no drop of the run."""
    async with honest_run(place):
        with RawClient(place.bus.address, read_key(Path(place.keys.file(who)))) as client:
            assert isinstance(client.ask(hello()), Welcome)
            for seq, (topic, payload, records) in enumerate(NONSENSE, 1):
                header = Header(OTHER.bytes, seq, seq if records else 0, records)
                client.socket.send_multipart((topic, header.pack(), payload))
            await asyncio.to_thread(
                wait_until, lambda: sum(map(place.rejected, ("malformed", "not_yours", "role"))) == 4
            )
    with JournalReader(tmp_path / "data") as reader:
        assert list(reader.events("r", Drop)) == []


def test_a_run_s_owner_gives_no_receipts_for_consumers(place: Place) -> None:
    """What a consumer did is its own to say, of whosever run; results are the run's owner's too."""
    key = place.keys.client("carol", "publish", "consume")
    wait_until(lambda: _lets_in(place, key))
    honest = read_key(Path(place.keys.file("honest")))
    assert isinstance(ask(place, honest, hello(OTHER.hex, "consumer", "recorder")), Welcome)
    with RawClient(place.bus.address, honest) as client:
        assert isinstance(client.ask(hello(uuid.UUID(int=10).hex)), Welcome)
        client.publish(RunStart(run_id="r"), uuid.UUID(int=10).bytes, 1)
        assert isinstance(client.reply(), Ack)
    said: list[tuple[Any, type[Reply]]] = [
        (RunStart(run_id="own"), Ack),
        (Receipt(run_id="own", consumer="recorder"), Rejected),
        (Receipt(run_id="own", consumer="group"), Ack),
        (Summary(run_id="r", producer="group/03"), Ack),  # an instance in a group
        (Summary(run_id="r", producer="recorder/03"), Rejected),
        (Summary(run_id="own", producer="benchmark"), Ack),
    ]
    with RawClient(place.bus.address, key) as client:
        client.ask(hello(uuid.uuid4().hex, "consumer", "group", group="group"))
        assert isinstance(client.reply(), Assigned)
        own = uuid.UUID(int=11)
        assert isinstance(client.ask(hello(own.hex)), Welcome)
        for seq, (event, expected) in enumerate(said, 1):
            client.publish(event, own.bytes, seq, seq)
            answer = client.reply()
            assert isinstance(answer, expected), event
            if not isinstance(answer, Ack):
                assert isinstance(client.reply(), Ack)


def _lets_in(place: Place, key: Key) -> bool:
    return isinstance(ask(place, key, hello(uuid.uuid4().hex, "client")), Welcome)


async def test_journal_and_live_stream_are_for_consumers(place: Place) -> None:
    """A publisher's key is not let in where events are read; a consumer's reads no other group's states."""
    async with honest_run(place):
        with RawClient(place.bus.address, place.consumer) as client:
            welcome = client.ask(hello(role="consumer", name="own"))
        assert isinstance(welcome, Welcome)
        assert welcome.replay is not None
        address = Address.parse(place.bus.address)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            fetching = dealer(
                context, address.endpoint(welcome.replay), key=place.publisher, immediate=False
            )
            fetching.send(encode_control(Fetch(after=0, records=True)))
            listening = context.socket(zmq.SUB)
            listening.subscribe(b"")
            connect(listening, address.endpoint(welcome.events), place.publisher)
            await asyncio.to_thread(wait_until, lambda: place.rejected("role") > 1)
            assert not fetching.poll(0)
            assert not listening.poll(0)
            asking = dealer(context, address.endpoint(welcome.replay), key=place.consumer, immediate=False)
            asking.send(encode_control(FetchStates(group="recorder")))
            answer = decode_reply(await asyncio.to_thread(asking.recv))
            assert isinstance(answer, ReadFailed)
            await asyncio.to_thread(wait_until, lambda: place.rejected("not_yours") == 1)
        finally:
            context.destroy(linger=0)


async def test_revoked(place: Place) -> None:
    """A client whose key is revoked is cut off, on each socket, while the bus and others go on."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        async with honest_run(place):
            address = Address.parse(place.bus.address)
            with RawClient(place.bus.address, place.consumer) as client:
                welcome = client.ask(hello(role="consumer", name="own"))
                assert isinstance(welcome, Welcome)
                listening = context.socket(zmq.SUB)
                listening.subscribe(b"heartbeat.")
                connect(listening, address.endpoint(welcome.events), place.consumer)
                assert await asyncio.to_thread(listening.poll, 10_000)
                place.keys.revoke("bob")
                await asyncio.to_thread(wait_until, lambda: place.rejected("unknown_key") > 1)
                client.socket.send(encode_control(Beat(client_id=OTHER.hex, state="ready")))
                await asyncio.to_thread(wait_until, lambda: place.rejected("revoked") == 1)
                while listening.poll(0):
                    listening.recv_multipart()
                assert not await asyncio.to_thread(listening.poll, 500)
                assert not client.socket.poll(0)
    finally:
        context.destroy(linger=0)


def test_roles_change_while_the_bus_runs(place: Place) -> None:
    """Somebody who is authorized anew may do so at once, and somebody new comes in without a restart."""
    assert isinstance(ask(place, place.publisher, hello(role="consumer")), Refused)
    place.keys.authorize("alice", "publish", "consume")
    wait_until(lambda: isinstance(ask(place, place.publisher, hello(role="consumer")), Welcome))
    with RawClient(place.bus.address, place.publisher) as client:
        consumer = hello(uuid.uuid4().hex, "consumer", "own")
        assert isinstance(client.ask(consumer), Welcome)
        beat = Beat(client_id=consumer.client_id, state="ready")
        assert isinstance(client.ask(beat), Heard)
        place.keys.authorize("alice", "publish")
        wait_until(lambda: isinstance(client.ask(beat), Refused))
    stranger = place.keys.stranger("carol")
    with RawClient(place.bus.address, stranger) as client:
        client.socket.send(encode_control(hello(uuid.uuid4().hex)))
        wait_until(lambda: place.rejected("unknown_key") > 0)
        place.keys.authorize("carol", "publish")
        assert isinstance(client.reply(), Welcome)


def test_a_file_that_is_spoiled_changes_nothing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """While the list of who is authorized cannot be read, who was in it stays so, and it is told."""
    spoiled = place.keys.bus.path.with_name("authorized.yaml")
    spoiled.write_text("{")
    wait_until(lambda: "who was authorized before still is" in caplog.text)
    assert isinstance(ask(place, place.publisher, hello()), Welcome)


def test_what_is_somebodys_stays_so(keys: Keyring, tmp_path: Path) -> None:
    """A new bus on the journal knows whose publishers, consumers and runs there are."""
    alice, bob = keys.client("alice", "publish", "consume"), keys.client("bob", "publish", "consume")
    third = uuid.UUID(int=10)
    consumer = hello(uuid.uuid4().hex, "consumer", "results")
    for round_ in range(2):
        with guarded_bus(keys, tmp_path / "data") as bus:
            place = Place(bus, keys, alice, bob)
            if round_:
                refused = hello(uuid.uuid4().hex, "consumer", "results")
                assert isinstance(ask(place, bob, hello()), Refused)
                assert isinstance(ask(place, bob, hello(role="client")), Refused)
                assert isinstance(ask(place, bob, refused), Refused)
                with RawClient(bus.address, bob) as client:
                    client.ask(hello(third.hex))
                    client.publish(start(run_id="a"), third.bytes, 1)
                    assert isinstance(client.reply(), Rejected)
            with RawClient(bus.address, alice) as client:
                assert isinstance(client.ask(consumer), Welcome)
                assert isinstance(client.ask(hello(next_seq=round_ + 1)), Welcome)
                client.publish(start(run_id="a"), OTHER.bytes, round_ + 1)
                wait_until(partial(_has, bus, round_ + 1))
            assert isinstance(ask(place, keys.bus, hello()), Welcome)


def _noted(data: Path) -> set[tuple[str, str]]:
    """Whose things the journal knows, by kind and owner."""
    with closing(sqlite3.connect(data / FILE_NAME)) as db:
        return set(db.execute("SELECT kind, owner FROM owners"))


def test_a_hello_takes_no_name_for_good(place: Place, tmp_path: Path) -> None:
    """An id is a publisher's own from its first event on; a hello alone leaves nothing."""
    with RawClient(place.bus.address, place.publisher) as client:
        for _ in range(30):
            said = hello(uuid.uuid4().hex)
            assert isinstance(client.ask(said), Welcome)
            client.ask(Goodbye(client_id=said.client_id))
        assert not _noted(tmp_path / "data")
        assert isinstance(client.ask(hello()), Welcome)
        other = place.keys.client("carol", "publish")
        wait_until(lambda: isinstance(ask(place, other, hello(uuid.uuid4().hex)), Welcome))
        assert isinstance(ask(place, other, hello()), Refused)
        client.publish(start(run_id="r"), OTHER.bytes, 1)
        assert isinstance(client.reply(), Ack)
    assert _noted(tmp_path / "data") == {("source", "alice"), ("run", "alice")}


def test_a_bus_forgets_whose_what_is_gone_was(keys: Keyring, tmp_path: Path) -> None:
    """Also when it prunes nothing: whoever comes next has the name."""
    with Journal(tmp_path / "data") as journal:
        journal.note_owners({("run", "r"): "bob", ("consumer", "results"): "bob"})
    key = keys.client("alice", "publish", "consume")
    with guarded_bus(keys, tmp_path / "data") as bus:
        wait_until(lambda: not _noted(tmp_path / "data"))
        with RawClient(bus.address, key) as client:
            assert isinstance(client.ask(hello(uuid.uuid4().hex, "consumer", "results")), Welcome)
            assert isinstance(client.ask(hello()), Welcome)
            client.publish(start(run_id="r"), OTHER.bytes, 1)
            assert isinstance(client.reply(), Ack)
    noted = {(kind, "alice") for kind in ("consumer", "source", "run")}
    assert _noted(tmp_path / "data") == noted


def test_names_a_client(keys: Keyring) -> None:
    """Who has as many names as it may have gets no more; what it has, and others, go on."""
    key = keys.client("alice", "publish")
    options = BusOptions(heartbeat_s=0.1, max_names_a_client=3)
    with BusThread("tcp://127.0.0.1:0", options=options, key=keys.bus) as bus:
        with RawClient(bus.address, key) as client:
            assert isinstance(client.ask(hello()), Welcome)
            for seq, (run_id, kept) in enumerate((("a", True), ("b", True), ("c", False), ("a", True)), 1):
                client.publish(start(run_id=run_id), OTHER.bytes, seq)
                reply = client.reply()
                if not kept:
                    assert isinstance(reply, Rejected)
                    assert "--max-names-a-client" in reply.reason
                    reply = client.reply()
                assert isinstance(reply, Ack)
        assert bus.bus.rejections.of("names") == 1
        with Publisher(bus.address) as publisher:
            publisher.publish(RunStart(run_id="c"))
            assert publisher.flush(20)
        assert publisher.rejected == 0


def test_a_further_attempt_is_whose_the_run_is(place: Place) -> None:
    """Results of an attempt are its publisher's to say, as those of the first one are."""
    alices, bobs = uuid.UUID(int=21), uuid.UUID(int=22)
    events = [RunStart(run_id="r"), RunComplete(run_id="r", status="failed"), RunStart(run_id="r")]
    result = Summary(run_id="r#2", producer="benchmark")
    with RawClient(place.bus.address, place.publisher) as client:
        assert isinstance(client.ask(hello(alices.hex)), Welcome)
        for seq, event in enumerate([*events, result, start(run_id="r#2")], 1):
            client.publish(event, alices.bytes, seq, 2 if seq == 3 else 1)
            assert isinstance(client.reply(), Ack)
    with RawClient(place.bus.address, place.consumer) as client:
        assert isinstance(client.ask(hello(bobs.hex)), Welcome)
        client.publish(result, bobs.bytes, 1)
        assert isinstance(client.reply(), Rejected)


class Frame:
    """A message's frame with what ZeroMQ tells of its connection."""

    def __init__(self, **properties: object) -> None:
        self._properties = {name.replace("_", "-"): each for name, each in properties.items()}

    def get(self, name: str) -> object:
        """Return a property."""
        if (value := self._properties.get(name.replace("_", "-"))) is None:
            raise zmq.ZMQError(zmq.EINVAL)
        return value


@contextmanager
def access(key: Key | None, *, shared: bool = False) -> Iterator[Access]:
    """What tells who is who."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield Access(context, key, Rejections(), shared=shared)
    finally:
        context.destroy(linger=0)


def test_who_is_told_by_nothing_is_nobody(keys: Keyring) -> None:
    """A connection that shows no key where keys are asked for, or no address, is not the bus's own."""
    stranger, own = f"localhost:{os.geteuid() + 1}:0:1", f"localhost:{os.geteuid()}:0:1"

    def party(judge: Access, **properties: object) -> str | None:
        found = judge.party(cast("zmq.Frame", Frame(**properties)))
        return found.name if found else None

    with access(keys.bus) as guarded:
        assert party(guarded, User_Id=keys.bus.public) == "bus"
        assert party(guarded, User_Id="unknown") is None
        assert party(guarded, Peer_Address="127.0.0.1") is None
        assert party(guarded, Peer_Address="::1") is None
        assert party(guarded) is None
        assert party(guarded, Peer_Address=own) == "bus"
        assert party(guarded, Peer_Address=stranger) == f"uid {os.geteuid() + 1}"
    with access(None, shared=True) as shared:
        assert party(shared) is None
        assert party(shared, Peer_Address=stranger) == f"uid {os.geteuid() + 1}"
        assert party(shared, Peer_Address="127.0.0.1") == "bus"  # --insecure


@pytest.mark.parametrize("later", [False, True])
def test_who_came_later_is_not_cut_off(keys: Keyring, later: bool) -> None:
    """A descriptor may be another connection's when a revoked client's last message is read."""
    ours, theirs = socket.socketpair()
    with ours, theirs, access(keys.bus) as judge:
        inode = os.fstat(ours.fileno()).st_ino
        keys.client("alice", "publish")
        came_s = time.monotonic() + (3600.0 if later else 0.0)
        judge.refresh()
        judge.inode_before = lambda _, time_s: inode if came_s < time_s else 0
        with pytest.raises(WireError, match="revoked"):
            judge.expect(cast("zmq.Frame", Frame(User_Id="unknown", __fd=ours.fileno())))
        theirs.setblocking(False)
        if later:
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
        else:
            assert theirs.recv(1) == b""


def test_no_way_around_a_shared_directory(keys: Keyring, tmp_path: Path) -> None:
    """Who shares a directory would be everybody by loopback: then that asks for keys."""
    texts = (f"group+ipc://{tmp_path}", "tcp://127.0.0.1:0")
    addresses = [Address.parse(text) for text in texts]
    with pytest.raises(AddressError, match=r"phase-bus keys new.*--insecure") as refused:
        check_all_guarded(addresses, None, insecure=False)
    assert "\n" not in str(refused.value)
    with pytest.raises(AddressError, match="whoever shares"):
        BusThread(*texts)
    check_all_guarded(addresses, None, insecure=True)
    check_all_guarded(addresses, keys.bus, insecure=False)
    check_all_guarded(addresses[:1], None, insecure=False)


def _has(bus: BusThread, offset: int) -> bool:
    with BusClient(Address.parse(bus.address)) as client:
        return client.status().offset == offset


async def test_an_admin_may_do_everything(place: Place) -> None:
    """An admin ends runs, and speaks for others."""
    admin = place.keys.client("root", "admin")
    async with honest_run(place) as honest:
        beat = Beat(client_id=honest.client_id, state="ready")
        assert not isinstance(await asyncio.to_thread(ask, place, admin, beat), Refused)
    assert not isinstance(ask(place, admin, EndRuns(reason="done")), Refused)
    assert place.rejected("role") == place.rejected("not_yours") == 0


def test_clients_say_why_they_are_not_let_in(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the reason, and what to type; a secret is in none."""
    stranger = place.keys.stranger("stranger")
    lost = place.keys.stranger("lost", bus=place.publisher.public)
    for file, words in (
        ("", "wants a key"),
        (str(stranger.path), f"phase-bus keys authorize '{stranger.public}'"),
        (str(lost.path), "the bus named there is another one"),
    ):
        monkeypatch.setenv("PHASE_BUS_KEY_FILE", file)
        with (
            BusClient(Address.parse(place.bus.address)) as client,
            pytest.raises(BusUnreachableError, match=re.escape(words)) as told,
        ):
            client.status()
        assert "\n" not in str(told.value)
    monkeypatch.setenv("PHASE_BUS_KEY_FILE", str(place.publisher.path))
    with BusClient(Address.parse(place.bus.address)) as client:
        assert client.status().clients == ()
        with pytest.raises(RefusedError, match="'alice' may not end the runs of all"):
            client.end_runs("fun")


def test_a_publisher_knows_what_was_refused(place: Place) -> None:
    """Who publishes under a key that may not is told how much of it is lost; a command fails then."""
    key_file = place.consumer.path
    with Publisher(place.bus.address, name="simulate", key_file=key_file) as publisher:
        publisher.publish(RunStart(run_id="mine"))
        publisher.publish(start(1, "mine"))
        assert publisher.flush(20)
    assert publisher.rejected == 2
    assert not publisher.undelivered
    with pytest.raises(PhaseBusError, match="refused 2 events, which are lost"):
        check_delivered(publisher)


def test_a_key_for_a_bus_without(
    bus_tcp: BusThread, keys: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bus that takes no keys, and a client that shows one, do not understand each other; that is told."""
    with (
        BusClient(Address.parse(bus_tcp.address)) as client,
        pytest.raises(BusUnreachableError, match=r"takes no keys; (then )?leave that"),
    ):
        client.status(1.0)
    monkeypatch.setenv("PHASE_BUS_KEY_FILE", "")
    with BusClient(Address.parse(bus_tcp.address)) as client:
        assert client.status().clients == ()


@pytest.fixture
def bus_tcp() -> Iterator[BusThread]:
    """A bus at tcp without a key."""
    with BusThread("tcp://127.0.0.1:0") as bus:
        yield bus


@contextmanager
def reading(place: Place, key: Key) -> Iterator[zmq.Socket[bytes]]:
    """A socket that is let in at the live stream, and has not subscribed to anything yet."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        with RawClient(place.bus.address, key) as client:
            welcome = client.ask(hello(uuid.uuid4().hex, "client"))
        assert isinstance(welcome, Welcome)
        sock = context.socket(zmq.XSUB)
        monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        connect(sock, Address.parse(place.bus.address).endpoint(welcome.events), key)
        assert monitor.poll(10_000)
        sock.disable_monitor()
        yield sock
    finally:
        context.destroy(linger=0)


BEATS = b"\1heartbeat."
SUBSCRIPTIONS: list[tuple[str, list[bytes]]] = [
    ("as others have", [BEATS]),
    ("in a message of two frames", [b"so", BEATS]),
    ("after that", []),
]


@pytest.mark.parametrize(("when", "message"), SUBSCRIPTIONS, ids=[each[0] for each in SUBSCRIPTIONS])
def test_no_subscription_outlives_its_key(
    place: Place, keys: Keyring, when: str, message: list[bytes]
) -> None:
    """Whoever is revoked hears nothing more, whatever it subscribed to and when."""
    others = read_key(Path(keys.file("honest")))
    with reading(place, others) as honest, reading(place, place.consumer) as listening:
        honest.send(BEATS)
        assert honest.poll(10_000)
        if message:
            listening.send_multipart(message)
            assert listening.poll(10_000)
        parties = place.bus.bus._access._parties
        place.keys.revoke("bob")
        wait_until(lambda: place.bus.bus._access._parties is not parties)
        if not message:
            listening.send(BEATS)
        wait_until(lambda: place.rejected("unknown_key") > 0)
        while listening.poll(0):
            listening.recv_multipart()
        assert not listening.poll(500)
        while honest.poll(0):
            honest.recv_multipart()
        assert honest.poll(10_000)


async def test_a_group_whose_members_have_keys_of_one_name(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines of one client share the work; when one of them leaves, the other has its shares."""
    second = place.keys.stranger("second")
    entry = Authorized(name="honest", public=second.public, roles=("consume",))
    authorize(authorized_file(place.keys.bus), entry)
    address = place.bus.address
    first = groups.Member(address)
    with monkeypatch.context() as patch:
        patch.setenv("PHASE_BUS_KEY_FILE", str(second.path))
        other = groups.Member(address)
    await until(lambda: groups.shared_out([first, other]))
    with groups.Run(address) as run:
        await run.publish(700)
        await other.stop()
        await run.publish(300, end=True)
        await groups.handled(address)
    await first.stop()
    with JournalReader(tmp_path / "data") as journal:
        (summary,) = journal.events("r", Summary)
    assert (summary.final, summary.result["records"], summary.result["sum"]) == (True, 1000, 499_500)
    assert place.rejected("role") == place.rejected("not_yours") == 0
