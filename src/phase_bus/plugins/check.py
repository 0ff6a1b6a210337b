"""Checking a plugin's ``registry.yaml``, and whether its classes fit what it says of them."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import yaml
from msgspec import Struct

from phase_bus.consumer.options import options_of
from phase_bus.core.classes import look_here_too, one_line
from phase_bus.errors import PhaseBusError, suggest
from phase_bus.plugins.file import SECTIONS, Kind, PluginInfo, Row, installed_sources, path_of
from phase_bus.plugins.registry import load_class

_RESERVED = ("consumers", "hooks", "processors")
_PLUGIN = {name: get_type_hints(PluginInfo)[name] for name in PluginInfo.__struct_fields__}
_ROW = {
    name: get_type_hints(Row)[field]
    for name, field in zip(Row.__struct_encode_fields__, Row.__struct_fields__, strict=True)
}


class Finding(Struct, frozen=True):
    """Something that is wrong in a file.

    Attributes:
        file: the file.
        line: the line, from 1; 0 for the file as a whole.
        text: what is wrong, and the remedy.
    """

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        """Return ``file:line: text``."""
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


def check_files(paths: Sequence[Path]) -> Iterator[Finding]:
    """Yield what is wrong in some files, and what two of them call by one name."""
    taken: dict[tuple[str, str], Path] = {}
    for path in paths:
        checker = _Checker(path)
        yield from checker.check()
        for kind, name, line in checker.names:
            first = taken.setdefault((kind, name), path)
            if first != path:
                yield Finding(str(path), line, f"{kind} {name!r}: {first} has that name too, and keeps it")


def check_installed() -> Iterator[Finding]:
    """Yield what is wrong in the files of the installed plugins."""
    paths = []
    for source in installed_sources():
        try:
            paths.append(path_of(source))
        except Exception as error:  # finding a package may run its parents' code
            yield Finding(source, 0, f"cannot be found: {one_line(error)}")
    yield from check_files(paths)


class _Checker:
    """Checks one file.

    Attributes:
        names: what it names: kind, name, line.
    """

    def __init__(self, path: Path) -> None:
        self.names: list[tuple[str, str, int]] = []
        self._path = path

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong."""
        try:
            root = yaml.compose(self._path.read_text(), Loader=yaml.SafeLoader)
        except OSError as error:
            yield self._finding(None, f"cannot be read: {error.strerror}")
            return
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            yield self._finding(None, f"is not YAML: {one_line(error)}")
            return
        if not isinstance(root, yaml.MappingNode):
            yield self._finding(None, "holds no plugin; it begins with 'plugin:', with a 'name' in it")
            return
        _let_be_found(self._path)
        sections = yield from self._mapping(root, ("plugin", *SECTIONS), "the file")
        if "plugin" not in sections:
            yield self._finding(None, "has no 'plugin'; write 'plugin:' with a 'name' in it")
        else:
            yield from self._plugin(sections["plugin"])
        for section, kind in SECTIONS.items():
            if section in sections:
                yield from self._section(section, kind, sections[section])

    def _plugin(self, node: yaml.Node) -> Iterator[Finding]:
        fields = yield from self._mapping(node, tuple(_PLUGIN), "plugin")
        yield from self._types(fields, _PLUGIN, "plugin")
        if isinstance(node, yaml.MappingNode) and "name" not in fields:
            yield self._finding(node, "plugin has no 'name'")
        elif "name" in fields:
            self.names.append(("plugin", str(_value(fields["name"])), _line(fields["name"])))

    def _section(self, section: str, kind: Kind, node: yaml.Node) -> Iterator[Finding]:
        if _value(node) is None:
            return  # empty: all of it is commented out
        rows = yield from self._mapping(node, None, section)
        for name, row in rows.items():
            where = f"{section}.{name}"
            self.names.append((kind, name, _line(row)))
            if name in _RESERVED or set(name) & set(":,.="):
                yield self._finding(
                    row,
                    f"{where}: cannot be called so: {', '.join(_RESERVED)} mean something else, "
                    "and a name has no ':', ',', '.' or '=' in it",
                )
            fields = yield from self._mapping(row, tuple(_ROW), where)
            wrong = list(self._types(fields, _ROW, where))
            yield from wrong
            if isinstance(row, yaml.MappingNode) and "class" not in fields:
                yield self._finding(row, f"{where}: has no 'class'; write class: module:Class")
            elif "class" in fields and not wrong:
                yield from self._class(kind, where, fields)

    def _class(self, kind: Kind, where: str, fields: dict[str, yaml.Node]) -> Iterator[Finding]:
        node = fields["class"]
        try:
            options = options_of(load_class(kind, where, _value(node)))
        except PhaseBusError as error:
            yield self._finding(node, str(error).removeprefix("consumer "))
            return
        listed = fields.get("config_params")
        named: list[str] = _value(listed) if listed is not None else []
        for param in named:
            if param not in options:
                yield self._finding(
                    listed,
                    f"{where}: config_params: the constructor has no {param!r}{suggest(param, options)}",
                )
        for option in options.values():
            if option.required and option.name not in named:
                yield self._finding(
                    listed or node,
                    f"{where}: config_params: lacks {option.name!r}, which the constructor asks for",
                )

    def _mapping(
        self, node: yaml.Node, known: tuple[str, ...] | None, where: str
    ) -> Generator[Finding, None, dict[str, yaml.Node]]:
        """Yield what is wrong with the keys of a mapping; return its nodes by key."""
        if not isinstance(node, yaml.MappingNode):
            yield self._finding(node, f"{where}: is no mapping; write 'key: value' lines below it")
            return {}
        found: dict[str, yaml.Node] = {}
        for key_node, value in node.value:
            key = str(_value(key_node))
            if key in found:
                yield self._finding(key_node, f"{where}: {key!r} is there twice; only the last one counts")
            if known is not None and key not in known:
                yield self._finding(key_node, f"{where}: unknown key {key!r}{suggest(key, known)}")
            found[key] = value
        return found

    def _types(self, fields: dict[str, yaml.Node], types: dict[str, Any], where: str) -> Iterator[Finding]:
        for name, node in fields.items():
            if name in types:
                try:
                    msgspec.convert(_value(node), types[name])
                except msgspec.ValidationError as error:
                    yield self._finding(node, f"{where}.{name}: {str(error).replace('`', chr(39))}")

    def _finding(self, node: yaml.Node | None, text: str) -> Finding:
        return Finding(str(self._path), 0 if node is None else _line(node), text)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _value(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _let_be_found(path: Path) -> None:
    """Let the package that a file is in be imported, installed or not."""
    look_here_too()
    root = path.resolve().parent
    while (root / "__init__.py").exists():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
