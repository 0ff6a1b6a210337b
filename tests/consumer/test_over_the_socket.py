"""What consumers on the bus's machine do is also what they do elsewhere, where they ask for what is past.

The same tests again, of consumers that may not read the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from phase_bus.consumer.local import LocalJournal
from tests.consumer import test_catching_up, test_group_runner

pytestmark = pytest.mark.usefixtures("asking", "no_leaks")


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers that find that they had better ask the bus."""

    async def refuse(_self: LocalJournal, _read: Callable[..., Any]) -> None:
        return None

    monkeypatch.setattr(LocalJournal, "read", refuse)


for module in (test_catching_up, test_group_runner):
    globals().update({name: test for name, test in vars(module).items() if name.startswith("test_")})


def test_all_of_them_are_here() -> None:
    """Not by an accident of how tests are found, and none hides another."""
    here = {name for name in globals() if name.startswith("test_")}
    assert len(here) > 15
