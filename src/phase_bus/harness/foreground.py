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

Signals: TypeAlias = Callable[[Callable[[int], object], Iterable[int]], AbstractContextManager[None]]


def check_command(command: Sequence[str]) -> None:
    """Raise a ConfigError unless a command is given and can be found, before anything is started."""
    if not command:
        raise ConfigError("no command to run; write it after '--', as in: -- aiperf profile ...")
    if shutil.which(command[0]) is None:
        raise ConfigError(f"command {command[0]!r}: not found, or not executable; check its name and $PATH")


async def run_in_foreground(
    command: Sequence[str], environment: Mapping[str, str], passing_on: Signals
) -> int:
    """Run a command with our terminal and files; return its exit code, negative for a signal.

    It gets a process group of its own, as a shell gives it one, and the terminal with it: Ctrl-C and
    Ctrl-Z reach the command alone. Signals sent to this process, which ``passing_on`` gives to a function
    from any thread, are passed on to the group.
    """
    loop = asyncio.get_running_loop()
    early: list[int] = []
    group: int | None = None

    def forward(signum: int) -> None:
        if group is None:
            early.append(signum)
        else:
            signal_group(group, signum)

    # Before the start: a signal during it must not end this process and leave the command behind.
    with passing_on(lambda signum: loop.call_soon_threadsafe(forward, signum), _FORWARDED):
        process = await asyncio.create_subprocess_exec(*command, env=dict(environment), process_group=0)
        group = process.pid
        for signum in early:
            forward(signum)
        with _terminal_given_to(group):
            watcher = asyncio.create_task(_follow_suspension(group))
            try:
                return await process.wait()
            finally:
                watcher.cancel()


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
        os.kill(os.getpid(), signal.SIGSTOP)
        if had_terminal:
            _hand_terminal_to(pid)
        signal_group(pid, signal.SIGCONT)
