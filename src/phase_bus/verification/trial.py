"""One run of the benchmark in one mode, and what was measured of it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

from msgspec import Struct
from msgspec.structs import asdict, replace

from phase_bus.core.console import PlainConsole
from phase_bus.harness.children import describe_exit
from phase_bus.harness.config import Config
from phase_bus.harness.rig import Rig
from phase_bus.verification.command import Ended, Interrupt, run_benchmark
from phase_bus.verification.measures import CPU, DURATION, cpu_s_of, load_psutil, processes_of, read_results

Mode: TypeAlias = Literal["off", "on", "stalled", "killed"]

MODES: tuple[Mode, ...] = get_args(Mode)
FELT_MODES = MODES[1:]  # those that are held against the first
WHAT = {
    "off": "no bus, the plugin disabled",
    "on": "bus and consumers, as 'phase-bus exec' runs them",
    "stalled": "the first consumer suspended from before the run to its end",
    "killed": "the first consumer killed in the middle of the profiling phase, and started again",
}
_WIDE = 200


class Run(Struct, frozen=True, kw_only=True):
    """A run of the benchmark.

    Attributes:
        round: from 1; 0 is the warm-up, which counts for nothing.
        place: which one of its round it was, from 1.
        directory: where its output is.
        exit_code: AIPerf's, negative for a signal; None if it was not started.
        values: what is compared, by :attr:`~phase_bus.verification.measures.Measure.key`.
        cpu_s: the CPU time of processes by name, in seconds. ``aiperf``: from its start to its end, all of
            its processes. The others: from being ready until the end of the run was handled; ``display``
            is the process that shows how the run goes, as ``exec`` does, here verify's own.
        requests: how many requests succeeded.
        profiling_s: how long the profiling phase took, in seconds.
        events: how many events of the run the bus took, None without a bus.
        killed_after_s: when in the profiling phase the consumer was killed, in seconds; None if it was not.
        whole: whether each living consumer handled everything, None without a bus.
        problem: why the run does not count, empty if it does.
    """

    round: int
    mode: Mode
    place: int
    directory: str
    exit_code: int | None = None
    values: dict[str, float] = {}
    cpu_s: dict[str, float] = {}
    requests: int = 0
    errors: int = 0
    profiling_s: float = 0.0
    events: int | None = None
    killed_after_s: float | None = None
    whole: bool | None = None
    problem: str = ""


@dataclass(frozen=True)
class Bench:
    """Runs the benchmark in any mode; the first of the consumers is the one that is suspended or killed."""

    command: tuple[str, ...]
    config: Config
    interrupt: Interrupt

    async def check(self, directory: Path) -> None:
        """Start the bus and the consumers once, before a benchmark is run for nothing."""
        async with self._rig(directory):
            pass

    async def run(self, run: Run, kill_after_s: float) -> Run:
        """Run the benchmark in a run's mode and directory; return the run with what was measured.

        In the mode ``killed`` the consumer is killed so many seconds into the profiling phase.
        """
        directory = Path(run.directory)
        directory.mkdir(parents=True)  # noqa: ASYNC240 - nothing else waits
        if run.mode == "off":
            environ = {k: v for k, v in os.environ.items() if k != "PHASE_BUS_ADDRESS"}
            ended, display_s = await self._benchmark(directory, environ)
            return _measured(run, ended, {"display": display_s})
        async with self._rig(directory) as rig:
            return await self._run_with(rig, run, kill_after_s)

    @asynccontextmanager
    async def _rig(self, directory: Path) -> AsyncIterator[Rig]:
        """Have a bus and consumers as ``exec`` has, but for the journal, which is not kept."""
        journal = directory / "journal"
        config = replace(self.config, data=str(journal))
        with (directory / "phase-bus.log").open("w") as log:
            try:
                async with Rig(config, PlainConsole(file=log, width=_WIDE)) as rig:
                    yield rig
            finally:
                shutil.rmtree(journal, ignore_errors=True)

    async def _run_with(self, rig: Rig, run: Run, kill_after_s: float) -> Run:
        before_s = _cpu_s(rig)
        title = self.config.consumers[0].title
        victim = rig.pids[title]
        killing = asyncio.create_task(_kill(rig, victim, kill_after_s)) if run.mode == "killed" else None
        try:
            with _suspended(victim) if run.mode == "stalled" else nullcontext():
                ended, display_s = await self._benchmark(Path(run.directory), rig.environment)
        finally:
            if killing is not None:
                killing.cancel()
                await asyncio.wait((killing,))
        killed = None if killing is None or killing.cancelled() else killing.result()
        await rig.settle(f"the command {describe_exit(ended.exit_code)} without ending the run")
        status = await rig.status()
        after_s = _cpu_s(rig)
        if killed is not None and killed.spent_s is not None:
            after_s[title] = after_s.get(title, 0.0) + killed.spent_s  # and what its successor has spent
        spent_s = {name: after_s[name] - before_s[name] for name in after_s if name in before_s}
        run = replace(
            _measured(run, ended, {**spent_s, "display": display_s}),
            events=None if status is None else sum(info.events for info in status.runs),
            killed_after_s=None if killed is None else killed.after_s,
            whole=rig.whole,
        )
        return replace(run, problem=run.problem or _not_as_meant(run))

    async def _benchmark(self, directory: Path, environ: dict[str, str]) -> tuple[Ended, float]:
        """Run the command; return how it ended, and the CPU time that this process spent meanwhile."""
        before_s = time.process_time()
        log = directory / "aiperf.log"
        ended = await run_benchmark(self.command, directory / "aiperf", environ, log, self.interrupt)
        return ended, time.process_time() - before_s


class _Killed(NamedTuple):
    """When in the profiling phase a consumer was killed, and the CPU time it had spent, in seconds."""

    after_s: float
    spent_s: float | None


async def _kill(rig: Rig, pid: int, after_s: float) -> _Killed:
    """Kill a consumer in the middle of the profiling phase."""
    await rig.progress.profiling.wait()
    started_s = time.monotonic()
    await asyncio.sleep(after_s)
    spent_s = cpu_s_of(pid)
    _signal_all(pid, signal.SIGKILL)
    return _Killed(time.monotonic() - started_s, spent_s)


@contextmanager
def _suspended(pid: int) -> Iterator[None]:
    """Suspend a process and all below it, and resume them at the end."""
    _signal_all(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal_all(pid, signal.SIGCONT)


def _signal_all(pid: int, signum: signal.Signals) -> None:
    gone = load_psutil().NoSuchProcess
    for process in processes_of(pid):
        with suppress(gone):
            process.send_signal(signum)


def _cpu_s(rig: Rig) -> dict[str, float]:
    """Return what CPU time the living processes of a rig have spent, in seconds."""
    spent_s = {name: cpu_s_of(pid) for name, pid in rig.pids.items()}
    return {name: value for name, value in spent_s.items() if value is not None}


def _measured(run: Run, ended: Ended, cpu_s: dict[str, float]) -> Run:
    """Return the run with how its command ended and what AIPerf measured."""
    run = replace(run, exit_code=ended.exit_code, cpu_s={"aiperf": ended.cpu_s, **cpu_s})
    if ended.exit_code:
        problem = f"AIPerf {describe_exit(ended.exit_code)}; see {run.directory}/aiperf.log"
        return replace(run, problem=problem)
    found = read_results(Path(run.directory) / "aiperf")
    if isinstance(found, str):
        return replace(run, problem=found)
    run = replace(run, **asdict(found))
    return replace(run, values={**run.values, DURATION.key: ended.duration_s, CPU.key: ended.cpu_s})


def _not_as_meant(run: Run) -> str:
    """Return why a run with a bus did not show what its mode is about, or nothing."""
    if run.events is None:
        return "the bus did not answer at the end"
    if not run.events:
        return "the command published nothing; 'phase-bus doctor' may say why"
    if run.mode == "killed" and run.killed_after_s is None:
        return "the profiling phase was over before the consumer could be killed; let it take longer"
    return ""
