"""Who floods the bus does not keep it from others: each connection has its turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from phase_bus.bus import server
from phase_bus.core.control import Ack, Beat, Fetch, Fetched, Hello, Reply, Status, StatusRequest, Welcome
from phase_bus.core.wire import Header, decode_reply, encode_control, receive_frames
from phase_bus.testing.waiting import DEADLINE_S, wait_until
from tests.support.buses import DurableBus
from tests.support.clients import SOURCE, RawClient
from tests.support.recorder import publish, start

pytestmark = pytest.mark.usefixtures("no_leaks")

FLOOD = 10_000
FIRST_FEW = 150  # messages of a flooder: ZeroMQ looks after 100 at the latest whether there are others
A_TURN = server._DRAIN + FIRST_FEW


def hello(number: int) -> list[bytes]:
    return [encode_control(Hello(client_id=f"{number:032x}", role="consumer", name=f"name {number}"))]


FLOODS: dict[str, Callable[[int], list[bytes]]] = {
    "junk": lambda _: [b"\xc1"],
    "frames": lambda _: [b"", b""],
    "events of nobody": lambda n: [b"phase_start.r$", Header(bytes(16), n + 1, n + 1).pack(), b"x" * 1000],
    "status": lambda _: [encode_control(StatusRequest())],
    "beats": lambda n: [encode_control(Beat(client_id=f"{n:032x}", state="ready"))],
    "hellos": hello,
}


class Order:
    """Notes in which order a bus takes messages in, and says things; it stands still until it may go on."""

    def __init__(self, bus: DurableBus, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[bytes | Reply] = []
        self._go_on = threading.Event()
        self._stands = threading.Event()
        take_in, reply = bus.bus._take_in, bus.bus._reply

        def receive(sock: zmq.Socket[bytes], most: int | None = None) -> list[zmq.Frame]:
            frames = receive_frames(sock, most)
            self.seen.append(frames[0].bytes)
            return frames

        def wait() -> None:
            self._stands.set()
            self._go_on.wait(DEADLINE_S)
            take_in()

        def say(identity: bytes, message: Any) -> bool:
            self.seen.append(message)
            return reply(identity, message)

        monkeypatch.setattr(server, "receive_frames", receive)
        monkeypatch.setattr(bus.bus, "_take_in", wait)
        monkeypatch.setattr(bus.bus, "_reply", say)
        monkeypatch.setattr(bus.bus._ingest, "_reply", say)

    def wait(self) -> None:
        """Wait until the bus stands still: something has come."""
        assert self._stands.wait(DEADLINE_S)

    def go_on(self) -> None:
        """Let the bus go on."""
        self._go_on.set()


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_an_event_beside_a_flood(
    kept: DurableBus, monkeypatch: pytest.MonkeyPatch, flood: Callable[[int], list[bytes]]
) -> None:
    """It is taken in among the first few messages, and acknowledged at the end of that turn.

    Nothing shows that it has come while the bus stands still: should it be late, the next one is looked at.
    """
    tries = (order_beside(kept, monkeypatch, flood, seq) for seq in range(1, 6))
    assert any(mine < FIRST_FEW and acknowledged < 2 * A_TURN for mine, acknowledged in tries)


def order_beside(
    kept: DurableBus, monkeypatch: pytest.MonkeyPatch, flood: Callable[[int], list[bytes]], seq: int
) -> tuple[int, int]:
    """Return after how many messages of a flood an event is taken in, and what is said before its ack."""
    with (
        RawClient(kept.address) as flooder,
        RawClient(kept.address) as honest,
        monkeypatch.context() as patch,
    ):
        hello = Hello(client_id=SOURCE.hex(), role="publisher", name="p", next_seq=seq)
        assert isinstance(honest.ask(hello), Welcome)
        flooder.socket.setsockopt(zmq.SNDHWM, 0)
        order = Order(kept, patch)
        for number in range(FLOOD):
            flooder.socket.send_multipart(flood(number))
        order.wait()
        honest.publish(start(seq), SOURCE, seq)
        honest.socket.send(encode_control(StatusRequest()))
        time.sleep(0.2)  # so that it has come, as the flood has
        order.go_on()
        assert Ack(seq=seq) in (honest.reply(), honest.reply())
        names = [each for each in order.seen if isinstance(each, bytes)]
        (mine,) = {name for name in names if names.count(name) == 2} or {b""}
        return names.index(mine), order.seen.index(Ack(seq=seq))


def test_a_status_beside_a_flood(kept: DurableBus) -> None:
    """It is answered in the turn in which it is read, and not at the flood's end."""
    with RawClient(kept.address) as flooder, RawClient(kept.address) as honest:
        flooder.socket.setsockopt(zmq.SNDHWM, 0)
        stop = threading.Event()

        def keep_on() -> None:
            while not stop.is_set():
                flooder.socket.send(b"\xc1")

        thread = threading.Thread(target=keep_on)
        thread.start()
        try:
            wait_until(lambda: isinstance(honest.ask(StatusRequest()), Status))
            assert isinstance(honest.ask(StatusRequest()), Status)
        finally:
            stop.set()
            thread.join()


def test_a_piece_of_the_journal_beside_a_flood(kept: DurableBus, ipc_dir: Path) -> None:
    """Requests for replay have their turns by connection, too."""
    publish(kept.address, 10)
    fetch = encode_control(Fetch(after=0, records=True))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    flooder, honest = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    for sock in (flooder, honest):
        sock.setsockopt(zmq.SNDHWM, 0)
        sock.connect(f"ipc://{ipc_dir}/replay.ipc")
    for _ in range(FLOOD):
        flooder.send(fetch)
    for _ in range(5):
        honest.send(fetch)
        assert honest.poll(int(DEADLINE_S * 1000))
        assert isinstance(decode_reply(honest.recv_multipart()[0]), Fetched)
    waiting = FLOOD  # if the flooder was served by now, it has more than its socket holds
    while flooder.poll(0):
        flooder.recv_multipart()
        waiting -= 1
    assert waiting > FLOOD // 2
    context.destroy(linger=0)
