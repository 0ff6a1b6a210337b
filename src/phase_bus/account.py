"""What one consumer received of a run, by topic: gaps, repetitions, and the receipt at the end."""

from __future__ import annotations

from collections.abc import Iterator

from phase_bus.events import Receipt, RunComplete, TopicReceipt
from phase_bus.wire import Header


class TopicCounts:
    """What became of one topic so far, in events."""

    def __init__(self) -> None:
        self.last_seqs: dict[bytes, int] = {}  # by source
        self.received = 0
        self.missed = 0
        self.handled = 0
        self.failed = 0


class RunAccount:
    """What one consumer received of one run."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.topics: dict[bytes, TopicCounts] = {}

    def arrived(self, topic: bytes, header: Header) -> TopicCounts | None:
        """Count an event that arrived; return its topic's counts, or None for a repetition."""
        counts = self.topics.get(topic)
        if counts is None:
            counts = self.topics[topic] = TopicCounts()
        last = counts.last_seqs.get(header.source, 0)
        if header.topic_seq <= last:
            return None
        counts.missed += header.topic_seq - last - 1
        counts.last_seqs[header.source] = header.topic_seq
        counts.received += 1
        return counts

    def receipt(
        self, end: RunComplete, wanted: tuple[bytes, ...], consumer: str, consumer_id: str
    ) -> Receipt:
        """Return the receipt for what the run's end says was published on the wanted topics."""
        topics = {
            topic: TopicReceipt(
                published=end.published.get(topic),
                received=counts.received,
                missed=counts.missed,
                handled=counts.handled,
                failed=counts.failed,
            )
            for name, counts in self.topics.items()
            if name.startswith(wanted) and (topic := name.decode()) != _own_topic(end)
        }
        for topic, published in end.published.items():
            if topic not in topics and topic.encode().startswith(wanted):
                topics[topic] = TopicReceipt(published=published)
        return Receipt(run_id=self.run_id, consumer=consumer, consumer_id=consumer_id, topics=topics)

    def complaints(self, receipt: Receipt) -> Iterator[str]:
        """Yield a line for each topic that was not handled in full."""
        for topic, t in receipt.topics.items():
            if t.failed:
                yield f"{t.failed} of {t.received} events on {topic} failed in the handler"
            lost = t.missed if t.published is None else t.published - t.received
            if lost > 0:
                yield f"{lost} events on {topic} were published and never arrived"


def _own_topic(end: RunComplete) -> str:
    return f"{end.kind}.{end.run_id}$"
