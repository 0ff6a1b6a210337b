"""Numbers that people give: NaN and infinity compare with nothing, and never mean what was meant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct


def check_finite(value: Any) -> None:
    """Raise a ValueError if a value is, or holds, a number that is NaN or infinite."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
    elif isinstance(value, Mapping):
        for each in value.values():
            check_finite(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            check_finite(each)
    elif isinstance(value, Struct):
        for name in value.__struct_fields__:
            check_finite(getattr(value, name))
