"""The buses of this user that run on this machine: each has a file, locked for as long as it lives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

import msgspec
from msgspec import Struct

from phase_bus.core.address import Address
from phase_bus.core.files import lock_file
from phase_bus.journal.paths import make_state_directory, state_directory

_NAMED = 5  # of the buses that run


class RunningBus(Struct, frozen=True):
    """A bus that runs.

    Attributes:
        address: where clients of this machine reach it.
        pid: its process.
        started_ns: when it was started, Unix ns.
        host: the machine.
    """

    address: str
    pid: int
    started_ns: int
    host: str


@contextmanager
def listed(addresses: Sequence[Address]) -> Iterator[None]:
    """List this process's bus, bound at these addresses, among those that run, where that is possible."""
    by_ipc = [address for address in addresses if address.scheme == "ipc"]
    address = (by_ipc or list(addresses))[0].connectable()
    entry = RunningBus(str(address), os.getpid(), time.time_ns(), socket.gethostname())
    file = None
    with suppress(OSError):
        directory = make_state_directory() / "buses"
        directory.mkdir(0o700, exist_ok=True)
        name = f"{entry.pid}-{token_hex(4)}.json"
        file = lock_file(directory / f".{name}")
        file.write(msgspec.json.encode(entry).decode())
        file.flush()
        # Only now, locked and whole, has it a name that others look for.
        path = (directory / f".{name}").rename(directory / name)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                path.unlink()
            file.close()


def running_buses() -> list[RunningBus]:
    """Return the buses of this user that run here, the one started last first."""
    found = []
    for path in (state_directory() / "buses").glob("[!.]*.json"):
        with suppress(OSError, msgspec.DecodeError):
            entry = msgspec.json.decode(path.read_bytes(), type=RunningBus)
            if entry.host == socket.gethostname() and not _is_left_over(path):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.started_ns, reverse=True)


def name_running(but: str) -> str:
    """Return in words, to be added to a remark, which buses run besides that at an address."""
    others = [entry.address for entry in running_buses() if entry.address != but]
    if not others:
        return ""
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"; running now: {', '.join(others[:_NAMED])}{more} (choose one with --address)"


def _is_left_over(path: Path) -> bool:
    """Remove the file of a bus that was killed; return whether it is one."""
    try:
        with lock_file(path):
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    return True
