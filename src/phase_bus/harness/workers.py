"""Several processes of one consumer: started and ended together, and replaced when they die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from phase_bus.errors import ConfigError
from phase_bus.harness.children import Child, Say, describe_exit

_STARTED_S = 1.0  # after this its output is shown as it comes
_LASTED_S = 20.0  # a worker that fails by itself before that has not worked
_FAILURES = 3  # in a row, after which it is given up
_WAIT_S = 0.5  # before a dead worker is replaced


class WorkerPool:
    """Keeps a number of workers running.

    The others take over what a worker that dies was working on, until there is another in its place. Each
    line that a worker prints is said with its name, and its death with ``""``.

    Args:
        arguments_of: returns the arguments of a worker, by its number from 1 on.
        stop_s: how long one that is asked to end may take before it is killed.
        own_groups: whether each worker is to have a process group of its own, so that a Ctrl-C in the
            terminal of this process reaches it once only.
    """

    def __init__(
        self,
        arguments_of: Callable[[int], Sequence[str]],
        workers: int,
        say: Say,
        *,
        stop_s: float,
        own_groups: bool = True,
    ) -> None:
        self._arguments_of = arguments_of
        self._workers = workers
        self._say = say
        self._stop_s = stop_s
        self._own_groups = own_groups
        self._children: dict[str, Child] = {}  # the latest of each name
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Ask :meth:`run` to let the workers finish. Call it from the event loop."""
        self._stop.set()

    def kill(self) -> None:
        """End all workers at once; from any thread."""
        for child in list(self._children.values()):
            child.kill()

    def left(self) -> str:
        """Return which of the workers that were asked to end did not do so in order, empty for none."""
        left = [name for name, child in self._children.items() if child.returncode != 0]
        return f"not all is written out and committed by {', '.join(left)}" if left else ""

    async def run(self) -> None:
        """Run the workers until asked to stop.

        Raises:
            ConfigError: if one cannot start; the others are ended.
        """
        stopping = asyncio.create_task(self._stop.wait())
        numbers = range(1, self._workers + 1)
        tasks = [asyncio.create_task(self._keep_running(number, stopping)) for number in numbers]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self.stop()
            await asyncio.wait(tasks)
            await stopping
        for task in done:
            task.result()

    async def _keep_running(self, number: int, stopping: asyncio.Task[bool]) -> None:
        name, arguments = f"worker {number}", self._arguments_of(number)
        failures = 0
        while not stopping.done():
            started_s = time.monotonic()
            child = Child(name, arguments, self._say, self._stop_s, own_group=self._own_groups)
            self._children[name] = child
            await child.start()
            failure = await self._watch(child, stopping)
            if failure is None:
                return
            by_itself = child.returncode is not None and child.returncode > 0
            failures = failures + 1 if by_itself and time.monotonic() - started_s < _LASTED_S else 0
            if child.returncode == 2 or failures == _FAILURES:
                raise ConfigError(failure)
            self._say("", f"{name} {describe_exit(child.returncode)}; starting another in its place")
            await asyncio.wait((stopping,), timeout=_WAIT_S)

    async def _watch(self, child: Child, stopping: asyncio.Task[bool]) -> str | None:
        """Wait for a worker's end; return why it ended, None if it was asked to."""
        ended = asyncio.create_task(child.wait())
        try:
            first = asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait((ended, stopping), timeout=_STARTED_S, return_when=first)
            if not done:
                child.speak()
            await asyncio.wait((ended, stopping), return_when=first)
            return await child.failure() if ended.done() and not stopping.done() else None
        finally:
            if not await child.stop():
                self._say("", f"{child.name} did not finish in time and was killed")
            await ended
