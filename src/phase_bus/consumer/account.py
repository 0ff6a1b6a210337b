"""What one consumer received of a run, by topic: gaps, repetitions, and the receipt at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct, field

from phase_bus.events import Receipt, RunComplete, TopicReceipt


class TopicCounts(Struct):
    """What became of one topic so far, in events. ``last_seqs``: the last sequence, by source."""

    last_seqs: dict[bytes, int] = field(default_factory=dict)
    received: int = 0
    replayed: int = 0
    repeated: int = 0
    missed: int = 0
    handled: int = 0
    written: int = 0
    failed: int = 0


_COUNTED = tuple(name for name in TopicReceipt.__struct_fields__ if name != "published")


class RunAccount(Struct):
    """What one consumer received of one run.

    Attributes:
        worst_lag_ns: the longest time from an event's happening to its being handled.
    """

    run_id: str
    topics: dict[bytes, TopicCounts] = field(default_factory=dict)
    worst_lag_ns: int = 0

    def counts(self, topic: bytes) -> TopicCounts:
        """Return a topic's counts."""
        return self.topics.setdefault(topic, TopicCounts())

    def joined(self, parts: Iterable[RunAccount]) -> RunAccount:
        """Return one account of what this and others received, each on topics of its own."""
        whole = RunAccount(self.run_id, dict(self.topics), self.worst_lag_ns)
        for part in parts:
            whole.topics |= part.topics
            whole.worst_lag_ns = max(whole.worst_lag_ns, part.worst_lag_ns)
        return whole

    def written(self) -> None:
        """Note that all that was handled is written out."""
        for counts in self.topics.values():
            counts.written = counts.handled

    def receipt(
        self, end: RunComplete, wanted: tuple[bytes, ...], consumer: str, consumer_id: str
    ) -> Receipt:
        """Return the receipt for what the run's end says was published on the wanted topics."""
        topics = {
            topic: TopicReceipt(
                published=end.published.get(topic), **{each: getattr(counts, each) for each in _COUNTED}
            )
            for name, counts in self.topics.items()
            # Its own topic is not among what the run's end counts; a failure there is told all the same.
            if name.startswith(wanted) and ((topic := name.decode()) != _own_topic(end) or counts.failed)
        }
        for topic, published in end.published.items():
            if topic not in topics and topic.encode().startswith(wanted):
                topics[topic] = TopicReceipt(published=published)
        return Receipt(
            run_id=self.run_id,
            consumer=consumer,
            consumer_id=consumer_id,
            topics=topics,
            worst_lag_s=self.worst_lag_ns / 1e9,
        )

    def complaints(self, receipt: Receipt) -> Iterator[str]:
        """Yield a line for each topic that was not handled in full."""
        for topic, t in receipt.topics.items():
            if t.failed:
                yield f"{t.failed} of {t.received} events on {topic} failed in the handler"
            if t.written < t.handled:
                yield f"{t.handled - t.written} events on {topic} were handled and not written out"
            lost = t.missed if t.published is None else t.published - t.received
            if lost > 0:
                yield f"{lost} events on {topic} were published and never arrived"


def _own_topic(end: RunComplete) -> str:
    return f"{end.kind}.{end.run_id}$"
