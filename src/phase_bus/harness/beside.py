"""A consumer beside a bus in the foreground: a process of its own, kept running, and ended first."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping

from phase_bus.harness.children import ConsumerChild, Say, describe_exit
from phase_bus.harness.config import ConsumerConfig
from phase_bus.harness.ending import MARGIN_S

_STOP_S = 5.0  # how long it may take to end
_LASTED_S = 20.0  # after which it counts as one that works
_LOOK_S = 0.1
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0  # before it is started again


class Beside:
    """Keeps a consumer's process running, from a thread of its own.

    As a context manager it is started, and has ended at the end. Whatever becomes of it, the bus goes on.

    Args:
        address: the bus's.
        say: shows what the process prints.
        environment: its environment.
        is_done: whether it has nothing left to do; from any thread.
        patience_s: how long it may go on, once it is to end, while it has.

    Attributes:
        stop_s: how long its end may take.
    """

    def __init__(
        self,
        consumer: ConsumerConfig,
        address: str,
        say: Say,
        environment: Mapping[str, str] | None = None,
        *,
        is_done: Callable[[], bool] = lambda: True,
        patience_s: float = 0.0,
    ) -> None:
        self.stop_s = patience_s + _STOP_S + 2 * MARGIN_S
        self._is_done = is_done
        self._patience_s = patience_s
        self._child = ConsumerChild(consumer, address, say, _STOP_S, environment)
        self._say = say
        self._then: Callable[[], object] = lambda: None
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="beside")

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop(lambda: None)
        self._thread.join()

    def stop(self, then: Callable[[], object]) -> None:
        """Ask it to end, and call a function once it has; at once if it has. From any thread."""

        def ask() -> None:
            self._then = then
            self._stopping.set()

        try:
            self._loop.call_soon_threadsafe(ask)
        except RuntimeError:  # it has ended
            then()

    def kill(self) -> None:
        """End it at once; from any thread."""
        self._child.kill()

    def _work(self) -> None:
        try:
            self._loop.run_until_complete(self._keep_running())
        finally:
            self._loop.close()
            self._then()

    async def _may_end(self) -> None:
        """Wait until it is to end, and then until it has done everything, or the time is up."""
        await self._stopping.wait()
        until_s = time.monotonic() + self._patience_s
        while not self._is_done() and time.monotonic() < until_s:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_LOOK_S)

    async def _keep_running(self) -> None:
        child, wait_s = self._child, _FIRST_WAIT_S
        stopping = asyncio.create_task(self._may_end())
        while not stopping.done():
            started_s = time.monotonic()
            how = await self._run(stopping)
            if stopping.done():
                break
            if time.monotonic() > started_s + _LASTED_S:
                wait_s = _FIRST_WAIT_S
            self._say(child.name, f"{how}; the bus goes on, and it is started again in {wait_s:g} s")
            await asyncio.wait((stopping,), timeout=wait_s)
            wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
        await stopping

    async def _run(self, stopping: asyncio.Task[None]) -> str:
        """Run the process until it ends, or is to end; return how it ended."""
        child = self._child
        try:
            await child.start()
        except OSError as error:
            return f"cannot be started: {error.strerror}"
        child.speak()
        ended = asyncio.create_task(child.wait())
        await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
        if stopping.done() and not await child.stop():
            self._say(child.name, f"did not end within {child.stop_s:g} s and was killed")
        await ended
        return describe_exit(child.returncode)
