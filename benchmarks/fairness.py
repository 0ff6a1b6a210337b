"""How long an honest publisher waits for acknowledgements beside somebody who floods the bus."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection

import numpy as np
import zmq

from benchmarks import peers
from benchmarks.harness import Child, Plan, Report, Table, alternate, directory, ratios, run, spread
from phase_bus.core.address import Address
from phase_bus.core.control import Ack, Hello, StatusRequest, Welcome
from phase_bus.core.wire import Header, decode_reply, encode_control, encode_event, topic_of
from phase_bus.events import PhaseProgress, PhaseRef

QUESTION = "How much longer does an acknowledgement take while another client floods the bus?"
_NOBODY = "nobody"
_EVERY_S = 0.002  # between the honest publisher's events
_MIB = bytes(1 << 20)
_WAIT_MS = 10_000


def _junk(_: int, __: bytes) -> list[bytes]:
    return [b"\xc1"]


def _large(number: int, source: bytes) -> list[bytes]:
    return [b"flood.flood$", Header(source, number, number).pack(), _MIB]


def _status(_: int, __: bytes) -> list[bytes]:
    return [encode_control(StatusRequest())]


def _hello(number: int, _: bytes) -> list[bytes]:
    return [encode_control(Hello(client_id=f"{number:032x}", role="consumer", name=f"name {number}"))]


_FLOODS: dict[str, Callable[[int, bytes], list[bytes]]] = {
    "junk of one byte": _junk,
    "events of 1 MiB": _large,
    "status requests": _status,
    "hellos of others": _hello,
}


class Raw:
    """A publisher without a thread: what is measured is the bus."""

    def __init__(self, address: str) -> None:
        self.source = uuid.uuid4().bytes
        self.seq = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(Address.parse(address).control)
        self.greet()

    def greet(self) -> None:
        """Introduce itself: who has said nothing for long is not known any more."""
        hello = Hello(client_id=self.source.hex(), role="publisher", name="raw", next_seq=self.seq + 1)
        self.socket.send(encode_control(hello))
        while not isinstance(self._reply(), Welcome):
            pass

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)

    def publish(self) -> float:
        """Publish an event; return after how many seconds it was acknowledged."""
        self.seq += 1
        event = PhaseProgress(run_id="honest", phase=PhaseRef("profiling"))
        frames = (topic_of(event), Header(self.source, self.seq, self.seq).pack(), encode_event(event))
        began_s = time.perf_counter()
        self.socket.send_multipart(frames)
        while not (isinstance(reply := self._reply(), Ack) and reply.seq == self.seq):
            pass
        return time.perf_counter() - began_s

    def _reply(self) -> object:
        if not self.socket.poll(_WAIT_MS):
            raise RuntimeError("the bus does not answer")
        return decode_reply(self.socket.recv())


def flooder(ready: Connection, address: str, name: str) -> None:
    """Send as fast as the bus takes it, and read nothing, whenever told so, until told otherwise."""
    client = Raw(address)
    make, number, on = _FLOODS[name], 0, False
    same = make(1, client.source) if name in ("junk of one byte", "status requests") else None
    ready.send(None)
    while True:
        if ready.poll(None if not on else 0):
            on = ready.recv()
            if on:
                client.socket.close()
                client = Raw(address)
                number = 0
        for _ in range(20 if on else 0):
            number += 1
            frames = same or make(number, client.source)
            while not ready.poll(0):
                if client.socket.poll(20, zmq.POLLOUT):
                    client.socket.send_multipart(frames)
                    break


class Side:
    """An honest publisher beside a flood of one kind; of rounds the percentiles in ms."""

    def __init__(self, stack: ExitStack, plan: Plan, name: str) -> None:
        where = stack.enter_context(directory())
        address = f"ipc://{where}"
        stack.enter_context(Child(peers.bus, address)).ready()
        self.found: list[tuple[float, float]] = []
        self._events = plan.count(2000)
        self._honest = Raw(address)
        stack.callback(self._honest.close)
        self._flooder: Child | None = None
        if name != _NOBODY:
            self._flooder = stack.enter_context(Child(flooder, address, name))
            self._flooder.ready()

    def measure(self) -> float:
        """Publish for a while; return the 99th percentile."""
        self._honest.greet()
        self._flood(on=True)
        times = []
        for _ in range(self._events):
            times.append(self._honest.publish())
            time.sleep(_EVERY_S)
        self._flood(on=False)
        p50, p99 = np.percentile(np.array(times) * 1e3, (50.0, 99.0)).tolist()
        self.found.append((p50, p99))
        return float(p99)

    def _flood(self, *, on: bool) -> None:
        if self._flooder is not None:
            self._flooder.connection.send(on)
            time.sleep(0.2)


def main() -> Report:
    """Measure, print, return."""
    return run("fairness", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    rows = []
    with ExitStack() as stack:
        sides = {name: Side(stack, plan, name) for name in (_NOBODY, *_FLOODS)}
        values = alternate({name: side.measure for name, side in sides.items()}, plan)
        for name, side in sides.items():
            p50, p99 = (spread(found[place] for found in side.found[1:]) for place in (0, 1))
            ratio = ratios(values[name], values[_NOBODY])
            report.figures[f"fairness_{name.split()[0]}_p99_ratio"] = ratio
            report.figures[f"fairness_{name.split()[0]}_p99_ms"] = p99
            rows.append([name, p50.show(), p99.show(), ratio.show()])
    header = ["who floods", "p50 ms", "p99 ms", "p99, of that without a flood"]
    report.tables.append(Table("From sending an event to its acknowledgement", header, rows))
    report.notes.append(
        "One honest event every 2 ms over ipc, with a journal; the flooder sends as fast as the bus takes "
        "it, and reads nothing. ZeroMQ takes one message from each connection in turn; a turn of the bus's "
        "loop, at whose end acknowledgements are sent, ends after 1,000 messages, 4 MiB, or 10 ms of what "
        "is no event. Publisher, flooder and bus share the processors: that is in the figures, too."
    )


if __name__ == "__main__":
    main()
