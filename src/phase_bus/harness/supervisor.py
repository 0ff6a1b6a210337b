"""Starts a bus and its consumers as processes, sees them ready, and ends them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from phase_bus.bus.options import BusOptions
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import ClientInfo, GroupInfo, Status
from phase_bus.errors import BusUnreachableError, PhaseBusError
from phase_bus.harness.config import Config, ConsumerConfig
from phase_bus.journal.rows import Limits

_POLL_S = 0.05
_STOP_S = 15.0
_KEPT_LINES = 20

Say = Callable[[str, str], None]


class StartError(PhaseBusError):
    """A process could not start.

    Attributes:
        name: which.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        super().__init__(reason)


class Child:
    """A process of ours, whose output goes line by line to ``say``.

    It lives in a process group of its own, so that a Ctrl-C meant for the benchmark leaves it alone, and
    ends by itself when its standard input ends, that is when this process is gone.

    Attributes:
        name: what it is called.
        ending: it was asked to end, so its end is no surprise.
    """

    def __init__(self, name: str, arguments: Sequence[str], say: Say, stop_s: float = _STOP_S) -> None:
        self.name = name
        self._stop_s = stop_s
        self.ending = False
        self._arguments = arguments
        self._say = say
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._complaint = ""  # the last error that it told in a line of its own
        self._quiet = True  # until it is up: a failure to start is told once, by who waits for it
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "phase_bus",
            *self._arguments,
            "--stop-on-eof",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            process_group=0,
        )
        self._pump = asyncio.create_task(self._read_output(self._process))

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, None while it runs, negative for a signal."""
        return None if self._process is None else self._process.returncode

    async def wait(self) -> None:
        """Wait for its end."""
        if self._process is not None:
            await self._process.wait()

    def speak(self) -> None:
        """From now on let its lines be seen, those kept so far first."""
        self._quiet = False
        while self._lines:
            self._say(self.name, self._lines.popleft())

    async def failure(self) -> str:
        """Return why it ended, once it has: its error line, or its exit code."""
        if self._pump is not None:
            await self._pump
        if self._complaint:
            return self._complaint
        up = not self._quiet
        self.speak()
        return f"{self.name} {describe_exit(self.returncode)}" + ("" if up else " while starting")

    async def stop(self) -> bool:
        """Ask it to finish and wait; kill it if it does not. Return whether it finished by itself."""
        self.ending = True
        process = self._process
        if process is None:
            return True
        finished = True
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._stop_s):
                    await process.wait()
            except TimeoutError:
                finished = False
                process.kill()
        await process.wait()
        if self._pump is not None:
            await self._pump
        if process.stdin is not None:
            process.stdin.close()
        return finished

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:  # a line beyond asyncio's limit: leave the rest of it out
                continue
            if not raw:
                break
            line = raw.decode(errors="replace").rstrip("\n")
            if line.startswith("phase-bus: "):
                self._complaint = line.removeprefix("phase-bus: ")
            if self._quiet:
                self._lines.append(line)
            else:
                self._say(self.name, line)
        await process.wait()


class ConsumerChild(Child):
    """A consumer's process; with several workers, the one that keeps them running.

    Attributes:
        config: what is to run.
    """

    def __init__(self, config: ConsumerConfig, address: str, say: Say) -> None:
        super().__init__(config.title, _consumer_arguments(config, address), say)
        self.config = config

    def is_ready(self, status: Status) -> bool:
        """Return whether the bus knows all its workers as ready."""
        return len([c for c in self._clients(status) if c.state == "ready"]) >= self.config.workers

    def standing(self, status: Status) -> ClientInfo | GroupInfo | None:
        """Return what the bus knows of its work, which in a group is that of all its members."""
        clients = self._clients(status)
        group = self.config.title if self.config.workers > 1 else clients[0].group if clients else ""
        if group:
            return next((info for info in status.groups if info.name == group), None)
        return clients[0] if clients else None

    def _clients(self, status: Status) -> list[ClientInfo]:
        consumers = [client for client in status.clients if client.role == "consumer"]
        if self.config.workers > 1:
            return [client for client in consumers if client.group == self.config.title]
        return [client for client in consumers if client.pid == self.pid]


class Supervisor:
    """A bus and its consumers as processes.

    Args:
        config: which.
        own_address: the ipc address by which we talk to the bus; bound besides those configured.
        say: told each line the processes print, with the process's name.
        on_death: told of a process that ended unexpectedly, with how.
    """

    def __init__(
        self, config: Config, own_address: Address, say: Say, on_death: Callable[[str, str], None]
    ) -> None:
        self.config = config
        self.address = own_address
        self._say = say
        self._on_death = on_death
        self._bus: Child | None = None
        self._consumers: list[ConsumerChild] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._client = BusClient(own_address)

    @property
    def consumers(self) -> tuple[ConsumerChild, ...]:
        """The consumers' processes."""
        return tuple(self._consumers)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the bus (``bus``) and of the consumers, by their names."""
        bus = () if self._bus is None else (self._bus,)
        return {child.name: child.pid for child in (*self._consumers, *bus)}

    async def start(self) -> Status:
        """Start everything and wait until each consumer is ready; return the bus's status.

        Raises:
            StartError: a process ended instead, or was not ready in time.
        """
        addresses = list(self.config.address)
        if self.address not in map(Address.parse, addresses):
            addresses.append(str(self.address))
        self._bus = Child("bus", _bus_arguments(addresses, self.config), self._say)
        await self._bus.start()
        self._consumers = [
            ConsumerChild(config, str(self.address), self._say) for config in self.config.consumers
        ]
        await asyncio.gather(*(child.start() for child in self._consumers))
        status = await self._wait_ready(self._bus)
        for child in (self._bus, *self._consumers):
            child.speak()
            self._watchers.append(asyncio.create_task(self._watch(child)))
        return status

    async def status(self) -> Status | None:
        """Return the bus's status, or None if it does not answer."""
        try:
            return await asyncio.to_thread(self._client.status, 1.0)
        except BusUnreachableError:
            return None

    async def end_runs(self, reason: str) -> None:
        """Let the runs that are still going on end as lost."""
        try:
            await asyncio.to_thread(self._client.end_runs, reason)
        except BusUnreachableError:
            self._say("phase-bus", "the bus does not answer; runs cannot be ended")

    async def stop(self) -> None:
        """End the consumers, then the bus."""
        results = await asyncio.gather(*(child.stop() for child in self._consumers))
        for child, finished in zip(self._consumers, results, strict=True):
            if not finished:
                self._on_death(child.name, f"did not finish within {_STOP_S:g} s and was killed")
        if self._bus is not None:
            await self._bus.stop()
        await asyncio.gather(*self._watchers)
        self._client.close()

    async def _wait_ready(self, bus: Child) -> Status:
        timeout_s = self.config.ready_timeout_s
        waiting = list(self._consumers)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    for child in (bus, *self._consumers):
                        if child.returncode is not None:
                            raise StartError(child.name, await child.failure())
                    status = await self._try_status()
                    if status is not None:
                        waiting = [c for c in self._consumers if not c.is_ready(status)]
                        if not waiting:
                            return status
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            names = ", ".join(child.name for child in waiting) or "the bus"
            raise StartError(names, f"{names}: not ready within {timeout_s:g} s") from None

    async def _try_status(self) -> Status | None:
        try:
            return await asyncio.to_thread(self._client.status, 0.2)
        except BusUnreachableError:
            return None

    async def _watch(self, child: Child) -> None:
        await child.wait()
        if not child.ending:
            self._on_death(child.name, describe_exit(child.returncode))


def describe_exit(returncode: int | None) -> str:
    """Return how a process ended, in words."""
    if returncode is None:
        return "is still running"
    if returncode < 0:
        try:
            return f"was ended by {signal.Signals(-returncode).name}"
        except ValueError:
            return f"was ended by signal {-returncode}"
    return f"ended with exit code {returncode}"


def _bus_arguments(addresses: Sequence[str], config: Config) -> list[str]:
    arguments = ["bus"]
    for address in addresses:
        arguments += ["--address", address]
    for name in BusOptions.__struct_fields__:
        arguments += [f"--{name.replace('_', '-')}", str(getattr(config.bus, name))]
    if not config.journal:
        return [*arguments, "--no-journal"]
    if config.data:
        arguments += ["--data", config.data]
    for name in Limits.__struct_fields__:
        arguments += [f"--{name.replace('_', '-')}", str(getattr(config.limits, name))]
    return arguments


def _consumer_arguments(consumer: ConsumerConfig, address: str) -> list[str]:
    arguments = ["consume", consumer.use, "--address", address]
    if consumer.workers > 1:
        arguments += ["--group", consumer.title, "--workers", str(consumer.workers)]
    else:
        arguments += ["--name", consumer.title]
    for key, value in consumer.set.items():
        arguments += ["--set", f"{key}={_as_text(value)}"]
    return arguments


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def shell_code(returncode: int) -> int:
    """Return an exit code as a shell reports it: 128 and the signal's number for a signal."""
    return 128 - returncode if returncode < 0 else returncode


def environment(address: str) -> dict[str, str]:
    """Return this process's environment with the bus's address in it."""
    return {**os.environ, "PHASE_BUS_ADDRESS": address}
