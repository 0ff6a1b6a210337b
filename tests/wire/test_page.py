"""docs/wire.md: it names everything there is, and what it shows is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from phase_bus.core.control import Reply, Request
from phase_bus.core.wire import HEADER, WIRE_VERSION
from phase_bus.events import KINDS
from scripts import asyncapi
from tests.wire.vectors import SCHEMAS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "wire.md").read_text()
OPS = [str(t.__struct_config__.tag) for union in (Request, Reply) for t in get_args(union)]


@pytest.mark.parametrize("name", [*KINDS, *OPS])
def test_page_names_every_message(name: str) -> None:
    """No kind of event and no control message is left out."""
    assert f"`{name}`" in PAGE


def test_page_has_the_header() -> None:
    """Its table of the header has the places and sizes that the AsyncAPI document has, which are tested."""
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w[\w ]*)? ?\|", PAGE, re.MULTILINE)
    assert sum(int(size) for _, size, _ in rows) == HEADER.size
    places = asyncapi.document()["components"]["schemas"]["Header"]["properties"]
    assert {int(at) for at, _, name in rows if name} == {p["x-zeromq"]["at"] for p in places.values()}
    assert f"**wire version {WIRE_VERSION}**" in PAGE


def test_page_shows_a_vector() -> None:
    """The bytes that it shows are those of a vector."""
    vectors = json.loads((SCHEMAS / "vectors" / "events.json").read_text())["vectors"]
    shown = re.findall(r"^[0-9a-f]{20,}$", PAGE, re.MULTILINE)
    assert shown
    assert shown in [vector["frames"][:2] for vector in vectors]


def test_page_names_every_file_of_vectors() -> None:
    """Each file is described, and each path that it names exists."""
    for path in (SCHEMAS / "vectors").iterdir():
        assert f"`{path.name}`" in PAGE
    for path in re.findall(r"`((?:schemas|tests)/[\w./]+)`", PAGE):
        assert (ROOT / path).exists(), path
