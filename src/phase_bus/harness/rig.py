"""A bus, its consumers and a display of how they do: what ``exec`` and ``up`` set up."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console

from phase_bus.consumer.consumer import named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.control import REMEMBERED_RUNS, Status
from phase_bus.harness.config import Config
from phase_bus.harness.progress import Progress
from phase_bus.harness.supervisor import Child, Supervisor

_LOOK_S = 0.05
_RUN_END_GRACE_S = 2.0  # for a run_complete that is still under way when its command has ended


class Rig:
    """Runs a bus and consumers as processes, and shows on a console how the runs go.

    Use it as an async context manager: inside, everything is ready.

    Args:
        config: the bus and consumers.
        console: where to show things.
        quiet: show only what the processes print, and what goes wrong.

    Attributes:
        address: the address to give to others.
        whole: whether every consumer handled everything, as far as is known; see :meth:`settle`.
    """

    def __init__(self, config: Config, console: Console, *, quiet: bool = False) -> None:
        self.config = config
        self.progress = named(Progress(console), "progress")
        self._quiet = quiet
        self._bus_is_dead = False
        self._directory = Path(tempfile.mkdtemp(prefix="phase-bus-"))
        given = [Address.parse(text) for text in config.address]
        # We talk to the bus by ipc: at the address given, if there is one of that kind.
        own = next((a for a in given if a.scheme == "ipc"), None)
        self._own = own or Address("ipc", directory=str(self._directory))
        self.address = str(self._own)
        self.whole = True  # whether every consumer handled everything, as far as is known
        self._supervisor = Supervisor(config, self._own, self.progress.say, self._on_death)
        self._display: asyncio.Task[None] | None = None
        self._runner: ConsumerRunner | None = None

    async def __aenter__(self) -> Self:
        try:
            status = await self._supervisor.start()
            if self.config.address:
                self.address = status.addresses[0]
            if not self._quiet:
                await self._start_display()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close()

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the bus (``bus``) and of the consumers, by their names."""
        return self._supervisor.pids

    async def status(self) -> Status | None:
        """Return the bus's status, or None if it does not answer."""
        return await self._supervisor.status()

    async def settle(self, reason: str) -> None:
        """Wait until every run has ended and every living consumer has handled that.

        Args:
            reason: why runs that are still open after a moment must be given up.
        """
        deadline_s = time.monotonic() + _RUN_END_GRACE_S
        status = await self._supervisor.status()
        while status is not None and _open_runs(status) and time.monotonic() < deadline_s:
            await asyncio.sleep(_LOOK_S)
            status = await self._supervisor.status()
        if status is not None and _open_runs(status):
            await self._supervisor.end_runs(reason)
        await self._wait_handled()

    async def _wait_handled(self) -> None:
        deadline_s = time.monotonic() + self.config.drain_timeout_s
        while (status := await self._supervisor.status()) is not None:
            unfinished = list(self._unfinished(status))
            if not unfinished:
                self._tell_incomplete(status)
                return
            if self._bus_is_dead:
                break
            if time.monotonic() > deadline_s:
                self.whole = False
                for child, run_id in unfinished:
                    self.progress.note(
                        f"[red]consumer {child.name} has not handled the end of run {run_id} within "
                        f"{self.config.drain_timeout_s:g} s[/]; stopping it"
                    )
                return
            await asyncio.sleep(_LOOK_S)
        self.whole = False
        self.progress.note("[red]the bus does not answer: what consumers have handled is unknown[/]")

    def _unfinished(self, status: Status) -> Iterator[tuple[Child, str]]:
        runs = [run.run_id for run in status.runs if run.status != "running"][-REMEMBERED_RUNS:]
        for child in self._supervisor.consumers:
            info = child.standing(status)
            if child.returncode is not None or info is None:
                continue
            for run_id in runs:
                if run_id not in info.handled_runs:
                    yield child, run_id

    def _tell_incomplete(self, status: Status) -> None:
        for child in self._supervisor.consumers:
            info = child.standing(status)
            for run_id in info.incomplete_runs if info else ():
                self.whole = False
                self.progress.note(
                    f"[red]consumer {child.name} did not handle everything of run {run_id}[/]; "
                    "its lines above say what"
                )

    def _on_death(self, name: str, how: str) -> None:
        self.whole = False
        self._bus_is_dead |= name == "bus"
        what = "the bus" if name == "bus" else f"consumer {name}"
        self.progress.note(f"[red]{what} {how}[/]; the benchmark goes on without it")

    async def _start_display(self) -> None:
        ready = asyncio.Event()
        self._runner = ConsumerRunner(self.progress, self._own, receipts=False, on_ready=ready.set)
        self._display = asyncio.create_task(self._runner.run())
        waiting = asyncio.create_task(ready.wait())
        await asyncio.wait((waiting, self._display), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    async def _close(self) -> None:
        if self._runner is not None and self._display is not None:
            self._runner.stop()
            await self._display
        await self._supervisor.stop()
        shutil.rmtree(self._directory, ignore_errors=True)


def _open_runs(status: Status) -> bool:
    return any(run.status == "running" for run in status.runs)
