"""Bytes that are nearly right: the committed test vectors, changed a little."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

T = TypeVar("T")

_VECTORS = Path(__file__).resolve().parents[2] / "schemas" / "vectors"
_FACTOR = int(os.environ.get("PHASE_BUS_FUZZ_FACTOR", "1"))

# What msgpack can begin with that decoders stumble over: wide numbers, text that is not UTF-8, lengths
# without content, nesting.
_PIECES = (
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf0" + b"\0" * 6,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\xa1\xff",
    b"\xa3\xed\xa0\x80",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xd4\x05x",
    b"\xc0",
    b"\xc1",
    b"\x91" * 5000,
)


def fuzzed(examples: int) -> Callable[[T], T]:
    """Return the decorator of a test that takes so many examples, times ``PHASE_BUS_FUZZ_FACTOR``."""
    return settings(
        max_examples=examples * _FACTOR,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def corpus(*names: str) -> list[list[bytes]]:
    """Return the frames of each vector in files of these names."""
    found = []
    for name in names:
        document = json.loads((_VECTORS / f"{name}.json").read_text())
        found += [[bytes.fromhex(frame) for frame in vector["frames"]] for vector in document["vectors"]]
    return found


@st.composite
def mutated(draw: st.DrawFn, frame: bytes) -> bytes:
    """Return a frame that is cut, or has bytes changed, left out, doubled, or put in."""
    changed = frame
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(changed)))
        end = min(place + draw(st.integers(0, 9)), len(changed))
        what = draw(st.sampled_from(("cut", "change", "leave out", "double", "put in", "replace")))
        if what == "cut":
            changed = changed[:place]
        elif what == "change":
            changed = changed[:place] + draw(st.binary(min_size=1, max_size=2)) + changed[place + 1 :]
        elif what == "leave out":
            changed = changed[:place] + changed[end:]
        elif what == "double":
            changed = changed[:end] + changed[place:]
        else:
            piece = draw(st.sampled_from(_PIECES))
            changed = changed[:place] + piece + changed[end if what == "replace" else place :]
    return changed


@st.composite
def messages(draw: st.DrawFn, *names: str) -> list[bytes]:
    """Return the frames of one message, some of them changed; now and then one too many, or too few."""
    frames = [draw(mutated(frame)) for frame in draw(st.sampled_from(corpus(*names)))]
    if draw(st.integers(0, 9)) == 0:
        frames = draw(st.permutations([*frames, draw(st.binary(max_size=20))]))
    if draw(st.integers(0, 9)) == 0:
        frames = frames[1:]
    return frames or [b""]
