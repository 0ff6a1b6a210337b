"""Another user of the machine, as a program: ``python -m tests.support.stranger WHAT ADDRESS``.

For that the tests have to be root's; the other user is nobody then. Else it does the same as their own
user, in a directory that is open to a group, and as little to be trusted.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - not everybody may read Python's library: it is read here
import os
import shutil
import socket
import sys
import time
import urllib.parse  # noqa: F401 - likewise
from collections.abc import Callable
from pathlib import Path

import zmq

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.control import Endpoint, Welcome
from phase_bus.core.ipc_directory import lock_directory
from phase_bus.core.sockets import bind
from phase_bus.core.wire import encode_control
from phase_bus.errors import AddressError, PhaseBusError
from phase_bus.events import RunComplete, RunStart
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import DEADLINE_S
from tests.support.processes import Killable

NOBODY = 65534
IS_OTHER = os.geteuid() == 0
READY = "the stranger is ready"
CAUGHT = "the stranger caught"


def stranger(log: Path, *arguments: str) -> Killable:
    """Return the program, not started yet."""
    return Killable(log, "-m", "tests.support.stranger", *arguments)


def open_to_all(directory: Path) -> Path:
    """Let others make directories in one, as in /tmp; return the path of one that is not there."""
    directory.chmod(0o1777)
    return directory / "bus"


def own(address: str) -> Address:
    """Return the address to bind for a directory that the tests' own user must not trust."""
    return Address.parse(address if IS_OTHER else address.replace("ipc://", "group+ipc://"))


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def listen(address: str) -> None:
    """Make the directory, and say whenever somebody connects to the bus's socket in it."""
    place = own(address)
    lock = lock_directory(place)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place.control.removeprefix("ipc://"))
        listener.listen()
        lock.remember_sockets()
        say(READY)
        while True:
            listener.accept()
            say(CAUGHT)


def take(address: str) -> None:
    """Take the directory as soon as it is free, and say whenever a message comes."""
    place = own(address)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        while True:
            try:
                lock_directory(place)
                break
            except AddressError:
                time.sleep(0.005)
        bind(router, place, place.control)
        say(READY)
        while True:
            router.recv_multipart()
            say(CAUGHT)


def vanish(address: str) -> None:
    """Take the directory, and make it vanish once somebody has connected; welcome everybody."""
    place = own(address)
    lock_directory(place)
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        with router.get_monitor_socket(zmq.EVENT_ACCEPTED) as monitor:
            bind(router, place, place.control)
            say(READY)
            monitor.recv_multipart()
            shutil.rmtree(place.directory)
            router.disable_monitor()
        welcome = Welcome(bus_id="0" * 32, events=Endpoint(ipc_name="events.ipc"), heartbeat_s=0.1)
        while True:
            identity, _ = router.recv_multipart()
            router.send_multipart([identity, encode_control(welcome)])


def publish(address: str, run_id: str) -> None:
    """Publish a run."""
    with Publisher(address) as publisher:
        publisher.publish(RunStart(run_id=run_id))
        publisher.complete_run(run_id, "completed")
        assert publisher.flush(DEADLINE_S)
    say(f"published {run_id}")


class _Ends(Consumer):
    async def on_run_complete(self, event: RunComplete) -> None:
        say(f"consumed {event.run_id}")


def consume(address: str) -> None:
    """Say which runs end, for ever."""
    runner = ConsumerRunner(named(_Ends(), "ends"), Address.parse(address), on_ready=lambda: say(READY))
    asyncio.run(runner.run())


_WHAT: dict[str, Callable[..., None]] = {
    "listen": listen,
    "take": take,
    "vanish": vanish,
    "publish": publish,
    "consume": consume,
}


def main(what: str, *arguments: str) -> None:
    """Become another user, and do something."""
    if IS_OTHER:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    try:
        _WHAT[what](*arguments)
    except PhaseBusError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
