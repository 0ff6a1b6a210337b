"""What is done to the world: each fault ends with everything running again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from phase_bus.core.address import Address
from phase_bus.core.control import Welcome
from phase_bus.core.session import introduce
from phase_bus.core.wire import decode_reply, encode_control
from tests.chaos.world import SILENT_AFTER_S, World
from tests.support.processes import Killable

_DOWN_S = (0.0, 1.0)


def _pause(world: World) -> None:
    time.sleep(world.random.uniform(*_DOWN_S))


def kill_the_bus(world: World) -> None:
    """SIGKILL; what was acknowledged is in the journal."""
    world.bus.kill()
    _pause(world)
    world.bus.start()


def kill_a_consumer(world: World) -> None:
    """SIGKILL; it goes on where it was."""
    process = _alive(world)[world.random.choice(sorted(world.consumers))]
    process.kill()
    _pause(world)
    process.start()


def cut_connections(world: World) -> None:
    """The publishers' connections break; what was on its way is lost."""
    world.forwarder.cut()
    _pause(world)
    world.forwarder.open()


def suspend_a_publisher(world: World) -> None:
    """It is taken for lost, and comes back."""
    if world.publishing:
        process = world.random.choice(world.publishing)
        _hold(process.pid, SILENT_AFTER_S + 1.5)


def cut_the_power(world: World) -> None:
    """The bus is gone, and with it an end of any length of what it had not synchronised."""
    world.bus.kill()
    log = world.bus.directory / "journal.sqlite-wal"
    if log.exists():
        os.truncate(log, world.random.randint(0, log.stat().st_size))
        log.with_name("journal.sqlite-shm").unlink(missing_ok=True)
    world.cuts.append(time.monotonic())
    _pause(world)
    world.bus.start()


def replace_the_journal(world: World) -> None:
    """Somebody moves the directory away; the bus begins another one."""
    world.bus.kill()
    moved = Path(f"{world.bus.directory}-{len(world.journals)}")
    world.bus.directory.rename(moved)
    world.journals.append(moved)
    world.cuts.append(time.monotonic())
    world.bus.start()


def hold_a_consumer_up(world: World) -> None:
    """A consumer is away for a while, and the bus prunes meanwhile."""
    name = world.random.choice(sorted(world.consumers))
    begin_s = time.monotonic()
    process = _alive(world)[name]
    os.kill(process.pid, signal.SIGSTOP)
    try:
        time.sleep(world.random.uniform(0.5, 3.0))
        kill_the_bus(world)  # one prunes as it starts
        time.sleep(0.5)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    world.lags.append((name.partition("-")[0], begin_s, time.monotonic()))


def send_junk(world: World) -> None:
    """Random frames, and those that are worse, to every socket of the bus."""
    address = Address.parse(world.bus.addresses[1])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = [context.socket(zmq.DEALER)]
    try:
        asking = sockets[0]
        asking.connect(address.control)
        asking.send(encode_control(introduce(f"{world.random.getrandbits(128):032x}", "client", "junk")))
        assert asking.poll(10_000), world.bus.tail()
        welcome = decode_reply(asking.recv())
        assert isinstance(welcome, Welcome)
        assert welcome.replay is not None
        for kind, endpoint in (
            (zmq.DEALER, address.control),
            (zmq.DEALER, address.endpoint(welcome.replay)),
            (zmq.XSUB, address.endpoint(welcome.events)),
        ):
            sock = context.socket(kind)
            sockets.append(sock)
            sock.connect(endpoint)
            for frames in _junk(world):
                sock.send_multipart(frames)
    finally:
        for each in sockets:
            each.close(linger=500)
        context.term()


def _junk(world: World) -> list[list[bytes]]:
    deep = b"\x82\xa2op\xa7goodbye\xa4more" + b"\x91" * 100_000
    worse = [b"\x82\xa2op\xa7goodbye\xa9client_id\xa1\xff", deep, b"", b"\x01", b"\xc1", bytes(1 << 20)]
    random = world.random
    frames = [
        [random.randbytes(random.randrange(200)) for _ in range(random.randint(1, 5))] for _ in range(30)
    ]
    return [*frames, *([frame] for frame in worse), [b"run_start.x$", bytes(64), deep]]


def _alive(world: World) -> dict[str, Killable]:
    for process in world.consumers.values():
        assert process.runs, f"it died by itself: {process.tail()}"
    return world.consumers


def _hold(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


FAULTS: dict[Callable[[World], None], int] = {
    kill_the_bus: 4,
    kill_a_consumer: 6,
    cut_connections: 3,
    suspend_a_publisher: 1,
    cut_the_power: 1,
    replace_the_journal: 1,
    hold_a_consumer_up: 1,
    send_junk: 2,
}
"""How often each happens, in relation to the others."""
