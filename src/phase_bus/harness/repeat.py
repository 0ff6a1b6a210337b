"""A benchmark's command, repeated: alone, or in turns with the one that it is compared with."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct, field

from phase_bus.errors import ConfigError
from phase_bus.harness.children import describe_exit
from phase_bus.harness.foreground import Signals, TakeBack, run_in_foreground
from phase_bus.harness.label import as_variable

if TYPE_CHECKING:
    from phase_bus.harness.rig import Rig


class Turn(NamedTuple):
    """A command to run, and what its runs are called."""

    command: tuple[str, ...]
    label: str


class Ran(Struct):
    """What came of turns.

    Attributes:
        returncode: that of the last command that ran, negative for a signal.
        runs: the runs that were published, by label, in their order.
        stopped: why there were no more turns, in words; empty if there was nothing to stop for.
        signum: the signal that stopped them, 0 for none.
    """

    returncode: int = 0
    runs: dict[str, list[str]] = field(default_factory=dict)
    stopped: str = ""
    signum: int = 0


def command_line(text: str, option: str) -> tuple[str, ...]:
    """Return the words of a command line, as a shell would split it; no shell runs it.

    Raises:
        ConfigError: if a quotation has no end.
    """
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: {error}; quote the command as in a shell") from None


def repeated(command: tuple[str, ...], times: int, label: str) -> list[Turn]:
    """Return a command so many times; more than one have a label, to be found by, if none is given."""
    if times > 1 and not label:
        label = time.strftime("repeat-%Y%m%d-%H%M%S")
    return [Turn(command, label)] * times


def interleaved(base: Turn, candidate: Turn, times: int) -> list[Turn]:
    """Return two commands so many times each, in turns: base, candidate, candidate, base, and so on.

    What drifts evenly, as a machine that grows warm, then adds the same to both sides; strictly in turns,
    it would always be the candidate's that is later. And each follows on itself as often as on the other.
    """
    turns = []
    for number in range(times):
        turns += [base, candidate] if number % 2 == 0 else [candidate, base]
    return turns


async def run_turns(
    turns: Sequence[Turn],
    rig: Rig,
    passing_on: Signals,
    aborting: Callable[[], AbstractContextManager[asyncio.Event]] = lambda: nullcontext(asyncio.Event()),
    *,
    hold: bool = False,
    allow_no_run: bool = False,
) -> Ran:
    """Run commands one after the other, each once all consumers have handled the runs before it.

    What goes wrong in one leaves the others out: it fails, its run does not complete, a consumer does not
    handle everything, it is interrupted, or a signal comes.

    Args:
        aborting: gives, while a command runs, what is set when that is to be interrupted.
        hold: whether to show nothing while a command runs.
        allow_no_run: whether one may publish no run.
    """
    ran = Ran()
    signals: list[int] = []

    def noting(
        handler: Callable[[int], object], signums: Iterable[int]
    ) -> AbstractContextManager[TakeBack]:
        def take(signum: int) -> None:
            signals.append(signum)
            handler(signum)

        return passing_on(take, signums)

    for number, turn in enumerate(turns, 1):
        if len(turns) > 1:
            rig.note(f"{number} of {len(turns)}: {turn.label}")
        seen = set(rig.runs)
        with rig.progress.lines.held() if hold else nullcontext(), aborting() as interrupting:
            environment = {**rig.environment, **as_variable(turn.label)}
            ran.returncode = await run_in_foreground(turn.command, environment, noting, interrupting)
            interrupted = interrupting.is_set()
        await rig.settle(f"the command {describe_exit(ran.returncode)} without ending the run")
        new = [run_id for run_id in rig.runs if run_id not in seen]
        ran.runs.setdefault(turn.label, []).extend(new)
        if number == len(turns):
            break
        ran.signum = signals[-1] if signals else 0
        wrong = await _what_went_wrong(ran, new, rig, allow_no_run=allow_no_run)
        if interrupted:
            wrong = "a threshold failed that ends a run"
        if wrong:
            left = len(turns) - number
            ran.stopped = f"{wrong}; the other {left} of {len(turns)} are left out"
            break
    return ran


async def _what_went_wrong(ran: Ran, new: Sequence[str], rig: Rig, *, allow_no_run: bool) -> str:
    """Return what of the last command keeps others from being run, in words; empty for nothing."""
    if ran.returncode:
        return f"the command {describe_exit(ran.returncode)}"
    if ran.signum or rig.interrupted.is_set():
        return "interrupted"
    if not rig.whole:
        return "not everything was handled"
    if not new:
        return "" if allow_no_run else "the command published no run"
    status = await rig.status()
    ended = {} if status is None else {run.run_id: run.status for run in status.runs}
    for run_id in new:
        if (how := ended.get(run_id, "completed")) != "completed":
            return f"run {run_id} ended as {how}"
    return ""
