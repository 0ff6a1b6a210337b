"""What becomes of values that are not plain numbers, on their way into records and events.

It imports nothing: AIPerf loads it even when the plugin is off.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

ListMode: TypeAlias = Literal["summary", "omit", "full"]


def as_text(value: Any) -> str:
    """Return the value as a text that UTF-8 can carry (an enum's is its value)."""
    text = str.__str__(value) if isinstance(value, str) else str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
