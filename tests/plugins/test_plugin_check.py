"""``phase-bus consumers --validate``: what is wrong in a plugin's file, one line each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phase_bus.cli import main
from phase_bus.plugins.check import check_files, check_installed

CODE = """
from phase_bus.consumer.consumer import Consumer

class Sink(Consumer):
    def __init__(self, path: str, size: int = 1) -> None: ...
    async def on_phase_complete(self, event): ...

class Hook:
    def __init__(self, handler, limit=5): ...
    async def on_phase_start(self, phase, tracker): ...

class Processor:
    async def process(self, results): ...
"""

RIGHT = """
plugin: {name: checked, version: 1.0.0, description: x, author: y, enabled: true}
consumers:
  sink:
    class: checked_plugin.code:Sink
    config_params: [path, size]
phase_hooks:
  hook:
    class: checked_plugin.code:Hook
    description: A hook
    priority: 5
    tags: [a, b]
    auto_load: false
    config_params: [handler]
post_processors:
  # nothing but a class
  processor:
    class: checked_plugin.code:Processor
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the file of a plugin that is not installed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = tmp_path / "src" / "checked_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "code.py").write_text(CODE)

    def to_file(content: str) -> Path:
        path = package / "registry.yaml"
        path.write_text(content)
        return path

    yield to_file
    for name in [name for name in sys.modules if name.startswith("checked_plugin")]:
        del sys.modules[name]


def test_a_right_file(write: Write) -> None:
    """Nothing to say, wherever the package is."""
    assert check_files([write(RIGHT)]) == []


def test_empty_sections_are_right(write: Write) -> None:
    """All that is in them may be commented out."""
    assert check_files([write("plugin: {name: x}\nphase_hooks:\n")]) == []


def test_our_own_file_is_right() -> None:
    assert [f for f in check_installed() if "phase_bus_consumers" in f.file] == []


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("plugin: {name: checked, ", "plugin: {", 2, "plugin: has no 'name'"),
        ("plugin: {", "plugins: {", 2, "the file: unknown key 'plugins'; did you mean 'plugin'?"),
        ("enabled: true", "enable: true", 2, "plugin: unknown key 'enable'; did you mean 'enabled'?"),
        ("enabled: true", "enabled: 7", 2, "plugin.enabled: must be true or false, not an integer"),
        ("    priority: 5", "    priority: first", 11, "hook.priority: must be an integer, not text"),
        ("    priority: 5", "    prority: 5", 11, "phase_hooks.hook: unknown key 'prority'; did you mean"),
        ("    priority: 5", "    class: x:Y", 11, "'class' is there twice; only the last one counts"),
        ("tags: [a, b]", "tags: a", 12, "phase_hooks.hook.tags: must be a list, not text"),
        ("code:Hook", "code:Hok", 9, "module 'checked_plugin.code' has no 'Hok'; did you mean 'Hook'?"),
        ("code:Hook", "code:Processor", 9, "is not a phase hook: it has none of on_phase_start"),
        ("code:Processor", "code:Hook", 18, "is not a post-processor: it has no method 'process'"),
        ("code:Sink", "code:Hook", 5, "not a subclass of phase_bus.Consumer"),
        ("checked_plugin.code:Sink", "nowhere:Sink", 5, "No module named 'nowhere'"),
        ("checked_plugin.code:Sink", "Sink", 5, "write it as module:Class"),
        ("    class: checked_plugin.code:Sink\n", "", 5, "consumers.sink: has no 'class'"),
        ("[handler]", "[handlr, handler]", 14, "the constructor has no 'handlr'; did you mean 'handler'?"),
        ("[handler]", "[limit]", 14, "lacks 'handler', which the constructor requires"),
        ("    config_params: [path, size]\n", "", 5, "lacks 'path', which the constructor requires"),
        ("  sink:", "  hooks:", 5, "consumers.hooks: this name cannot be used"),
        ("  sink:", "  a.b:", 5, "consumers.a.b: this name cannot be used"),
        ("consumers:\n", "consumers: [a]\nmore:\n", 3, "consumers: is not a mapping"),
        ("  processor:\n", "  processor: x\n  other:\n", 17, "post_processors.processor: is not a mapping"),
        ("plugin: {", "plugin: {{", 0, "is not YAML"),
        (RIGHT, "just text", 0, "does not describe a plugin"),
        (RIGHT, "phase_hooks: {}", 0, "has no 'plugin'"),
    ],
)  # fmt: skip
def test_what_is_wrong(old: str, new: str, line: int, message: str, write: Write) -> None:
    """Each mistake has its line, and says what would be right."""
    assert RIGHT.count(old) == 1
    path = write(RIGHT.replace(old, new))
    told = [finding for finding in check_files([path]) if message in finding.text]
    assert [finding.line for finding in told] == [line]
    assert "\n" not in str(told[0])
    assert str(told[0]).startswith(f"{path}:{line}: " if line else f"{path}: ")


def test_a_name_in_two_files(write: Write, tmp_path: Path) -> None:
    """The first that has a name keeps it."""
    path = write(RIGHT)
    other = tmp_path / "other.yaml"
    other.write_text(RIGHT)
    texts = [finding.text for finding in check_files([path, other])]
    assert [text.partition(": ")[0] for text in texts] == [
        "plugin 'checked'", "consumer 'sink'", "hook 'hook'", "processor 'processor'",
    ]  # fmt: skip
    assert all(str(path) in text for text in texts)


def test_the_command(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each and exit code 2, or 0 and a line that says so."""
    path = write(RIGHT)
    for files, said in (
        ([str(path)], f"{path}: fine"),
        ([], "the files of all installed plugins are fine"),
    ):
        with pytest.raises(SystemExit, match="0"):
            main(["consumers", "--validate", *files])
        assert capsys.readouterr().out == f"{said}\n"
    path = write(RIGHT.replace("enabled: true", "enabled: 7"))
    with pytest.raises(SystemExit, match="2"):
        main(["consumers", "--validate", str(path)])
    assert capsys.readouterr().out == f"{path}:2: plugin.enabled: must be true or false, not an integer\n"
    with pytest.raises(SystemExit, match="2"):
        main(["consumers", "--validate", "--json", str(path), str(path.with_name("gone.yaml"))])
    told = json.loads(capsys.readouterr().out)
    assert [finding["line"] for finding in told] == [2, 0]
    assert "No such file" in told[1]["text"]
    with pytest.raises(SystemExit, match="2"):
        main(["consumers", str(path)])
    assert "add --validate" in capsys.readouterr().err


def test_a_tag_that_nothing_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["consumers", "--tag", "nope"])
    assert "no consumer has the tag 'nope'; known: aggregation, " in capsys.readouterr().err
