"""From the text of a threshold to what it means, and to the one spelling of it.

The language::

    threshold  = [PHASE] condition {[","] qualifier}
    condition  = METRIC STATISTIC operator limit | RATE operator limit
               | "goodput(" part {("," | "and") part} ")" operator limit
               | "no saturation" ["of" METRIC]
    part       = METRIC operator NUMBER [UNIT]
    limit      = NUMBER [UNIT] | BASELINE [("+" | "-") NUMBER ("%" | [UNIT])]
    qualifier  = "over" DURATION | "for" DURATION | "at least" NUMBER "samples" | "abort"
    operator   = "<" | "<=" | ">" | ">="
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any, NoReturn

import msgspec

from phase_bus.aggregation.rates import RATES
from phase_bus.aggregation.units import METRICS, describe
from phase_bus.errors import ConfigError, suggest
from phase_bus.thresholds.names import (
    BASELINE_NAMES,
    METRIC_NAMES,
    PHASE_NAMES,
    STATISTICS,
    Names,
    is_keyword,
    read_rate,
    read_statistic,
)
from phase_bus.thresholds.spelling import spell
from phase_bus.thresholds.threshold import (
    DEFAULT_PHASE,
    BaselineLimit,
    Condition,
    Goodput,
    Metric,
    Operator,
    Quantity,
    Rate,
    Saturation,
    Threshold,
    unit_of,
)
from phase_bus.thresholds.tokens import Token, fail, tokenize
from phase_bus.thresholds.units import DURATION, LARGEST, SMALLEST, Unit, writing_of

SATURATION_RISE = 0.1
"""By how much a latency may rise, as a fraction, while the throughput does not."""
SATURATION_OVER_S = 60.0

_OPERATORS: dict[str, Operator] = {"<": "<", "<=": "<=", "≤": "<=", ">": ">", ">=": ">=", "≥": ">="}
_STATISTICS = "p0 to p100, mean, min, max, std, sum or count"
_QUALIFIERS = ("over", "for", "at", "abort")
_AT_LEAST = "'at least 100 samples'"
_QUALIFIED = f"'over 30 s', 'for 10 s', {_AT_LEAST}, 'abort' or the end"
_LONGEST_S = 3600.0
_MOST_SAMPLES = 10**12
_MOST_CONDITIONS = 20
_MOST_PERCENT = 1e6


def parse_threshold(text: str) -> Threshold:
    """Return the threshold that a text describes.

    Its :attr:`~Threshold.text` is the canonical spelling: the same for equal thresholds, read as itself.

    Raises:
        ConfigError: if it describes none; the one line names the word, its place and what is allowed there.
    """
    return _Parser(text).threshold()


def parse_thresholds(
    entries: object, place: str = "thresholds", *, abort: bool = False
) -> tuple[Threshold, ...]:
    """Return the thresholds of a list as YAML has it, each once.

    An entry is a text, or a mapping with ``threshold``, the text, and ``abort``, which is the same as the
    word in the text; with ``abort`` here, each is to end a run that does not keep to it.

    Raises:
        ConfigError: if an entry is something else, or describes no threshold.
    """
    if not isinstance(entries, list | tuple):
        raise ConfigError(f"{place}: has to be a list, with a text for each threshold")
    parsed = [_parse_entry(entry, f"{place}[{number}]") for number, entry in enumerate(entries)]
    if abort:
        parsed = [with_abort(threshold) for threshold in parsed]
    return tuple({threshold.text: threshold for threshold in parsed}.values())


def with_abort(threshold: Threshold) -> Threshold:
    """Return a threshold that ends the run when it fails, before a number is put in for a baseline."""
    changed = msgspec.structs.replace(threshold, abort=True)
    return msgspec.structs.replace(changed, text=spell(changed))


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    threshold: str
    abort: bool = False


def _parse_entry(entry: object, place: str) -> Threshold:
    try:
        given = _Entry(entry) if isinstance(entry, str) else msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        reason = str(error).replace("`", "'").replace("Object", "the mapping").replace("object", "mapping")
        raise ConfigError(
            f"{place}: {reason}; write a text, or {{threshold: 'error_rate < 1 %', abort: true}}"
        ) from None
    threshold = parse_threshold(given.threshold)
    return with_abort(threshold) if given.abort else threshold


class _Parser:
    """Reads one text, from the first token to the last, by recursive descent."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = tokenize(text)
        self._read = 0

    def threshold(self) -> Threshold:
        phase, quantity = self._quantity()
        given: dict[str, Any] = {"phase": phase, "quantity": quantity}
        if isinstance(quantity, Saturation):
            given |= {"operator": "<", "limit": SATURATION_RISE, "over_s": SATURATION_OVER_S}
        else:
            given["operator"] = self._operator()
            given["limit"] = self._limit(quantity)
        threshold = Threshold(text="", **(given | self._qualifiers()))
        return msgspec.structs.replace(threshold, text=spell(threshold))

    # ---- tokens ----

    @property
    def _next(self) -> Token:
        return self._tokens[self._read]

    def _take(self) -> Token:
        token = self._next
        self._read += token.kind != "end"
        return token

    def _accept(self, *words: str) -> Token | None:
        """Take the next token if it is one of these words of the language, or symbols."""
        return self._take() if self._next.folded in words and self._next.kind != "end" else None

    def _expect(self, word: str, example: str) -> Token:
        return self._accept(word) or self._wrong(self._next, f"{word!r} is expected here, as in {example}")

    def _wrong(self, token: Token, reason: str) -> NoReturn:
        fail(self._text, f"{token}: {reason}")

    # ---- the quantity ----

    def _quantity(self) -> tuple[str, Quantity]:
        """Read up to the operator, or up to the qualifiers where there is none."""
        heads: list[Token] = []
        while self._next.kind in ("word", "name") and not is_keyword(self._next):
            heads.append(self._take())
        if self._accept("goodput"):
            return self._phase(heads), self._goodput()
        if self._accept("no"):
            return self._phase(heads), self._saturation()
        if not heads:
            self._wrong(
                self._next,
                "a metric with its statistic, a figure of the phase, 'goodput(...)' or 'no saturation' is "
                "expected here, as in 'time_to_first_token p99 < 500 ms'",
            )
        if (rate := read_rate(heads[-1])) is not None:
            return self._phase(heads[:-1]), Rate(rate)
        statistic = read_statistic(heads[-1])
        if statistic is None or len(heads) == 1:
            self._no_statistic(heads)
        return self._phase(heads[:-2]), Metric(self._name(METRIC_NAMES, heads[-2]), statistic)

    def _phase(self, heads: list[Token]) -> str:
        if len(heads) > 1:
            self._wrong(
                heads[1], "one phase is expected before what is measured; a name with spaces goes in quotes"
            )
        return self._name(PHASE_NAMES, heads[0]) if heads else DEFAULT_PHASE

    def _no_statistic(self, heads: list[Token]) -> NoReturn:
        """Say what is wrong with words that end neither with a figure of the phase nor with a statistic."""
        *before, last = heads
        if before and read_statistic(before[-1]):
            self._wrong(before[-1], f"a statistic comes after its metric: {last.text} {before[-1].text}")
        if before and last.folded not in METRICS:
            self._wrong(last, f"a statistic is expected here: {_STATISTICS}{_near(last, STATISTICS)}")
        if read_statistic(last):
            self._wrong(last, f"a metric is expected before it, as in 'time_to_first_token {last.text}'")
        if last.folded in METRICS or last.kind == "name":
            self._wrong(self._next, f"a statistic of {last.text} is expected here: {_STATISTICS}")
        near = get_close_matches(last.folded, [*RATES, *METRICS], n=1) or RATES
        self._wrong(
            last,
            "that is no figure of a phase, and no metric with a statistic after it"
            f"{suggest(last.folded, near)}",
        )

    def _name(self, names: Names, token: Token) -> str:
        try:
            return names.read(token)
        except ValueError as error:
            self._wrong(token, str(error))

    def _goodput(self) -> Goodput:
        """Read what each request has to keep to."""
        self._expect("(", "'goodput(time_to_first_token < 500 ms, inter_token_latency < 30 ms) > 95 %'")
        conditions = [self._condition()]
        while self._accept(",", "and"):
            conditions.append(self._condition())
            if len(conditions) > _MOST_CONDITIONS:
                self._wrong(self._next, f"at most {_MOST_CONDITIONS} conditions are read")
        if not self._accept(")"):
            self._wrong(self._next, "')' or ',' and a further condition is expected here")
        return Goodput(tuple(dict.fromkeys(conditions)))

    def _condition(self) -> Condition:
        token = self._take()
        if token.kind not in ("word", "name"):
            self._wrong(token, "a metric is expected here, as in 'time_to_first_token < 500 ms'")
        metric = self._name(METRIC_NAMES, token)
        if read_statistic(self._next):
            self._wrong(self._next, "a request has one value of a metric: leave the statistic out")
        how = self._operator()
        return Condition(metric, how, self._amount(writing_of(describe(metric).unit)))

    def _saturation(self) -> Saturation:
        self._expect("saturation", "'no saturation of request_latency'")
        if not self._accept("of"):
            return Saturation()
        token = self._take()
        if token.kind not in ("word", "name"):
            self._wrong(token, "a metric is expected here, as in 'no saturation of request_latency'")
        return Saturation(self._name(METRIC_NAMES, token))

    # ---- what it is held against ----

    def _operator(self) -> Operator:
        token = self._next
        if (found := _OPERATORS.get(token.folded)) is None:
            self._wrong(token, "<, <=, > or >= is expected here")
        self._take()
        return found

    def _limit(self, quantity: Quantity) -> float | BaselineLimit:
        unit = writing_of(unit_of(quantity))
        if self._next.kind not in ("word", "name"):
            return self._amount(unit)
        token = self._take()
        name = self._name(BASELINE_NAMES, token)
        if "-" in token.folded and self._unit_word() is not None:
            self._wrong(token, "a '-' has a space before it, or is part of the name")
        if (sign := self._accept("+", "-")) is None:
            return BaselineLimit(name)
        number, value = self._number("a number with % or a unit")
        if self._accept("%"):
            down = sign.text == "-"
            if value > _MOST_PERCENT or (down and value >= 100):
                self._wrong(
                    number,
                    "of a baseline at most a million percent are added, and less than 100 taken away",
                )
            percent = Decimal(repr(value)) / 100
            return BaselineLimit(name, factor=float(1 - percent if down else 1 + percent))
        amount = self._in_unit(number, value, unit.plain())
        return BaselineLimit(name, plus=-amount if sign.text == "-" else amount)

    def _amount(self, unit: Unit) -> float:
        """Read a number and its unit; return it in the unit on the bus."""
        minus = self._accept("-")
        number, value = self._number("a number with its unit")
        amount = self._in_unit(number, value, unit)
        if minus and not unit.signed:
            self._wrong(minus, "this is never negative")
        return -amount if minus and amount else amount

    def _number(self, what: str) -> tuple[Token, float]:
        token = self._take()
        if token.kind != "number":
            self._wrong(token, f"{what} is expected here")
        value = float(token.text)
        if value > LARGEST:
            self._wrong(token, f"at most {LARGEST:g} is read")
        return token, value

    def _in_unit(self, number: Token, value: float, unit: Unit) -> float:
        """Read the unit of a number that was read; return the number in the unit on the bus."""
        word = self._unit_word()
        said = "" if word is None else self._take().folded
        if said not in unit.words:
            if word is None:
                self._wrong(number, f"a unit is missing after it: {unit.allowed}")
            self._wrong(word, f"the unit here is {unit.allowed}")
        amount = unit.read(value, said)
        if amount > unit.most:
            most = unit.spell(unit.most)
            self._wrong(
                number, f"at most {most} makes sense here" + ("" if said else f"; write {number.text} %")
            )
        if 0 < amount < SMALLEST:
            self._wrong(number, "that is less than is ever measured")
        return amount

    def _unit_word(self) -> Token | None:
        """Return the next token if it stands where a unit does and belongs to nothing else."""
        token = self._next
        is_unit = token.folded == "%" or (token.kind == "word" and not is_keyword(token))
        return token if is_unit else None

    # ---- qualifiers ----

    def _qualifiers(self) -> dict[str, Any]:
        """Read what follows the condition; return it as arguments of a Threshold."""
        given: dict[str, Any] = {}
        while self._next.kind != "end":
            self._accept(",")
            token = self._take()
            match token.folded:
                case "over":
                    found = "over_s", self._window()
                case "for":
                    found = "for_s", self._duration()[1]
                case "at":
                    found = "at_least", self._samples()
                case "abort":
                    found = "abort", True
                case _:
                    hint = _near(token, _QUALIFIERS)
                    self._wrong(token, f"{_QUALIFIED} is expected here{hint}")
            if found[0] in given:
                self._wrong(token, "is given twice; give it once")
            given |= [found]
        return given

    def _duration(self) -> tuple[Token, float]:
        number, value = self._number("a duration, such as 30 s,")
        seconds = self._in_unit(number, value, DURATION)
        if not 0 < seconds <= _LONGEST_S:
            self._wrong(number, "a duration is more than nothing, and an hour at most")
        return number, seconds

    def _window(self) -> float:
        number, seconds = self._duration()
        if seconds != int(seconds):
            self._wrong(number, "a window has whole seconds, such as 'over 30 s'")
        return seconds

    def _samples(self) -> int:
        self._expect("least", _AT_LEAST)
        number, value = self._number("a number of samples")
        if value != int(value) or not 1 <= value <= _MOST_SAMPLES:
            self._wrong(number, "a whole number of samples from 1 is expected here")
        if not self._accept("sample", "samples"):
            self._wrong(self._next, f"'samples' is expected here, as in {_AT_LEAST}")
        return int(value)


def _near(token: Token, words: Sequence[str]) -> str:
    """Return a suggestion if a word is almost one of these, else nothing."""
    return suggest(token.folded, words) if get_close_matches(token.folded, words, n=1) else ""
