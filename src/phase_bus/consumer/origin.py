"""Where a consumer begins: what its user wants, what the bus has kept, what it has stored itself."""

from __future__ import annotations

from typing import Literal, TypeAlias

from phase_bus.journal.rows import Checkpoint

Origin: TypeAlias = Literal["checkpoint", "start", "now"] | int


def begin_at(
    kept: Checkpoint | None,
    stored: int | None,
    *,
    origin: Origin = "checkpoint",
    head: int = 0,
) -> Checkpoint:
    """Return the offset after which to begin, and the state to begin with.

    Args:
        kept: the checkpoint of the consumer's name; None for none.
        stored: the offset up to which it keeps everything with its data, None if it does not say.
        origin: where its user wants it to begin.
        head: the offset of the last event that there is.
    """
    if isinstance(origin, int):
        return Checkpoint(origin, None)
    if origin == "now":
        return Checkpoint(head, None)
    if origin == "start" or kept is None or (stored is not None and stored < kept.offset):
        # Never here before, or its data were set back to before the checkpoint: there is no account of
        # what it stored, so all is counted anew, but handled only after that.
        return Checkpoint(0, None)
    return kept
