"""What a piece of code does, in numbers that are the same on every machine."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_REMEDY = (
    "Something new is done on a path that every event or record takes. Take it off that path, or, if it "
    "is worth its price, measure that (`make bench`) and raise the bound in the same commit."
)


def assert_at_most(bound: float, found: float, what: str) -> None:
    """Fail if ``found`` of ``what`` is more than the bound, and say what to do then."""
    assert found <= bound, f"{what}: {found:.2f}, at most {bound:g} so far. {_REMEDY}"


class Calls:
    """How many functions were called.

    Attributes:
        python: functions written in Python; comprehensions count before Python 3.12.
        c: functions and methods written in C; making an object of a class does not count.
    """

    def __init__(self) -> None:
        self.python = 0
        self.c = 0

    @property
    def all(self) -> int:
        """Both."""
        return self.python + self.c

    def _note(self, _frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            self.python += 1
        elif event == "c_call":
            self.c += 1


def calls_of(work: Callable[[], object]) -> Calls:
    """Return how many functions this thread calls in ``work``."""
    calls = Calls()
    before = sys.getprofile()
    sys.setprofile(calls._note)
    try:
        work()
    finally:
        sys.setprofile(before)
    calls.python -= 1  # of work itself
    calls.c -= 1  # of the setprofile that ends it
    return calls


def blocks_kept(work: Callable[[], T]) -> tuple[T, int]:
    """Return what ``work`` returns, and how many blocks of memory are taken more while it is kept.

    The least of some tries: what Python fills its caches with is not meant.
    """
    tries = []
    for _ in range(5):
        result = None
        gc.collect()
        before = sys.getallocatedblocks()
        result = work()
        gc.collect()
        tries.append(sys.getallocatedblocks() - before)
    assert result is not None
    return result, min(tries)


def run_to_end(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing.

    Raises:
        AssertionError: it waits.
    """
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise AssertionError("it waits: a hot path is to end in one go")
