"""What a stream of NATS JetStream takes from several buses, by how its servers are set up."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from benchmarks import nats_server, shapes, stream_peers
from benchmarks.harness import Child, Plan, Report, Table, run, share_imports
from benchmarks.stream_peers import STREAM, Event
from phase_bus.core.address import StreamAddress
from phase_bus.core.wire import encode_event, topic_of
from phase_bus.jetstream.connection import connect
from phase_bus.jetstream.stream import open_stream

QUESTION = "How many events a second does a stream of NATS take, by how its servers are set up?"
_BUSES, _BATCH = 10, 10


def main() -> Report:
    """Measure, print, return."""
    return run("stream", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    share_imports("benchmarks.stream_peers")
    rows = []
    events = [
        (label, Event(topic_of(event), encode_event(event)))
        for label, event in (("200 B", shapes.event_of_size(200)), ("100 records", shapes.batch(100)))
    ]
    for title, cluster, sync_always in (
        ("one server", False, False),
        ("one server, `sync_interval: always`", False, True),
        ("cluster of three", True, False),
        ("cluster of three, `sync_interval: always`", True, True),
    ):
        with ExitStack() as stack:
            stream = Stream(stack, cluster=cluster, sync_always=sync_always)
            stream.make()
            for label, event in events:
                rates = [_appended(plan, stream, event, batch) for batch in (1, _BATCH)]
                rows.append(
                    [title, f"{label} ({len(event.payload):,} B)", *(f"{rate:,.0f}" for rate in rates)]
                )
    report.tables.append(
        Table(
            f"What a stream takes from {_BUSES} buses, with nats-py alone",
            ["servers", "size", "events/s, one by one", f"events/s, in batches of {_BATCH}"],
            rows,
            "Each on the condition that nothing of its bus has come meanwhile; a bus has one append under "
            "way. The three servers are on the same two cores, and have one disk.",
        )
    )
    report.notes.append(
        "Batches: a server alone, with its stream on a disk, first writes each batch to files of its own, "
        "one batch after another, whatever is in it; a cluster keeps it in memory."
    )


def _appended(plan: Plan, stream: Stream, event: Event, batch: int) -> float:
    """Return how many events a second a stream takes."""
    lasts_s = plan.count(20) / 4
    with Child(stream_peers.competitors, stream.url, event, _BUSES, batch, lasts_s) as child:
        child.ready()
        child.connection.send("go")
        appended: int = child.connection.recv()
        return appended / lasts_s


class Stream:
    """A stream of a server, or of a cluster, until the stack is closed."""

    def __init__(self, stack: ExitStack, *, cluster: bool = False, sync_always: bool = False) -> None:
        self.servers = nats_server.serve(stack, cluster=cluster, sync_always=sync_always)
        self.url = self.servers.url
        self._is_made = False
        self._loop = asyncio.new_event_loop()
        stack.callback(self._loop.close)
        connecting = connect(StreamAddress.parse(self.url), "benchmark")
        self._connection = self._loop.run_until_complete(connecting)
        stack.callback(lambda: self._loop.run_until_complete(self._connection.close()))

    def make(self) -> None:
        """Make it, empty."""
        self._loop.run_until_complete(self._make())

    async def _make(self) -> None:
        if self._is_made:
            await self._connection.js.delete_stream(STREAM)
        self._is_made = True
        await open_stream(self._connection, make=True)

    def last(self) -> int:
        """Return how many messages were appended since it was made."""
        info = self._loop.run_until_complete(self._connection.js.stream_info(STREAM))
        return int(info.state.last_seq)


if __name__ == "__main__":
    main()
