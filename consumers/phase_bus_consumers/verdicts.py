"""What verdicts on thresholds mean for those who are told of them."""

from __future__ import annotations

from typing import Literal

from phase_bus import Verdict


def is_no_pass(verdict: Verdict) -> bool:
    """Return whether the run does not keep to the threshold: in the end it must be known that it does."""
    return verdict.state == "failed" or (verdict.final and verdict.state != "passed")


def severity(verdict: Verdict) -> Literal["info", "warning", "error"]:
    """Return how bad it is; what is final is worse than what may pass."""
    if not is_no_pass(verdict):
        return "info"
    return "error" if verdict.final else "warning"


def passed(verdict: Verdict) -> bool | None:
    """Return whether it is a pass, None as long as nobody can tell."""
    if is_no_pass(verdict):
        return False
    return True if verdict.state == "passed" else None
