"""Bounds on what is counted."""

from __future__ import annotations

_REMEDY = (
    "Something new is done on a path that every event or record takes. Take it off that path, or, if it "
    "is worth its price, measure that (`make bench`) and raise the bound in the same commit."
)


def assert_at_most(bound: float, found: float, what: str) -> None:
    """Fail if ``found`` of ``what`` is more than the bound, and say what to do then."""
    assert found <= bound, f"{what}: {found:.2f}, at most {bound:g} so far. {_REMEDY}"
