"""The processes that phase-bus starts: a bus, consumers, workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from phase_bus.core.address import ADDRESS_VARIABLE
from phase_bus.core.control import ClientInfo, GroupInfo, Status
from phase_bus.core.keys import KEY_FILE_VARIABLE
from phase_bus.harness.config import BusConfig, Config, ConsumerConfig
from phase_bus.harness.ending import MARGIN_S
from phase_bus.harness.signals import signal_group
from phase_bus.journal.rows import Limits

_KEPT_LINES = 20
_POOL_MARGINS = 3  # who waits for a worker, its pool, and the pool's rig each give it some more time

Say = Callable[[str, str], None]


class Child:
    """A process of ours, whose output goes line by line to ``say``, with its name.

    It has a process group of its own, so that a Ctrl-C meant for the benchmark does not reach it, and ends
    by itself when its standard input ends, that is when this process is gone.

    Args:
        stop_s: how long it may take to end once it was asked to, before it is killed.
        environment: its environment; by default this process's.
        own_group: whether it is to have a process group of its own; else it has this process's.

    Attributes:
        stop_s: the same.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        say: Say,
        stop_s: float,
        environment: Mapping[str, str] | None = None,
        *,
        own_group: bool = True,
    ) -> None:
        self.name = name
        self._environment = environment
        self.ending = False  # whether it was asked to end, so that its end is no surprise
        self.stop_s = stop_s
        self._own_group = own_group
        self._arguments = arguments
        self._say = say
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._complaint = ""  # the last error that it printed as a line
        self._quiet = True  # until it is up: a failure to start is reported once, by whoever waits for it
        self._process: asyncio.subprocess.Process | None = None
        self._pump: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process; also again, when it has ended."""
        if self._pump is not None:
            self._pump.cancel()  # whatever else has its output is none of ours
        self._complaint = ""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "phase_bus",
            *self._arguments,
            "--stop-on-eof",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            process_group=0 if self._own_group else None,
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
        """Show its lines from now on, after those it has written so far."""
        self._quiet = False
        while self._lines:
            self._say(self.name, self._lines.popleft())

    async def failure(self) -> str:
        """Return why it ended: its error line, or its exit code. Call it once it has ended."""
        if self._pump is not None:
            await self._pump
        if self._complaint:
            return self._complaint
        when = " while starting" if self._quiet else ""
        self.speak()
        return f"{self.name} {describe_exit(self.returncode)}{when}"

    async def stop(self) -> bool:
        """Ask it to end and wait; kill it if it does not. Return whether it ended by itself."""
        self.ending = True
        process = self._process
        if process is None or self._pump is None or process.stdin is None:
            return True
        finished = True
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), self.stop_s)
            except TimeoutError:
                finished = False
                self.kill()
        await self._pump
        process.stdin.close()
        return finished

    def kill(self) -> None:
        """End it by SIGKILL, with all that is in its group, if it is still there; from any thread."""
        process = self._process
        if process is not None and process.returncode is None:
            if self._own_group:
                signal_group(process.pid, signal.SIGKILL)
            else:
                process.kill()

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
    """A consumer's process; with several workers, the one that keeps them running."""

    def __init__(
        self,
        config: ConsumerConfig,
        address: str,
        say: Say,
        stop_timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        margins = _POOL_MARGINS if config.workers > 1 else 1
        arguments = _consumer_arguments(config, address, stop_timeout_s)
        super().__init__(config.title, arguments, say, stop_timeout_s + margins * MARGIN_S, environment)
        self.config = config

    def is_ready(self, status: Status) -> bool:
        """Return whether the bus says that all its workers are ready."""
        return len([c for c in self._clients(status) if c.state == "ready"]) >= self.config.workers

    def standing(self, status: Status) -> ClientInfo | GroupInfo | None:
        """Return what the bus knows of it, or of the group that it belongs to."""
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


def describe_exit(returncode: int | None) -> str:
    """Return how a process ended, in words."""
    if returncode is None:
        return "is still running"
    if returncode < 0:
        names = {each.value: each.name for each in signal.Signals}
        return f"was ended by {names.get(-returncode, f'signal {-returncode}')}"
    return f"ended with exit code {returncode}"


def bus_arguments(addresses: Sequence[str], config: Config) -> list[str]:
    """Return the arguments of ``phase-bus`` for a bus."""
    arguments = ["bus", *(word for address in addresses for word in ("--address", address))]
    arguments += _as_options(config.bus)
    if config.insecure:
        arguments.append("--insecure")
    if not config.journal:
        return [*arguments, "--no-journal"]
    if config.data:
        arguments += ["--data", config.data]
    return arguments + _as_options(config.limits)


def _as_options(values: BusConfig | Limits) -> list[str]:
    given = {n: value for n, value in msgspec.structs.asdict(values).items() if value is not None}
    return [f"--{n.replace('_', '-')}={value}" for n, value in given.items()]


def _consumer_arguments(consumer: ConsumerConfig, address: str, stop_timeout_s: float) -> list[str]:
    arguments = ["consume", consumer.use, "--address", address, "--stop-timeout-s", str(stop_timeout_s)]
    arguments.append("--no-news")
    if consumer.workers > 1:
        arguments += ["--group", consumer.title, "--workers", str(consumer.workers)]
    else:
        arguments += ["--name", consumer.title]
    if consumer.health is not None:
        arguments += ["--health", str(consumer.health)]
    for key, value in consumer.set.items():
        text = value if isinstance(value, str) else json.dumps(value)
        arguments += ["--set", f"{key}={text}"]
    return arguments


def environment(address: str, key_file: str | None) -> dict[str, str]:
    """Return this process's environment with the bus's address in it, and the file of its key, if given."""
    keys = {} if key_file is None else {KEY_FILE_VARIABLE: key_file}
    return {**os.environ, **keys, ADDRESS_VARIABLE: address}
