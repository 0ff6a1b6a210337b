"""Prometheus' protocol buffers, as far as they are used here: of a scrape, and of remote write.

There are few messages of few fields, all of them written and none read, so they are written by hand.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from phase_bus.aggregation import Buckets, ExponentialHistogram
from phase_bus_consumers.prometheus_families import Family, Labels, Named, Value, classic_buckets

# That of the client libraries: a zero bucket of another width costs when histograms are added up.
_ZERO_THRESHOLD = 2.0**-128
_WIDEST_GAP = 2  # empty buckets in a row that cost no more than a new span
_KINDS = {"counter": 0, "gauge": 1, "histogram": 4}
_VALUES = {"counter": 3, "gauge": 2, "histogram": 7}  # the field of a sample's value
# A bit pattern of its own among those that are no number: the series ends here.
_STALE = bytes.fromhex("020000000000f07f")


class _Fields(NamedTuple):
    """The numbers of a histogram's fields, which differ between the two protocols."""

    total: int
    sum: int
    schema: int
    zero_threshold: int
    zeros: int
    negative: int  # the spans; the differences of counts come next
    positive: int


_SCRAPED = _Fields(1, 2, 5, 6, 7, 9, 12)
_WRITTEN = _Fields(1, 3, 4, 5, 6, 8, 11)


# ---- a scrape ----


def encode_family(family: Family) -> bytes:
    """Return a family as a scraper reads it that asks for protocol buffers, its length before it.

    A histogram is a native one, and a classic one for who does not know these.
    """
    name, kind, text = family.of
    message = _bytes(1, name.encode()) + _bytes(2, text.encode()) + _number(3, _KINDS[kind])
    for labels, value in family.samples:
        metric = b"".join(_bytes(1, label) for label in _labels(labels))
        if isinstance(value, ExponentialHistogram):
            classic = b"".join(
                _bytes(3, _number(1, count) + _double(2, edge)) for edge, count in classic_buckets(value)
            )
            metric += _bytes(_VALUES[kind], _histogram(value, _SCRAPED) + classic)
        else:
            metric += _bytes(_VALUES[kind], _double(1, value))
        message += _bytes(4, metric)
    return _varint(len(message)) + message


# ---- remote write ----


class Series(NamedTuple):
    """A series, and its sample but for the time.

    Attributes:
        is_histogram: whether it is a native histogram.
        labels: encoded.
        sample: encoded.
        zero: that with which it begins, if it counts something.
    """

    is_histogram: bool
    labels: bytes
    sample: bytes
    zero: bytes = b""

    def at(self, time_ms: int) -> bytes:
        """Return the sample of a moment, as a part of a request."""
        if self.is_histogram:
            return _bytes(1, self.labels + _bytes(4, self.sample + _number(15, time_ms)))
        return _bytes(1, self.labels + _bytes(2, self.sample + _number(2, time_ms)))

    def zero_at(self, time_ms: int) -> bytes:
        """Return the beginning of the series at a moment, as a part of a request; nothing for a gauge."""
        return self._replace(sample=self.zero).at(time_ms) if self.zero else b""

    def end_at(self, time_ms: int) -> bytes:
        """Return the mark that the series ends at a moment, as a part of a request."""
        number = 3 if self.is_histogram else 1
        return self._replace(sample=_key(number, 1) + _STALE).at(time_ms)


class SeriesEncoder(Struct, frozen=True):
    """Makes series of figures.

    Attributes:
        labels: what all series have.
        native: whether histograms are native ones; else each has a series for every bucket.
        max_buckets: how many buckets a native one has at most; with more it is told in coarser ones. 0 for
            no limit.
    """

    labels: dict[str, str] = {}
    native: bool = True
    max_buckets: int = 0

    def encode(self, of: Named, labels: Labels, value: Value) -> list[Series]:
        """Return the series of a figure, with its present sample."""
        if not isinstance(value, ExponentialHistogram):
            return [self._number(of.name, labels, value, counts=of.kind == "counter")]
        if self.native:
            fitting = _fitting(value, self.max_buckets)
            samples = (
                _histogram(each, _WRITTEN) for each in (fitting, ExponentialHistogram(scale=fitting.scale))
            )
            return [Series(True, self._named(of.name, labels), *samples)]
        buckets = [*((repr(edge), count) for edge, count in classic_buckets(value)), ("+Inf", value.count)]
        return [
            *(self._number(f"{of.name}_bucket", (*labels, ("le", le)), count) for le, count in buckets),
            self._number(f"{of.name}_count", labels, value.count),
            self._number(f"{of.name}_sum", labels, value.sum),
        ]

    def _number(self, name: str, labels: Labels, value: float, *, counts: bool = True) -> Series:
        return Series(
            False, self._named(name, labels), _double(1, value), _double(1, 0.0) if counts else b""
        )

    def _named(self, name: str, labels: Labels) -> bytes:
        ordered = sorted({**self.labels, **dict(labels), "__name__": name}.items())
        return b"".join(_bytes(1, label) for label in _labels(tuple(ordered)))


def _fitting(histogram: ExponentialHistogram, max_buckets: int) -> ExponentialHistogram:
    while max_buckets and histogram.scale > -4:  # the coarsest that there is
        used = sum(len(b.counts) - b.counts.count(0) for b in (histogram.positive, histogram.negative))
        if used <= max_buckets:
            break
        histogram = histogram.coarser(histogram.scale - 1)
    return histogram


# ---- both ----


def _labels(labels: Labels) -> Iterator[bytes]:
    for name, value in labels:
        yield _bytes(1, name.encode()) + _bytes(2, value.encode())


def _histogram(histogram: ExponentialHistogram, fields: _Fields) -> bytes:
    return b"".join(
        (
            _number(fields.total, histogram.count),
            _double(fields.sum, histogram.sum),
            _number(fields.schema, _zigzag(histogram.scale)),
            _double(fields.zero_threshold, _ZERO_THRESHOLD),
            _number(fields.zeros, histogram.zeros),
            _buckets(histogram.negative, fields.negative),
            _buckets(histogram.positive, fields.positive),
        )
    )


def _buckets(buckets: Buckets, number: int) -> bytes:
    """Return spans of neighbouring buckets, each after a gap, and by how much each count differs."""
    counts = np.array(buckets.counts, dtype=np.int64)
    used = np.flatnonzero(counts)
    if not len(used):
        return b""
    breaks = np.flatnonzero(np.diff(used) > _WIDEST_GAP + 1)
    starts, ends = used[np.append(0, breaks + 1)], used[np.append(breaks, len(used) - 1)] + 1
    gaps = starts - np.append(-buckets.offset, ends[:-1])
    spans = b"".join(
        _bytes(number, _number(1, _zigzag(gap)) + _number(2, length))
        for gap, length in zip(gaps.tolist(), (ends - starts).tolist(), strict=True)
    )
    kept = np.concatenate([counts[start:end] for start, end in zip(starts, ends, strict=True)])
    return spans + _bytes(number + 1, _packed(np.diff(kept, prepend=0)))


def _packed(numbers: npt.NDArray[np.int64]) -> bytes:
    """Return numbers of either sign, shape (n,), one after another in as few bytes as each needs."""
    without_sign = (numbers << 1) ^ (numbers >> 63)
    rest = without_sign[:, np.newaxis] >> np.arange(0, 63, 7)  # counts have less than 62 bits
    used = rest > 0
    used[:, 0] = True
    encoded = rest & 0x7F | (rest > 0x7F) << 7
    return encoded.astype(np.uint8)[used].tobytes()


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _varint(number: int) -> bytes:
    """Return a number that is not negative."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _key(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _number(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _key(number, 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value
