"""The documentation as a reader types it in: the files and the commands of a page of Markdown."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "phase_bus")

_FILE = re.compile(r"^```(?:python|yaml)\n(# (\S+\.\w+)\n.*?)^```", re.DOTALL | re.MULTILINE)


class Page:
    """A page of Markdown.

    Args:
        path: the page, from the project's root.

    Attributes:
        text: what is in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = ROOT / path
        self.text = self.path.read_text()

    def blocks(self, language: str) -> list[str]:
        """Return the code blocks in a language."""
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)

    def commands(self) -> list[str]:
        """Return the command lines, continued lines joined and comments left out."""
        joined = "".join(self.blocks("sh")).replace("\\\n", " ")
        lines = (re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines())
        return [" ".join(line.split()) for line in lines if line]

    def starting(self, prefix: str) -> str:
        """Return the only command that begins like this, or is exactly this."""
        found = [command for command in self.commands() if command.startswith(prefix)]
        (command,) = [command for command in found if command == prefix] or found
        return command

    def files(self) -> dict[str, str]:
        """Return the blocks of code that begin with a comment that is a file's name, by that name."""
        return {name: content for content, name in _FILE.findall(self.text)}

    def write_files(self, directory: Path) -> None:
        """Write them."""
        for name, content in self.files().items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)


def words(command: str) -> list[str]:
    """Return a command's words, with `phase-bus` and `python` as those under test."""
    programs = {"phase-bus": PROGRAM, "python": (sys.executable,)}
    return [part for word in shlex.split(command) for part in programs.get(word, (word,))]


def moved(text: str, place: dict[str, str]) -> str:
    """Return a text with addresses and places that are the test's own, so that tests do not meet."""
    for given, own in place.items():
        text = text.replace(given, own)
    return text
