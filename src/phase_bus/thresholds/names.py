"""The names in a threshold: which are known, what else they may be called, and which look like a slip."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import get_args

from msgspec import Struct

from phase_bus.aggregation.rates import RATES, RateName
from phase_bus.aggregation.units import METRICS
from phase_bus.events import PhaseKind
from phase_bus.thresholds.tokens import Token, is_word

STATISTICS = ("p50", "p90", "p99.9", "mean", "min", "max", "std", "sum", "count")
"""The statistics, with some percentiles for all of them."""

_ALIASES = {
    **dict.fromkeys(("avg", "average"), "mean"),
    "median": "p50",
    "minimum": "min",
    "maximum": "max",
    "stddev": "std",
}
_PERCENTILE = re.compile(r"p([0-9]+)(?:\.([0-9]+))?")
_KEYWORDS = frozenset(("no", "goodput", "of", "and", "over", "for", "at", "least", "samples", "abort"))
_SIMILAR = 0.85  # as difflib has it; 1 is the same


class Names(Struct, frozen=True):
    """What may be called by a name at one place of a threshold.

    A name that is almost a known one is taken for a slip, and so is one that belongs elsewhere: the
    threshold would have no data, and fail at the end of a long run. In quotes any name is what it says.

    Attributes:
        what: what is called so, for a message.
        known: the names that are known; case means nothing in them.
        elsewhere: words that mean something at other places, and what.
    """

    what: str
    known: Collection[str]
    elsewhere: Mapping[str, str]

    def read(self, token: Token) -> str:
        """Return the name that a word gives.

        Raises:
            ValueError: if it gives none; it says what is wrong with the word.
        """
        word = token.folded
        if token.kind == "name" or word in self.known:
            if not token.text:
                raise ValueError(f"{self.what}'s name is empty")
            return word or token.text
        if word in _KEYWORDS:
            raise ValueError(f"{self.what} is expected here; one that is called so goes in quotes")
        if (other := self.elsewhere.get(word, read_statistic(token) and "a statistic")) is not None:
            raise ValueError(f"{self.what} is expected here, and that is {other}; or put it in quotes")
        for near in get_close_matches(word, self.known, n=1, cutoff=_SIMILAR):
            if not _is_extended(word, near):
                raise ValueError(
                    f"did you mean {near!r}? {self.what.capitalize()} of this name goes in quotes"
                )
        return token.text

    def spell(self, name: str) -> str:
        """Return a name as :meth:`read` takes it: in quotes if need be."""
        if is_word(name):
            try:
                if self.read(Token("word", name, 0)) == name:
                    return name
            except ValueError:
                pass
        return f"'{name}'" if '"' in name else f'"{name}"'


_IS_METRIC = dict.fromkeys(METRICS, "a metric")
_IS_RATE = dict.fromkeys(RATES, "a figure of the phase as a whole")
_PHASE_KINDS: tuple[str, ...] = get_args(PhaseKind)
_NO_NUMBERS = ("nan", "inf", "infinity", "none", "null", "true", "false")

METRIC_NAMES = Names("a metric", METRICS, dict.fromkeys(_PHASE_KINDS, "a phase") | _IS_RATE)
PHASE_NAMES = Names("a phase", _PHASE_KINDS, _IS_METRIC | _IS_RATE)
BASELINE_NAMES = Names("a number or a baseline", (), dict.fromkeys(_NO_NUMBERS, "neither"))


def read_rate(token: Token) -> RateName | None:
    """Return the figure of a phase as a whole that is called so."""
    return token.folded if token.folded in RATES else None


def read_statistic(token: Token) -> str | None:
    """Return the statistic that is called so, in its one spelling; ``p101`` is none."""
    word = _ALIASES.get(token.folded, token.folded)
    if (found := _PERCENTILE.fullmatch(word)) is None:
        return word if word in STATISTICS else None
    if float(word[1:]) > 100:
        return None
    whole, part = str(int(found[1])), (found[2] or "").rstrip("0")
    return f"p{whole}.{part}" if part else f"p{whole}"


def is_keyword(token: Token) -> bool:
    """Return whether a word belongs to the language; in quotes it is a name like any other."""
    return token.folded in _KEYWORDS


def _is_extended(word: str, known: str) -> bool:
    """Return whether a word is a known one with something before or after it, such as ``profiling-2``."""
    return re.fullmatch(rf"(.*[-_.])?{re.escape(known)}([-_.\d].*)?", word) is not None
