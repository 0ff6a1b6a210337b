"""The pages of the Python API and of the events: prose, with ``::: name`` where the code tells the rest."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe

from phase_bus.events import KINDS
from scripts.reference.markdown import MADE, cell, code, prose, table

_ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 88  # of a signature on one line
_KINDS = {"variadic positional": "*", "variadic keyword": "**"}


def page_from(template: str, **made: Callable[[], str]) -> str:
    """Return the page whose template of this name is beside this file; what is made stands for its name."""
    text = (Path(__file__).parent / template).read_text().replace("\n\n", f"\n\n{MADE}", 1)
    package = _package()
    for name, make in made.items():
        text = text.replace(f"\n::: {name}\n", f"\n{make()}\n")
    page = re.sub(r"^::: text ([\w.]+)$", lambda found: _text(package, found[1]), text, flags=re.MULTILINE)
    page = re.sub(r"^::: ([\w.]+)$", lambda found: _told(package, found[1]), page, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n"


@cache
def _package() -> Any:
    """Return what there is in phase_bus; to read all of it takes seconds."""
    # It complains of types in docstrings, which are in the signature.
    logging.getLogger("griffe").setLevel(logging.CRITICAL)
    return griffe.load("phase_bus", search_paths=[_ROOT / "src"])


def _text(package: Any, name: str) -> str:
    """Return the text of a docstring, without what it begins with: what a function does."""
    found = package[name.partition(".")[2]]
    return "\n\n".join(map(prose, _section(_final(found), "text"))).partition("\n\n")[2]


def _told(package: Any, name: str) -> str:
    found = package[name.partition(".")[2]]
    if not found.is_module:
        return _object(found, "### ", found.name)
    if found.exports:
        members = [found[name] for name in sorted(map(str, found.exports), key=str.lower)]
    else:
        members = [m for m in found.members.values() if not m.is_alias and _is_told(m)]
    parts = [prose(found.docstring.value), *(_object(member, "### ", member.name) for member in members)]
    return "\n\n".join(parts)


def _final(found: Any) -> Any:
    return found.final_target if found.is_alias else found


def _is_told(member: Any) -> bool:
    return not member.name.startswith("_") and member.docstring is not None


def _object(found: Any, level: str, title: str) -> str:
    found = _final(found)
    if found.is_class:
        head, rest = _class(found), _members(found, level)
    else:
        head = _signature(found, title.rpartition(".")[2]) if found.is_function else _assignment(found)
        rest = ""
    return f"{level}{title}\n\n```python\n{head}\n```\n\n{_docstring(found)}\n\n{_kind(found)}{rest}"


def _kind(found: Any) -> str:
    """Return how the events of a class are called, if it is that of a kind."""
    kinds = {cls.__name__: kind for kind, cls in KINDS.items()}
    if found.parent.name != "events" or found.name not in kinds:
        return ""
    kind = kinds[found.name]
    return f"Its kind is `{kind}`; a consumer's handler for it is `on_{kind}`.\n\n"


def _class(found: Any) -> str:
    init = found.members.get("__init__")
    if init is not None and not found.bases:
        return _signature(init, f"class {found.name}")
    bases = ", ".join(map(str, found.bases))
    return f"class {found.name}({bases})" if bases else f"class {found.name}"


def _members(found: Any, level: str) -> str:
    methods = [m for m in found.members.values() if not m.is_alias and m.is_function and _is_told(m)]
    attributes = table(("attribute", "type", "default", "meaning"), _attributes(found))
    return attributes + "\n".join(_object(m, f"#{level}", f"{found.name}.{m.name}") for m in methods)


def _attributes(found: Any) -> Iterator[tuple[str, ...]]:
    """Yield a row for each attribute: those of the docstring, and those that have a line of their own."""
    means = {item.name: item.description for item in _section(found, "attributes")}
    for name, member in found.members.items():
        if member.is_alias or not member.is_attribute or name.startswith("_"):
            continue
        kind = str(member.annotation or "")
        own = member.docstring.value if member.docstring else ""
        is_field = kind and "instance-attribute" in member.labels
        if name in means or own or is_field:
            is_default = is_field and member.value is not None
            default = _default(_quoted(member.value)) if is_default else ""
            yield code(name), code(kind), code(default), cell(means.get(name, own))


def _default(value: str) -> str:
    """Return a default as a reader wants it: what a factory makes, not how."""
    found = re.match(r"field\(default_factory=(.*)\)$", value)
    return f"{found[1].removeprefix('lambda: ')}()".replace(")()", ")") if found else value


def _assignment(found: Any) -> str:
    value = _quoted(found.value)
    line = f"{found.name} = {value}"
    if len(line) <= _WIDTH:
        return line
    one_each = value.replace(" | ", "\n    | ")  # of a union
    return f"{found.name} = (\n    {one_each}\n)"


def _quoted(value: Any) -> str:
    """Return code with the quotes that we use."""
    return str(value) if '"' in str(value) else str(value).replace("'", '"')


def _signature(function: Any, name: str) -> str:
    parts, is_keyword = [], False
    for each in function.parameters:
        if each.name in ("self", "cls") and not each.annotation:
            continue
        kind = each.kind.value
        if kind == "keyword-only" and not is_keyword:
            parts.append("*")
        is_keyword = is_keyword or kind in ("keyword-only", "variadic positional")
        part = _KINDS.get(kind, "") + each.name + (f": {each.annotation}" if each.annotation else "")
        has_default = each.default is not None and kind not in _KINDS
        equals = " = " if each.annotation else "="
        parts.append(part + (f"{equals}{_quoted(each.default)}" if has_default else ""))
        if kind == "positional-only":
            parts.append("/")
    parts = [p for n, p in enumerate(parts) if p != "/" or "/" not in parts[n + 1 :]]
    if name.startswith("class "):
        before, after = name, ""
    else:
        before = f"{'async ' if 'async' in function.labels else ''}def {name}"
        after = f" -> {function.returns}" if function.returns else ""
    line = f"{before}({', '.join(parts)}){after}"
    if len(line) <= _WIDTH:
        return line
    return f"{before}(\n" + "".join(f"    {part},\n" for part in parts) + f"){after}"


def _docstring(found: Any) -> str:
    """Return the text of a docstring, with its arguments, what is returned and what is raised."""
    init = found.members.get("__init__") if found.is_class else None
    described = [*_section(found, "parameters"), *(_section(init, "parameters") if init else ())]
    parts = [
        "\n\n".join(prose(text) for text in _section(found, "text")),
        table(("argument", "meaning"), ((code(p.name), cell(p.description)) for p in described)),
        *(f"Returns: {prose(item.description)}" for item in _section(found, "returns")),
        *(f"Yields: {prose(item.description)}" for item in _section(found, "yields")),
        table(
            ("raises", "when"),
            ((code(str(r.annotation).strip("()")), cell(r.description)) for r in _section(found, "raises")),
        ),
    ]
    return "\n\n".join(filter(None, parts))


def _section(found: Any, kind: str) -> list[Any]:
    """Return what a docstring has under a heading, or its texts."""
    if found.docstring is None:
        return []
    sections = [s.value for s in found.docstring.parse("google", warnings=False) if s.kind.value == kind]
    return sections if kind == "text" else [item for items in sections for item in items]
