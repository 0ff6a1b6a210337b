"""Where a consumer begins."""

from __future__ import annotations

import pytest

from phase_bus.consumer.share import Origin, begin_at
from phase_bus.core.position import Position
from phase_bus.journal.rows import Checkpoint

STREAM = "a" * 32
KEPT = Checkpoint(Position(STREAM, 5), b"state")
THERE = (5, b"state")


@pytest.mark.parametrize(
    ("kept", "stored", "origin", "expected"),
    [
        (KEPT, None, "checkpoint", THERE),
        (KEPT, 5, "checkpoint", THERE),
        (KEPT, 7, "checkpoint", THERE),  # it stored more than it could commit: that is not handled again
        (KEPT, 4, "checkpoint", (0, None)),  # its data were set back
        (Checkpoint(Position(STREAM, 0), b"state"), 0, "checkpoint", (0, b"state")),
        (None, None, "checkpoint", (0, None)),
        (None, 7, "checkpoint", (0, None)),
        (KEPT, None, "start", (0, None)),
        (KEPT, None, "now", (9, None)),
        (KEPT, None, 3, (3, None)),
        (KEPT, 4, 3, (3, None)),
    ],
)
def test_begin_at(
    kept: Checkpoint | None,
    stored: int | None,
    origin: Origin,
    expected: tuple[int, bytes | None],
) -> None:
    assert begin_at(kept, stored, origin=origin, head=9) == expected
