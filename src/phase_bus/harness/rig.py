"""A bus and its consumers as processes, and a display of how the runs go: for ``exec`` and ``up``."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from rich.console import Console

from phase_bus.consumer.consumer import Consumer, named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import REMEMBERED_RUNS, RunInfo, Status
from phase_bus.core.ipc_directory import check_directory
from phase_bus.core.keys import Key, check_guarded, find_key, write_new_key
from phase_bus.errors import AddressError, BusUnreachableError, PhaseBusError
from phase_bus.events import Receipt, RunComplete, Verdict
from phase_bus.harness.children import Child, ConsumerChild, bus_arguments, describe_exit, environment
from phase_bus.harness.config import Config
from phase_bus.harness.ending import BUS_S, MARGIN_S, EndedEarlyError
from phase_bus.harness.live import Live
from phase_bus.harness.progress import Progress
from phase_bus.harness.restarts import Restarts
from phase_bus.harness.rig_directory import RigDirectory
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import parse_checkpoint_name
from phase_bus.reporting.receipts import held_against, last_end

_LOOK_S = 0.05
_SHOWN_GRACE_S = 2.0  # for what is still to be shown when all is handled
_RECEIPT_GRACE_S = 2.0  # for receipts that are still under way
_NAMED_RUNS = 3  # in a line of what went wrong
_DISPLAY_S = 5.0  # for the display to end
_RUN_END_GRACE_S = 2.0  # for a run_complete that is still under way when its command has ended


class Rig:
    """Runs a bus and consumers as processes, and shows on a console how the runs go.

    Use it as an async context manager: inside, everything is ready. A quiet one shows only what the
    processes print, and what goes wrong; a live one has a block at the terminal's foot. Onlookers are
    consumers in this process, which give no receipts.

    Attributes:
        address: the address to give to others.
        key_file: the file with the bus's key, if it has a tcp address.
        has_own_key: whether that key was made for the occasion, and is gone at the end.
        is_insecure: whether it has a tcp address, and asks nobody for a key.
        whole: whether every consumer handled everything, as far as is known; see :meth:`settle`. Final once
            all processes have ended. One that died, was started again and handled everything did so.
        runs: the runs that were published here, once they have ended.
        interrupted: set it to have nothing waited for any longer: neither for consumers to become ready nor
            for them to handle what was published.
    """

    def __init__(
        self,
        config: Config,
        console: Console,
        *,
        quiet: bool = False,
        live: bool = False,
        onlookers: Sequence[Consumer] = (),
    ) -> None:
        self.config = config
        self.progress = named(Progress(console), "progress")
        self._live: Live | None = None
        if live and not quiet:
            self._live = Live(self.progress, console, self.status, {c.title for c in config.consumers})
        self.whole = True
        self.runs: list[str] = []
        self._earlier: tuple[RunInfo, ...] = ()  # runs that the journal had before
        self._journal: Path | None = None
        self._last_letter = 0  # the last dead letter that the journal had before
        self._incomplete: set[str] = set()  # the consumers of whom it is told that they did not handle all
        self._settled = False
        self._quiet = quiet
        self.interrupted = asyncio.Event()
        given = [Address.parse(text) for text in config.address]
        # We talk to the bus by ipc: at the address given, if there is one of that kind.
        own = next((a for a in given if a.scheme == "ipc"), None)
        if own is not None:
            check_directory(own)
        key = _key_of_user(config, given)
        self._directory = RigDirectory()
        by_tcp = any(address.scheme == "tcp" for address in given)
        self.is_insecure = by_tcp and config.insecure
        self.has_own_key = by_tcp and key is None and not config.insecure
        if self.has_own_key:
            key = write_new_key(self._directory.path / "key.yaml")
        self.key_file = None if key is None else key.path
        self._own = own or Address("ipc", directory=str(self._directory.path))
        self.address = str(self._own)
        self._client = BusClient(self._own)
        addresses = [*config.address, *(() if own else (self.address,))]
        say, env, stop_s = self.progress.say, self.environment, config.stop_timeout_s
        self._bus = Child("bus", bus_arguments(addresses, config), say, BUS_S + MARGIN_S, env)
        self._consumers = [ConsumerChild(c, self.address, say, stop_s, env) for c in config.consumers]
        self._dead: set[Child] = set()  # whose end is told
        self._restarts: dict[Child, Restarts] = {}  # once all are ready
        self._closing = False
        self._asking = asyncio.Lock()  # the client has one question at a time
        self._watchers: list[asyncio.Task[None]] = []
        self._onlookers = onlookers
        self._hosts: list[tuple[ConsumerRunner, asyncio.Task[None]]] = []
        self._runner: ConsumerRunner | None = None  # of the display

    async def __aenter__(self) -> Self:
        try:
            await self._bus.start()
            await asyncio.gather(*(child.start() for child in self._consumers))
            status = await self._wait_ready()
            self._earlier = status.runs
            if status.journal is not None:
                self._journal = Path(status.journal)
                with JournalReader(self._journal) as reader:
                    self._last_letter = max((letter.id for letter in reader.dead_letters()), default=0)
            self._watch_all()
            if self.config.address:
                self.address = str(Address.parse(status.addresses[0]).connectable())
            for onlooker in self._onlookers:
                await self._host(onlooker)
            if not self._quiet:
                self._runner = await self._host(self.progress)
            if self._live is not None:
                self._live.start()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._close()

    @property
    def environment(self) -> dict[str, str]:
        """The environment for processes that are to find the bus."""
        no_key = "" if self.is_insecure else None
        return environment(self.address, no_key if self.key_file is None else str(self.key_file))

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the bus (``bus``) and of the consumers, by their names."""
        return {child.name: child.pid for child in (*self._consumers, self._bus)}

    @property
    def stop_s(self) -> float:
        """How long its end may take, seconds: each of its processes is given more than it gives itself."""
        consumers_s = max((child.stop_s for child in self._consumers), default=0.0)
        return _DISPLAY_S + consumers_s + self._bus.stop_s + MARGIN_S

    def kill(self) -> None:
        """End all its processes at once, in a process that ends at once, too; from any thread."""
        if self._live is not None:
            self._live.clear()
        for child in (*self._consumers, self._bus):
            child.kill()
        self._directory.remove()

    def note(self, text: str) -> None:
        """Show a line, unless quiet."""
        if not self._quiet:
            self.progress.note(text)

    async def status(self, timeout_s: float = 1.0) -> Status | None:
        """Return the bus's status, or None if it does not answer."""
        async with self._asking:
            try:
                return await asyncio.to_thread(self._client.status, timeout_s)
            except (BusUnreachableError, AddressError):  # somebody else may have its directory by now
                return None

    # ---- beginning and end ----

    async def _wait_ready(self) -> Status:
        """Wait until each consumer is ready; raise why a process ended instead, or who was not in time.

        Raises:
            EndedEarlyError: if it is interrupted.
        """
        timeout_s = self.config.ready_timeout_s
        waiting = list(self._consumers)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if self.interrupted.is_set():
                        raise EndedEarlyError
                    for child in (self._bus, *self._consumers):
                        if child.returncode is not None:
                            raise PhaseBusError(await child.failure())
                    if (status := await self.status(0.2)) is not None:
                        waiting = [child for child in self._consumers if not child.is_ready(status)]
                        if not waiting:
                            return status
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            names = ", ".join(child.name for child in waiting) or "the bus"
            raise PhaseBusError(
                f"{names}: not ready within {timeout_s:g} s; if this machine is busy, give more time with "
                "ready_timeout_s in the configuration file"
            ) from None

    def _watch_all(self) -> None:
        """Show from now on what the processes print, and see to it that they run."""
        for child in (self._bus, *self._consumers):
            child.speak()
        self._watchers.append(asyncio.create_task(self._watch_bus()))
        for consumer in self._consumers:
            watch = self._restarts[consumer] = Restarts(
                consumer,
                self.config.restarts,
                status=self.status,
                goes_on=self._goes_on,
                note=self.progress.note,
            )
            self._watchers.append(asyncio.create_task(self._watch(watch)))

    async def _watch_bus(self) -> None:
        await self._bus.wait()
        if not self._bus.ending:
            self._tell_death(self._bus, describe_exit(self._bus.returncode))

    async def _watch(self, watch: Restarts) -> None:
        how = await watch.run()
        if how and not self._closing:
            self._tell_death(watch.child, how)

    def _goes_on(self) -> bool:
        """Whether there is, or will be, something to do for consumers."""
        return self._bus.returncode is None and not (self._closing or self.interrupted.is_set())

    def _tell_death(self, child: Child, how: str) -> None:
        self._dead.add(child)
        what = "the bus" if child is self._bus else f"consumer {child.name}"
        self._warn(f"{what} {how}", "the benchmark goes on without it")

    def _warn(self, what: str, remark: str) -> None:
        """Show what keeps the run from having been handled as a whole."""
        self.whole = False
        self.progress.note((what, "red"), f"; {remark}")

    async def _host(self, consumer: Consumer) -> ConsumerRunner:
        ready = asyncio.Event()
        runner = ConsumerRunner(consumer, self._own, receipts=False, on_ready=ready.set)
        task = asyncio.create_task(runner.run())
        self._hosts.append((runner, task))
        task.add_done_callback(lambda _: ready.set())  # it may fail before it is ready
        await ready.wait()
        return runner

    async def _close(self) -> None:
        """End the display and the onlookers, the consumers, then the bus."""
        self._closing = True
        if self._live is not None:
            await self._live.stop()
        for runner, _ in self._hosts:
            runner.stop()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(task for _, task in self._hosts)), _DISPLAY_S)
        results = await asyncio.gather(*(child.stop() for child in self._consumers))
        for child, finished in zip(self._consumers, results, strict=True):
            if not finished:
                self._tell_death(child, f"did not finish within {child.stop_s:g} s and was killed")
            elif child in self._dead or child not in self._restarts:
                continue
            elif death := self._restarts[child].death:
                self._warn(f"consumer {child.name} {death}", "it was not back before the end")
            elif child.returncode:
                self._tell_death(child, f"{describe_exit(child.returncode)} when it was to finish")
        await self._bus.stop()
        if self._settled and self._journal is not None:
            self._check_dead_letters(self._journal)
        await asyncio.gather(*self._watchers)
        self._client.close()
        self._directory.remove()

    # ---- the end of runs ----

    async def settle(self, reason: str) -> None:
        """Wait until every run has ended and every living consumer has handled that.

        Runs that are still open after a moment are ended as lost, for this reason.
        """
        deadline_s = time.monotonic() + _RUN_END_GRACE_S
        while await self._has_open_runs():
            if time.monotonic() > deadline_s or self.interrupted.is_set():
                try:
                    await asyncio.to_thread(self._client.end_runs, reason)
                except (BusUnreachableError, AddressError):
                    self.progress.note(("the bus does not answer; runs cannot be ended", "red"))
                break
            await asyncio.sleep(_LOOK_S)
        await self._wait_handled()
        self._settled = True

    async def _has_open_runs(self) -> bool:
        status = await self.status()
        return status is not None and any(run.status == "running" for run in status.runs)

    async def _wait_handled(self) -> None:
        deadline_s = time.monotonic() + self.config.drain_timeout_s
        while (status := await self.status()) is not None:
            self.runs = [run.run_id for run in status.runs if run not in self._earlier]
            unfinished = list(self._unfinished(status))
            if not unfinished:
                await self._check_receipts(status)
                self._tell_lacking(status)
                await self._wait_shown(status.offset)
                return
            if self._bus.returncode is not None:
                break
            if time.monotonic() > deadline_s or self.interrupted.is_set():
                interrupted = self.interrupted.is_set()
                within = "yet" if interrupted else f"within {self.config.drain_timeout_s:g} s"
                for child, run_id in unfinished:
                    what = f"consumer {child.name} has not handled the end of run {run_id} {within}"
                    self._warn(what, "stopping it")
                return
            await asyncio.sleep(_LOOK_S)
        self._warn("the bus does not answer", "what consumers have handled is unknown")

    def _unfinished(self, status: Status) -> Iterator[tuple[Child, str]]:
        runs = self.runs[-REMEMBERED_RUNS:]
        for child in self._consumers:
            info = child.standing(status)
            handled = () if info is None else info.handled_runs
            if child not in self._dead:  # one that died and is being started again comes to it yet
                yield from ((child, run_id) for run_id in runs if run_id not in handled)

    def _tell_lacking(self, status: Status) -> None:
        """Tell what no consumer can have handled: it never came to the bus."""
        for run in status.runs:
            if run.run_id not in self.runs:
                continue
            if run.dropped:
                what = f"the publisher of run {run.run_id} had to drop {run.dropped_records:,} records"
                self._warn(what, "they are in no result")
            if run.status == "lost":
                self._warn(f"run {run.run_id} was lost", "what had not been delivered is in no result")

    async def _wait_shown(self, offset: int) -> None:
        """Give the display a moment to come to an offset: to the results, and the receipts."""
        deadline_s = time.monotonic() + _SHOWN_GRACE_S
        while self._runner is not None and self._runner.share.follower.offset < offset:
            if time.monotonic() > deadline_s:
                return
            await asyncio.sleep(_LOOK_S)

    async def _check_receipts(self, status: Status) -> None:
        """Tell which consumers did not handle everything, or do not say so: by the receipts in the journal.

        A consumer in its beats names only its latest runs; without a journal that is all there is to know.
        """
        if self._journal is None:
            for child in self._consumers:
                info = child.standing(status)
                self._tell_incomplete(child, info.incomplete_runs if info else ())
            return
        deadline_s = time.monotonic() + _RECEIPT_GRACE_S
        wanted = {(run_id, child.name) for run_id in self.runs for child in self._consumers}
        while True:
            said = await asyncio.to_thread(_receipts, self._journal, self.runs)
            if wanted <= said.keys() or time.monotonic() > deadline_s:
                break
            await asyncio.sleep(_LOOK_S)
        for child in self._consumers:
            given = {run_id: said.get((run_id, child.name)) for run_id in self.runs}
            self._tell_incomplete(child, [run_id for run_id, r in given.items() if r and not r.complete])
            silent = [run_id for run_id, receipt in given.items() if receipt is None]
            if silent and child not in self._dead:
                what = f"consumer {child.name} gave no receipt for run {_some(silent)}"
                self._warn(what, "what it handled is unknown")

    @property
    def earlier(self) -> list[str]:
        """The runs that the journal had before."""
        return [run.run_id for run in self._earlier]

    async def verdicts(self, producers: Collection[str]) -> list[Verdict] | None:
        """Return what there is in the journal of the verdicts on its runs; None without a journal."""
        if self._journal is None:
            return None
        return await asyncio.to_thread(_verdicts, self._journal, self.runs, producers)

    def _check_dead_letters(self, journal: Path) -> None:
        """Tell which consumers failed on events after their receipts, which say nothing of that."""
        with JournalReader(journal) as reader:
            new = Counter(
                letter.consumer for letter in reader.dead_letters() if letter.id > self._last_letter
            )
        for name, count in new.items():
            if parse_checkpoint_name(name)[0] not in self._incomplete:
                events = "event" if count == 1 else "events"
                self._warn(
                    f"consumer {name} failed on {count} {events}", "'phase-bus dead-letters' has them"
                )

    def _tell_incomplete(self, child: Child, runs: Sequence[str]) -> None:
        if runs:
            self._incomplete.add(child.name)
            what = f"consumer {child.name} did not handle everything of run {_some(runs)}"
            self._warn(what, "its lines above say what")


def _key_of_user(config: Config, addresses: Sequence[Address]) -> Key | None:
    """Return the key that the user has for a bus, if one is needed or named.

    Raises:
        KeyFileError: if there is a key file that is not fit for use, or it is named and for no bus.
    """
    named = config.key_file is not None
    by_tcp = any(address.scheme == "tcp" for address in addresses)
    if config.insecure or not (named or by_tcp):
        return None
    key = find_key(config.key_file)
    if key is not None and not key.is_of_bus and not named:
        return None  # it is for somebody else's bus
    for address in addresses:
        check_guarded(address, key, insecure=True)
    return key


def _receipts(journal: Path, runs: Sequence[str]) -> dict[tuple[str, str], Receipt]:
    """Return the last receipts by run and consumer, held against the run's last end."""
    found = {}
    with JournalReader(journal) as reader:
        for run in runs:
            end = last_end(reader.events(run, RunComplete))
            for said in held_against(reader.events(run, Receipt), end):
                found[run, said.consumer] = said
    return found


def _verdicts(journal: Path, runs: Sequence[str], producers: Collection[str]) -> list[Verdict]:
    with JournalReader(journal) as reader:
        return [v for run in runs for v in reader.events(run, Verdict) if v.producer in producers]


def _some(runs: Sequence[str]) -> str:
    """Return the first of some run ids, and how many more there are."""
    more = len(runs) - _NAMED_RUNS
    return ", ".join(runs[:_NAMED_RUNS]) + (f" and of {more} more" if more > 0 else "")
