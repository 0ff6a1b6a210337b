"""Where a position of before is, in the lineage of another start of the bus, a copy, or another journal."""

from __future__ import annotations

import random

import pytest

from phase_bus.core.position import Lineage, Place, Position, Segment

A, B, C, D = (letter * 32 for letter in "abcd")
# A went to 10, and B was begun there; B went to 25 and lost its end; then came C, which is live.
LINEAGE = Lineage([Segment(A, 1), Segment(B, 11), Segment(C, 21)])


@pytest.mark.parametrize(
    ("position", "place"),
    [
        (Position(A, 0), Place("here", 0)),
        (Position(A, 10), Place("here", 10)),
        (Position(A, 11), Place("cut", 10)),  # of a copy that was restored
        (Position(B, 5), Place("here", 5)),  # all that B continues counts as B's
        (Position(B, 20), Place("here", 20)),
        (Position(B, 25), Place("cut", 20)),
        (Position(C, 21), Place("here", 21)),
        (Position(C, 99), Place("here", 99)),  # nobody knows how far it is by now
        (Position(D, 5), Place("elsewhere", 0)),
        (Position("", 5), Place("elsewhere", 0)),
    ],
)
def test_a_position_is_judged_by_the_lineage(position: Position, place: Place) -> None:
    assert LINEAGE.find(position) == place


def test_where_the_end_is_known_the_last_stream_can_be_cut_too() -> None:
    assert LINEAGE.find(Position(C, 99), head=30) == Place("cut", 30)
    assert LINEAGE.find(Position(C, 30), head=30) == Place("here", 30)


def test_streams_that_were_cut_to_nothing() -> None:
    """Two starts at the same offset: neither has the other's events."""
    lineage = Lineage([Segment(A, 1), Segment(B, 11), Segment(C, 11)])
    assert lineage.find(Position(B, 12)) == Place("cut", 10)
    assert lineage.find(Position(C, 12)) == Place("here", 12)
    assert lineage.position(12) == Position(C, 12)
    assert lineage.position(10) == Position(A, 10)


def test_without_a_journal() -> None:
    assert Lineage().position(7) == Position("", 7)
    assert Lineage().find(Position(A, 7)) == Place("elsewhere", 0)
    assert (Lineage().journal_id, LINEAGE.journal_id) == ("", A)


def test_an_offset_never_means_two_events() -> None:
    """Against a model: a log that is cut and goes on, at random, and readers who stood anywhere before."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    log: list[tuple[str, int]] = []  # the events that are there: each is named once and for all
    segments: list[Segment] = []
    readers: list[tuple[Position, list[tuple[str, int]]]] = []
    durable = names = 0
    for start in range(60):
        stream = f"{start:032x}"
        segments.append(Segment(stream, len(log) + 1))
        durable = len(log)  # the start itself is on the disk, and so is all before
        lineage = Lineage(segments)
        for position, had in readers:
            place = lineage.find(position, len(log))
            common = next(
                (n for n, (a, b) in enumerate(zip(had, log, strict=False)) if a != b),
                min(len(had), len(log)),
            )
            assert place == (
                Place("here", position.offset) if common == len(had) else Place("cut", common)
            ), f"seed {seed}"
        for _ in range(chance.randrange(4)):
            names += 1
            log.append((stream, names))
            readers.append((lineage.position(len(log)), list(log)))
        readers.append((lineage.position(0), []))
        if chance.random() < 0.5:
            del log[chance.randint(durable, len(log)) :]
