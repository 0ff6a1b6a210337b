"""Ways from this process to consumers, over which the same events go: bare pyzmq, and phase-bus."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import zmq

from benchmarks import peers
from benchmarks.harness import Child, directory, shared_counts, spread, wait_for
from phase_bus.core.wire import Header, encode_event, topic_of
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher

_IN_FLIGHT_BYTES = 8 << 20
_IN_FLIGHT = 5000
_CHUNK = 250
_LOST_S = 20.0


class Worker(Protocol):
    """A process whose work is measured."""

    def cpu_s(self) -> float:
        """Return the CPU time of all its threads so far, in seconds."""


class Route:
    """A way from this process to consumers: something that sends, and counts of what arrived.

    Args:
        counts: what each consumer received, in shared memory.
        consumers: the consumers' processes.
        between: the bus's or the proxy's process.
    """

    def __init__(self, counts: Any, consumers: Sequence[Child], between: Worker | None) -> None:
        self.counts = counts
        self.consumers = consumers
        self.between = between
        self.lost = 0
        self.cpu_us: list[tuple[float, float, float]] = []
        self.event: EventBase

    def send(self, count: int) -> None:
        """Send so many events."""
        raise NotImplementedError

    def turn(self) -> None:
        """Do what must be done while waiting."""

    def close(self) -> None:
        """Close what this process holds of it."""

    def choose(self, event: EventBase) -> None:
        """Send this event from now on."""
        self.event = event
        self.cpu_us = []

    def measure(self, count: int, size: int) -> float:
        """Send so many events of a size, no more in flight than fit; return events/s to all consumers."""
        in_flight = max(min(_IN_FLIGHT, _IN_FLIGHT_BYTES // size), 2)
        chunk = min(_CHUNK, in_flight // 2)
        base: list[int] = list(self.counts)
        cpu = self._cpu_s()
        started_s = time.monotonic()
        sent = 0

        def behind() -> int:
            self.turn()
            arrived: int = min(now - then for now, then in zip(self.counts, base, strict=True))
            return sent - arrived

        while sent < count:
            self.send(min(chunk, count - sent))
            sent += min(chunk, count - sent)
            if behind() > in_flight and not wait_for(lambda: behind() <= in_flight, _LOST_S):
                break
        wait_for(lambda: behind() == 0, _LOST_S)
        took_s = time.monotonic() - started_s
        self.lost += behind()
        used = [(b - a) / sent * 1e6 for a, b in zip(cpu, self._cpu_s(), strict=True)]
        self.cpu_us.append((used[0] / len(self.consumers), used[1], used[2]))
        return (sent - behind()) / took_s

    def cpu(self) -> str:
        """Return the CPU an event costs each process."""
        parts = [spread(column).median for column in zip(*self.cpu_us, strict=True)]
        middle = f"{parts[1]:.1f}" if self.between else "-"
        return f"{parts[0]:.1f} / {middle} / {parts[2]:.1f}"

    def _cpu_s(self) -> tuple[float, float, float]:
        between = self.between.cpu_s() if self.between else 0.0
        return sum(c.cpu_s() for c in self.consumers), between, time.process_time()


class Bare(Route):
    """A PUB that sends finished frames: what pyzmq alone can do.

    The frames are those of phase-bus, with right sequence numbers, so that a typed consumer can be at
    the other end.
    """

    def __init__(
        self,
        endpoint: str,
        counts: Any,
        consumers: Sequence[Child],
        between: Child | None,
        *,
        bind: bool,
        by_frame: bool = False,
    ) -> None:
        super().__init__(counts, consumers, between)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._context.socket(zmq.PUB)
        self._pub.set_hwm(peers.HIGH_WATER_MARK)
        self._pub.setsockopt(zmq.LINGER, 0)
        if bind:
            self._pub.bind(endpoint)
        else:
            self._pub.connect(endpoint)
        self._seq = 0
        self._by_frame = by_frame

    def greet(self) -> None:
        """Send until every bare consumer has heard something, then count from zero."""

        def heard() -> bool:
            self._pub.send(peers.NOTHING)
            return all(count == -1 for count in self.counts)

        if not wait_for(heard, 10.0, 0.01):
            raise RuntimeError("a bare consumer hears nothing")
        time.sleep(0.2)
        for place in range(len(self.counts)):
            self.counts[place] = 0

    def choose(self, event: EventBase) -> None:
        super().choose(event)
        self._topic, self._payload = topic_of(event), encode_event(event)

    def send(self, count: int) -> None:
        topic, payload, copy = self._topic, self._payload, len(self._payload) < 65536
        send, send_multipart, more = self._pub.send, self._pub.send_multipart, int(zmq.SNDMORE)
        source = bytes(16)
        for seq in range(self._seq + 1, self._seq + count + 1):
            header = Header(source, seq, seq).pack()
            if self._by_frame:
                send(topic, more)
                send(header, more)
                send(payload, copy=copy)
            else:
                send_multipart((topic, header, payload), copy=copy)
        self._seq += count

    def close(self) -> None:
        self._context.destroy(linger=0)


class Ours(Route):
    """A Publisher."""

    def __init__(
        self, publisher: Publisher, counts: Any, consumers: Sequence[Child], between: Child | None
    ) -> None:
        super().__init__(counts, consumers, between)
        self._publisher = publisher

    def send(self, count: int) -> None:
        publish, event = self._publisher.publish, self.event
        for _ in range(count):
            publish(event)

    def close(self) -> None:
        self._publisher.close()


def bare_route(stack: ExitStack, consumers: int, *, proxied: bool, by_frame: bool = False) -> Bare:
    """Return a way of bare pyzmq, through a ``zmq.proxy`` or without, until the stack is closed."""
    where = stack.enter_context(directory())
    counts = shared_counts(consumers)
    front, back = f"ipc://{where}/front", f"ipc://{where}/back"
    proxy = None
    if proxied:
        proxy = stack.enter_context(Child(peers.proxy, front, back))
        proxy.ready()
    children = [
        stack.enter_context(
            Child(peers.bare_consumer, back if proxied else front, counts, place, by_frame=by_frame)
        )
        for place in range(consumers)
    ]
    made = Bare(front, counts, children, proxy, bind=not proxied, by_frame=by_frame)
    stack.callback(made.close)
    for child in children:
        child.ready()
    made.greet()
    return made


def bus_route(stack: ExitStack, consumers: int) -> Ours:
    """Return a way through a bus with a journal, until the stack is closed."""
    address = f"ipc://{stack.enter_context(directory())}"
    bus = stack.enter_context(Child(peers.bus, address))
    bus.ready()
    counts, children = _typed(stack, address, consumers)
    ours = Ours(Publisher(address, buffer_bytes=1 << 30), counts, children, bus)
    stack.callback(ours.close)
    return ours


def direct_route(stack: ExitStack, consumers: int) -> Ours:
    """Return a way without a bus, until the stack is closed. Nobody says when it is open."""
    where = stack.enter_context(directory())
    publisher = Publisher(bind=f"ipc://{where}", buffer_bytes=1 << 30)
    counts, children = _typed(stack, f"direct+ipc://{where}", consumers)
    ours = Ours(publisher, counts, children, None)
    stack.callback(ours.close)
    return ours


def handlers_route(stack: ExitStack, consumers: int) -> Bare:
    """Return a way from a bare PUB to typed handlers, until the stack is closed."""
    where = stack.enter_context(directory())
    counts, children = _typed(stack, f"direct+ipc://{where}", consumers)
    bare = Bare(f"ipc://{where}/events.ipc", counts, children, None, bind=True)
    stack.callback(bare.close)
    return bare


def _typed(stack: ExitStack, address: str, consumers: int) -> tuple[Any, list[Child]]:
    counts = shared_counts(consumers)
    children = [
        stack.enter_context(Child(peers.consumer, peers.Counting, address, counts, place))
        for place in range(consumers)
    ]
    for child in children:
        child.ready()
    return counts, children
