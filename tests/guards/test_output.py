"""Text from elsewhere has one way out: nothing prints beside the functions that escape it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Those that print themselves: with `printable`, JSON with `printable_json`, or nothing but their own words.
PRINTING = {"cli/output.py", "cli/printer.py", "journal/export.py", "logging.py"}


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield our modules: where they are, and what is in them."""
    for package in (ROOT / "src" / "phase_bus", ROOT / "consumers" / "phase_bus_consumers"):
        for path in package.rglob("*.py"):
            yield path.relative_to(package).as_posix(), ast.parse(path.read_text("utf-8"))


@pytest.mark.parametrize(("name", "allowed"), [("print", PRINTING), ("Console", set())])
def test_what_is_called_only_here(name: str, allowed: set[str]) -> None:
    calling = {
        where
        for where, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    }
    assert calling <= allowed, calling - allowed


def test_nothing_is_markup() -> None:
    """A name of a run that looks like markup would be taken for it."""
    for where, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module != "rich.markup", where
            assert not (
                isinstance(node, ast.Attribute) and node.attr in ("from_markup", "render_markup")
            ), where
