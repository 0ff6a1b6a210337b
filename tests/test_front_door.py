"""What is public: the names of the front door, and that nobody outside needs others."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest

import phase_bus
from phase_bus import aggregation, thresholds
from phase_bus.plugins.scaffold import write_consumer
from phase_bus.plugins.scaffold.handlers import HANDLED

ROOT = Path(__file__).resolve().parents[1]
# Where a user's program may import from; phase_bus.events has no __all__, all of it is vocabulary.
PUBLIC_MODULES = {
    "phase_bus",
    "phase_bus.aggregation",
    "phase_bus.events",
    "phase_bus.testing",
    "phase_bus.thresholds",
}
_FENCED = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def outside() -> Iterator[tuple[str, str]]:
    """Yield every program that only a user's names may be in: where it is, and its text."""
    for directory in (ROOT / "consumers", ROOT / "examples"):
        for path in directory.rglob("*.py"):
            yield str(path.relative_to(ROOT)), path.read_text("utf-8")
    with TemporaryDirectory() as place:
        for path in write_consumer("asked-for", Path(place) / "asked-for", ",".join(HANDLED)):
            if path.suffix == ".py":
                yield f"src, {path.name}", path.read_text("utf-8")
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = path.read_text("utf-8")
        made = "<!-- Made from the code" in text  # its blocks are signatures
        for number, (_, code) in enumerate([] if made else _FENCED.findall(text)):
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


def declared(package: ModuleType) -> set[str]:
    """Return the names that type checkers see: those that are imported under ``TYPE_CHECKING``."""
    tree = ast.parse(Path(str(package.__file__)).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("package", [phase_bus, aggregation, thresholds], ids=lambda it: it.__name__)
def test_type_checkers_and_programs_see_the_same_names(package: ModuleType) -> None:
    """In ``__all__``, under ``TYPE_CHECKING``, and in ``dir()``; each can be had, and no other one."""
    assert set(package.__all__) == declared(package)
    assert len(set(package.__all__)) == len(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        package.nothing  # noqa: B018 - asking is what raises


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
    told = {name for page in pages for name in re.findall(r"^#+ (\w+)$", page, re.MULTILINE)}
    assert set(phase_bus.__all__) - told == set()
