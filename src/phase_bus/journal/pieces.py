"""Bounded answers from a journal: what the replay socket sends, and what a consumer reads by itself."""

from __future__ import annotations

from phase_bus.core.control import Fetch, Fetched, FetchedStates, FetchStates
from phase_bus.core.position import Position
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.rows import Entry, checkpoint_name

_LARGEST = 1 << 20  # a piece; one event, or one state, comes in any case
_TOLD_DAMAGE = 100_000  # offsets in one answer


def read_piece(reader: JournalReader, fetch: Fetch) -> tuple[Fetched, list[Entry]]:
    """Return a bounded piece of the journal, with bundles as they came, and what is to be said of it.

    Raises:
        JournalError: if it cannot be read.
    """
    reader.damaged.clear()
    head = reader.head
    entries = reader.read(
        fetch.after,
        records=fetch.records,
        partition=fetch.partition,
        run_id=fetch.run_id or None,
        kinds=fetch.kinds,
        limit_bytes=min(fetch.limit_bytes, _LARGEST),
        bundled=True,
    )
    # The head was read first: with nothing to hand over, all up to it is of no interest.
    reached = entries[-1] if entries else head
    offset = max(reached.offset, fetch.after)
    answer = Fetched(
        after=fetch.after,
        offset=offset,
        event_number=reached.event_number,
        end=not entries,
        # Read after the events: a run is noted here before the first of its events goes.
        pruned=tuple(reader.pruned_runs(fetch.after, offset)),
        damaged=tuple(each for each in sorted(reader.damaged) if each > fetch.after)[:_TOLD_DAMAGE],
    )
    return answer, entries


def read_states(reader: JournalReader, fetch: FetchStates) -> FetchedStates:
    """Return a bounded piece of a group's checkpoints.

    Raises:
        JournalError: if they cannot be read.
    """
    if fetch.only is not None:
        checkpoint = reader.checkpoint(checkpoint_name(fetch.group, fetch.only))
        return FetchedStates(states={} if checkpoint is None else {fetch.only: checkpoint})
    states: dict[int, tuple[Position, bytes | None]] = {}  # checkpoints, plain tuples to msgpack
    size_bytes = 0
    for share, checkpoint in reader.group_checkpoints(fetch.group, fetch.after):
        if size_bytes >= _LARGEST:
            return FetchedStates(states=states, end=False)
        states[share] = checkpoint
        size_bytes += len(checkpoint.state or b"")
    return FetchedStates(states=states)
