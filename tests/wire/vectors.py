"""The committed test vectors, for tests that read them."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


def vectors(name: str, **wanted: str) -> list[Any]:
    """Return the vectors of a file as test parameters, those with certain values only."""
    found = json.loads((SCHEMAS / "vectors" / f"{name}.json").read_text())["vectors"]
    chosen = [v for v in found if all(v[key] == value for key, value in wanted.items())]
    assert chosen, f"no vectors in {name}.json"
    return [pytest.param(vector, id=vector["name"]) for vector in chosen]


def frames_of(vector: dict[str, Any]) -> list[bytes]:
    """Return a vector's frames."""
    return [bytes.fromhex(frame) for frame in vector["frames"]]


def as_json(value: Any) -> Any:
    """Return decoded msgpack in the form in which the vectors show it."""
    if isinstance(value, dict):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_json(part) for part in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": str(value)}
    return value
