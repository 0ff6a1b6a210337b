"""``phase-bus new``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def consumer(
    name: str, /, *, directory: Annotated[Path | None, Parameter(name=["--directory", "-d"])] = None
) -> None:
    """Write a package for a consumer of your own: code, registry, options, tests, README.

    It works as it is, and passes its own tests, mypy and ruff; change it into what you need.

    For example:

        phase-bus new consumer slow-requests
        phase-bus new consumer slow-requests --directory src/slow-requests

    Args:
        name: What users will call it: lower-case letters, digits and '-'.
        directory: Where to write it; must not exist. Default: NAME in the current directory.
    """
    from phase_bus.plugins.scaffold import write_consumer

    where = directory if directory is not None else Path(name)
    for path in write_consumer(name, where):
        print(f"wrote {path}")
    place = shlex.quote(str(where))
    print(
        f"\nNext:\n  pip install -e {place}'[dev]'\n  pytest {place}\n"
        f"  phase-bus exec --with {name} -- phase-bus simulate"
    )
