"""What one consumer received of a run, by topic: gaps, repetitions, and the receipt at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct, field
from msgspec.structs import astuple

from phase_bus.core.control import PrunedTopic
from phase_bus.core.wire import end_topic
from phase_bus.events import LARGEST_COUNT, JournalLoss, Loss, Receipt, RunComplete, TopicReceipt

PRUNED = "pruned from the journal before it was read"


class TopicCounts(Struct):
    """What became of one topic so far, in events.

    Attributes:
        last_seqs: the last sequence, by source.
        records: how many request records were in what was received.
    """

    last_seqs: dict[bytes, int] = field(default_factory=dict)
    received: int = 0
    replayed: int = 0
    repeated: int = 0
    missed: int = 0
    handled: int = 0
    written: int = 0
    failed: int = 0
    records: int = 0


class Totals(Struct, frozen=True):
    """What became of all events that one consumer received, since its process started."""

    received: int = 0
    replayed: int = 0
    repeated: int = 0
    missed: int = 0
    handled: int = 0
    written: int = 0
    failed: int = 0

    def plus(self, others: Totals) -> Totals:
        """Return the sums."""
        return Totals(*(a + b for a, b in zip(astuple(self), astuple(others), strict=True)))


_NOTHING = TopicCounts()
_COUNTED = tuple(name for name in TopicReceipt.__struct_fields__ if name != "published")


class RunAccount(Struct):
    """What one consumer received of one run.

    Attributes:
        worst_lag_ns: the longest time from an event's happening to its being handled.
        journal_losses: what it learned meanwhile that the journal lost.
    """

    run_id: str
    topics: dict[bytes, TopicCounts] = field(default_factory=dict)
    worst_lag_ns: int = 0
    journal_losses: list[JournalLoss] = field(default_factory=list)

    def counts(self, topic: bytes) -> TopicCounts:
        """Return a topic's counts."""
        return self.topics.setdefault(topic, TopicCounts())

    def joined(self, parts: Iterable[RunAccount]) -> RunAccount:
        """Return one account of what this and others received, each on topics of its own."""
        whole = RunAccount(self.run_id, dict(self.topics), self.worst_lag_ns, list(self.journal_losses))
        for part in parts:
            whole.topics |= part.topics
            new = (loss for loss in part.journal_losses if loss not in whole.journal_losses)
            whole.journal_losses += new
            whole.worst_lag_ns = max(whole.worst_lag_ns, part.worst_lag_ns)
        return whole

    def written(self) -> None:
        """Note that all that was handled is written out."""
        for counts in self.topics.values():
            counts.written = counts.handled

    def lost(self, held: Mapping[str, PrunedTopic], wanted: tuple[bytes, ...], after: int) -> Loss | None:
        """Return what was not received, on the wanted topics, of the run before it was pruned, if anything.

        Args:
            held: what the run's topics held.
            after: up to this offset everything was received, also what is forgotten here by now.
        """
        events = records = 0
        for name, topic in held.items():
            if name.encode().startswith(wanted) and topic.last_offset > after:
                counts = self.topics.get(name.encode(), _NOTHING)
                events += max(topic.events - counts.received, 0)
                records += max(topic.records - counts.records, 0)
        if not events:
            return None
        return Loss(run_id=self.run_id, reason=PRUNED, events=events, records=records)

    def receipt(
        self,
        end: RunComplete,
        wanted: tuple[bytes, ...],
        consumer: str,
        consumer_id: str,
        lost: tuple[Loss, ...] = (),
    ) -> Receipt:
        """Return the receipt for what the run's end says was published on the wanted topics."""
        own = end_topic(end.run_id)
        topics = {
            topic: TopicReceipt(
                published=end.published.get(topic),
                **{each: min(getattr(counts, each), LARGEST_COUNT) for each in _COUNTED},
            )
            for name, counts in self.topics.items()
            # Its own topic is not among what the run's end counts; a failure there is told all the same.
            if name.startswith(wanted)
            and ((topic := name.decode()) != own or counts.failed or counts.written < counts.handled)
        }
        for topic, published in end.published.items():
            if topic not in topics and topic.encode().startswith(wanted):
                topics[topic] = TopicReceipt(published=published)
        return Receipt(
            run_id=self.run_id,
            consumer=consumer,
            consumer_id=consumer_id,
            status=end.status,
            topics=topics,
            journal_losses=tuple(self.journal_losses),
            worst_lag_s=self.worst_lag_ns / 1e9,
            lost=lost,
        )

    def complaints(self, receipt: Receipt) -> Iterator[str]:
        """Yield a line for each reason why not everything was handled."""
        if receipt.status == "lost":
            yield "its publisher was lost, and may have published more than is known"
        yield from (f"lost before it: {loss}" for loss in receipt.lost)
        for topic, t in receipt.topics.items():
            if t.failed:
                yield f"{t.failed} of {t.received} events on {topic} failed in the handler"
            if t.written < t.handled:
                yield f"{t.handled - t.written} events on {topic} were handled and not written out"
            lost = t.missed if t.published is None else t.published - t.received
            if lost > 0:
                yield f"{lost} events on {topic} were published and never arrived"
