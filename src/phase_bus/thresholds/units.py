"""Amounts with units, as people write them: to the unit on the bus, and back without a change."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from msgspec import Struct

LARGEST = 1e18
SMALLEST = 1e-18
"""Of an amount in its unit on the bus: the largest is, in ns, 31 years. Nothing is smaller but 0."""

_SECONDS: Mapping[str, Decimal] = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
    "μs": Decimal("1e-6"),  # the Greek letter, which the micro sign is folded to
    **dict.fromkeys(("sec", "second", "seconds"), Decimal(1)),
    **dict.fromkeys(("minute", "minutes"), Decimal(60)),
    **dict.fromkeys(("hour", "hours"), Decimal(3600)),
}
_BYTES: Mapping[str, Decimal] = {
    "b": Decimal(1),
    **{f"{letter}b": Decimal(1000) ** power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": Decimal(1024) ** power for power, letter in enumerate("kmgt", 1)},
}
# They are understood, and named in no message; the empty word neither.
_SYNONYMS = frozenset(
    (
        "",
        "μs",
        "sec",
        "second",
        "seconds",
        "minute",
        "minutes",
        "hour",
        "hours",
        "token",
        "request",
        "image",
    )
)


class Unit(Struct, frozen=True):
    """How amounts are written that are in one unit on the bus.

    Attributes:
        canonical: the word that they are spelled with, empty for plain numbers.
        words: what may be written, in lower case, and the factor that converts it to the unit on the bus;
            the empty one stands for no word.
        signed: whether amounts may be negative.
        most: the greatest amount that makes sense, in the unit on the bus.
    """

    canonical: str
    words: Mapping[str, Decimal]
    signed: bool = False
    most: float = LARGEST

    @property
    def allowed(self) -> str:
        """The words, for a message."""
        words = ", ".join(word for word in self.words if word not in _SYNONYMS)
        if "" not in self.words:
            return words
        return f"{words} or none" if words else "none: it is a plain number"

    def read(self, value: float, word: str) -> float:
        """Return an amount in the unit on the bus.

        By way of decimals, so that 0.1 s are the nanoseconds that they are.

        Raises:
            KeyError: if there is no such word.
        """
        return float(Decimal(repr(value)) * self.words[word.casefold()]) + 0.0  # of -0.0 makes 0.0

    def spell(self, amount: float) -> str:
        """Return an amount as text, which :meth:`read` makes the same float of."""
        number = spell_number(Decimal(repr(amount)) / self.words[self.canonical.casefold()])
        return f"{number} {self.canonical}".rstrip()

    def plain(self) -> Unit:
        """Return the same without ``%``, which means something else beside a baseline."""
        if self.canonical != "%":
            return self
        return Unit("", {"": self.words[""]}, self.signed, self.most)


DURATION = Unit("s", _SECONDS)


def spell_number(value: Decimal) -> str:
    """Return a number in full where that is readable."""
    value = value.normalize()
    return f"{value:f}" if -7 <= value.adjusted() <= 18 else str(value).lower()


def writing_of(unit: str) -> Unit:
    """Return how amounts in a unit on the bus are written."""
    found = _UNITS.get(unit)
    return found if found is not None else Unit(unit, _same("", unit.casefold()))


def _same(*words: str) -> Mapping[str, Decimal]:
    return dict.fromkeys(words, Decimal(1))


def _times(factor: str) -> Mapping[str, Decimal]:
    return {word: seconds * Decimal(factor) for word, seconds in _SECONDS.items()}


def _per_second(what: str, *more: str) -> Unit:
    """Return a unit whose values are so many of something in a second."""
    words = ["/s", f"{what}/s", *(f"{what}/s{each}" for each in more)]
    return Unit(words[-1], _same("", *words))


_UNITS = {
    "": Unit("", _same(""), signed=True),
    "count": Unit("", _same("")),
    "ns": Unit("ms", _times("1e9")),
    "sec": Unit("s", _times("1")),
    "ms/image": Unit("ms", {**_times("1e3"), "ms/image": Decimal(1)}),
    "fraction": Unit("%", {"": Decimal(1), "%": Decimal("0.01")}, most=1.0),
    "ratio": Unit("", {"": Decimal(1), "%": Decimal("0.01")}),
    "%": Unit("%", _same("", "%"), signed=True),
    "tokens": Unit("tokens", _same("", "token", "tokens")),
    "requests": Unit("requests", _same("", "request", "requests")),
    "images": Unit("images", _same("", "image", "images")),
    "B": Unit("B", {"": Decimal(1), **_BYTES}),
    "MB": Unit("MB", {"": Decimal(1), **{word: factor / 10**6 for word, factor in _BYTES.items()}}),
    "requests/sec": _per_second("requests"),
    "tokens/sec": _per_second("tokens"),
    "tokens/sec/user": _per_second("tokens", "/user"),
    "images/sec": _per_second("images"),
}
