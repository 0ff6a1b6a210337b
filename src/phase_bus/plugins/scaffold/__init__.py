"""Writing a package for a consumer of one's own, from the templates in this directory.

A template is a file whose name ends in ``.tmpl``, for :class:`string.Template`. The directory ``package``
is called as the new package is.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from string import Template

from phase_bus import __version__
from phase_bus.errors import ConfigError
from phase_bus.plugins.registry import Registry
from phase_bus.plugins.scaffold.handlers import parse_kinds, words_for

DEFAULT_KINDS = "records,run_complete"
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST_NAME = 30  # so that no line of the templates becomes too long
_SUFFIX = ".tmpl"
_TEMPLATES = Path(__file__).with_name("consumer")


def write_consumer(name: str, directory: Path, on: str = DEFAULT_KINDS) -> list[Path]:
    """Write a package that has one consumer into a new directory; return its files.

    Package and class are called after the consumer.

    Args:
        name: the consumer's name.
        directory: where to write it; must not exist.
        on: the kinds of event that it is to handle, separated by commas.

    Raises:
        ConfigError: if the name, the directory or a kind cannot be used, or the files cannot be written.
    """
    kinds = parse_kinds(on)
    if directory.exists():
        raise ConfigError(
            f"directory {str(directory)!r}: exists already; give another one with --directory"
        )
    package = _check_name(name)
    words = {
        "name": name,
        "package": package,
        "class_name": "".join(word.capitalize() for word in re.split("[-_]", name)),
        "phase_bus": ".".join(__version__.split(".")[:2]),
    }
    words |= {word: Template(text).substitute(words) for word, text in words_for(kinds).items()}
    written = []
    try:
        for template in sorted(_TEMPLATES.rglob(f"*{_SUFFIX}")):
            parts = [package if p == "package" else p for p in template.relative_to(_TEMPLATES).parts]
            path = directory.joinpath(*parts).with_suffix("")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(template.read_text("utf-8")).substitute(words), "utf-8")
            written.append(path)
    except OSError as error:
        raise ConfigError(
            f"directory {str(directory)!r}: cannot be written: {error.strerror}; give another --directory"
        ) from error
    return written


def _check_name(name: str) -> str:
    """Return the name of the package for a consumer, if the consumer can have this name."""
    package = name.replace("-", "_")
    if not _NAME.fullmatch(name) or keyword.iskeyword(package) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"consumer name {name!r}: is not a valid package name; write up to {_LONGEST_NAME} lower-case "
            "letters, digits and '-', such as 'slow-requests'"
        )
    if name in Registry.load().consumers:
        raise ConfigError(f"consumer name {name!r}: is taken, see 'phase-bus consumers'; give another one")
    if package in sys.stdlib_module_names or find_spec(package) is not None:
        raise ConfigError(
            f"consumer name {name!r}: there is a Python module {package!r} already; give another one"
        )
    return package
