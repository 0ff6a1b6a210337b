"""What comes event by event, and is put into the stream at once, goes on in as few messages as it may."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from phase_bus.bus.stream import Incoming, Stream
from phase_bus.core.wire import Header, parse_topic, partition_of
from phase_bus.journal.writer import Journal
from tests.support.bundles import FIXED, Frames, taken_apart

SOURCES = (b"a" * 16, b"b" * 16)
TOPICS = (b"phase_progress.r$", b"phase_start.r$", b"run_start.r$", b"records.01.r$", b"summary.r$")
ALONE = (b"run_start.", b"records.", b"summary.")

one = st.tuples(
    st.sampled_from(SOURCES), st.sampled_from(TOPICS), st.sampled_from((1, 200, 8192, 9000, 30_000))
)
turn = st.lists(st.tuples(one, st.integers(1, 9)), min_size=1, max_size=12)


Turns: TypeAlias = list[list[tuple[tuple[bytes, bytes, int], int]]]


class Fed:
    """A stream over a journal, whose messages are received, and what was put into it one by one."""

    def __init__(self, directory: Path) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._xpub, self._sub = self._context.socket(zmq.XPUB), self._context.socket(zmq.SUB)
        for sock in (self._xpub, self._sub):
            sock.set_hwm(0)
        self._xpub.bind("inproc://live")
        self._sub.connect("inproc://live")
        self._sub.subscribe(b"")
        self._xpub.recv()
        self._journal = Journal(directory)
        self._stream = Stream(self._xpub, self._journal, self._journal.stream)
        self._seqs: Counter[bytes] = Counter()
        self._topic_seqs: Counter[tuple[bytes, bytes]] = Counter()
        self.put: list[tuple[bytes, bytes, int, int, bytes]] = []

    def add(self, source: bytes, topic: bytes, size_bytes: int, count: int) -> None:
        """Take in so many events of a size."""
        for _ in range(count):
            self._seqs[source] += 1
            self._topic_seqs[source, topic] += 1
            seq, topic_seq = self._seqs[source], self._topic_seqs[source, topic]
            payload = f"{len(self.put)} ".encode().ljust(size_bytes, b".")
            header = Header(source, seq, topic_seq, int(topic.startswith(b"records")))
            parsed, partition = parse_topic(topic), partition_of(topic)
            self._stream.add(Incoming(topic, parsed, header, payload, partition, payload, None))
            self.put.append((topic, source, seq, topic_seq, payload))

    def commit(self) -> list[Frames]:
        """Put it into the stream; return the messages that it went on in."""
        events = len(self.put) - self._stream.head.offset
        assert len(self._stream.commit()) == events
        messages: list[Frames] = []
        while self._sub.poll(0):
            topic, header, payload = self._sub.recv_multipart()
            messages.append((topic, header, payload))
        return messages

    def close(self) -> list[Frames]:
        """Close all of it; return the journal's rows."""
        self._journal.close()
        self._context.destroy(linger=0)
        sql = "SELECT topic, header, payload FROM events JOIN streams ON id = stream ORDER BY offset"
        with closing(sqlite3.connect(self._journal.path)) as db:
            return db.execute(sql).fetchall()


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(turn, min_size=1, max_size=4))
def test_nothing_is_changed_by_going_together(turns: Turns) -> None:
    """Taken apart, live messages and rows are what was put in, in its order and with its numbers."""
    with tempfile.TemporaryDirectory() as path:
        fed = Fed(Path(path))
        messages = []
        for some in turns:
            for (source, topic, size_bytes), count in some:
                fed.add(source, topic, size_bytes, count)
            messages += fed.commit()
        rows = fed.close()
    assert rows == messages
    apart = [each for message in messages for each in taken_apart(*message)]
    assert [offset for offset, _ in apart] == list(range(1, len(fed.put) + 1))
    numbers = [(topic, *FIXED.unpack(header)[3:6], payload) for _, (topic, header, payload) in apart]
    assert numbers == fed.put
    for topic, header, payload in messages:
        bundled = len(header) > 64
        assert not (bundled and (topic.startswith(ALONE) or len(payload) > (64 << 10) + 3))


def test_as_few_messages_as_may_be(tmp_path: Path) -> None:
    """Events of a topic in a row are one message, up to its bounds; another topic or source begins anew."""
    fed = Fed(tmp_path)
    a, b = SOURCES
    for source, topic, size_bytes, count in (
        (a, TOPICS[0], 200, 300),
        (a, TOPICS[1], 200, 1),
        (b, TOPICS[1], 200, 2),
        (b, TOPICS[2], 200, 2),
        (b, TOPICS[1], 8192, 9),
        (b, TOPICS[1], 9000, 2),
    ):
        fed.add(source, topic, size_bytes, count)
    counts = [(len(header) - 64) // 4 or 1 for _, header, _ in fed.commit()]
    assert counts == [256, 44, 1, 2, 1, 1, 8, 1, 1, 1]
    fed.add(b, TOPICS[1], 10, 1)
    assert len(fed.commit()) == 1
    offsets = [offset for row in fed.close() for offset, _ in taken_apart(*row)]
    assert all(after == before + 1 for before, after in pairwise(offsets))
