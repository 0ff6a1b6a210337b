"""All rounds of a verification."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.harness.config import Config
from phase_bus.harness.signals import signals_to
from phase_bus.reporting.sweep import student_t
from phase_bus.verification.command import Interrupt
from phase_bus.verification.measures import load_psutil
from phase_bus.verification.plan import MODES, Mode, orders
from phase_bus.verification.trial import Bench, Run

_OUR_NAMES = ("aiperf", "bus", "display")  # those of the other processes in the table of CPU time


class Session:
    """Runs a benchmark in all modes, round by round.

    Args:
        command: the AIPerf command, as :func:`~phase_bus.verification.command.check_benchmark` has it.
        config: the bus and its consumers.
        rounds: how many rounds count, besides the first, which warms up.
        seed: of the order of the modes.
        directory: where each run gets a directory of its own.
        say: called with a line for each run.

    Raises:
        ConfigError: if scipy or psutil is missing, or there is no consumer to suspend or kill.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        config: Config,
        *,
        rounds: int,
        seed: int,
        directory: Path,
        say: Callable[[str], None],
    ) -> None:
        load_psutil()  # before anything is started rather than at the end
        student_t(2, "verify")
        for consumer in config.consumers:
            if consumer.title in _OUR_NAMES:
                raise ConfigError(f"consumer {consumer.title!r}: give it another 'name' for verify")
        if not config.consumers:
            raise ConfigError("no consumer to suspend and to kill; name one with --with")
        self.runs: list[Run] = []
        self._rounds = rounds
        self._seed = seed
        self._directory = directory
        self._say = say
        self._interrupt = Interrupt()
        self._bench = Bench(command, config, self._interrupt)
        self._begun_s = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether the user interrupted it."""
        return self._interrupt.asked.is_set()

    async def run(self) -> None:
        """Run all rounds, unless the user interrupts it.

        Raises:
            PhaseBusError: if the bus, a consumer or a run of the warm-up fails, as every other run would.
        """
        with signals_to(self._interrupt.on_signal):
            await self._bench.check(self._directory)
            self._begun_s = time.monotonic()
            await self._round(0, MODES)
            for number, order in enumerate(itertools.islice(orders(self._seed), self._rounds), 1):
                await self._round(number, order)

    async def _round(self, number: int, order: tuple[Mode, ...]) -> None:
        for place, mode in enumerate(order, 1):
            if self._interrupt.asked.is_set():
                return
            name = f"round-{number:02}-{place}-{mode}"
            run = Run(round=number, mode=mode, place=place, directory=str(self._directory / name))
            try:
                run = await self._bench.run(run, self._middle_s())
            except PhaseBusError as error:
                run = msgspec.structs.replace(run, problem=" ".join(str(error).split()))
            if self._interrupt.asked.is_set():
                return  # what was cut short says nothing
            if run.problem and number == 0:
                raise PhaseBusError(f"warm-up with the bus {_described(mode)}: {run.problem}")
            self.runs.append(run)
            self._tell(run)

    def _middle_s(self) -> float:
        """Return half the time that the profiling phase took in the last run without a bus."""
        durations_s = [run.profiling_s for run in self.runs if run.mode == "off" and run.profiling_s]
        return durations_s[-1] / 2 if durations_s else 0.0

    def _tell(self, run: Run) -> None:
        total = (self._rounds + 1) * len(MODES)
        left = total - len(self.runs)
        each_s = (time.monotonic() - self._begun_s) / len(self.runs)
        name = f"round {run.round} of {self._rounds}" if run.round else "warm-up"
        what = run.problem or (
            f"{run.values.get('command.duration', 0.0):.1f} s, {run.requests} requests, {run.errors} errors"
        )
        rest = f"; {left} runs left, about {left * each_s / 60:.0f} min" if left else ""
        self._say(f"{name}, {run.mode}: {what}{rest}")


def _described(mode: Mode) -> str:
    return mode if mode in ("off", "on") else f"on and a consumer {mode}"
