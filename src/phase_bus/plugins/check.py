"""Checking a plugin's ``registry.yaml``, and whether its classes fit what it says of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from phase_bus.consumer.options import options_of
from phase_bus.core.classes import look_here_too, one_line, type_in_words
from phase_bus.errors import PhaseBusError, suggest
from phase_bus.plugins.registry import (
    SECTIONS,
    Kind,
    PluginInfo,
    Row,
    installed_sources,
    load_class,
    path_of,
)

_RESERVED = ("consumers", "hooks", "processors")


class Finding(Struct, frozen=True):
    """Something that is wrong in a file: in a line of it, or in the file as a whole (line 0)."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        """Return ``file:line: text``."""
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


def check_files(paths: Sequence[Path]) -> list[Finding]:
    """Return what is wrong in some files, and what two of them call by one name."""
    findings: list[Finding] = []
    taken: dict[tuple[str, str], Path] = {}
    for path in paths:
        _Checker(path, findings, taken).check()
    return findings


def check_installed() -> list[Finding]:
    """Return what is wrong in the files of the installed plugins."""
    findings, paths = [], []
    for source in installed_sources():
        try:
            paths.append(path_of(source))
        except Exception as error:  # finding a package may run its parents' code
            findings.append(Finding(source, 0, f"cannot be found: {one_line(error)}"))
    return findings + check_files(paths)


class _Checker:
    """Checks one file, after others that have ``taken`` names, by kind and name."""

    def __init__(self, path: Path, findings: list[Finding], taken: dict[tuple[str, str], Path]) -> None:
        self._path = path
        self._findings = findings
        self._taken = taken

    def check(self) -> None:
        """Check the file."""
        try:
            root = yaml.compose(self._path.read_text(), Loader=yaml.SafeLoader)
        except OSError as error:
            return self._find(None, f"cannot be read: {error.strerror}")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            return self._find(None, f"is not YAML: {one_line(error)}")
        if not isinstance(root, yaml.MappingNode):
            return self._find(
                None, "does not describe a plugin; begin it with 'plugin:' and a 'name' in it"
            )
        _let_be_found(self._path)
        sections = self._mapping(root, ("plugin", *SECTIONS), "the file")
        if "plugin" not in sections:
            self._find(None, "has no 'plugin'; write 'plugin:' with a 'name' in it")
        else:
            fields, _ = self._struct(sections["plugin"], PluginInfo, "plugin", "")
            if "name" in fields:
                self._name("plugin", str(_value(fields["name"])), fields["name"])
        for section, kind in SECTIONS.items():
            if section in sections and _value(sections[section]) is not None:  # not all commented out
                for name, row in self._mapping(sections[section], None, section).items():
                    self._row(kind, name, f"{section}.{name}", row)
        return None

    def _name(self, kind: str, name: str, node: yaml.Node) -> None:
        first = self._taken.setdefault((kind, name), self._path)
        if first != self._path:
            self._find(node, f"{kind} {name!r}: {first} has that name too, and keeps it")

    def _row(self, kind: Kind, name: str, where: str, row: yaml.Node) -> None:
        self._name(kind, name, row)
        if name in _RESERVED or set(name) & set(":,.="):
            self._find(
                row,
                f"{where}: this name cannot be used: {', '.join(_RESERVED)} mean something else, "
                "and a name has no ':', ',', '.' or '=' in it",
            )
        fields, fit = self._struct(row, Row, where, "; write class: module:Class")
        if fit:
            self._class(kind, where, fields)

    def _class(self, kind: Kind, where: str, fields: dict[str, yaml.Node]) -> None:
        node = fields["class"]
        try:
            options = options_of(load_class(kind, where, _value(node)))
        except PhaseBusError as error:
            return self._find(node, str(error).removeprefix("consumer "))
        listed = fields.get("config_params")
        named: list[str] = [] if listed is None else _value(listed)
        where = f"{where}: config_params"
        for param in named:
            if param not in options:
                self._find(listed, f"{where}: the constructor has no {param!r}{suggest(param, options)}")
        for option in options.values():
            if option.required and option.name not in named:
                self._find(
                    listed or node, f"{where}: lacks {option.name!r}, which the constructor requires"
                )
        return None

    def _mapping(self, node: yaml.Node, known: Iterable[str] | None, where: str) -> dict[str, yaml.Node]:
        """Return the nodes of a mapping by key; report keys that are there twice or unknown."""
        found: dict[str, yaml.Node] = {}
        if not isinstance(node, yaml.MappingNode):
            self._find(node, f"{where}: is not a mapping; write 'key: value' lines below it")
            return found
        for key_node, value in node.value:
            key = str(_value(key_node))
            if key in found:
                self._find(key_node, f"{where}: {key!r} is there twice; only the last one counts")
            if known is not None and key not in known:
                self._find(key_node, f"{where}: unknown key {key!r}{suggest(key, known)}")
            found[key] = value
        return found

    def _struct(
        self, node: yaml.Node, struct: type[Struct], where: str, hint: str
    ) -> tuple[dict[str, yaml.Node], bool]:
        """Return the nodes of a struct by key, and whether all that is needed is there and of its type."""
        known = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        found = self._mapping(node, known, where)
        before = len(self._findings)
        for name, field in known.items():
            if name not in found:
                if field.required and isinstance(node, yaml.MappingNode):
                    self._find(node, f"{where}: has no {name!r}{hint}")
                continue
            try:
                msgspec.convert(_value(found[name]), field.type)
            except msgspec.ValidationError as error:
                self._find(found[name], f"{where}.{name}: {type_in_words(str(error))}")
        return found, isinstance(node, yaml.MappingNode) and len(self._findings) == before

    def _find(self, node: yaml.Node | None, text: str) -> None:
        self._findings.append(Finding(str(self._path), 0 if node is None else _line(node), text))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _value(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_document(node)


def _let_be_found(path: Path) -> None:
    """Let the package that a file is in be imported, installed or not."""
    look_here_too()
    root = path.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
