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
from phase_bus.core.classes import look_here_too, one_line
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
_PLUGIN = {field.name: field.type for field in msgspec.structs.fields(PluginInfo)}
_ROW = {field.encode_name: field.type for field in msgspec.structs.fields(Row)}


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
        checker = _Checker(path)
        checker.check()
        findings += checker.findings
        for kind, name, line in checker.names:
            first = taken.setdefault((kind, name), path)
            if first != path:
                text = f"{kind} {name!r}: {first} has that name too, and keeps it"
                findings.append(Finding(str(path), line, text))
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
    """Checks one file: finds what is wrong, and the kind, name and line of what the file names."""

    def __init__(self, path: Path) -> None:
        self.findings: list[Finding] = []
        self.names: list[tuple[str, str, int]] = []
        self._path = path

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
            self._plugin(sections["plugin"])
        for section, kind in SECTIONS.items():
            if section in sections and _value(sections[section]) is not None:  # not all commented out
                for name, row in self._mapping(sections[section], None, section).items():
                    self._row(kind, name, f"{section}.{name}", row)
        return None

    def _plugin(self, node: yaml.Node) -> None:
        fields = self._mapping(node, _PLUGIN, "plugin")
        self._types(fields, _PLUGIN, "plugin")
        if "name" in fields:
            self.names.append(("plugin", str(_value(fields["name"])), _line(fields["name"])))
        elif isinstance(node, yaml.MappingNode):
            self._find(node, "plugin has no 'name'")

    def _row(self, kind: Kind, name: str, where: str, row: yaml.Node) -> None:
        self.names.append((kind, name, _line(row)))
        if name in _RESERVED or set(name) & set(":,.="):
            self._find(
                row,
                f"{where}: this name cannot be used: {', '.join(_RESERVED)} mean something else, "
                "and a name has no ':', ',', '.' or '=' in it",
            )
        fields = self._mapping(row, _ROW, where)
        fit = self._types(fields, _ROW, where)
        if "class" in fields and fit:
            self._class(kind, where, fields)
        elif "class" not in fields and isinstance(row, yaml.MappingNode):
            self._find(row, f"{where}: has no 'class'; write class: module:Class")

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
        """Return the nodes of a mapping by key."""
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

    def _types(self, fields: dict[str, yaml.Node], types: dict[str, Any], where: str) -> bool:
        """Return whether the known fields have values of their types."""
        before = len(self.findings)
        for name, node in fields.items():
            if name in types:
                try:
                    msgspec.convert(_value(node), types[name])
                except msgspec.ValidationError as error:
                    self._find(node, f"{where}.{name}: {str(error).replace('`', chr(39))}")
        return len(self.findings) == before

    def _find(self, node: yaml.Node | None, text: str) -> None:
        self.findings.append(Finding(str(self._path), 0 if node is None else _line(node), text))


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
