"""All rounds of a verification."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from phase_bus.core.classes import import_extra
from phase_bus.errors import ConfigError, PhaseBusError
from phase_bus.harness.config import Config
from phase_bus.harness.signals import signals_to
from phase_bus.verification.command import Interrupt
from phase_bus.verification.measures import DURATION, load_psutil
from phase_bus.verification.trial import MODES, Bench, Mode, Run

_OUR_NAMES = ("aiperf", "bus", "display")  # those of the other processes in the table of CPU time
# Row by row: each number is once at each place, and comes once right after each other one.
_WILLIAMS = ((0, 1, 3, 2), (1, 2, 0, 3), (2, 3, 1, 0), (3, 0, 2, 1))


@dataclass
class Session:
    """Runs a benchmark in all modes, round by round.

    Attributes:
        command: as :func:`~phase_bus.verification.command.check_benchmark` returns it.
        rounds: how many count, besides the first, which warms up.
        seed: of the order of the modes.
        directory: where each run gets a directory of its own.
        say: called with a line for each run.
        runs: those that are done, without one that was cut short.

    Raises:
        ConfigError: if scipy or psutil is missing, or there is no consumer to suspend or kill.
    """

    command: tuple[str, ...]
    config: Config
    rounds: int
    seed: int
    directory: Path
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        load_psutil()  # before anything is started rather than at the end
        import_extra("scipy.special", "verify")
        for consumer in self.config.consumers:
            if consumer.title in _OUR_NAMES:
                raise ConfigError(f"consumer {consumer.title!r}: give it another 'name' for verify")
        if not self.config.consumers:
            raise ConfigError("no consumer to suspend and to kill; name one with --with")
        self.runs: list[Run] = []
        self.interrupt = Interrupt()
        self._bench = Bench(self.command, self.config, self.interrupt)
        self._begun_s = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether the user interrupted it."""
        return self.interrupt.asked.is_set()

    async def run(self) -> None:
        """Run all rounds, unless the user interrupts it.

        Raises:
            PhaseBusError: if the bus, a consumer or a run of the warm-up fails, as every other run would.
        """
        with signals_to(self.interrupt.on_signal):
            await self._bench.check(self.directory)
            self._begun_s = time.monotonic()
            await self._round(0, MODES)
            for number, order in enumerate(itertools.islice(orders(self.seed), self.rounds), 1):
                await self._round(number, order)

    async def _round(self, number: int, order: tuple[Mode, ...]) -> None:
        for place, mode in enumerate(order, 1):
            if self.interrupt.asked.is_set():
                return
            name = f"round-{number:02}-{place}-{mode}"
            run = Run(round=number, mode=mode, place=place, directory=str(self.directory / name))
            try:
                run = await self._bench.run(run, self._middle_s())
            except PhaseBusError as error:
                run = msgspec.structs.replace(run, problem=" ".join(str(error).split()))
            if self.interrupt.asked.is_set():
                return  # what was cut short says nothing
            if run.problem and number == 0:
                how = mode if mode in ("off", "on") else f"on and a consumer {mode}"
                raise PhaseBusError(f"warm-up with the bus {how}: {run.problem}")
            self.runs.append(run)
            self._tell(run)

    def _middle_s(self) -> float:
        """Return half the time that the profiling phase took in the last run without a bus."""
        durations_s = [run.profiling_s for run in self.runs if run.mode == "off" and run.profiling_s]
        return durations_s[-1] / 2 if durations_s else 0.0

    def _tell(self, run: Run) -> None:
        total = (self.rounds + 1) * len(MODES)
        left = total - len(self.runs)
        each_s = (time.monotonic() - self._begun_s) / len(self.runs)
        name = f"round {run.round} of {self.rounds}" if run.round else "warm-up"
        what = run.problem or (
            f"{run.values.get(DURATION.key, 0.0):.1f} s, {run.requests} requests, {run.errors} errors"
        )
        rest = f"; {left} runs left, about {left * each_s / 60:.0f} min" if left else ""
        self.say(f"{name}, {run.mode}: {what}{rest}")


def orders(seed: int) -> Iterator[tuple[Mode, ...]]:
    """Yield the order of the modes for one round after the other, without end, drawn from a seed.

    Four rounds together are a balanced Latin square: each mode is once first, second, third and last,
    and comes once right after each other mode, so that neither its place in the round nor what the mode
    before left behind favours one. Which mode has which role in the square, and the order of its rows,
    are drawn anew for each four rounds.

    Source: E. J. Williams, "Experimental designs balanced for the estimation of residual effects of
    treatments", Australian Journal of Scientific Research A 2 (1949).
    """
    drawn = random.Random(seed)  # noqa: S311 - an order to be drawn again, no secret
    while True:
        modes = drawn.sample(MODES, len(MODES))
        rows = list(_WILLIAMS)
        drawn.shuffle(rows)
        for row in rows:
            yield tuple(modes[index] for index in row)
