"""Clients that send and receive whatever a test wants."""

from __future__ import annotations

import uuid
from typing import Self, TypeVar

import zmq

from phase_bus.core import bundle
from phase_bus.core.address import Address
from phase_bus.core.control import Hello, Reply, Request, Status, StatusRequest, Welcome
from phase_bus.core.keys import Key
from phase_bus.core.sockets import connect
from phase_bus.core.wire import (
    Header,
    decode_event,
    decode_reply,
    encode_control,
    encode_event,
    topic_of,
    unpack_header,
)
from phase_bus.events import Event, EventBase
from phase_bus.testing.waiting import DEADLINE_S

T = TypeVar("T")
SOURCE = bytes(15) + b"\x07"
"""The id of a publisher that a raw client pretends to be."""


class RawClient:
    """A DEALER without any protocol in it, to send a bus whatever the test wants."""

    def __init__(self, address: str, key: Key | None = None) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        connect(self.socket, Address.parse(address).control, key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._context.destroy(linger=0)

    def ask(self, request: Request) -> Reply:
        """Send a request, and return the next reply."""
        self.socket.send(encode_control(request))
        return self.reply()

    def publish(self, event: EventBase, source: bytes, seq: int, topic_seq: int | None = None) -> None:
        """Send an event under a sequence number of the test's choice."""
        header = Header(source, seq, topic_seq or seq).pack()
        self.socket.send_multipart((topic_of(event), header, encode_event(event)))

    def reply(self, timeout_s: float = DEADLINE_S) -> Reply:
        """Return the next reply."""
        assert self.socket.poll(int(timeout_s * 1000)), "no reply"
        return decode_reply(self.socket.recv())

    def status(self) -> Status:
        """Return the bus's status; other replies before it are dropped."""
        self.socket.send(encode_control(StatusRequest()))
        while not isinstance(reply := self.reply(), Status):
            pass
        return reply


class Subscriber:
    """A SUB on a bus (or a publisher in direct mode) whose subscription is in force."""

    def __init__(self, address: str, *prefixes: str) -> None:
        self.events: list[Event | None] = []
        self.headers: list[Header] = []
        self.topics: list[bytes] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.RCVHWM, 0)
        parsed = Address.parse(address)
        for prefix in prefixes or ("",):
            self._sub.subscribe(prefix)
        if parsed.direct:
            self._sub.connect(parsed.direct_events)
            return
        with RawClient(address) as client:
            welcome = client.ask(Hello(client_id="0" * 32, role="client", name="subscriber"))
            assert isinstance(welcome, Welcome)
        self._sub.connect(parsed.endpoint(welcome.events))
        ready = f"ready.{uuid.uuid4().hex}$".encode()
        self._sub.subscribe(ready)
        while self._sub.poll(int(DEADLINE_S * 1000)):
            if self._sub.recv_multipart()[0] == ready:
                return
        raise AssertionError("the bus does not greet")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        self._context.destroy(linger=0)

    def read(self) -> list[Event | None]:
        """Take in what has arrived; return all events so far, heartbeats left out."""
        while True:
            try:
                topic, header_frame, payload = self._sub.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return self.events
            if not topic.startswith((b"heartbeat.", b"ready.")):
                first = unpack_header(header_frame, topic)
                for header, part in bundle.split(first, header_frame, memoryview(payload), topic):
                    self.topics.append(topic)
                    self.headers.append(header)
                    self.events.append(decode_event(topic, part))

    def of(self, kind: type[T]) -> list[T]:
        """Take in what has arrived; return the events of one kind."""
        return [event for event in self.read() if isinstance(event, kind)]
