"""docs/reference/: the pages made from the code are fresh, whole, and read on GitHub as on the site."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import phase_bus
from phase_bus.cli import build_app, main
from phase_bus.events import KINDS
from scripts.reference import DIRECTORY, stale
from scripts.reference.commands import commands, examples_of, options_of_command
from scripts.reference.markdown import cell, code

COMMANDS = (DIRECTORY / "commands.md").read_text()
ALL = [path for path, _ in commands()]


def test_the_pages_are_fresh() -> None:
    """They are what the code says now."""
    names = ", ".join(path.name for path in stale())
    assert not names, f"{names}: stale; run 'make reference' and commit docs/reference"


def test_no_command_is_missing() -> None:
    """Each has a section with all its options; hidden ones are left out."""
    assert {("exec",), ("journal", "export"), ("dead-letters", "retry")} <= set(ALL)
    assert {path[0] for path in ALL} == {name for name in build_app() if not name.startswith("-")}
    for path in ALL:
        title = f"phase-bus {' '.join(path)}"
        (section,) = re.findall(rf"^## {title}\n.*?(?=^## |\Z)", COMMANDS, re.DOTALL | re.MULTILINE)
        examples = "".join(re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE))
        assert title in examples
        for argument in options_of_command(path)[1]:
            upper = rf"(?<!\w){re.escape(argument.name.lstrip('-').upper())}(?!\w)"
            told = argument.names[0] in section or re.search(upper, section) is not None
            assert told == bool(argument.show), (path, argument.names)
    assert "Args:" not in COMMANDS


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_examples_of_help_can_be_pasted(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a terminal of 80 columns each is on one line, and it is a command that is there."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main([*path, "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = examples_of(options_of_command(path)[0].help)
    assert examples
    for example in examples:
        assert example in lines, f"too long for 80 columns: {example}"
        assert example.startswith("phase-bus "), example


def test_every_option_of_a_consumer_is_told() -> None:
    """By a description, not by its name alone, with its type and default."""
    page = (DIRECTORY / "consumers.md").read_text()
    assert "\n## aggregator\n" in page
    assert "| `exact_limit` | integer | `1024` | up to" in page
    assert "| `retry_times` |" in page
    assert re.findall(r"^\| `\w+` \|.*\| \|$", page, re.MULTILINE) == []


def test_what_consumers_write_is_told() -> None:
    """The summary's keys and an example, every table's columns, every kind of alert."""
    page = (DIRECTORY / "outputs.md").read_text()
    (example,) = re.findall(r"^```json\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert json.loads(example)["phases"][0]["metrics"]["request_latency"]["p95"] > 0
    assert "| `stream_offset` | bigint | yes |" in page
    assert "`slow_phase`, `phase_timeout`, " in page


def test_all_of_the_front_door_is_told() -> None:
    """Every name that is imported from phase_bus has its section, and so has every kind of event."""
    api, events = ((DIRECTORY / f"{name}.md").read_text() for name in ("api", "events"))
    told = set(re.findall(r"^### (\w+)$", api + events, re.MULTILINE))
    assert set(phase_bus.__all__) <= told
    for kind, cls in KINDS.items():
        assert re.search(rf"^### {cls.__name__}\n.*?`on_{kind}`", events, re.DOTALL | re.MULTILINE), kind


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.md")), ids=lambda path: path.stem)
def test_it_is_plain_markdown(path: Path) -> None:
    """It has no roles, attributes or directives, and each row of a table has as many cells as its head."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r":\w+:`|\{ ?#|^:::|^!!!|``", text, re.MULTILINE) == []
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({row.count("|") for row in table.splitlines()}) == 1, table


def test_a_pipe_ends_no_cell() -> None:
    """The site and GitHub read one between backticks differently."""
    assert code("int | None") == "<code>int &#124; None</code>"
    assert cell("a <b> | `c`, :class:`~x.Y`") == "a &lt;b&gt; &#124; `c`, `Y`"
