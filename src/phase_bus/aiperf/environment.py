"""What is to be known of the AIPerf that a command starts: files are looked at, nothing is imported."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import Distribution
from pathlib import Path

PLUGINS = "aiperf.plugins"
KNOWN = ("0.12", "0.13")
_CATEGORY = re.compile(r"^stream_exporter:", re.MULTILINE)
_QUIET = {"-v", "--verbose", "-vv", "--extra-verbose"}  # of AIPerf: they choose another display
_UI_IN_FILE = re.compile(r"""^\s*ui:\s*["']?(\w+)""", re.MULTILINE)
_PYTHON = re.compile(r"python[0-9.]*")
# The first line of a script, or the second if the path to Python is too long for the first.
_INTERPRETER = re.compile(
    r"\A#!\s*(?P<direct>/\S*python\S*)|\A#!.*\n'''exec' [\"']?(?P<long>/[^\"'\n]*?)[\"']? \"\$0\""
)


def lack_of_plugin(command: Sequence[str]) -> str:
    """Return why no run of an AIPerf command will be seen, and the remedy.

    Nothing if it will be, if that cannot be told, or if the command is not AIPerf's.
    """
    try:
        python = _python_of(command)
        return "" if python is None else _lack_in(python)
    except Exception:  # a look that fails must not keep the benchmark from running
        return ""


def has_dashboard(command: Sequence[str]) -> bool:
    """Return whether a command is an AIPerf benchmark that takes the whole screen of a terminal."""
    words = _arguments_of_aiperf(command)
    if words[:1] != ["profile"] or not _QUIET.isdisjoint(words):
        return False
    ui = _value(words, ("--ui", "--ui-type"))
    if not ui and (file := _value(words, ("--config", "-f"))):
        with suppress(OSError, UnicodeDecodeError):  # AIPerf says so
            set_there = _UI_IN_FILE.search(Path(file).read_text("utf-8"))
            ui = set_there[1] if set_there else ""
    return ui.lower() in ("", "dashboard")


def leaves_terminal_alone(command: Sequence[str]) -> bool:
    """Return whether a command is known to draw nothing: AIPerf with ``--ui none``, or a simulation."""
    words = _arguments_of_aiperf(command)
    if words:
        is_plain = _value(words, ("--ui", "--ui-type")).lower() == "none"
        return words[0] == "profile" and is_plain and _QUIET.isdisjoint(words)
    if Path(command[0]).name == "phase-bus":
        return tuple(command[1:2]) == ("simulate",)
    return _runs_module(command, "phase_bus") and tuple(command[3:4]) == ("simulate",)


def _value(words: Sequence[str], names: Sequence[str]) -> str:
    """Return the value of an option, the last one given."""
    value = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, text = word.partition("=")
        if name in names:
            value = text if equals else following
    return value


def _arguments_of_aiperf(command: Sequence[str]) -> list[str]:
    """Return the arguments of AIPerf, if that is what a command starts."""
    name = Path(command[0]).name
    if name == "aiperf":
        return list(command[1:])
    if tuple(command[1:3]) == ("run", "aiperf") if name == "uv" else _runs_module(command, "aiperf"):
        return list(command[3:])
    return []


def _runs_module(command: Sequence[str], module: str) -> bool:
    return bool(_PYTHON.fullmatch(Path(command[0]).name)) and tuple(command[1:3]) == ("-m", module)


def lack_of_category(aiperf: Distribution) -> str:
    """Return why an installed AIPerf never calls the plugin, and the remedy, or nothing."""
    categories = Path(str(aiperf.locate_file("aiperf/plugin/categories.yaml")))
    if not categories.exists() or _CATEGORY.search(categories.read_text("utf-8")):
        return ""
    return (
        f"AIPerf {aiperf.version} has no stream exporters and never calls the plugin; "
        f"use AIPerf {KNOWN[0]} or newer, or follow it from outside with 'phase-bus attach'"
    )


def _lack_in(python: Path) -> str:
    paths = list(_site_packages(python))
    aiperf = next(iter(Distribution.discover(name="aiperf", path=paths)), None)
    if aiperf is None:
        return ""  # it is elsewhere: on PYTHONPATH, in an environment below this one
    if lack := lack_of_category(aiperf):
        return lack
    entries = (e for d in Distribution.discover(path=paths) for e in d.entry_points.select(group=PLUGINS))
    if any(entry.name == "phase_bus" for entry in entries):
        return ""
    remedy = f"{python} -m pip install phase-bus"
    return f"the AIPerf of this command has no phase-bus plugin; install it there: {remedy}"


def _python_of(command: Sequence[str]) -> Path | None:
    """Return the Python that runs AIPerf, if that is what a command starts."""
    name = Path(command[0]).name
    if name == "uv" and tuple(command[1:3]) == ("run", "aiperf"):
        script = _in_project_of_uv()
    elif name == "aiperf":
        script = shutil.which(command[0])
    elif _runs_module(command, "aiperf"):
        found = shutil.which(command[0])
        return None if found is None else Path(found)
    else:
        return None
    if script is None:
        return None
    with Path(script).open(encoding="utf-8") as file:
        match = _INTERPRETER.match(file.read(4096))
    return None if match is None else Path(match["direct"] or match["long"])


def _in_project_of_uv() -> str | None:
    if given := os.environ.get("UV_PROJECT_ENVIRONMENT"):
        return shutil.which("aiperf", path=f"{given}/bin")
    here = Path.cwd()
    projects = (each for each in (here, *here.parents) if (each / "pyproject.toml").exists())
    return next((shutil.which("aiperf", path=f"{project}/.venv/bin") for project in projects), None)


def _site_packages(python: Path) -> Iterator[str]:
    """Yield where a Python has its packages; nothing if that cannot be told from its place."""
    prefix = python.parent.parent
    settings = prefix / "pyvenv.cfg"
    if not settings.exists():  # the system's, or a user's
        yield from map(str, prefix.glob("lib/python3*/dist-packages"))
        yield from map(str, Path.home().glob(".local/lib/python3*/site-packages"))
    elif re.search(r"(?mi)^include-system-site-packages\s*=\s*true", settings.read_text()):
        return
    yield from map(str, prefix.glob("lib/python3*/site-packages"))
    yield from filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
