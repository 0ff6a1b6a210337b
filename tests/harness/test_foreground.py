"""The command that runs as if it had been typed: what reaches it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from phase_bus.harness.ending import Ending
from phase_bus.harness.foreground import run_in_foreground
from phase_bus.testing.waiting import wait_until


async def test_a_signal_during_the_start_reaches_the_command(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """It comes before the command has a process id, and must not end this process instead."""
    start = asyncio.create_subprocess_exec

    async def start_late(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        os.kill(os.getpid(), signal.SIGTERM)
        return await start(*arguments, **options)

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    # Without the handler this would end pytest itself.
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start_late)
    with Ending(print, 60.0) as ending:
        code = await run_in_foreground(("sleep", "60"), os.environ, ending.passing_on)
    assert code == -signal.SIGTERM


async def test_a_signal_after_the_end_is_for_this_process(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None
) -> None:
    """The command has ended, the event loop has not come to it: nobody else could take the signal."""
    wait = asyncio.subprocess.Process.wait
    asked = threading.Event()
    askers: list[str] = []
    passed_on = threading.Event()

    async def wait_and_be_asked(process: asyncio.subprocess.Process) -> int:
        code = await wait(process)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.to_thread(passed_on.wait, 10)
        return code

    def ask() -> None:
        askers.append(threading.current_thread().name)
        asked.set()

    with Ending(print, 60.0) as ending:
        ending.begin("the test", ask)

        @contextmanager
        def passing_on(
            handler: Callable[[int], object], signums: Iterable[int]
        ) -> Iterator[Callable[[int], object]]:
            def noting(signum: int) -> None:
                handler(signum)
                passed_on.set()

            with ending.passing_on(noting, signums) as take_back:
                yield take_back

        monkeypatch.setattr(asyncio.subprocess.Process, "wait", wait_and_be_asked)
        assert await run_in_foreground(("true",), os.environ, passing_on) == 0
        assert await asyncio.to_thread(asked.wait, 10)
        assert ending.signum == signal.SIGTERM
    assert askers == ["ending"]  # the thread that sees to it that the time is kept


async def test_an_interruption_reaches_the_whole_group_once(tmp_path: Path, no_leaks: None) -> None:
    """As Ctrl-C does: a script and what it has started."""
    script = "trap 'echo x >> a; exit 7' INT; (trap 'echo x >> b' INT; touch go; sleep 60) & wait"
    interrupting = asyncio.Event()
    command = ("bash", "-c", f"cd {tmp_path}; {script}")
    with Ending(print, 60.0) as ending:
        running = asyncio.create_task(
            run_in_foreground(command, os.environ, ending.passing_on, interrupting)
        )
        await asyncio.to_thread(wait_until, (tmp_path / "go").exists)
        assert not running.done()
        interrupting.set()
        assert await running == 7
    await asyncio.to_thread(wait_until, (tmp_path / "b").exists)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("x\n", "x\n")


async def test_one_that_does_not_come_changes_nothing(no_leaks: None) -> None:
    with Ending(print, 60.0) as ending:
        code = await run_in_foreground(("true",), os.environ, ending.passing_on, asyncio.Event())
    assert code == 0
