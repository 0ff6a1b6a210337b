"""The command that runs as if it had been typed: what reaches it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from phase_bus.harness.ending import Ending
from phase_bus.harness.foreground import run_in_foreground


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
