"""What is done to the world: each fault ends with everything running again."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from phase_bus.core.address import Address
from phase_bus.core.control import Welcome
from phase_bus.core.session import introduce
from phase_bus.core.wire import Header, decode_reply, encode_control
from tests.chaos.world import SILENT_AFTER_S, World
from tests.support.processes import Killable

_DOWN_S = (0.0, 1.0)
_DEEP = b"\x91" * 100_000


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
    """It is taken for lost, and comes back; other things happen meanwhile."""
    if world.publishing:
        world.hold(world.random.choice(world.publishing), SILENT_AFTER_S + 1.5)


def cut_the_power(world: World) -> None:
    """The bus is gone, and with it an end of any length of what it had not synchronised."""
    world.bus.kill()
    log = world.bus.directory / "journal.sqlite-wal"
    if log.exists():
        os.truncate(log, world.random.randint(_synchronised(log), log.stat().st_size))
        log.with_name("journal.sqlite-shm").unlink(missing_ok=True)
    world.cuts.append(time.monotonic())
    _pause(world)
    world.bus.start()


def _synchronised(log: Path) -> int:
    """Return how much of SQLite's log is on the disk for certain: what it copies from there into the file
    it has synchronised before. See "Checkpoint Info" in SQLite's description of the WAL's index.
    """
    with log.open("rb") as file, log.with_name("journal.sqlite-shm").open("rb") as index:
        (page_bytes,) = struct.unpack_from(">I", file.read(32).ljust(32, b"\0"), 8)
        ready = index.read(132)
    (copied,), (to_be_copied,) = (struct.unpack_from("=I", ready, at) for at in (96, 128))
    frames = max(copied, to_be_copied)
    return min(32 + frames * (24 + page_bytes), log.stat().st_size) if frames else 0


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
    world.hold(_alive(world)[name], world.random.uniform(1.0, 6.0))
    _pause(world)
    kill_the_bus(world)  # one prunes as it starts


def send_junk(world: World) -> None:
    """Random frames, and those that are worse, to every socket of the bus."""
    address = Address.parse(world.bus.addresses[1])
    client_id = f"{world.random.getrandbits(128):032x}"
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = [context.socket(zmq.DEALER)]
    try:
        known = sockets[0]
        known.connect(address.control)
        known.send(encode_control(introduce(client_id, "publisher", "junk")))
        assert known.poll(10_000), world.bus.tail()
        welcome = decode_reply(known.recv())
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
        for frames in _bad_events(bytes.fromhex(client_id)):
            known.send_multipart(frames)
    finally:
        for each in sockets:
            each.close(linger=500)
        context.term()


def _junk(world: World) -> list[list[bytes]]:
    random = world.random
    frames = [
        [random.randbytes(random.randrange(200)) for _ in range(random.randint(1, 5))] for _ in range(30)
    ]
    deep = b"\x82\xa2op\xa7goodbye\xa4more" + _DEEP
    worse = [b"\x82\xa2op\xa7goodbye\xa9client_id\xa1\xff", deep, b"", b"\x01", b"\xc1", bytes(1 << 20)]
    return [*frames, *([frame] for frame in worse), [b"run_start.x$", bytes(64), deep]]


def _bad_events(source: bytes) -> list[list[bytes]]:
    """Return events with headers as they should be, and payloads as they should not."""
    pack, phase = msgspec.msgpack.encode, {"name": "?"}
    bad = {
        "run_complete": pack({"status": "completed", "ts_ns": (1 << 64) - 1}),
        "phase_start": pack({"phase": phase}).replace(b"?", b"\xff"),
        "run_start": pack({"variation": "?"}).replace(b"\xa1?", b"\x81\xa1a" + _DEEP),
        "records": pack({"phase": phase, "count": 1 << 40}),
    }
    topics = {kind: f"{kind}.junk$".replace("records.", "records.00.").encode() for kind in bad}
    named = {kind: pack({"kind": kind, "run_id": "junk"}) for kind in bad}
    frames = []
    for number, (kind, payload) in enumerate(bad.items(), 1):
        members = payload[0] + 2  # of a map with these two as well
        header = Header(source, number, 1, records=int(kind == "records"))
        frames.append([topics[kind], header.pack(), bytes([members]) + named[kind][1:] + payload[1:]])
    return frames


def _alive(world: World) -> dict[str, Killable]:
    for process in world.consumers.values():
        assert process.runs, f"it died by itself: {process.tail()}"
    return world.consumers


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
LOSING = frozenset({cut_the_power, replace_the_journal})
"""Those that may take away what was acknowledged."""
