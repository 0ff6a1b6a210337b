"""Libraries that come with an extra: what to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Say, where an import inside fails, which extra brings what is missing.

    Raises:
        ModuleNotFoundError: with a line for the user, if a library is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing; install it with: pip install 'phase-bus[{extra}]'"
        ) from error
