"""The runs that a bus knows: what each publisher published of each, and how it ended.

A run has a part for each publisher that published of it, and is over when all of them are. A run id that
is begun again after that is another attempt, which the bus keeps as a run of its own.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from phase_bus.bus.run import Part, Run, decode_parts
from phase_bus.bus.stream import Incoming
from phase_bus.core.wire import decode, decode_event, encode_event, parse_topic, topic_in
from phase_bus.errors import JournalError, WireError
from phase_bus.events import BEGIN_NO_RUN, Drop, Event, RunComplete, RunStart
from phase_bus.journal.writer import RUNNING, UNKNOWN, Journal

logger = logging.getLogger("phase_bus.bus")

EDGES = frozenset({RunStart.kind, RunComplete.kind})
"""The kinds that are judged by all that came before them, which therefore must have been counted."""

_KEPT_RUNS = 1000  # of those that ended; the oldest are forgotten
_decode_map = msgspec.msgpack.Decoder(dict[str, Any]).decode
_LEFT = "its publisher left without ending it"


class Runs:
    """The runs of one bus, the oldest first. The latest of those that ended are remembered.

    The journal, if there is one, holds the runs that an earlier bus left, and is told of changes.

    Args:
        name_of: what a person calls a publisher.
        patience_s: how long to wait for who begins or ends a run, when all who published of it have left.
        own_source: the source of what the bus itself says.
        tell: logs that a run begins or ends: a format, and what is for it.

    Attributes:
        ending: the runs whose end the bus itself is to publish.
        reopened: the runs that went on after an end, since somebody last looked.

    Raises:
        JournalError: if the journal cannot be read.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        name_of: Callable[[bytes], str] = lambda _: "",
        patience_s: float = 0.0,
        own_source: bytes = b"",
        tell: Callable[..., None] = lambda *_: None,
    ) -> None:
        self.by_id: dict[str, Run] = {}
        self.ending: dict[str, None] = {}
        self.reopened: set[str] = set()
        self._journal = journal
        self._name_of = name_of
        self._patience_s = patience_s
        self._own_source = own_source
        self._tell = tell
        self._attempts: dict[str, list[Run]] = {}  # the further ones, by the id that publishers give
        if journal is not None:
            self._recall(journal)

    # ---- on the way into the stream ----

    def knows(self, run_id: str) -> bool:
        """Return whether anything is known of a run, here or in the journal."""
        return run_id in self.by_id or (self._journal is not None and self._journal.has_run(run_id))

    def first_id(self, run_id: str) -> str:
        """Return the id that publishers give a run, of which this may be a further attempt.

        Raises:
            JournalError: if the journal cannot be read.
        """
        run = self.by_id.get(run_id)
        attempt_of = "" if run is None else run.attempt_of
        if run is None and self._journal is not None and "#" in run_id:
            attempt_of, _ = self._journal.run_state(run_id)
        return attempt_of or run_id

    def goes_on(self, run_id: str, source: bytes) -> bool:
        """Return whether a run's start, published by a source, is one more of a run that is running."""
        run = self.run_of(run_id, source, RunStart.kind)
        return run is not None and run.status == RUNNING

    def just_counts(self, run_id: str, source: bytes, kind: str) -> bool:
        """Return whether an event would be admitted as it is, and change nothing of its run but counts."""
        run = self.run_of(run_id, source, kind)
        if run is None or run.run_id != run_id or run.status != RUNNING:
            return False
        part = run.parts.get(source)
        return part is not None and part.status == RUNNING and not _changes_part(kind, part)

    def admit(self, incoming: Incoming) -> Incoming:
        """Return an event as it goes into the stream: of the attempt, and with the totals, that it is of.

        Of :data:`EDGES` all that came before must have been counted.

        Raises:
            WireError: if it has to be changed and cannot be decoded.
            JournalError: if another attempt begins and the journal cannot keep that.
        """
        kind, run_id = incoming.parsed
        source = incoming.header.source
        run = self.run_of(run_id, source, kind)
        if run is None:
            return incoming
        if kind == RunStart.kind and run.status != RUNNING:
            part = run.parts.get(source)
            if part is None or part.said:  # else it was taken for lost, and is back
                run = self._begin_again(run, source)
        if run.run_id != run_id:
            incoming = _renamed(incoming, run, run.parts.get(source))
        return self._with_totals(incoming, run) if kind == RunComplete.kind else incoming

    def run_of(self, run_id: str, source: bytes, kind: str) -> Run | None:
        """Return the attempt that an event is of: its publisher's last one, or else the latest."""
        further = self._attempts.get(run_id)
        first = self.by_id.get(run_id)
        if further is None:
            return first
        for run in reversed(further):
            if source in run.parts:
                return run
        is_of_first = kind in BEGIN_NO_RUN or (first is not None and source in first.parts)
        return first if is_of_first else further[-1]

    def _begin_again(self, last: Run, source: bytes) -> Run:
        """Begin a further attempt of a run that is over."""
        run_id = last.attempt_of or last.run_id
        further = self._attempts.get(run_id, [])
        number = int(further[-1].run_id.rpartition("#")[2]) if further else 1
        while (name := f"{run_id}#{(number := number + 1)}") in self.by_id:
            pass
        before: Counter[str] = Counter()
        for run in filter(None, (self.by_id.get(run_id), *further)):
            if (part := run.parts.get(source)) is not None:
                before.update({topic_in(t, run.run_id, run_id): n for t, n in part.published.items()})
        part = Part(publisher=self._name_of(source), before=dict(before))
        run = Run(run_id=name, attempt_of=run_id, parts={source: part})
        if self._journal is not None:
            _note(self._journal, run)  # before its first event: a bus killed between knows whose that is
        logger.warning(
            "phase-bus bus: run %s began again after its end; this attempt is run %s", run_id, name
        )
        self._keep(run)
        return run

    def _with_totals(self, incoming: Incoming, run: Run) -> Incoming:
        """Return the end of a run with what all its publishers published, if there are several."""
        source = incoming.header.source
        part = run.parts.get(source)
        if run.parts.keys() <= {source} and not (part is not None and part.said):
            return incoming
        end = incoming.event
        assert isinstance(end, RunComplete)
        part = Part(publisher=self._name_of(source)) if part is None else msgspec.structs.replace(part)
        part.take_end(end, source)
        whole = Run(run_id=run.run_id, parts={**run.parts, source: part}).end()
        whole = msgspec.structs.replace(whole, ts_ns=end.ts_ns)
        payload = encode_event(whole)
        return incoming._replace(payload=payload, frame=payload, event=whole)

    # ---- in the stream ----

    def count(self, incoming: Incoming, offset: int) -> None:
        """Count an event that was taken in; a run begins, or ends, with it where it says so.

        Args:
            offset: its own, or that of a bundle's last event.
        """
        topic, (kind, run_id), header, _, _, _, event, _ = incoming
        topic_seq = header.topic_seq + header.events - 1
        if header.source == self._own_source:
            return
        run = self.by_id.get(run_id)
        part = None if run is None else run.parts.get(header.source)
        joins = part is None
        if run is None or part is None:
            if not run_id or not _begins_part(kind, event):
                return
            publisher = self._name_of(header.source)
            if run is None:
                run = self._begin(run_id)
                self._tell("run %s started, published by %s", run_id, publisher or "an unknown client")
            part = run.parts[header.source] = Part(publisher=publisher)
        elif part.status == RUNNING and not _changes_part(kind, part):  # nearly always
            part.published[topic.decode()] = topic_seq
            part.records += header.records
            if event is not None and event.ts_ns > run.last_ns:
                run.last_ns = event.ts_ns
            return
        if event is not None:
            run.take_time(event)
        # Not += 1: what an earlier bus took in counts too.
        part.published[topic.decode()] = topic_seq
        part.records += header.records
        part.began |= kind == RunStart.kind
        if isinstance(event, Drop):
            part.take_drop(event)
        if isinstance(event, RunComplete):
            part.take_end(event, header.source)
            if not run.going_on:
                self.end(run, event, offset)
                return
        elif joins or kind not in BEGIN_NO_RUN:
            part.status, part.reason = RUNNING, ""
            self._go_on(run)
        self._note(run)

    def _go_on(self, run: Run) -> None:
        """Note that a publisher of a run is here: for the first time, still, or again."""
        self.ending.pop(run.run_id, None)
        run.until_s = math.inf
        if run.status != RUNNING:
            run.status, run.ended_ns = RUNNING, None
            self.reopened.add(run.run_id)

    def end(self, run: Run, event: RunComplete, offset: int) -> None:
        """Note that a run is over."""
        self.ending.pop(run.run_id, None)
        run.status, run.ended_ns, run.end_offset = event.status, event.ts_ns, offset
        run.until_s = math.inf
        self._note(run)
        counts = f"{event.records:,} records in {event.events:,} events"
        self._tell("run %s %s: %s", run.run_id, event.status, counts)

    def is_handled(self, run_id: str, offset: int) -> bool:
        """Return whether who has handled an end of a run, at an offset, has handled its last one."""
        run = self.by_id.get(run_id)
        return run is None or (run.status != RUNNING and offset >= run.end_offset)

    # ---- publishers that go ----

    def open_sources(self) -> Iterator[bytes]:
        """Yield the publishers that have not ended a run."""
        for run in self._running():
            yield from (source for source, part in run.parts.items() if part.status == RUNNING)

    def leave(self, source: bytes, *, whole: bool) -> None:
        """Note that a publisher said goodbye, and whether the bus has everything that it sent."""
        for run in self._running(source):
            part = run.parts[source]
            if whole and (part.said or not part.began):
                part.status = part.said or "completed"
            else:
                self._lose(run, part, _LEFT if whole else f"{_LEFT}, and before the bus had all of it")
            self._settle(run)

    def lose(self, reason: str, source: bytes | None = None) -> None:
        """Note that a publisher of running runs is gone, or that all are: theirs are lost."""
        for run in self._running(source):
            for key, part in run.parts.items():
                if part.status == RUNNING and source in (None, key):
                    self._lose(run, part, reason)
            self._settle(run)
        if source is None:
            self.give_up(math.inf, reason)

    def give_up(self, now_s: float, reason: str = _LEFT) -> None:
        """Lose the runs that were left by all publishers, and that nobody ended in time."""
        for run in self._running():
            if run.until_s < now_s:
                for part in run.parts.values():
                    self._lose(run, part, reason)
                self._settle(run)

    def _running(self, source: bytes | None = None) -> list[Run]:
        """Return the running runs, of one source or of all."""
        running = [run for run in self.by_id.values() if run.status == RUNNING]
        if source is None:
            return running
        return [run for run in running if source in run.parts and run.parts[source].status == RUNNING]

    def _lose(self, run: Run, part: Part, reason: str) -> None:
        part.status, part.reason = "lost", reason
        logger.warning("phase-bus bus: run %s is lost: %s", run.run_id, reason)

    def _settle(self, run: Run) -> None:
        """End a run that all publishers have left; wait a while if none of them has ended it."""
        if not run.going_on:
            if any(part.said or part.status == "lost" for part in run.parts.values()):
                self.ending[run.run_id] = None
                run.until_s = math.inf
            else:
                run.until_s = time.monotonic() + self._patience_s
        self._note(run)

    # ---- keeping ----

    def _begin(self, run_id: str) -> Run:
        ended = [run_id for run_id, run in self.by_id.items() if run.status != RUNNING]
        for old in ended[:-_KEPT_RUNS]:
            self.forget(old)
        return self._keep(Run(run_id=run_id))

    def forget(self, run_id: str) -> None:
        """Let go of a run, such as one that was pruned from the journal."""
        run = self.by_id.pop(run_id, None)
        if run is not None and (further := self._attempts.get(run.attempt_of)):
            further.remove(run)
            if not further:
                del self._attempts[run.attempt_of]

    def _keep(self, run: Run) -> Run:
        self.by_id[run.run_id] = run
        if run.attempt_of:
            self._attempts.setdefault(run.attempt_of, []).append(run)
        return run

    def _note(self, run: Run) -> None:
        """Keep a run's state in the journal; what cannot be kept is logged."""
        if self._journal is None:
            return
        try:
            _note(self._journal, run)
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)

    def _recall(self, journal: Journal) -> None:
        """Go on from what an earlier bus left: its notes, and the events since its last one."""
        for row in journal.runs():
            if row.status == UNKNOWN:
                continue
            attempt_of, noted = journal.run_state(row.run_id)
            run = self._keep(
                Run(
                    run_id=row.run_id,
                    attempt_of=attempt_of,
                    status=row.status,
                    started_ns=row.started_ns,
                    ended_ns=row.ended_ns,
                    parts=decode_parts(row.run_id, noted),
                )
            )
            if (taken_ns := journal.taken_ns(row.run_id)) is not None:
                run.behind_ns, run.last_ns = taken_ns - row.started_ns, row.started_ns
            self._recall_events(journal, run, row.publisher)
            if run.status == RUNNING and not run.going_on:
                self._settle(run)

    def _recall_events(self, journal: Journal, run: Run, publisher: str) -> None:
        """Count what is in the journal of a run, and the ends that a bus that was killed did not note."""
        streams = [(parse_topic(stream.topic).kind, stream) for stream in journal.streams(run.run_id)]
        last: Counter[bytes] = Counter()
        records: Counter[bytes] = Counter()
        for kind, stream in streams:
            if kind == RunComplete.kind:
                run.end_offset = max(run.end_offset, stream.last_offset)
            elif kind not in BEGIN_NO_RUN:
                run.parts.setdefault(stream.source, Part(publisher=publisher))
                last[stream.source] = max(last[stream.source], stream.last_offset)
            records[stream.source] += stream.records
        for kind, stream in streams:
            if (part := run.parts.get(stream.source)) is not None:
                part.take_counts({stream.topic.decode(): stream.events}, records[stream.source])
                part.began |= kind == RunStart.kind
        if run.status != RUNNING:
            for source in last:
                if last[source] > run.end_offset:  # it went on after the end
                    run.status, run.ended_ns, run.parts[source].status = RUNNING, None, RUNNING
            return
        for entry in journal.entries_of(run.run_id, RunComplete.kind):
            try:
                end = decode_event(entry.topic, entry.payload)
            except WireError:
                continue
            if not isinstance(end, RunComplete):
                continue
            if not end.is_of_bus(entry.source):
                part = run.parts.setdefault(entry.source, Part(publisher=publisher))
                if part.status == RUNNING and entry.offset > last[entry.source]:
                    part.take_end(end, entry.source)
            if not end.running and not run.going_on and entry.offset > max(last.values(), default=0):
                run.status, run.ended_ns = end.status, end.ts_ns


def _begins_part(kind: str, event: Event | None) -> bool:
    """Return whether an event makes its source one of the run's publishers."""
    return kind not in BEGIN_NO_RUN or (isinstance(event, Drop) and event.records > 0)


def _renamed(incoming: Incoming, run: Run, part: Part | None) -> Incoming:
    """Return an event with the id, and the number on its topic, that it has in a further attempt.

    Raises:
        WireError: if it cannot be decoded.
    """

    def renamed(topic: str) -> str:
        return topic_in(topic, incoming.parsed.run_id, run.run_id)

    fields = decode(_decode_map, incoming.payload, "the payload", incoming.topic)
    if incoming.parsed.kind in (RunComplete.kind, Drop.kind):
        for counts in {"published", "dropped", "events"} & fields.keys():
            fields[counts] = {renamed(topic): count for topic, count in fields[counts].items()}
    payload = msgspec.msgpack.encode({**fields, "run_id": run.run_id})
    before = 0 if part is None else part.before.get(incoming.topic.decode(), 0)
    header = incoming.header._replace(topic_seq=incoming.header.topic_seq - before)
    topic = renamed(incoming.topic.decode()).encode()
    return incoming._replace(
        topic=topic,
        parsed=parse_topic(topic),
        header=header,
        payload=payload,
        frame=payload,
        event=decode_event(topic, payload),
    )


def _changes_part(kind: str, part: Part) -> bool:
    """Return whether an event changes more of its publisher's part in a run than its counts."""
    return kind in (RunComplete.kind, Drop.kind) or (kind == RunStart.kind and not part.began)


def _note(journal: Journal, run: Run) -> None:
    journal.note_run(
        run.run_id,
        run.status,
        run.started_ns,
        run.ended_ns,
        run.publisher,
        attempt_of=run.attempt_of,
        parts=msgspec.msgpack.encode(run.parts),
    )
