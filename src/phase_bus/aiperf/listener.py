"""Listening to AIPerf's own event bus, from a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import zmq

from phase_bus.core.sockets import connect

logger = logging.getLogger("phase_bus.aiperf")

POLL_S = 0.05


class Fence:
    """Logs the first exception of each kind, and counts the others."""

    def __init__(self) -> None:
        self.caught: Counter[str] = Counter()

    def catch(self, where: str, error: Exception) -> None:
        """Take an exception; it goes no further."""
        kind = f"{where}: {type(error).__name__}"
        self.caught[kind] += 1
        if self.caught[kind] == 1:
            logger.warning("phase-bus: %s failed, the benchmark goes on: %r", where, error, exc_info=error)

    @contextmanager
    def around(self, where: str) -> Iterator[None]:
        """Let no exception out, except the cancellation of a task."""
        try:
            yield
        except Exception as error:
            self.catch(where, error)

    def report(self) -> None:
        """Log how often each kind came more than once."""
        repeated = {kind: count for kind, count in self.caught.items() if count > 1}
        if repeated:
            logger.warning("phase-bus: failures counted: %s", repeated)


class BusListener:
    """Calls back with each message of the chosen topics, and regularly with ticks.

    AIPerf's proxy binds and everybody else connects, so it need not be there yet. The thread is a daemon
    with its own ZeroMQ context: it neither keeps the process alive nor touches AIPerf's sockets. An
    exception of a callback is logged, once for each kind, and goes no further.

    ``topics`` are AIPerf's message types, such as ``credit_phase_start``; ``on_message`` is called with one
    of them and the message's JSON, ``on_tick`` at least every ``POLL_S`` seconds.
    """

    def __init__(
        self,
        address: str,
        topics: Iterable[str],
        on_message: Callable[[str, bytes], None],
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._address = address
        self._topics = tuple(topics)
        self._on_message = on_message
        self._on_tick = on_tick
        self._stopping = threading.Event()
        self._fence = Fence()
        self._thread = threading.Thread(target=self._main, name="phase-bus-listener", daemon=True)

    def start(self) -> None:
        """Start listening."""
        self._thread.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Stop listening, and wait up to ``timeout_s`` seconds for the thread to end."""
        self._stopping.set()
        if timeout_s and self._thread.is_alive():
            self._thread.join(timeout_s)

    def _main(self) -> None:
        with (
            self._fence.around("listening to AIPerf's event bus"),
            zmq.Context() as context,
            context.socket(zmq.SUB) as socket,
        ):
            context.linger = socket.linger = 0
            self._listen(socket)

    def _listen(self, socket: zmq.Socket[bytes]) -> None:
        for topic in self._topics:
            # With its end sign, or "credit_phase_start" would match all that begins like it.
            socket.subscribe(f"{topic}$".encode())
        connect(socket, self._address)
        while not self._stopping.is_set():
            if socket.poll(int(POLL_S * 1000)):
                self._receive(socket)
            with self._fence.around("watching for the end of AIPerf's run"):
                self._on_tick()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        frames = socket.recv_multipart(zmq.NOBLOCK)
        if len(frames) == 2:
            topic = frames[0].removesuffix(b"$").decode(errors="replace")
            with self._fence.around("handling a message of AIPerf's event bus"):
                self._on_message(topic, frames[1])
