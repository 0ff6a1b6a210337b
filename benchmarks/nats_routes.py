"""NATS, core and JetStream, with its own Python client: a way for the same bytes, where it is installed.

Needed are ``nats-server`` (Debian has it as a package of that name) and nats-py (the extra ``bench``).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.harness import Child, cpu_s, directory, installed, shared_counts, wait_for
from benchmarks.routes import Route
from phase_bus.core.wire import Header, encode_event
from phase_bus.events import EventBase

NOTE = (
    "NATS: nats-py at both ends, the header and the payload in one message; its consumers count and decode "
    "nothing. JetStream keeps messages in a file, acknowledges each to the publisher, which waits for "
    "none, and pushes to ordered consumers, which acknowledge none."
)
MISSING = "NATS is not installed: that side is missing (apt install nats-server; pip install nats-py)."
_SUBJECT = "phase"
_STREAM = "PHASES"
_CONNECT_S = 10.0
_PENDING_BYTES = 1 << 30  # of what a subscriber has received and not looked at: never reached


def server() -> str | None:
    """Return where ``nats-server`` is, None if it or its client is not installed."""
    if installed("nats.aio.client") is None:
        return None
    return shutil.which("nats-server", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))


def routes(stack: ExitStack, consumers: int) -> dict[str, Route]:
    """Return a way by NATS core and one by JetStream, until the stack is closed; none without NATS."""
    program = server()
    if program is None:
        return {}
    return {
        "NATS core": _route(stack, program, consumers, stream=False),
        "NATS JetStream": _route(stack, program, consumers, stream=True),
    }


def _route(stack: ExitStack, program: str, consumers: int, *, stream: bool) -> Nats:
    process, url = _serve(stack, program)
    counts = shared_counts(consumers)
    route = Nats(url, counts, process.pid, stream=stream)
    stack.callback(route.close)
    children = [
        stack.enter_context(Child(_consumer, url, counts, place, stream=stream))
        for place in range(consumers)
    ]
    for child in children:
        child.ready()
    route.consumers = children
    return route


def _serve(stack: ExitStack, program: str) -> tuple[subprocess.Popen[bytes], str]:
    where = Path(stack.enter_context(directory()))
    command = [program, "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(where)]
    process = subprocess.Popen([*command, "-js", "-sd", str(where)], stderr=subprocess.DEVNULL)
    stack.callback(_end, process)
    ports = where / f"nats-server_{process.pid}.ports"
    if not wait_for(lambda: ports.exists() and b"nats://" in ports.read_bytes(), _CONNECT_S, 0.01):
        raise RuntimeError("nats-server does not say on which port it is")
    return process, ports.read_text().partition("nats://")[2].partition('"')[0]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Nats(Route):
    """A client of NATS that publishes.

    Args:
        url: where the server is.
        counts: what each consumer received, in shared memory.
        server_pid: the server's process.
        stream: whether messages are kept in a stream.
    """

    def __init__(self, url: str, counts: Any, server_pid: int, *, stream: bool) -> None:
        super().__init__(counts, (), _Process(server_pid))
        self._loop = asyncio.new_event_loop()
        self._client = installed("nats.aio.client").Client()
        self._loop.run_until_complete(self._client.connect(url))
        self._stream = self._client.jetstream() if stream else None
        if self._stream is not None:
            adding = self._stream.add_stream(name=_STREAM, subjects=[_SUBJECT], max_bytes=1 << 30)
            self._loop.run_until_complete(adding)
        self._seq = 0

    def choose(self, event: EventBase) -> None:
        super().choose(event)
        self._payload = encode_event(event)

    def send(self, count: int) -> None:
        self._loop.run_until_complete(self._send(count))

    async def _send(self, count: int) -> None:
        payload, source = self._payload, bytes(16)
        publish = self._client.publish if self._stream is None else self._stream.publish_async
        for seq in range(self._seq + 1, self._seq + count + 1):
            await publish(_SUBJECT, Header(source, seq, seq).pack() + payload)
        self._seq += count
        await asyncio.sleep(0)

    def turn(self) -> None:
        self._loop.run_until_complete(asyncio.sleep(0))  # what it has in hand goes out, and answers come in

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


class _Process:
    """The part of :class:`~benchmarks.harness.Child` that a route asks of what is between."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_s(self) -> float:
        return cpu_s(self._pid)


def _consumer(ready: Connection, url: str, counts: Any, place: int, *, stream: bool) -> None:
    asyncio.run(_count(ready, url, counts, place, stream=stream))


async def _count(ready: Connection, url: str, counts: Any, place: int, *, stream: bool) -> None:
    count = 0

    async def received(_message: Any) -> None:
        nonlocal count
        count += 1
        counts[place] = count

    client = installed("nats.aio.client").Client()
    await client.connect(url)
    if stream:
        await client.jetstream().subscribe(
            _SUBJECT, cb=received, ordered_consumer=True, pending_bytes_limit=_PENDING_BYTES
        )
    else:
        await client.subscribe(_SUBJECT, cb=received, pending_bytes_limit=_PENDING_BYTES)
        await client.flush()
    ready.send(url)
    await asyncio.Event().wait()
