"""Waiting for a condition, with a deadline: a test never sleeps for a fixed time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")
DEADLINE_S = 20.0
_PAUSE_S = 0.002


def wait_until(condition: Callable[[], T | Literal[False]], timeout_s: float = DEADLINE_S) -> T:
    """Return the condition's first true value.

    Raises:
        AssertionError: if it does not hold in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        _check(deadline_s, timeout_s)
        time.sleep(_PAUSE_S)
    return value


async def until(condition: Callable[[], T | Literal[False]], timeout_s: float = DEADLINE_S) -> T:
    """Do the same while the event loop goes on.

    Raises:
        AssertionError: if it does not hold in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        _check(deadline_s, timeout_s)
        await asyncio.sleep(_PAUSE_S)
    return value


def _check(deadline_s: float, timeout_s: float) -> None:
    if time.monotonic() >= deadline_s:
        raise AssertionError(f"waited {timeout_s:g} s in vain")
