"""In what runs differ that makes them not comparable, and what they lack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from phase_bus.comparison.run import Aspect, MeasuredRun
from phase_bus.errors import ConfigError

ASPECTS: dict[Aspect, str] = {
    "producer": "what makes the load",
    "model": "the model",
    "endpoint": "the endpoint's path",
    "options": "how requests are made",
    "load": "the load",
    "incomplete": "a run is not complete",
    "receipts": "a consumer did not handle everything",
}
_NAMED = 3  # runs


class Difference(Struct, frozen=True):
    """In what the runs of a comparison are not comparable."""

    aspect: Aspect
    text: str


class NotComparableError(ConfigError):
    """Runs that are not to be compared.

    Attributes:
        differences: why.
    """

    def __init__(self, message: str, differences: Sequence[Difference]) -> None:
        self.differences = tuple(differences)
        super().__init__(message)


def not_comparable(base: str, candidate: str, differences: Sequence[Difference]) -> NotComparableError:
    """Return the error for two sides."""
    told = "; ".join(each.text for each in differences)
    remedy = " ".join(f"--allow {aspect}" for aspect in dict.fromkeys(each.aspect for each in differences))
    return NotComparableError(
        f"{base!r} and {candidate!r} are not comparable: {told}; {remedy} compares them all the same",
        differences,
    )


def differences(base: Sequence[MeasuredRun], candidate: Sequence[MeasuredRun]) -> list[Difference]:
    """Return in what the runs differ, within a side too, and what each lacks."""
    found = []
    for aspect, title in ASPECTS.items():
        keys = dict.fromkeys(key for run in (*base, *candidate) for key in run.traits.get(aspect, {}))
        for key in keys:
            text = _difference(_trait(base, aspect, key), _trait(candidate, aspect, key))
            if text:
                found.append(Difference(aspect, f"{title} ({key}): {text}" if key else f"{title}: {text}"))
        for run in (*base, *candidate):
            if fault := run.faults.get(aspect):
                found.append(Difference(aspect, f"run {run.run_id}: {fault}"))
    return found


def _trait(runs: Iterable[MeasuredRun], aspect: Aspect, key: str) -> dict[str, list[str]]:
    """Return the runs' ids by what they have of a trait."""
    by_value: dict[str, list[str]] = {}
    for run in runs:
        by_value.setdefault(run.traits.get(aspect, {}).get(key, ""), []).append(run.run_id)
    return by_value


def _difference(base: dict[str, list[str]], candidate: dict[str, list[str]]) -> str:
    """Return how a trait differs, nothing if it does not."""
    if len({*base, *candidate}) == 1:
        return ""
    if len(base) == len(candidate) == 1:
        return f"{_told(*base)} against {_told(*candidate)}"
    everything = dict(base)
    for value, runs in candidate.items():
        everything[value] = [*everything.get(value, []), *runs]
    return ", ".join(f"{_told(value)} in {_named(runs)}" for value, runs in everything.items())


def _told(value: str) -> str:
    return value or "none"


def _named(runs: Sequence[str]) -> str:
    more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
    return f"{', '.join(runs[:_NAMED])}{more}"
