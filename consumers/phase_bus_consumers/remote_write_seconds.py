"""A run's figures, second by second, as remote write sends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from msgspec import Struct

from phase_bus import EventBase, RunComplete, Verdict
from phase_bus_consumers.prometheus_encoding import Series, SeriesEncoder
from phase_bus_consumers.prometheus_families import Labels, Value
from phase_bus_consumers.prometheus_figures import Figures, SavedFigures, samples_of

_SECOND_NS = 1_000_000_000
_LONGEST_GAP_S = 300  # of seconds without an event that are told one by one

_Key: TypeAlias = tuple[str, Labels]  # of a series


class Second(Struct, frozen=True):
    """What is sent of one second: encoded samples of all series, those of histograms apart."""

    time_ms: int
    numbers: bytes
    histograms: bytes


class SavedTimeline(Struct):
    """The content of a :class:`Timeline`, for msgpack."""

    figures: SavedFigures
    last_s: int
    next_s: int | None
    told: list[_Key]
    last_ms: int = 0


class Timeline:
    """Cuts the figures of a run into seconds, by the times of its events, in the order of the journal.

    The sample of a second's end has what was counted of all events before the first one of a later time.
    It depends on nothing else, so that after a crash the same samples are made again. What counts something
    begins with 0 a second before its first sample, or the increase in that would be lost.

    Attributes:
        last_ms: the time of the last sample once no run goes on: a verdict after that comes later.
    """

    def __init__(self, encoder: SeriesEncoder) -> None:
        self.figures = Figures()
        self._encoder = encoder
        self.last_ms = 0
        self._last_s = 0  # the last time that was sampled
        self._next_s: int | None = None  # the next one; None while no run goes on
        self._told: dict[_Key, None] = {}  # the series that have begun
        self._encoded: dict[_Key, tuple[Value, list[Series]]] = {}

    def take(self, event: EventBase, at_ns: int) -> list[Second]:
        """Add an event of a moment, and return the seconds that are over with it."""
        if not self.figures.counts(event.run_id):
            return []
        if isinstance(event, Verdict) and not self.figures.knows(event.run_id):
            return []
        if isinstance(event, Verdict) and self._next_s is None:
            second = verdict_second(self._encoder, event, at_ns, self.last_ms)
            self.last_ms, self._last_s = second.time_ms, second.time_ms // 1000
            return [second]
        before = self._last_s, self._next_s, self._told.copy()
        if self.figures.begin_anew_with(event.run_id):
            self._told.clear()
        try:
            seconds = self._advance(at_ns // _SECOND_NS)
            self.figures.take(event)
        except Exception:
            self._last_s, self._next_s, self._told = before  # the next event closes these seconds
            raise
        is_over = isinstance(event, RunComplete) or self.figures.complete
        if is_over and not self.figures.in_progress:
            seconds += self._end(at_ns // 1_000_000)
        return seconds

    def saved(self) -> SavedTimeline:
        """Return the content, for msgpack."""
        return SavedTimeline(
            self.figures.saved(), self._last_s, self._next_s, list(self._told), self.last_ms
        )

    def restore(self, saved: SavedTimeline) -> None:
        """Go on from what :meth:`saved` gave."""
        self.figures = Figures.restored(saved.figures)
        self._last_s, self._next_s, self._told = saved.last_s, saved.next_s, dict.fromkeys(saved.told)
        self.last_ms = saved.last_ms

    def _advance(self, second: int) -> list[Second]:
        """Return the seconds that are over when one has begun; a run begins with its first event."""
        if self._next_s is None:
            self._next_s = max(self._last_s + 1, second) + 1
            return []
        if second < self._next_s:
            return []
        seconds = []
        if second - self._next_s > _LONGEST_GAP_S:
            seconds.append(self._sample(self._next_s * 1000))
            self._next_s = second
        seconds += [self._sample(at_s * 1000) for at_s in range(self._next_s, second + 1)]
        self._last_s, self._next_s = second, second + 1
        return seconds

    def _end(self, at_ms: int) -> list[Second]:
        """Return the sample of the end, just after its moment, and the marks that the series end."""
        assert self._next_s is not None
        at_ms = max(at_ms, (self._next_s - 1) * 1000) + 1
        last = self._sample(at_ms)
        self._last_s, self._next_s = at_ms // 1000, None
        series = [each for _, some in self._encoded.values() for each in some]
        at_ms += 1
        self.last_ms = at_ms
        return [last, _second(at_ms, [(each.is_histogram, each.end_at(at_ms)) for each in series])]

    def _sample(self, at_ms: int) -> Second:
        known, self._encoded = self._encoded, {}
        parts = []
        for family in self.figures.families(at_ms * 1_000_000):
            for labels, value in family.samples:
                key = (family.of.name, labels)
                if key not in known or known[key][0] is not value:
                    known[key] = value, self._encoder.encode(family.of, labels, value)
                self._encoded[key] = known[key]
                series = known[key][1]
                if key not in self._told:
                    self._told[key] = None
                    parts += [(each.is_histogram, each.zero_at(at_ms - 1000)) for each in series]
                parts += [(each.is_histogram, each.at(at_ms)) for each in series]
        return _second(at_ms, parts)


def verdict_second(encoder: SeriesEncoder, verdict: Verdict, at_ns: int, last_ms: int) -> Second:
    """Return the samples of a verdict that comes after the end of its run, whose last sample is known.

    The series do not end with it, so that a rule that looks a little later finds it.
    """
    at_ms = max(at_ns // 1_000_000, last_ms) + 1
    series = [each for figure in samples_of(verdict) for each in encoder.encode(*figure)]
    return _second(at_ms, [(False, each.at(at_ms)) for each in series])


def _second(time_ms: int, parts: Sequence[tuple[bool, bytes]]) -> Second:
    numbers, histograms = (
        b"".join(part for is_histogram, part in parts if is_histogram == wanted) for wanted in (False, True)
    )
    return Second(time_ms, numbers, histograms)
