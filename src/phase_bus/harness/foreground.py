"""Running the benchmark's command as if it had been typed into the shell itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TypeAlias

from phase_bus.errors import ConfigError
from phase_bus.harness.ending import ENDING
from phase_bus.harness.signals import signal_group

_FORWARDED = (*ENDING, signal.SIGQUIT)
_LOOK_S = 0.2

# What gives signals to a function while its context is entered, and takes back those that came too late.
TakeBack: TypeAlias = Callable[[int], object]
Signals: TypeAlias = Callable[[Callable[[int], object], Iterable[int]], AbstractContextManager[TakeBack]]


def check_command(command: Sequence[str]) -> None:
    """Raise a ConfigError unless a command is given and can be found, before anything is started."""
    if not command:
        raise ConfigError("no command to run; write it after '--', as in: -- aiperf profile ...")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"command {command[0]!r}: not found, or not executable; check its name and $PATH")


async def run_in_foreground(
    command: Sequence[str],
    environment: Mapping[str, str],
    passing_on: Signals,
    interrupting: asyncio.Event | None = None,
) -> int:
    """Run a command with our terminal and files; return its exit code, negative for a signal.

    It gets a process group of its own, as a shell gives it one, and the terminal with it: Ctrl-C and
    Ctrl-Z reach the command alone. Signals sent to this process, which ``passing_on`` gives to a function
    from any thread, are passed on to the group while the command runs, and given back once it has ended.
    Once ``interrupting`` is set, the group gets a SIGINT.
    """
    loop = asyncio.get_running_loop()
    early: list[int] = []
    group: int | None = None

    def forward(signum: int) -> None:
        if group is None:
            early.append(signum)
        elif _has_ended(group):
            take_back(signum)
        else:
            signal_group(group, signum)

    # Before the start: a signal during it must not end this process and leave the command behind.
    with passing_on(lambda s: loop.call_soon_threadsafe(forward, s), _FORWARDED) as take_back:
        process = await asyncio.create_subprocess_exec(*command, env=dict(environment), process_group=0)
        group = process.pid
        for signum in early:
            forward(signum)
        with _terminal_given_to(group):
            watchers = [asyncio.create_task(_follow_suspension(group))]
            if interrupting is not None:
                watchers.append(asyncio.create_task(_interrupt_when(interrupting, group)))
            try:
                return await process.wait()
            finally:
                for watcher in watchers:
                    watcher.cancel()


def _has_ended(pid: int) -> bool:
    """Return whether a child has ended, of which the event loop may not know yet."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # somebody has waited for it
        return True


async def _interrupt_when(interrupting: asyncio.Event, group: int) -> None:
    await interrupting.wait()
    signal_group(group, signal.SIGINT)


@contextmanager
def _terminal_given_to(group: int) -> Iterator[None]:
    if not _owns_terminal():
        yield
        return
    _hand_terminal_to(group)
    signal_group(group, signal.SIGCONT)  # in case it asked for the terminal before it had it
    try:
        yield
    finally:
        _hand_terminal_to(os.getpgrp())


def _owns_terminal() -> bool:
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _hand_terminal_to(group: int) -> None:
    # A process in the background that changes this is stopped, unless it ignores the signal for it.
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):
            os.tcsetpgrp(sys.stdin.fileno(), group)
    finally:
        signal.signal(signal.SIGTTOU, before)


def suspend_this_process() -> None:
    """Stop this process as Ctrl-Z does, which whoever draws on the terminal has a handler for."""
    handler = signal.getsignal(signal.SIGTSTP)
    if callable(handler):
        handler(signal.SIGTSTP, None)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)


async def _follow_suspension(pid: int) -> None:
    """When the command is suspended (Ctrl-Z), suspend this process too, and later continue both."""
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            stopped = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)  # noqa: ASYNC222 - it does not wait
        except ChildProcessError:
            return
        if stopped is None:
            continue
        had_terminal = os.isatty(0)
        if had_terminal:
            _hand_terminal_to(os.getpgrp())
        suspend_this_process()
        if had_terminal:
            _hand_terminal_to(pid)
        signal_group(pid, signal.SIGCONT)
