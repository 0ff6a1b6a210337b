"""Bundles come out of the bus as what was sent in them: placed like single events, each once, checked.

They are packed and taken apart by the test's own code.
"""

from __future__ import annotations

import struct
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import zmq

from phase_bus.bus import server
from phase_bus.bus.options import BusOptions
from phase_bus.core.authorized import KeyRole
from phase_bus.core.control import Ack, Heard, Hello, Refused, Rejected, Reply, RunInfo, Welcome
from phase_bus.core.wire import decode_event, encode_event
from phase_bus.errors import JournalError
from phase_bus.events import (
    Drop,
    PhaseComplete,
    PhaseProgress,
    Receipt,
    RunComplete,
    RunStart,
)
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.testing.waiting import wait_until
from tests.support.bundles import FIXED, packed, taken_apart
from tests.support.buses import FAST, BusThread, DurableBus
from tests.support.clients import SOURCE, RawClient, Subscriber
from tests.support.keys import Keyring
from tests.support.recorder import PHASE, start

pytestmark = pytest.mark.usefixtures("no_leaks")

HELLO = Hello(client_id=SOURCE.hex(), role="publisher", name="raw")
TOPIC = b"phase_start.r$"
Frames = tuple[bytes, bytes, bytes]


class Sent(NamedTuple):
    """An event as a publisher numbers it."""

    seq: int
    topic_seq: int
    payload: bytes
    topic: bytes = TOPIC


def numbered(
    payloads: Sequence[bytes], seq: int = 1, topic_seq: int = 0, topic: bytes = TOPIC
) -> list[Sent]:
    """Number events of one topic from a sequence on, which is that on the topic too if none is given."""
    topic_seq = topic_seq or seq
    return [Sent(seq + i, topic_seq + i, payload, topic) for i, payload in enumerate(payloads)]


def starts(first: int, last: int, run_id: str = "r") -> list[Sent]:
    """Return events of one topic by their sequences, which are those on the topic, too."""
    return numbered([short(n, run_id) for n in range(first, last + 1)], first)


def short(number: int, run_id: str = "r") -> bytes:
    """Encode an event that many of fit into a bundle."""
    phase = {"name": "profiling"}
    return msgspec.msgpack.encode(
        {"kind": "phase_start", "run_id": run_id, "ts_ns": number, "phase": phase}
    )


def header(event: Sent, records: int = 0, source: bytes = SOURCE) -> bytes:
    return FIXED.pack(4, bytes(3), records, source, event.seq, event.topic_seq, 0, 0, 0)


def single(event: Sent) -> Frames:
    return event.topic, header(event), event.payload


def bundled(
    events: Sequence[Sent], *, sizes: Sequence[int] = (), records: int = 0, source: bytes = SOURCE
) -> Frames:
    """Return events in one message."""
    topic, _, payload = packed([event.payload for event in events], events[0].topic)
    told = struct.pack(f"<{len(events)}I", *(sizes or [len(event.payload) for event in events]))
    return topic, header(events[0], records, source) + told, payload


class Listener(Subscriber):
    """A subscriber that looks at what comes as it comes."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.came: list[Frames] = []

    def messages(self) -> list[Frames]:
        """Return the messages so far."""
        while self._sub.poll(0):
            topic, frame, payload = self._sub.recv_multipart()
            if not topic.startswith((b"heartbeat.", b"ready.")):
                self.came.append((topic, frame, payload))
        return self.came

    def placed(self, count: int) -> list[Frames]:
        """Wait for so many events, whose places have no holes; return them one by one."""

        def events() -> list[tuple[int, Frames]]:
            return [each for frames in self.messages() for each in taken_apart(*frames)]

        wait_until(lambda: len(events()) >= count)
        places = [offset for offset, _ in events()]
        assert places == list(range(1, count + 1))
        numbers = [FIXED.unpack(frame) for _, (_, frame, _) in events()]
        assert [(n[2], *n[6:]) for n in numbers] == [(0, offset, offset, 0) for offset in places]
        return [frames for _, frames in events()]


def source_of(frames: Frames) -> bytes:
    return bytes(FIXED.unpack_from(frames[1])[3])


def as_sent(frames: Frames) -> Sent:
    topic, frame, payload = frames
    _, _, _, _, seq, topic_seq, *_ = FIXED.unpack(frame)
    return Sent(seq, topic_seq, payload, topic)


def all_sent(placed: Sequence[Frames]) -> list[Sent]:
    """Return those among placed events that the raw client has sent."""
    return [as_sent(frames) for frames in placed if source_of(frames) == SOURCE]


class Raw(RawClient):
    """A publisher that sends what a test has packed."""

    def __init__(self, address: str, **more: Any) -> None:
        super().__init__(address, **more)
        assert isinstance(self.ask(HELLO), Welcome)

    def send(self, *messages: Frames) -> None:
        for frames in messages:
            self.socket.send_multipart(frames)

    def until_acked(self, seq: int) -> list[Reply]:
        """Return what the bus says up to its acknowledgement of an event."""
        replies = [self.reply()]
        while not (isinstance(replies[-1], Ack) and replies[-1].seq == seq):
            replies.append(self.reply())
        return replies

    def settled(self, event: Sent) -> None:
        """Publish one event alone, so that its topic is known and its run is counted."""
        self.send(single(event))
        self.until_acked(event.seq)


@pytest.fixture(params=["journaled", "plain"])
def any_bus(request: pytest.FixtureRequest, ipc_dir: Path, tmp_path: Path) -> Iterator[BusThread]:
    """A bus, with a journal and without."""
    journal = Journal(tmp_path / "journal") if request.param == "journaled" else None
    with BusThread(f"ipc://{ipc_dir}", journal=journal) as bus:
        yield bus


def journaled(bus: BusThread) -> list[Sent] | None:
    """Return what is in a bus's journal of the raw client, None if it has none."""
    journal = bus.bus._journal
    if journal is None:
        return None
    with JournalReader(journal.path) as reader:
        assert reader.verify() == []
        rows = [*reader.read(0, records=True, limit=10_000, limit_bytes=1 << 30)]
    assert [row.offset for row in rows] == list(range(1, len(rows) + 1))
    return [as_sent((row.topic, row.header, row.payload)) for row in rows if row.source == SOURCE]


def test_a_bundle_is_placed_and_passed_on_as_one(any_bus: BusThread) -> None:
    """Its events have the next places, and come as one message, in one row, acknowledged at once."""
    events = starts(1, 301)
    with Listener(any_bus.address) as listener, Raw(any_bus.address) as client:
        client.settled(events[0])
        client.send(bundled(events[1:257]), single(events[257]), bundled(events[258:]))
        assert len(client.until_acked(301)) <= 3
        assert all_sent(listener.placed(301)) == events
        assert [len(frames[1]) for frames in listener.messages()] == [64, 64 + 4 * 256, 64, 64 + 4 * 43]
        status = client.status()
        assert status.events == status.offset == 301
        (run,) = status.runs
        assert (run.events, run.status) == (301, "running")
        snapshot = any_bus.bus._snapshot()
        assert (snapshot.events, snapshot.payload_bytes) == (301, sum(len(e.payload) for e in events))
    assert journaled(any_bus) in (None, events)


def test_a_run_in_bundles_counts_and_ends(any_bus: BusThread) -> None:
    """Its end holds what was published in bundles; the last one's time is no later than the end's."""
    progress = [encode_event(PhaseProgress(run_id="r", phase=PHASE, ts_ns=n)) for n in (5, 9, 7)]
    begin = Sent(1, 1, encode_event(RunStart(run_id="r", ts_ns=1)), b"run_start.r$")
    first, *more = numbered(progress, 2, 1, b"phase_progress.r$")
    with Listener(any_bus.address) as listener, Raw(any_bus.address) as client:
        client.settled(begin)
        client.settled(first)
        client.send(bundled(more))
        client.until_acked(4)
        run = any_bus.bus._runs.by_id["r"]
        assert (run.started_ns, run.last_ns) == (1, 9)
        assert run.parts[SOURCE].published == {"run_start.r$": 1, "phase_progress.r$": 3}
        assert all_sent(listener.placed(4)) == [begin, first, *more]


KNOWN = starts(1, 2)
BAD = b"\xc1"


def changed(events: Sequence[Sent], place: int, payload: bytes) -> list[Sent]:
    """Return events, one of them with another payload."""
    return [e._replace(payload=payload) if i == place else e for i, e in enumerate(events)]


def of_kind(topic: str, *events: Any) -> list[Sent]:
    return numbered([encode_event(event) for event in events], 3, 1, topic.encode())


_RECEIPTS = [Receipt(run_id="r", consumer=name) for name in "abc"]
_END = RunComplete(run_id="r", status="completed")
_LAST = 2**53  # the largest number of all
# What comes after the two events that are known: the bundle, and which of its events are not taken.
CASES: dict[str, tuple[list[Sent], set[int]]] = {
    "nothing odd": (starts(3, 9), set()),
    "malformed": (changed(starts(3, 9), 2, BAD), {5}),
    "malformed first and last": (changed(changed(starts(3, 9), 0, BAD), 6, BAD), {3, 9}),
    "another run": (changed(starts(3, 9), 2, encode_event(start(5, "other"))), {5}),
    "another kind": (changed(starts(3, 9), 2, encode_event(PhaseComplete(run_id="r", phase=PHASE))), {5}),
    "nothing inside": (changed(starts(3, 9), 2, b""), {5}),
    "too large": (changed(starts(3, 9), 2, encode_event(start(5)) + bytes(5000)), {5}),
    "two events in one": (changed(starts(3, 9), 2, encode_event(start(5)) * 2), {5}),
    "an old number": ([e._replace(topic_seq=e.topic_seq - 2) for e in starts(3, 9)], {3, 4}),
    "large numbers": (
        [e._replace(topic_seq=_LAST - 5 + e.seq) for e in starts(3, 9)],
        {6, 7, 8, 9},
    ),
    "a new topic": (of_kind("phase_progress.r$", *[PhaseProgress(run_id="r", phase=PHASE)] * 3), set()),
    "a new run": (of_kind("phase_start.new$", *[start(n, "new") for n in range(3)]), set()),
    "starts": (of_kind("run_start.r$", *[RunStart(run_id="r")] * 3), set()),
    "an end": (of_kind("run_complete.r$", _END, _END), set()),
    "words on a run": (of_kind("receipt.r$", *_RECEIPTS), set()),
    "words on no run": (of_kind("receipt.none$", *[Receipt(run_id="none", consumer="c")] * 3), {3, 4, 5}),
    "drops": (of_kind("drop.r$", *[Drop(run_id="r", source="s", reason="x", events={"y": 1})] * 2), set()),
    "a kind to come": (numbered([b"any", b"thing"], 3, 1, b"future.r$"), set()),
    "a topic that is none": (numbered([b"any", b"thing"], 3, 1, b"future"), {3, 4}),
    "a bus's own word": (numbered([b"any", b"thing"], 3, 1, b"heartbeat.$"), {3, 4}),
}


class Outcome(NamedTuple):
    """What has become of messages.

    Attributes:
        taken: what subscribers were sent of the client's events.
        kept: what is in the journal of them.
        rejected: by sequence, why the client was told that an event was rejected.
        dropped: how many events of each topic everybody was told of as lost.
        counted: what the bus has refused, by reason.
        runs: what its status says.
    """

    taken: list[Sent]
    kept: list[Sent] | None
    rejected: dict[int, str]
    dropped: Counter[str]
    counted: dict[str, int]
    runs: tuple[RunInfo, ...]


def outcome(directory: Path, messages: Sequence[Frames], last: int) -> Outcome:
    """Send messages after the two known events to a bus of their own."""
    directory.mkdir(0o700)
    options = BusOptions(heartbeat_s=FAST.heartbeat_s, max_message_bytes=4096)
    with (
        BusThread(f"ipc://{directory}", options=options, journal=Journal(directory / "data")) as bus,
        Listener(bus.address) as listener,
        Raw(bus.address) as client,
    ):
        for event in KNOWN:
            client.settled(event)
        client.send(*messages)
        told = [reply for reply in client.until_acked(last) if isinstance(reply, Rejected)]
        status = client.status()
        taken = listener.placed(status.offset)
        dropped: Counter[str] = Counter()
        for drop in (decode_event(frames[0], frames[2]) for frames in taken if source_of(frames) != SOURCE):
            assert isinstance(drop, Drop)
            dropped.update(drop.events)
        return Outcome(
            all_sent(taken),
            journaled(bus),
            {reply.seq: reply.reason for reply in told},
            dropped,
            {info.reason: info.count for info in bus.bus.rejections.infos()},
            status.runs,
        )


@pytest.mark.parametrize(("events", "lost"), CASES.values(), ids=CASES)
def test_a_bundle_is_judged_as_its_events_are(ipc_dir: Path, events: list[Sent], lost: set[int]) -> None:
    """Whatever is odd about one event concerns that one: what is taken, told and counted is the same."""
    last = events[-1].seq
    alone = outcome(ipc_dir / "a", [single(event) for event in events], last)
    together = outcome(ipc_dir / "b", [bundled(events)], last)
    assert together == alone
    assert [event.seq for event in together.taken] == [n for n in range(1, last + 1) if n not in lost]
    assert together.kept == together.taken
    if lost and events[0].topic != b"receipt.none$":  # that comes too late, and nobody is to blame
        assert together.rejected.keys() == lost


def test_a_bundle_whose_events_are_elsewhere_than_it_says(ipc_dir: Path) -> None:
    """Sizes that are right in sum: who reads the events by them has each that is whole, and no other."""
    events = starts(3, 9)
    sizes = [len(event.payload) for event in events]
    sizes[2] -= 1
    sizes[3] += 1
    found = outcome(ipc_dir / "a", [bundled(events, sizes=sizes)], 9)
    assert [event.seq for event in found.taken] == [1, 2, 3, 4, 7, 8, 9]
    assert found.kept == found.taken
    assert found.rejected.keys() == {5, 6}
    assert found.dropped == {TOPIC.decode(): 2}


def cut(frames: Frames, header: slice = slice(None), payload: slice = slice(None)) -> Frames:
    return frames[0], frames[1][header], frames[2][payload]


_GOOD = bundled(starts(3, 9))
LYING: dict[str, Frames] = {
    "half a size": cut(_GOOD, header=slice(-1)),
    "a size left out": cut(_GOOD, header=slice(-4)),
    "a size too many": (_GOOD[0], _GOOD[1] + bytes(4), _GOOD[2]),
    "more than may be in one": (_GOOD[0], _GOOD[1] + bytes(4 * 300), _GOOD[2]),
    "half an event": cut(_GOOD, payload=slice(-1)),
    "no payload": cut(_GOOD, payload=slice(0)),
    "no list": cut(_GOOD, payload=slice(3, None)),
    "another list": (_GOOD[0], _GOOD[1], b"\xdc\0\x06" + _GOOD[2][3:]),
    "a size beyond all": bundled(starts(3, 9), sizes=[2**32 - 1] * 7),
    "records": bundled(starts(3, 9), records=7),
}


@pytest.mark.parametrize("frames", LYING.values(), ids=LYING)
def test_what_is_no_bundle(any_bus: BusThread, frames: Frames) -> None:
    """Nothing of it is taken in, the client hears of it, and the numbers stand for what it sends then."""
    with Listener(any_bus.address) as listener, Raw(any_bus.address) as client:
        for event in KNOWN:
            client.settled(event)
        client.send(frames)
        refused = client.reply()
        assert isinstance(refused, Refused)
        assert refused.seq == 0
        client.send(_GOOD)
        client.until_acked(9)
        assert all_sent(listener.placed(9)) == starts(1, 9)
        assert client.status().dropped == 1


def test_what_was_sent_before(any_bus: BusThread) -> None:
    """A repetition is acknowledged and not taken again; of a bundle that begins with one, the rest is."""
    with Listener(any_bus.address) as listener, Raw(any_bus.address) as client:
        for event in KNOWN:
            client.settled(event)
        client.send(bundled(starts(3, 6)))
        client.until_acked(6)
        client.send(bundled(starts(3, 6)))
        assert client.reply() == Ack(seq=6)
        client.send(
            bundled(starts(2, 5)), bundled(starts(5, 9)), bundled(starts(1, 9)), bundled(starts(8, 12))
        )
        client.until_acked(12)
        assert all_sent(listener.placed(12)) == starts(1, 12)
        assert client.status().events == 12
    assert journaled(any_bus) in (None, starts(1, 12))


def test_what_is_missing(any_bus: BusThread) -> None:
    """A bundle beyond the next event asks for what is missing, and is taken in when its turn comes."""
    with Listener(any_bus.address) as listener, Raw(any_bus.address) as client:
        for event in KNOWN:
            client.settled(event)
        client.send(bundled(starts(5, 9)))
        assert client.reply() == Ack(seq=2, resend=True)
        client.send(bundled(starts(3, 9)))
        client.until_acked(9)
        assert all_sent(listener.placed(9)) == starts(1, 9)


def test_of_nobody(any_bus: BusThread) -> None:
    """Who is not known is told so, once a bundle."""
    with RawClient(any_bus.address) as client:
        client.socket.send_multipart(bundled(starts(1, 200)))
        assert client.reply() == Heard(bus_id=any_bus.bus.bus_id, known=False)
        assert client.status().events == 0
        assert not client.socket.poll(0)


def test_while_the_disk_is_full(kept: DurableBus) -> None:
    """None of a bundle is in the stream then; it is taken in later, in whatever bundles."""
    with Listener(kept.address) as listener, Raw(kept.address) as client:
        for event in KNOWN:
            client.settled(event)
        with kept.full():
            client.send(bundled(starts(3, 9)))
            refused = client.reply()
            assert isinstance(refused, Refused)
            assert refused.seq == 2
        assert client.status().offset == 2
        client.send(bundled(starts(3, 5)), bundled(starts(6, 12)))
        client.until_acked(12)
        assert all_sent(listener.placed(12)) == starts(1, 12)
    assert journaled(kept) == starts(1, 12)


def test_that_cannot_be_judged(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the journal cannot be asked about one event, those before it are taken, it and the rest later."""
    has_run = kept.journal.has_run
    asked: list[str] = []

    def fails_once(run_id: str) -> bool:
        asked.append(run_id)
        if len(asked) == 4:  # it is asked twice about each
            raise JournalError(kept.data, "the disk cannot be read", "look at it")
        return has_run(run_id)

    receipts = [Receipt(run_id="gone", consumer=name) for name in "abc"]
    events = numbered([encode_event(receipt) for receipt in receipts], topic=b"receipt.gone$")
    monkeypatch.setattr(kept.journal, "has_run", fails_once)
    with Raw(kept.address) as client:
        client.send(bundled(events))
        replies = [client.reply()]
        while replies[-1] not in (Ack(seq=1), Ack(seq=1, resend=True)):
            replies.append(client.reply())
        client.send(bundled(events[1:]))
        client.until_acked(3)


def test_a_run_that_begins_again(kept: DurableBus) -> None:
    """In a further attempt each event of a bundle has the attempt's name, and its numbers on the topic."""
    begin = encode_event(RunStart(run_id="r"))
    end = encode_event(RunComplete(run_id="r", status="completed"))
    with Listener(kept.address) as listener, Raw(kept.address) as client:
        client.settled(Sent(1, 1, begin, b"run_start.r$"))
        client.settled(Sent(2, 1, encode_event(start(1)), TOPIC))
        client.settled(Sent(3, 1, end, b"run_complete.r$"))
        client.settled(Sent(4, 2, begin, b"run_start.r$"))
        client.send(bundled(numbered([encode_event(start(n)) for n in (2, 3, 4)], 5, 2)))
        client.until_acked(7)
        *_, second, third, fourth = all_sent(listener.placed(7))
    for number, event in enumerate((second, third, fourth), 1):
        assert (event.seq, event.topic_seq, event.topic) == (4 + number, number, b"phase_start.r#2$")
        assert decode_event(event.topic, event.payload) == start(number + 1, "r#2")


def test_a_run_that_goes_on_after_its_end(kept: DurableBus) -> None:
    """As that of a publisher that was taken for lost: it is running again, and nothing is missing."""
    with Listener(kept.address) as listener, Raw(kept.address) as client:
        for event in KNOWN:
            client.settled(event)
        end = Sent(3, 1, encode_event(RunComplete(run_id="r", status="completed")), b"run_complete.r$")
        more = numbered([encode_event(start(n)) for n in (3, 4)], 4, 3)
        client.send(single(end), bundled(more))
        client.until_acked(5)
        assert all_sent(listener.placed(5)) == [*KNOWN, end, *more]
        (run,) = client.status().runs
        assert (run.status, run.events) == ("running", 4)


@pytest.mark.parametrize(("role", "reason"), [("consume", "role"), ("publish", "not_yours")])
def test_who_may_not_say_it(tmp_path: Path, role: KeyRole, reason: str) -> None:
    """All of a bundle is refused to who may not publish, or not of that run; who may goes on."""
    keys = Keyring(tmp_path / "keys")
    owner, other = keys.client("alice", "publish"), keys.client("eve", role)
    stranger = uuid.UUID(int=9)
    with (
        BusThread("tcp://127.0.0.1:0", journal=Journal(tmp_path / "data"), key=keys.bus) as bus,
        Raw(bus.address, key=owner) as client,
        RawClient(bus.address, other) as intruder,
    ):
        for event in KNOWN:
            client.settled(event)
        intruder.ask(Hello(client_id=stranger.hex, role="publisher", name="eve"))
        for source in (stranger.bytes, SOURCE):
            intruder.socket.send_multipart(bundled(starts(3, 5), source=source))
        wait_until(lambda: sum(bus.bus.rejections.of(each) for each in (reason, "not_yours")) >= 3)
        client.send(bundled(starts(3, 9)))
        client.until_acked(9)
        assert journaled(bus) == starts(1, 9)


def test_a_turn_is_no_longer(kept: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is over after as many events, in whatever messages they come; then they are acknowledged."""
    take, end_turn = kept.bus._take, kept.bus._ingest.end_turn
    turns: list[int] = [0]

    def counting(frames: Sequence[zmq.Frame]) -> int:
        taken = take(frames)
        turns[-1] += taken
        return taken

    def next_turn() -> None:
        end_turn()
        turns.append(0)

    monkeypatch.setattr(kept.bus, "_take", counting)
    monkeypatch.setattr(kept.bus._ingest, "end_turn", next_turn)
    count, each = 60, 256
    events = starts(1, 1 + count * each)
    with Raw(kept.address) as client:
        client.settled(events[0])
        client.send(*(bundled(events[n : n + each]) for n in range(1, len(events), each)))
        client.until_acked(len(events))
    assert sum(turns) == len(events) + 1  # and a hello
    assert max(turns) < server._DRAIN + each
