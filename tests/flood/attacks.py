"""Attacks on a bus, each by a process of its own that keeps its sockets until it is killed.

python -m tests.flood.attacks ATTACK ADDRESS

It says ``done`` in its output when all is sent.
"""

from __future__ import annotations

import random
import resource
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle, islice
from typing import TypeAlias

import zmq
from msgspec.structs import replace

from phase_bus.core.address import Address
from phase_bus.core.control import Fetch, Hello, StatusRequest, Welcome
from phase_bus.core.session import introduce
from phase_bus.core.wire import Header, decode_reply, encode_control, encode_event, topic_of
from phase_bus.events import EventBase, RunStart, Summary
from phase_bus.testing.waiting import DEADLINE_S

Attack: TypeAlias = Callable[[Address], None]
ATTACKS: dict[str, Attack] = {}

_MIB = 1 << 20
_SPREAD = 200  # connections over which many names are spread
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
_READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def attack(function: Attack) -> Attack:
    """Let a function be an attack, by its name."""
    ATTACKS[function.__name__] = function
    return function


def main(name: str, address: str) -> None:
    """Attack, and wait to be killed."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ATTACKS[name](Address.parse(address))
    print("done", flush=True)
    time.sleep(600)


# ---- means ----


@contextmanager
def connected(kind: int, endpoint: str, **options: int) -> Iterator[zmq.Socket[bytes]]:
    """A socket without any protocol in it, which gives up what it cannot send."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(kind)
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.SNDTIMEO, 10_000)
    for option, value in options.items():
        sock.setsockopt(getattr(zmq, option), value)
    sock.connect(endpoint)
    yield sock
    context.destroy(linger=0)


def keep(*things: object) -> None:
    """Keep sockets open until this process ends."""
    _kept.extend(things)


_kept: list[object] = []


def stranger(address: Address) -> socket.socket:
    """A connection that says nothing yet."""
    if address.scheme == "ipc":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.control.removeprefix("ipc://"))
        return sock
    return socket.create_connection((address.host, address.port), 10.0)


def speaker(address: Address) -> socket.socket:
    """A connection that has introduced itself as a DEALER."""
    sock = stranger(address)
    sock.settimeout(10.0)
    sock.sendall(_GREETING)
    _read(sock, 64)
    sock.sendall(_READY)
    _read(sock, 2 + sock.recv(2)[1] - 2)
    return sock


def _read(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(sock.recv(size))


def frame(size: int, more: bool) -> bytes:
    """The head of a frame on the wire."""
    return bytes([2 | more]) + size.to_bytes(8, "big")


def dealers(address: Address, number: int, **options: int) -> list[zmq.Socket[bytes]]:
    """Several clients in one context."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = []
    for _ in range(number):
        sock = context.socket(zmq.DEALER)
        for option, value in {"LINGER": 0, "SNDTIMEO": 10_000, **options}.items():
            sock.setsockopt(getattr(zmq, option), value)
        sock.connect(address.control)
        made.append(sock)
    keep(context, *made)
    return made


def welcome(address: Address) -> Welcome:
    """What the bus says to somebody who looks on."""
    with connected(zmq.DEALER, address.control) as sock:
        sock.send(encode_control(introduce(uuid.uuid4().hex, "client", "stranger")))
        while sock.poll(int(DEADLINE_S * 1000)):
            reply = decode_reply(sock.recv())
            if isinstance(reply, Welcome):
                return reply
    raise AssertionError("the bus does not answer")


class Forger:
    """A publisher of our own making, on one socket, that sends without looking at the answers."""

    def __init__(self, sock: zmq.Socket[bytes], name: str = "forger") -> None:
        self.source, self.seq = uuid.uuid4(), 0
        self._socket = sock
        sock.send(encode_control(introduce(self.source.hex, "publisher", name)))

    def publish(self, event: EventBase | bytes, topic: bytes | None = None) -> None:
        """Send an event, or what claims to be one."""
        self.seq += 1
        payload = event if isinstance(event, bytes) else encode_event(event)
        if topic is None:
            assert isinstance(event, EventBase)
            topic = topic_of(event)
        header = Header(self.source.bytes, self.seq, self.seq).pack()
        self._socket.send_multipart((topic, header, payload))
        with suppress(zmq.Again):
            while True:
                self._socket.recv_multipart(zmq.NOBLOCK)


def say_hello(sock: zmq.Socket[bytes], hello: Hello) -> None:
    """Introduce oneself, and drop what was answered before."""
    sock.send(encode_control(hello))
    with suppress(zmq.Again):
        while True:
            sock.recv_multipart(zmq.NOBLOCK)


# ---- messages ----


@attack
def junk(address: Address) -> None:
    """A million messages of no sense, of one to seven frames."""
    chosen = random.Random(1)
    shapes = [[chosen.randbytes(chosen.randrange(200)) for _ in range(n)] for n in (1, 2, 3, 4, 5, 7) * 20]
    with connected(zmq.DEALER, address.control, SNDTIMEO=120_000) as sock:
        for message in islice(cycle(shapes), 1_000_000):
            sock.send_multipart(message)
        wait_until_read(sock)


def wait_until_read(sock: zmq.Socket[bytes]) -> None:
    """Wait until the bus has read what was sent before."""
    sock.send(encode_control(StatusRequest()))
    while sock.poll(120_000):
        if b"status_reply" in sock.recv():
            return


@attack
def junk_subscriptions(address: Address) -> None:
    """Half a million subscriptions, and messages that are none, to the live stream."""
    endpoint = address.endpoint(welcome(address).events)
    with connected(zmq.XSUB, endpoint, SNDTIMEO=60_000, SNDHWM=100_000) as sock:
        for number in range(500_000):
            sock.send(b"\x01%d." % number if number % 2 else b"junk %d" % number)


@attack
def large_frames(address: Address) -> None:
    """Frames of 300 MiB, one after another: of requests, topics, payloads."""
    for shape in ((1,), (2, 1), (3, 2, 1)):
        for _ in range(3):
            with speaker(address) as sock, suppress(OSError):
                for more in shape[:-1]:
                    sock.sendall(frame(5, more > 1) + b"hello")
                sock.sendall(frame(300 * _MIB, False))
                block = bytes(_MIB)
                for _ in range(300):
                    sock.sendall(block)


@attack
def large_names(address: Address) -> None:
    """Topics and names of 20 MiB, then such as just fit into a message."""
    for size in (20 * _MIB, 8 * _MIB - 2000, 4 * _MIB, _MIB, 100_000):
        name = "x" * size
        for _ in range(5):
            with connected(zmq.DEALER, address.control) as sock, suppress(zmq.Again):
                forger = Forger(sock)
                forger.publish(b"\x80", b"run_start." + name.encode() + b"$")
                forger.publish(RunStart(run_id="named", producer="p", label=name))
                forger.publish(RunStart(run_id=name, producer="p"))
                for field in ("name", "host", "group", "settings"):
                    hello = introduce(uuid.uuid4().hex, "consumer", "long", group="g")
                    say_hello(sock, replace(hello, **{field: name}))
                sock.send(encode_control(StatusRequest()))
                sock.poll(2000)


@attack
def large_events(address: Address) -> None:
    """A publisher with events of 1 MiB, as fast as they are taken in, for five seconds."""
    summary = encode_event(Summary(run_id="large", producer="p", result={"x": "y" * _MIB}))
    with connected(zmq.DEALER, address.control, SNDHWM=10) as sock, suppress(zmq.Again):
        forger = Forger(sock)
        forger.publish(RunStart(run_id="large", producer="p"))
        until_s = time.monotonic() + 5.0
        while time.monotonic() < until_s:
            forger.publish(summary, b"summary.large$")


# ---- numbers ----


@attack
def names(address: Address) -> None:
    """10,000 consumers."""
    socks = dealers(address, _SPREAD)
    for number in range(10_000):
        consumer = introduce(uuid.uuid4().hex, "consumer", f"name-{number}", subscriptions=("",))
        say_hello(socks[number % _SPREAD], consumer)


@attack
def groups(address: Address) -> None:
    """10,000 groups."""
    socks = dealers(address, _SPREAD)
    for number in range(10_000):
        member = introduce(uuid.uuid4().hex, "consumer", "member", group=f"group-{number}", settings="s")
        say_hello(socks[number % _SPREAD], member)


@attack
def sources(address: Address) -> None:
    """10,000 publishers."""
    socks = dealers(address, _SPREAD)
    for number in range(10_000):
        say_hello(socks[number % _SPREAD], introduce(uuid.uuid4().hex, "publisher", f"source-{number}"))


@attack
def runs(address: Address) -> None:
    """10,000 runs, none of which ends."""
    (sock,) = dealers(address, 1)
    forger = Forger(sock)
    for number in range(10_000):
        forger.publish(RunStart(run_id=f"run-{number}", producer="p"))


# ---- connections ----


@attack
def half_open(address: Address) -> None:
    """500 that never introduce themselves, 500 that say half of a greeting."""
    for number in range(500):
        silent, half = stranger(address), stranger(address)
        half.sendall(_GREETING[: number % 63 + 1])
        keep(silent, half)


@attack
def slow_loris(address: Address) -> None:
    """200 that say a byte a second, half of them in the middle of a message."""
    socks = [stranger(address) for _ in range(100)]
    for number in range(100):
        sock = speaker(address)
        sock.sendall(frame(1000, number % 2 == 1))
        socks.append(sock)
    keep(*socks)
    for byte in islice(cycle(_GREETING), 8):
        for sock in socks:
            with suppress(OSError):
                sock.send(bytes([byte]))
        time.sleep(1.0)


@attack
def hasty(address: Address) -> None:
    """20,000 connections that are closed at once, or as many as 20 s bring.

    A fast machine fills the queue of those that are to be accepted, and then waits a second each time.
    """
    until_s = time.monotonic() + 20.0
    for _ in range(20_000):
        if time.monotonic() > until_s:
            return
        with suppress(OSError):
            stranger(address).close()


@attack
def many_connections(address: Address) -> None:
    """400 clients within a second or two, who come again when they are turned away."""
    for _ in range(400):
        dealers(address, 1, RECONNECT_IVL=500)
        time.sleep(0.003)


# ---- who never reads ----


@attack
def deaf_subscribers(address: Address) -> None:
    """20 subscribers to everything that never read."""
    endpoint = address.endpoint(welcome(address).events)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for _ in range(20):
        sock = context.socket(zmq.SUB)
        sock.setsockopt(zmq.RCVHWM, 1)
        sock.setsockopt(zmq.RCVBUF, 4096)
        sock.subscribe("")
        sock.connect(endpoint)
        keep(sock)
    keep(context)


@attack
def deaf_readers(address: Address) -> None:
    """20 who ask for all past events again and again, and never read an answer."""
    replay = welcome(address).replay
    assert replay is not None
    where = address.endpoint(replay)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keep(context)
    fetch = encode_control(Fetch(after=0, records=True, limit_bytes=8 * _MIB))
    _ask_and_never_read(context, where, [fetch], 20)


@attack
def deaf_askers(address: Address) -> None:
    """20 who say hello and ask for the status again and again, and never read an answer."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    keep(context)
    hello = encode_control(introduce(uuid.uuid4().hex, "consumer", "deaf", subscriptions=("",)))
    _ask_and_never_read(context, address.control, [hello, encode_control(StatusRequest())], 20)


def _ask_and_never_read(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, questions: list[bytes], number: int
) -> None:
    socks = []
    for _ in range(number):
        sock = context.socket(zmq.DEALER)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVHWM, 1)
        sock.setsockopt(zmq.RCVBUF, 4096)
        sock.connect(endpoint)
        socks.append(sock)
    keep(*socks)
    for question in islice(cycle(questions), 2000):
        for sock in socks:
            with suppress(zmq.Again):
                sock.send(question, zmq.NOBLOCK)
        time.sleep(0.002)


if __name__ == "__main__":
    main(*sys.argv[1:])
