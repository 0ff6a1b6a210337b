"""What is public: the names of the front door, and that nobody outside needs others."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import phase_bus

ROOT = Path(__file__).resolve().parents[1]
# Where a user's program may import from; phase_bus.events has no __all__, all of it is vocabulary.
PUBLIC_MODULES = {"phase_bus", "phase_bus.aggregation", "phase_bus.events", "phase_bus.testing"}
_FENCED = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_PLACEHOLDER = re.compile(r"\$\{?(\w+)\}?")


def outside() -> Iterator[tuple[str, str]]:
    """Yield every program that only a user's names may be in: where it is, and its text."""
    scaffold = ROOT / "src" / "phase_bus" / "plugins" / "scaffold"
    for directory in (ROOT / "consumers", ROOT / "examples"):
        for path in directory.rglob("*.py"):
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")
    for path in scaffold.rglob("*.py.tmpl"):
        yield str(path.relative_to(ROOT)), _PLACEHOLDER.sub(r"\1", path.read_text("utf-8"))
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for number, (_, code) in enumerate(_FENCED.findall(path.read_text("utf-8"))):
            yield f"{path.relative_to(ROOT)}, block {number + 1}", code


def imported(code: str) -> Iterator[tuple[str, str]]:
    """Yield what a program imports of phase_bus: the module, and the name in it, if one is given."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "phase_bus":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names if alias.name.split(".")[0] == "phase_bus")
            yield from ((name, "") for name in names)


def public(module: str, name: str) -> bool:
    """Whether a user may rely on a name."""
    if module not in PUBLIC_MODULES:
        return False
    found = import_module(module)
    names = getattr(found, "__all__", [name for name in vars(found) if not name.startswith("_")])
    return name in ("", "__version__", *names)


def declared() -> set[str]:
    """Return the names that type checkers see: those that are imported under ``TYPE_CHECKING``."""
    tree = ast.parse(Path(str(phase_bus.__file__)).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_and_programs_see_the_same_names() -> None:
    """In ``__all__``, under ``TYPE_CHECKING``, and in ``dir()``; in order, for those who read."""
    assert set(phase_bus.__all__) == declared()
    assert len(set(phase_bus.__all__)) == len(phase_bus.__all__)
    assert set(phase_bus.__all__) <= set(dir(phase_bus))


@pytest.mark.parametrize("name", phase_bus.__all__)
def test_every_name_loads(name: str) -> None:
    """And is there from then on without a detour."""
    assert getattr(phase_bus, name) is vars(phase_bus)[name]


def test_an_unknown_name_is_an_error_as_everywhere() -> None:
    """``hasattr`` and misspelled imports behave."""
    assert not hasattr(phase_bus, "Consumr")
    with pytest.raises(AttributeError, match="module 'phase_bus' has no attribute 'Consumr'"):
        _ = phase_bus.Consumr
    with pytest.raises(ImportError, match="cannot import name 'Consumr'"):
        exec("from phase_bus import Consumr")


def test_the_front_door_loads_nothing() -> None:
    """AIPerf imports the package even when its plugin is off."""
    code = "import phase_bus, sys; print([m for m in sys.modules if m.startswith('phase_bus')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['phase_bus']"


def test_everybody_outside_uses_public_names_only() -> None:
    """The README, guides, examples, scaffold and consumers can be copied as they are."""
    programs = dict(outside())
    used = [(where, *found) for where, code in programs.items() for found in imported(code)]
    assert {where.split("/")[0].split(",")[0] for where, *_ in used} == {
        "README.md", "consumers", "docs", "examples", "src",
    }  # fmt: skip
    assert [found for found in used if not public(*found[1:])] == []


def test_every_name_is_in_the_reference() -> None:
    """On the page of the API, or, if it is an event or part of one, on that of events."""
    pages = [(ROOT / "docs" / "reference" / name).read_text("utf-8") for name in ("api.md", "events.md")]
    told = {*re.findall(r"^::: phase_bus\.(\w+)$", pages[0], re.MULTILINE)}
    told |= {*re.findall(r"^ +- (\w+)$", pages[1], re.MULTILINE)}
    told |= {*vars(import_module("phase_bus.errors"))}  # which the page has whole
    assert set(phase_bus.__all__) - told == set()
