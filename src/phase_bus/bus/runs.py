"""The runs that a bus knows: what was published of each, and how it ended."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from msgspec import Struct, field

from phase_bus.core.control import RunInfo
from phase_bus.core.wire import TOPIC_END, Header, Topic, decode_event, parse_topic
from phase_bus.errors import JournalError
from phase_bus.events import BEGIN_NO_RUN, Event, EventBase, RunComplete, RunStart
from phase_bus.journal.writer import Journal

logger = logging.getLogger("phase_bus.bus")

_KEPT_RUNS = 1000  # of those that ended; the oldest are forgotten


class Run(Struct, kw_only=True):
    """A run as the bus sees it.

    Attributes:
        publisher: the source that publishes it.
        status: ``running``, or how it ended.
        started_ns, ended_ns: when it began and ended, by its events' own times.
        behind_ns: by how much these are behind the time at which the bus takes them in: that of a replayed
            run by days.
        last_ns: the latest of them.
        published: how many of its publisher's events were taken in so far, by topic.
        records: how many request records are in them.
    """

    run_id: str
    publisher: bytes
    publisher_name: str
    status: str = "running"
    started_ns: int = field(default_factory=time.time_ns)
    ended_ns: int | None = None
    behind_ns: int = 0
    last_ns: int = 0
    published: Counter[str] = field(default_factory=Counter)
    records: int = 0

    def info(self) -> RunInfo:
        """Return what others may know of it."""
        return RunInfo(
            run_id=self.run_id,
            status=self.status,
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            events=sum(self._published().values()) + (self.status != "running"),
            publisher=self.publisher_name,
        )

    def lost(self, reason: str) -> RunComplete:
        """Return its end as ``lost``, for a run whose publisher is gone."""
        return RunComplete(
            run_id=self.run_id,
            ts_ns=max(time.time_ns() - self.behind_ns, self.last_ns),
            status="lost",
            reason=reason,
            published=self._published(),
            records=self.records,
        )

    def take_time(self, event: EventBase, *, first: bool) -> None:
        """Take in an event's time; the run began with its first start, or without one its first event."""
        self.last_ns = max(self.last_ns, event.ts_ns)
        start_topic = f"{RunStart.kind}.{self.run_id}{TOPIC_END}"
        is_start, began = isinstance(event, RunStart), start_topic in self.published
        if first or (is_start and not began):
            self.started_ns, self.behind_ns = event.ts_ns, time.time_ns() - event.ts_ns
        elif is_start:
            self.started_ns = min(self.started_ns, event.ts_ns)

    def _published(self) -> dict[str, int]:
        """Return what was published besides its end."""
        end_topic = f"{RunComplete.kind}.{self.run_id}{TOPIC_END}"
        return {topic: count for topic, count in self.published.items() if topic != end_topic}


class Runs:
    """The runs of one bus, the oldest first. The latest of those that ended are remembered.

    The journal, if there is one, holds the runs that an earlier bus left, and is told of changes.

    Attributes:
        losing: the runs whose end as ``lost`` is still to be published, and why.

    Raises:
        JournalError: if the journal cannot be read.
    """

    def __init__(
        self, journal: Journal | None = None, name_of: Callable[[bytes], str] = lambda _: ""
    ) -> None:
        self.by_id: dict[str, Run] = {}
        self.losing: dict[str, str] = {}
        self._journal = journal
        self._name_of = name_of
        if journal is not None:
            self._recall(journal)

    def _recall(self, journal: Journal) -> None:
        """Go on from what an earlier bus left."""
        for row in journal.runs():
            run = self.by_id[row.run_id] = Run(
                run_id=row.run_id,
                publisher=b"",
                publisher_name=row.publisher,
                status=row.status,
                started_ns=row.started_ns,
                ended_ns=row.ended_ns,
                records=row.records,
            )
            if (taken_ns := journal.taken_ns(row.run_id)) is not None:
                run.behind_ns = taken_ns - row.started_ns
            topics = journal.topics(row.run_id)
            for topic, source, _ in topics:
                if parse_topic(topic).kind not in BEGIN_NO_RUN:
                    run.publisher = run.publisher or source  # not the bus that declared it lost
            run.published.update({t.decode(): n for t, source, n in topics if source == run.publisher})

    def knows(self, run_id: str) -> bool:
        """Return whether anything is known of a run, here or in the journal."""
        return run_id in self.by_id or (self._journal is not None and self._journal.has_run(run_id))

    def forget(self, run_id: str) -> None:
        """Let go of a run that was pruned from the journal."""
        self.by_id.pop(run_id, None)

    def open(self, source: bytes | None = None) -> list[Run]:
        """Return the running runs, of one source or of all."""
        running = [run for run in self.by_id.values() if run.status == "running"]
        return [run for run in running if source in (None, run.publisher)]

    def count(
        self, topic: bytes, parsed: Topic, header: Header, payload: bytes, event: Event | None = None
    ) -> None:
        """Count an event that was taken in; a run begins, or ends, with it where it says so.

        Raises:
            WireError: if it is the end of a run and cannot be decoded; the run is still open then.
        """
        run = self.by_id.get(parsed.run_id)
        first, begins = run is None, run is None or run.status != "running"
        if run is None:
            if parsed.kind in BEGIN_NO_RUN or not parsed.run_id:
                return
            run = self._begin(parsed.run_id, header.source)
        if run.publisher != header.source:
            return
        if event is not None:
            run.take_time(event, first=first)
        run.published[topic.decode()] = header.topic_seq  # not += 1: what an earlier bus took in counts too
        run.records += header.records
        self.losing.pop(run.run_id, None)  # its publisher is back
        if parsed.kind == RunComplete.kind:
            end = decode_event(topic, payload)
            assert isinstance(end, RunComplete)
            self.end(run, end)
            return
        if run.status == "lost":
            run.status, run.ended_ns = "running", None
        if begins:
            self._note(run)

    def lose(self, reason: str, source: bytes | None = None) -> None:
        """Note that the running runs, of one source or of all, are lost: their ends are to be published."""
        for run in self.open(source):
            logger.warning("phase-bus bus: run %s is lost: %s", run.run_id, reason)
            self.losing[run.run_id] = reason

    def end(self, run: Run, event: RunComplete) -> None:
        """Note that a run is over."""
        self.losing.pop(run.run_id, None)
        run.status, run.ended_ns = event.status, event.ts_ns
        self._note(run)

    def _begin(self, run_id: str, source: bytes) -> Run:
        ended = [run_id for run_id, run in self.by_id.items() if run.status != "running"]
        for old in ended[:-_KEPT_RUNS]:
            del self.by_id[old]
        name = self._name_of(source)
        run = self.by_id[run_id] = Run(run_id=run_id, publisher=source, publisher_name=name)
        return run

    def _note(self, run: Run) -> None:
        """Keep a run's state in the journal; what cannot be kept is logged."""
        if self._journal is None:
            return
        try:
            self._journal.note_run(run.run_id, run.status, run.started_ns, run.ended_ns, run.publisher_name)
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)
