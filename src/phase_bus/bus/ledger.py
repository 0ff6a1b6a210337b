"""What the bus knows: who is connected, and how the runs are."""

from __future__ import annotations

import logging
import time
from collections import Counter

import msgspec

from phase_bus.core.control import Beat, ClientInfo, Hello, RunInfo
from phase_bus.core.wire import Header, Topic, parse_topic
from phase_bus.errors import JournalError
from phase_bus.events import BEGIN_NO_RUN, RunComplete, RunStatus
from phase_bus.journal.writer import Journal

logger = logging.getLogger("phase_bus.bus")

_KEPT_CLIENTS = 200  # of those that left; the oldest are forgotten
_KEPT_RUNS = 1000


class Client:
    """A publisher or consumer as the bus sees it.

    Attributes:
        info: what it last said of itself.
        source: a publisher's name in the headers of its events.
        heard_s: when it was last heard, by :func:`time.monotonic`.
        last_seq: a publisher's last event taken in.
        kept_seq: its last event in the stream.
        asked_seq: the missing event that a publisher was last asked to send again.
        identity: the ROUTER's name for its connection.
    """

    def __init__(self, hello: Hello, identity: bytes, now_s: float) -> None:
        self.source = bytes.fromhex(hello.client_id)
        self.identity = identity
        self.heard_s = now_s
        self.last_seq = self.kept_seq = hello.next_seq - 1
        self.asked_seq = 0
        self.info = ClientInfo(
            client_id=hello.client_id,
            role=hello.role,
            name=hello.name,
            pid=hello.pid,
            host=hello.host,
            state="starting" if hello.role == "consumer" else "ready",
            subscriptions=hello.subscriptions,
            group=hello.group,
        )

    @property
    def here(self) -> bool:
        """Whether it is still on the bus, as far as is known."""
        return self.info.state not in ("stopped", "silent")

    def update(self, **changes: object) -> None:
        """Change what is known of it."""
        self.info = msgspec.structs.replace(self.info, **changes)


class Run:
    """A run as the bus sees it.

    Attributes:
        publisher: the source that publishes it.
        publisher_name: what a person calls that.
        status: ``running``, or how it ended.
        started_ns: when its first event was taken in, in Unix time.
        ended_ns: when it ended, None while it runs.
        published: its publisher's events taken in so far, by topic.
        records: the request records in them.
    """

    def __init__(self, run_id: str, publisher: bytes) -> None:
        self.run_id = run_id
        self.publisher = publisher
        self.publisher_name = ""
        self.status = "running"
        self.started_ns = time.time_ns()
        self.ended_ns: int | None = None
        self.published: Counter[str] = Counter()
        self.records = 0

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


class Ledger:
    """The clients and runs of one bus.

    Args:
        silent_after_s: seconds without a word after which a client counts as gone.
        journal: where it is kept how runs are, and where an earlier bus has left that; None for nowhere.

    Attributes:
        clients: all of them by their ids, the latest of those that left included.
        sources: the publishers among them by their sources.
        runs: the runs, the latest of those that ended included.

    Raises:
        JournalError: it cannot be read.
    """

    def __init__(self, silent_after_s: float, journal: Journal | None = None) -> None:
        self.silent_after_s = silent_after_s
        self.clients: dict[str, Client] = {}
        self.sources: dict[bytes, Client] = {}
        self.runs: dict[str, Run] = {}
        # Publishers of runs that an earlier bus left open, and until when they are waited for.
        self._orphans: dict[bytes, float] = {}
        self._past_seqs: dict[bytes, int] = {}
        self._journal = journal
        if journal is not None:
            self._recall(journal)

    def _recall(self, journal: Journal) -> None:
        """Go on from what an earlier bus left: open runs, and what each publisher had delivered."""
        self._past_seqs = journal.last_seqs()
        now_s = time.monotonic()
        for row in journal.runs():
            run = Run(row.run_id, b"")
            run.publisher_name, run.status = row.publisher, row.status
            run.started_ns, run.ended_ns, run.records = row.started_ns, row.ended_ns, row.records
            for topic, source, events in journal.topics(row.run_id):
                if parse_topic(topic).kind in BEGIN_NO_RUN:
                    continue
                run.publisher = run.publisher or source  # not the bus that said that it is lost
                if source == run.publisher:
                    run.published[topic.decode()] = events
            self.runs[row.run_id] = run
            if run.status == "running":
                self._orphans[run.publisher] = now_s + self.silent_after_s

    def newly_orphaned(self, now_s: float) -> list[bytes]:
        """Return the publishers that did not come back after a restart of the bus."""
        gone = [source for source, deadline_s in self._orphans.items() if now_s > deadline_s]
        for source in gone:
            del self._orphans[source]
        return gone

    def hello(self, hello: Hello, identity: bytes, now_s: float) -> Client:
        """Take in a client that introduces itself, for the first time or again."""
        client = self.clients.get(hello.client_id)
        if client is None:
            client = self.clients[hello.client_id] = Client(hello, identity, now_s)
            self._forget_old_clients()
        client.identity = identity
        client.heard_s = now_s
        # Nobody can send again what was acknowledged: waiting for it would never end.
        last_seq = self._past_seqs.pop(client.source, 0)
        client.last_seq = client.kept_seq = max(client.last_seq, hello.next_seq - 1, last_seq)
        if not client.here:
            client.update(state="ready" if hello.role == "publisher" else "starting")
        if client.info.role == "publisher":
            self.sources[client.source] = client
            self._orphans.pop(client.source, None)
        return client

    def beat(self, beat: Beat, identity: bytes, now_s: float) -> bool:
        """Take in a beat; return False if the client must say hello first."""
        client = self.clients.get(beat.client_id)
        if client is None or not client.here:
            return False
        client.heard_s = now_s
        client.identity = identity  # ZeroMQ may have connected it anew, without a word to it
        client.update(
            state=beat.state,
            handled_runs=beat.handled_runs,
            incomplete_runs=beat.incomplete_runs,
            received=beat.received,
            failed=beat.failed,
            position=beat.position,
        )
        return True

    def leave(self, client_id: str) -> Client | None:
        """Take in a goodbye; return who left."""
        client = self.clients.get(client_id)
        if client is not None:
            client.update(state="stopped")
        return client

    def forgive_silence(self, now_s: float) -> None:
        """Count from now on: it was the bus that did not listen."""
        for client in self.clients.values():
            client.heard_s = now_s

    def newly_silent(self, now_s: float) -> list[Client]:
        """Return the clients that just fell silent for too long."""
        silent = [
            client
            for client in self.clients.values()
            if client.here and now_s - client.heard_s > self.silent_after_s
        ]
        for client in silent:
            client.update(state="silent")
        return silent

    def count(self, topic: Topic, name: str, header: Header) -> Run | None:
        """Count an event taken in; return its run, or None if it is of no run's publisher."""
        run = self.runs.get(topic.run_id)
        if run is None:
            if topic.kind in BEGIN_NO_RUN or not topic.run_id:
                return None
            run = self.runs[topic.run_id] = Run(topic.run_id, header.source)
            source = self.sources.get(header.source)
            run.publisher_name = source.info.name if source else ""
            self._forget_old_runs()
        if run.publisher != header.source:
            return None
        run.published[name] = header.topic_seq  # not += 1: what an earlier bus took in counts too
        if run.status == "lost" and topic.kind != RunComplete.kind:
            run.status, run.ended_ns = "running", None  # its publisher is back
        run.records += header.records
        return run

    def end(self, run: Run, status: RunStatus, ended_ns: int) -> None:
        """Note that a run is over."""
        run.status = status
        run.ended_ns = ended_ns

    def note(self, run: Run) -> None:
        """Keep in the journal how a run is; what cannot be kept is logged."""
        if self._journal is None:
            return
        try:
            self._journal.note_run(run.run_id, run.status, run.started_ns, run.ended_ns, run.publisher_name)
        except JournalError as error:
            logger.error("phase-bus bus: %s", error)

    def open_runs(self, source: bytes | None = None) -> list[Run]:
        """Return the runs that are going on, of one source or of all."""
        return [
            run for run in self.runs.values() if run.status == "running" and source in (None, run.publisher)
        ]

    def client_infos(self, now_s: float) -> tuple[ClientInfo, ...]:
        """Return what is known of all clients."""
        return tuple(
            msgspec.structs.replace(client.info, age_s=now_s - client.heard_s)
            for client in self.clients.values()
        )

    def _forget_old_clients(self) -> None:
        gone = [client_id for client_id, client in self.clients.items() if not client.here]
        for client_id in gone[:-_KEPT_CLIENTS]:
            client = self.clients.pop(client_id)
            if client.info.role == "publisher":
                self.sources.pop(client.source, None)

    def _forget_old_runs(self) -> None:
        ended = [run_id for run_id, run in self.runs.items() if run.status != "running"]
        for run_id in ended[:-_KEPT_RUNS]:
            del self.runs[run_id]


def lost(run: Run, reason: str) -> RunComplete:
    """Return the end of a run whose publisher is gone, with what the bus got of it."""
    return RunComplete(
        run_id=run.run_id,
        status="lost",
        reason=reason,
        published=dict(run.published),
        records=run.records,
    )
