"""What is beyond a limit is refused, counted and told to its sender; an honest run beside it is whole."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from phase_bus.bus.limits import LargeReplies, LineLimit
from phase_bus.bus.options import BusOptions
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import (
    Ack,
    Beat,
    EndRuns,
    Hello,
    NameTaken,
    Refused,
    Rejected,
    Reply,
    Request,
    Status,
    StatusRequest,
    Welcome,
)
from phase_bus.core.position import Position
from phase_bus.core.wire import Header, encode_control, encode_event, topic_of
from phase_bus.errors import RefusedError
from phase_bus.events import Drop, EventBase, Records, RunComplete, RunStart, Summary
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Limits
from phase_bus.journal.writer import Journal
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread, DurableBus
from tests.support.clients import SOURCE, RawClient, Subscriber
from tests.support.recorder import PHASE, publish, start

pytestmark = pytest.mark.usefixtures("no_leaks")

ID = SOURCE.hex()
LOW = BusOptions(
    heartbeat_s=0.1,
    max_message_bytes=100_000,
    max_topic_bytes=128,
    max_name_bytes=80,
    max_topics=20,
    max_sources=3,
    max_consumers=3,
    max_clients_a_connection=4,
    max_groups=1,
    max_subscriptions=2,
    max_open_runs=3,
    max_checkpoints=2,
    max_batch_records=10,
    max_nesting=3,
)


@pytest.fixture
def low(ipc_dir: Path, tmp_path: Path) -> Iterator[DurableBus]:
    """A bus that takes little."""
    with DurableBus(ipc_dir, tmp_path / "journal", LOW) as bus:
        yield bus


def check_honest_run(bus: DurableBus) -> None:
    """An honest publisher's run is whole, by what the journal has."""
    publish(bus.address, 20, run_id="good", end=True)
    with JournalReader(bus.data) as journal:
        (run,) = [run for run in journal.runs() if run.run_id == "good"]
        assert (run.status, run.records) == ("completed", 20)
        assert journal.verify() == []


def counted(bus: DurableBus, word: str) -> int:
    """Return how often something was refused for a reason."""
    with BusClient(Address.parse(bus.address)) as client:
        return {each.reason: each.count for each in client.status().rejected}.get(word, 0)


def nested(depth: int) -> dict[str, Any]:
    """Return objects and lists in one another, so many of them."""
    value: Any = {}
    for number in range(depth - 1):
        value = {"x": value} if number % 2 else [value]
    return {"x": value} if isinstance(value, list) else value


def frames_of(event: EventBase, topic: bytes | None = None) -> tuple[bytes, bytes]:
    return topic or topic_of(event), encode_event(event)


BIG = RunStart(run_id="r", producer="x" * 100_001)
EVENTS: dict[str, tuple[tuple[bytes, bytes], str]] = {
    "too large a message": (frames_of(BIG), "message_size"),
    "a message that its publisher left out": ((b"run_start.r$", b""), "message_size"),
    "too long a topic": (frames_of(start(), b"phase_start." + b"r" * 128 + b"$"), "topic"),
    "too long a run's id": (frames_of(start(run_id="r" * 81)), "topic"),
    "a run's id that is not printable": (frames_of(start(run_id="r\x1b[31m")), "topic"),
    "a topic that is not printable": ((b"some\x07thing.r$", b"x"), "topic"),
    "too many records": (frames_of(Records(run_id="r", phase=PHASE, count=11)), "batch_records"),
    "values too deep": (frames_of(RunStart(run_id="r", variation=nested(5))), "nesting"),
    "results too deep": (frames_of(Summary(run_id="r", producer="p", result=nested(5))), "nesting"),
    "an end of too many topics": (
        frames_of(RunComplete(run_id="r", status="failed", published={str(n): 1 for n in range(21)})),
        "topics",
    ),
    "a partition that there is not": (
        (b"records.0256.r$", encode_event(Records(run_id="r", phase=PHASE, partition=256, count=0))),
        "partitions",
    ),
    "an end with such a partition": (
        frames_of(RunComplete(run_id="r", status="failed", published={"records.256.r$": 1})),
        "partitions",
    ),
    "a drop of too long a topic": (
        frames_of(Drop(run_id="r", source="s", reason="", events={"x" * 199: 1})),
        "topic",
    ),
}


@pytest.mark.parametrize(("frames", "word"), EVENTS.values(), ids=EVENTS)
def test_an_event_beyond_a_limit(low: DurableBus, frames: tuple[bytes, bytes], word: str) -> None:
    """It is lost alone: its publisher is told, and goes on with the next."""
    topic, payload = frames
    records = 11 if word == "batch_records" else 0
    with RawClient(low.address) as client:
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        client.publish(start(1), SOURCE, 1, 1)
        assert client.reply() == Ack(seq=1)
        client.socket.send_multipart((topic, Header(SOURCE, 2, 1, records).pack(), payload))
        rejected = client.reply()
        assert isinstance(rejected, Rejected), rejected
        assert rejected.seq == 2
        assert len(rejected.reason) < 500
        assert client.reply() == Ack(seq=2)
        client.publish(start(2), SOURCE, 3, 2)
        assert client.reply() == Ack(seq=3)
        assert counted(low, word) == 1
    check_honest_run(low)
    with JournalReader(low.data) as journal:
        kinds = [entry.kind for entry in journal.entries() if entry.run_id == "r"]
    assert kinds == ["phase_start", *(["drop"] if word != "topic" else []), "phase_start"]


def hello(**fields: Any) -> Hello:
    """Return a hello of a client that nobody knows."""
    return Hello(**{"client_id": uuid.uuid4().hex, "role": "consumer", "name": "c", **fields})


REQUESTS: dict[str, tuple[Request, str]] = {
    "too long a name": (hello(name="n" * 81), "name"),
    "a name that is not printable": (hello(name="n\x1b[31m"), "name"),
    "too long a group": (hello(group="g" * 81), "name"),
    "too long a host": (hello(host="\u00e9" * 41), "name"),
    "settings that are too long": (hello(group="g", settings="s" * 6000), "name"),
    "too many subscriptions": (hello(subscriptions=("a", "b", "c")), "subscriptions"),
    "too long a subscription": (hello(subscriptions=("a" * 129,)), "subscriptions"),
    "a reason that is too long": (EndRuns(reason="x" * 6000), "name"),
    "too many runs in a beat": (Beat(client_id=ID, state="ready", handled_runs=("r",) * 257), "beat"),
    "too large a beat": (Beat(client_id=ID, state="ready", saved=bytes(100_000)), "message_size"),
}


@pytest.mark.parametrize(("request_", "word"), REQUESTS.values(), ids=REQUESTS)
def test_a_request_beyond_a_limit(low: DurableBus, request_: Request, word: str) -> None:
    """It is answered with what is wrong with it."""
    with RawClient(low.address) as client:
        refused = client.ask(request_)
        assert isinstance(refused, Refused), refused
        assert refused.seq == 0
        assert len(refused.reason) < 500
        assert harmless(refused.reason)
        assert counted(low, word) == 1
    check_honest_run(low)


def harmless(text: str) -> bool:
    """Return whether a text has no control characters."""
    return text.isprintable()


def test_markup_in_names_is_no_harm(low: DurableBus) -> None:
    """What a terminal shows as it is may be in a name."""
    with RawClient(low.address) as client:
        assert isinstance(client.ask(hello(name="[bold]x[/bold] \u00e9:warning:")), Welcome)


def fill(low: DurableBus, stack: ExitStack, hellos: Callable[[int], Hello]) -> list[Reply]:
    """Introduce clients on connections of their own; return what the first five are answered."""
    replies = []
    for number in range(5):
        client = stack.enter_context(RawClient(low.address))
        replies.append(client.ask(hellos(number)))
    return replies


NUMBERS: dict[str, tuple[Callable[[int], Hello], int, str]] = {
    "publishers": (lambda n: hello(role="publisher", name=f"p{n}"), 3, "sources"),
    "onlookers": (lambda n: hello(role="client", name=f"c{n}"), 3, "consumers"),
    "groups": (lambda n: hello(name=f"g{n}", group=f"g{n}"), 1, "groups"),
    "checkpoints": (lambda n: hello(name=f"c{n}"), 2, "checkpoints"),
}


@pytest.mark.parametrize(("hellos", "most", "word"), NUMBERS.values(), ids=NUMBERS)
def test_more_clients_than_there_may_be(
    low: DurableBus, hellos: Callable[[int], Hello], most: int, word: str
) -> None:
    """Those who are in stay; the others are told, and come in when there is room."""
    with ExitStack() as stack:
        replies = fill(low, stack, hellos)
        assert [isinstance(reply, Welcome) for reply in replies] == [n < most for n in range(5)]
        assert all(isinstance(reply, Refused) for reply in replies[most:])
        assert counted(low, word) == 5 - most


def test_many_clients_on_one_connection(low: DurableBus) -> None:
    """One connection cannot have all places."""
    with RawClient(low.address) as client:
        first = [client.ask(hello(role="publisher")) for _ in range(3)]
        more = [client.ask(hello(role="client")) for _ in range(2)]
    assert [isinstance(reply, Welcome) for reply in (*first, *more)] == [True] * 4 + [False]
    assert counted(low, "clients") == 1


def test_a_place_that_nobody_needs_any_more(ipc_dir: Path, tmp_path: Path) -> None:
    """Who was away for long makes room for another, and its checkpoint goes with it."""
    position = Position("0" * 32, 1)
    with Journal(tmp_path, Limits(max_absence_s=10)) as journal:
        for number, name in enumerate(("old", "older", "new"), 1):
            journal.see({name: ()}, number * 10**9)
            journal.commit(name, position)
            journal.commit(f"{name}/03", position)
        assert journal.make_room_for("old", 3, 12 * 10**9)
        assert not journal.make_room_for("other", 3, 10 * 10**9)
        assert journal.make_room_for("other", 3, 12 * 10**9)
        assert journal.checkpoint("old") is None
        assert journal.checkpoint("old/03") is None
        assert journal.checkpoint("older") is not None


def test_topics_of_one_publisher(low: DurableBus) -> None:
    """They are counted within a turn of the bus's loop, and over turns; those it has go on."""
    with RawClient(low.address) as client:
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        for number in range(50):
            topic = f"future{number % 25}.r$".encode()
            client.socket.send_multipart((topic, Header(SOURCE, number + 1, number // 25 + 1).pack(), b"x"))
        wait_until(lambda: counted(low, "topics") == 10)
    with JournalReader(low.data) as journal:
        topics = [entry.topic for entry in journal.entries() if entry.kind != "drop"]
    assert sorted(topics) == sorted(2 * [f"future{number}.r$".encode() for number in range(20)])


def test_open_runs(low: DurableBus) -> None:
    """A run that is not there yet has to wait for one that ends, and nothing of it is kept."""
    with RawClient(low.address) as client:
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        for seq in range(1, 7):
            client.publish(start(seq, f"r{seq}"), SOURCE, seq, 1)
        wait_until(lambda: counted(low, "open_runs") == 3)
        client.publish(RunComplete(run_id="r1", status="completed"), SOURCE, 7, 1)
        wait_until(lambda: {run.status for run in client.status().runs} > {"completed"})
        client.publish(start(8, "r8"), SOURCE, 8, 1)
        wait_until(lambda: any(run.run_id == "r8" for run in client.status().runs))
    with JournalReader(low.data) as journal:
        assert {run.run_id for run in journal.runs()} == {"r1", "r2", "r3", "r8"}


def test_publishers_of_one_run(low: DurableBus) -> None:
    """However many come and go, a run knows a few of them."""
    with RawClient(low.address) as client:
        for number in range(5):
            source = uuid.uuid4()
            client.ask(Hello(client_id=source.hex, role="publisher", name=f"p{number}"))
            client.publish(start(1), source.bytes, 1, 1)
            client.socket.send(encode_control(Beat(client_id=source.hex, state="stopped")))
        wait_until(lambda: counted(low, "sources") >= 2)


def test_a_request_of_a_client(low: DurableBus) -> None:
    """It ends with a clear error at once, not with a time-out."""
    with (
        BusClient(Address.parse(low.address)) as client,
        pytest.raises(RefusedError, match="6000 bytes"),
    ):
        client.end_runs("x" * 6000)


@pytest.mark.parametrize("frames", [[b"\xc1"], [b"1", b"2"], [b""] * 10_000], ids=["one", "two", "many"])
def test_junk_is_told(low: DurableBus, frames: list[bytes]) -> None:
    """What is no message is answered, too: who writes a client sees why nothing happens."""
    with RawClient(low.address) as client:
        client.socket.send_multipart(frames)
        assert isinstance(client.reply(), Refused)
        assert client.status().dropped == 1


def test_many_errors_cost_few_replies_and_drops(low: DurableBus) -> None:
    """Those of one turn are told in one event, with their number."""
    with RawClient(low.address) as client, Subscriber(low.address, "drop.") as subscriber:
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        for seq in range(1, 2001):
            client.socket.send_multipart((b"phase_start.r$", Header(SOURCE, seq, seq).pack(), b"\xc1"))
        wait_until(lambda: sum(sum(drop.events.values()) for drop in subscriber.of(Drop)) == 2000)
        assert len(subscriber.of(Drop)) < 1000
        told, replies = 0, 0
        while told < 2000:
            if isinstance(reply := client.reply(), Rejected):
                told, replies = told + reply.count, replies + 1
        assert told == 2000
        assert replies < 1000


# ---- status ----


def test_a_long_status_comes_in_parts(ipc_dir: Path, tmp_path: Path) -> None:
    """Each is small; a client of ours puts them together."""
    options = BusOptions(heartbeat_s=0.1)
    name = "a name of some length, as they are " * 5
    with DurableBus(ipc_dir, tmp_path, options) as bus, ExitStack() as stack:
        for first in range(0, 600, 50):
            client = stack.enter_context(RawClient(bus.address))
            for number in range(first, first + 50):
                source = uuid.uuid4()
                client.ask(Hello(client_id=source.hex, role="publisher", name=f"{name}{number}"))
                client.publish(start(1, f"{name}{number}"), source.bytes, 1, 1)
        with BusClient(Address.parse(bus.address)) as asking:
            wait_until(lambda: len(asking.status().runs) == 600)
            status = asking.status()
        assert len({each.client_id for each in status.clients if each.role == "publisher"}) == 600
        with RawClient(bus.address) as client:
            sizes, after = list[int](), 0
            while after or not sizes:
                client.socket.send(encode_control(StatusRequest(after=after)))
                frame = client.socket.recv()
                sizes.append(len(frame))
                after = msgspec.msgpack.decode(frame)["next"]
            assert max(sizes) <= 66_000
            assert len(sizes) > 3
            beyond = client.ask(StatusRequest(after=2**40))
            assert isinstance(beyond, Status)
            assert not beyond.clients


def test_an_old_client_gets_the_first_part(bus: BusThread) -> None:
    """It knows no more fields than it did, and is told of clients and runs alike."""
    publish(bus.address, 2)
    with RawClient(bus.address) as client:
        client.socket.send(msgspec.msgpack.encode({"op": "status"}))
        status = client.reply()
    assert isinstance(status, Status)
    assert status.next == 0
    assert status.runs
    assert status.clients


# ---- acknowledgements ----


def test_an_acknowledgement_that_was_lost(bus: BusThread, monkeypatch: pytest.MonkeyPatch) -> None:
    """The publisher's next beat brings it up again; once it is told, no beat is answered so."""
    reply = bus.bus._reply

    def losing(identity: bytes, message: Reply) -> bool:
        return not isinstance(message, Ack) and reply(identity, message)

    beat = Beat(client_id=ID, state="ready", sent_seq=1)
    with RawClient(bus.address) as client:
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        monkeypatch.setattr(bus.bus._ingest, "_reply", losing)
        client.publish(start(1), SOURCE, 1, 1)
        wait_until(lambda: client.status().offset == 1)
        monkeypatch.setattr(bus.bus._ingest, "_reply", reply)
        client.ask(beat)
        assert client.reply() == Ack(seq=1)
        client.ask(beat)
        assert isinstance(client.ask(StatusRequest()), Status)
    with RawClient(bus.address) as anew:  # on whose connection nothing was acknowledged
        anew.ask(beat)
        assert anew.reply() == Ack(seq=1)


def test_an_acknowledgement_to_somebody_who_does_not_read(bus: BusThread) -> None:
    """The bus keeps few replies for it, and it gets what counts once it reads."""
    with RawClient(bus.address) as client:
        client.socket.setsockopt(zmq.RCVHWM, 1)
        client.ask(Hello(client_id=ID, role="publisher", name="raw"))
        for seq in range(1, 20_001):
            client.publish(start(seq), SOURCE, seq)
            if seq % 500 == 0:
                client.socket.send(encode_control(StatusRequest()))
        with BusClient(Address.parse(bus.address)) as asking:
            wait_until(lambda: asking.status().offset == 20_000)

        def is_told() -> bool:
            client.socket.send(encode_control(Beat(client_id=ID, state="ready", sent_seq=20_000)))
            replies = []
            while client.socket.poll(100):
                replies.append(client.reply())
            return any(isinstance(reply, Ack) and reply.seq == 20_000 for reply in replies)

        wait_until(is_told)


# ---- states, lines ----


def test_a_large_state_is_not_sent_for_each_hello(ipc_dir: Path, tmp_path: Path) -> None:
    """Who says hello again and again gets it a few times, and then now and then."""
    with DurableBus(ipc_dir, tmp_path) as bus, RawClient(bus.address) as client:
        mine = hello(name="big")
        client.ask(mine)
        position = Position(bus.bus.bus_id, 0)
        client.ask(Beat(client_id=mine.client_id, state="ready", position=position, saved=bytes(1 << 20)))
        for _ in range(50):
            client.socket.send(encode_control(mine))
        client.socket.send(encode_control(StatusRequest()))
        welcomes = 0
        while not isinstance(reply := client.reply(), Status):
            assert isinstance(reply, Welcome | NameTaken)
            welcomes += 1
        assert 1 <= welcomes <= 5


def test_large_replies_are_sent_again_after_a_while() -> None:
    """A welcome that was lost leaves nobody stuck; another connection has a count of its own."""
    replies = LargeReplies()
    assert all(replies.may_send(b"a", 100, 0.0) for _ in range(100))
    assert [replies.may_send(b"a", 1 << 20, 0.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert replies.may_send(b"b", 1 << 20, 0.0)
    assert not replies.may_send(b"a", 1 << 20, 9.0)
    assert replies.may_send(b"a", 1 << 20, 20.0)


def test_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """There are so many a second, and it is told how many were left out; errors are logged in any case."""
    logger = logging.getLogger("test_log_lines")
    limit = LineLimit(2.0)
    logger.addFilter(limit)
    for number in range(100):
        logger.warning("100 %% of %s", number)
    logger.error("an error")
    assert len(caplog.messages) == 11
    limit._allowance._at_s -= 1.0
    logger.warning("later: %s", "x")
    assert caplog.messages[-1] == "later: x (and 90 more lines, left out)"


def test_options_are_looked_at() -> None:
    """None of them can be nothing."""
    for name in ("max_topics", "max_queue_bytes", "max_log_lines_s"):
        with pytest.raises(ValueError, match=name):
            BusOptions(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_batch_records"):
        BusOptions(max_batch_records=1 << 21)


def test_a_large_message_holds_nobody_up(bus: BusThread) -> None:
    """Neither those who have sent many messages before, nor those who send many at once."""
    with RawClient(bus.address) as first, RawClient(bus.address) as other:
        for _ in range(300):
            first.status()
        other.socket.send(bytes(4 << 20))
        assert isinstance(other.reply(), Refused)
        for _ in range(100):
            first.socket.send(encode_control(StatusRequest()))
        for _ in range(30):
            first.status()
