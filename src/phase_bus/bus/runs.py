"""The runs that a bus knows: what was published of each, and how it ended."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from msgspec import Struct, field

from phase_bus.core.control import RunInfo
from phase_bus.core.wire import Header, Topic, decode_event, parse_topic
from phase_bus.errors import JournalError
from phase_bus.events import BEGIN_NO_RUN, RunComplete
from phase_bus.journal.writer import Journal

logger = logging.getLogger("phase_bus.bus")

_KEPT_RUNS = 1000  # of those that ended; the oldest are forgotten


class Run(Struct, kw_only=True):
    """A run as the bus sees it.

    Attributes:
        publisher: the source that publishes it.
        status: ``running``, or how it ended.
        published: how many of its publisher's events were taken in so far, by topic.
        records: how many request records are in them.
    """

    run_id: str
    publisher: bytes
    publisher_name: str
    status: str = "running"
    started_ns: int = field(default_factory=time.time_ns)
    ended_ns: int | None = None
    published: Counter[str] = field(default_factory=Counter)
    records: int = 0

    def info(self) -> RunInfo:
        """Return what others may know of it."""
        return RunInfo(
            run_id=self.run_id,
            status=self.status,
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            events=self.published.total(),
            publisher=self.publisher_name,
        )

    def lost(self, reason: str) -> RunComplete:
        """Return its end as ``lost``, for a run whose publisher is gone."""
        return RunComplete(
            run_id=self.run_id,
            status="lost",
            reason=reason,
            published=dict(self.published),
            records=self.records,
        )


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
            for topic, source, events in journal.topics(row.run_id):
                if parse_topic(topic).kind in BEGIN_NO_RUN:
                    continue
                run.publisher = run.publisher or source  # not the bus that declared it lost
                if source == run.publisher:
                    run.published[topic.decode()] = events

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

    def count(self, topic: bytes, parsed: Topic, header: Header, payload: bytes) -> None:
        """Count an event that was taken in; a run begins, or ends, with it where it says so.

        Raises:
            WireError: if it is the end of a run and cannot be decoded; the run is still open then.
        """
        run = self.by_id.get(parsed.run_id)
        begins = run is None or run.status != "running"
        if run is None:
            if parsed.kind in BEGIN_NO_RUN or not parsed.run_id:
                return
            run = self._begin(parsed.run_id, header.source)
        if run.publisher != header.source:
            return
        run.published[topic.decode()] = header.topic_seq  # not += 1: what an earlier bus took in counts too
        run.records += header.records
        self.losing.pop(run.run_id, None)  # its publisher is back
        if parsed.kind == RunComplete.kind:
            event = decode_event(topic, payload)
            assert isinstance(event, RunComplete)
            self.end(run, event)
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
