"""Starting a consumer again that has died: it goes on from its checkpoint, as if it had only been slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from phase_bus.core.control import Status
from phase_bus.harness.children import ConsumerChild, describe_exit

_RESTORED_AFTER_S = 600.0  # who has run for so long has all its restarts again
_USELESS = 2  # the exit code for what a user has to put right first
_WAIT_S = 0.5  # before a dead consumer is started again
_LOOK_S = 0.1


class Restarts:
    """Watches a consumer's process that is ready, and starts it again when it dies.

    Args:
        child: the process.
        most: how often it is started again.
        status: asks the bus who is there; None if it does not answer.
        goes_on: whether there is still something for the consumer to do.
        note: shows a line, made of texts, some with a style.

    Attributes:
        death: how it died, until it is ready again; empty if it is there.
    """

    def __init__(
        self,
        child: ConsumerChild,
        most: int,
        *,
        status: Callable[[], Awaitable[Status | None]],
        goes_on: Callable[[], bool],
        note: Callable[..., None],
    ) -> None:
        self.child = child
        self.death = ""
        self._most = most
        self._used = 0
        self._status = status
        self._goes_on = goes_on
        self._note = note

    async def run(self) -> str:
        """Watch until the process was asked to end, or is started no more; return how it died then."""
        child = self.child
        while True:
            started_s = time.monotonic()
            await self._see_return()
            await child.wait()
            if child.ending and not self.death:
                return ""
            self.death = describe_exit(child.returncode)
            if time.monotonic() - started_s > _RESTORED_AFTER_S:
                self._used = 0
            if child.returncode == _USELESS or self._used == self._most:
                times = "once" if self._used == 1 else f"{self._used} times"
                return f"{self.death}, having been started again {times}" if self._used else self.death
            if self._goes_on():
                which = f"; starting it again ({self._used + 1} of {self._most})"
                self._note((f"consumer {child.name} {self.death}", "yellow"), which)
                await asyncio.sleep(_WAIT_S)
            if not self._goes_on():
                return self.death
            self._used += 1
            await child.start()
            if not self._goes_on():  # whoever stops the others did not see this one
                await child.stop()
                return self.death

    async def _see_return(self) -> None:
        """Wait until the process is ready again, if it has died, and say so; or until it has ended."""
        while self.death and self.child.returncode is None and not self.child.ending:
            status = await self._status()
            if status is not None and self.child.is_ready(status):
                self.death = ""
                self._note(f"consumer {self.child.name} is back, and goes on from where it was")
            else:
                await asyncio.sleep(_LOOK_S)
