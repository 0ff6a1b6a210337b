"""What the examples' docstrings say to type."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def command_of(text: str | None) -> list[str]:
    """Return the command line in an example's docstring, with the programs under test."""
    assert text is not None
    (block,) = re.findall(r"^\n((?:    .*\n)+)", text, re.MULTILINE)
    words = shlex.split(block.replace("\\\n", " "))
    programs = {"phase-bus": ["phase_bus"], "locust": ["locust"]}
    return [
        part
        for word in words
        for part in ((sys.executable, "-m", *programs[word]) if word in programs else (word,))
    ]
