"""What waits leaves in bundles, over a bus and in direct mode; what comes alone leaves as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import zmq

from phase_bus.core.address import Address
from phase_bus.core.bundle import split
from phase_bus.core.control import Ack, Endpoint, Hello, Reply, Welcome
from phase_bus.core.outbox import Outbox
from phase_bus.core.wire import Header, decode_request, encode_control, unpack_header
from phase_bus.publisher.link import BusLink, DirectLink
from phase_bus.testing.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

SOURCE = b"s" * 16
A, B = b"phase_progress.r$", b"phase_start.r$"


class Sent(NamedTuple):
    """A message with events, and each of them by its number."""

    topic: bytes
    header: Header
    payloads: dict[int, bytes]

    @property
    def seqs(self) -> list[int]:
        return list(self.payloads)


def sent(frames: list[bytes]) -> Sent:
    """Take a message apart."""
    topic, frame, payload = frames  # that there are three is a part of what is tested
    header = unpack_header(frame)
    events = split(header, frame, memoryview(payload))
    return Sent(topic, header, {each.source_seq: bytes(view) for each, view in events})


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context without sockets at its end."""
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


class Peer:
    """A link to a bus of which the test says what it answers."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], largest_bytes: int = 0) -> None:
        self._router = context.socket(zmq.ROUTER)
        port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.outbox = Outbox(SOURCE, 1 << 30)
        self.link = BusLink(context, Address.parse(f"tcp://127.0.0.1:{port}"), self.outbox, "test", 0)
        self._largest_bytes = largest_bytes
        self._identity = b""
        self.messages: list[Sent] = []
        self.turn_until(lambda: self.link.connected)

    def turn(self) -> None:
        """Let the link send, and take in what it has sent."""
        self.link.turn(0.01)
        while self._router.poll(10):
            identity, *frames = self._router.recv_multipart()
            if len(frames) > 1:
                self.messages.append(sent(frames))
            elif isinstance(decode_request(frames[0]), Hello) and not self._identity:
                self._identity = identity
                self.answer(
                    Welcome(
                        bus_id="0" * 32,
                        events=Endpoint(tcp_port=1),
                        heartbeat_s=DEADLINE_S,
                        max_message_bytes=self._largest_bytes,
                    )
                )

    def turn_until(self, condition: Callable[[], bool]) -> None:
        """Take turns until something is so."""

        def turn() -> bool:
            self.turn()
            return condition()

        wait_until(turn)

    def answer(self, reply: Reply) -> None:
        """Send a reply."""
        self._router.send_multipart([self._identity, encode_control(reply)])

    def close(self) -> None:
        """Close both sides."""
        self.link.close()
        self._router.close()

    def take(self, events: int) -> list[Sent]:
        """Return the next messages, once they hold so many events."""
        self.turn_until(lambda: sum(len(each.seqs) for each in self.messages) >= events)
        taken, self.messages = self.messages, []
        return taken


def test_what_waits_goes_as_one(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """One alone goes as ever; several of one topic go as one, and those of another for themselves."""
    peer = Peer(context)
    peer.outbox.add(A, b"1", 0)
    (alone,) = peer.take(1)
    assert alone.header == Header(SOURCE, 1, 1)
    for topic in (A, A, A, B, A):
        peer.outbox.add(topic, b"x", 0)
    assert [(each.topic, each.seqs) for each in peer.take(5)] == [(A, [2, 3, 4]), (B, [5]), (A, [6])]
    peer.close()


def test_a_part_is_acknowledged_and_the_rest_sent_again(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """In order, and nothing of what was acknowledged; with what has come meanwhile."""
    peer = Peer(context)
    payloads = {seq: b"%d" % seq for seq in range(1, 501)}
    for seq in range(1, 401):
        peer.outbox.add(A, payloads[seq], 0)
    assert [len(each.seqs) for each in peer.take(400)] == [256, 144]
    assert peer.outbox.sent_seq == 400
    for seq in range(401, 501):
        peer.outbox.add(A, payloads[seq], 0)
    peer.answer(Ack(seq=100, resend=True))
    peer.turn_until(lambda: peer.outbox.next_seq == 101)
    again = peer.take(500)
    seqs = [seq for each in again for seq in each.seqs]
    assert seqs[-400:] == list(range(101, 501))  # those before had been sent before the answer came
    assert all(payloads[seq] == payload for each in again for seq, payload in each.payloads.items())
    peer.answer(Ack(seq=500))
    peer.turn_until(lambda: not len(peer.outbox))
    assert (peer.outbox.size_bytes, peer.outbox.in_flight_bytes, peer.messages) == (0, 0, [])
    peer.close()


def test_one_that_is_too_large_goes_alone(
    context: zmq.Context[zmq.Socket[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    """Without its payload, such that the bus refuses it; a bundle is no larger than the bus takes."""
    peer = Peer(context, largest_bytes=1000)
    for size in (200, 200, 5000, 400, 400, 400, 10):
        peer.outbox.add(A, bytes(size), 0)
    messages = peer.take(7)
    assert [each.seqs for each in messages] == [[1, 2], [3], [4, 5], [6, 7]]
    assert messages[1].payloads == {3: b""}
    assert "--max-message-bytes" in caplog.text
    peer.close()


def test_direct_mode(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """As many as a bundle may have are one message of three frames."""
    outbox = Outbox(SOURCE, 1 << 30)
    link = DirectLink(context, Address.parse("direct+tcp://127.0.0.1:0"), outbox, 0)
    subscriber = context.socket(zmq.SUB)
    subscriber.subscribe(b"")
    subscriber.connect(link.address.direct_events)

    def heard() -> bool:
        outbox.add(A, b"heard?", 0)
        link.send()
        return bool(subscriber.poll(10))

    wait_until(heard)
    first = outbox.last_seq + 1
    for _ in range(256):
        outbox.add(A, b"x" * 200, 0)
    outbox.add(B, b"the end", 0)
    link.send()
    assert not len(outbox)
    messages = [sent(subscriber.recv_multipart())]
    while messages[-1].topic != B:
        assert subscriber.poll(int(DEADLINE_S * 1000))
        messages.append(sent(subscriber.recv_multipart()))
    assert messages[-2].seqs == list(range(first, first + 256))
    assert {each.header.events for each in messages[:-2]} <= {1}
    link.close()
    subscriber.close()
