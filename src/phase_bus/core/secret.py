"""Passwords and tokens: an option says where one is kept, never what it is."""

from __future__ import annotations

import os
from pathlib import Path

from phase_bus.errors import ConfigError

_HOW = "write env:NAME for an environment variable, or file:PATH"


class Secret:
    """Where a password or token is: ``env:NAME``, an environment variable, or ``file:PATH``.

    As an option's type it keeps the value itself out of command lines, configuration and messages.

    Raises:
        ValueError: if the text is anything else. The message does not repeat it: it may be the secret.
    """

    def __init__(self, text: str) -> None:
        kind, _, self._place = text.partition(":")
        if kind not in ("env", "file") or not self._place:
            raise ValueError(f"a secret is not given in clear; {_HOW}")
        self._in_file = kind == "file"

    def value(self) -> str:
        """Read the secret, without the end of its line.

        Raises:
            ConfigError: if there is none, or it is empty.
        """
        if not self._in_file:
            found = os.environ.get(self._place, "")
            if not found:
                raise ConfigError(f"secret {self}: the environment variable is not set; set it, or {_HOW}")
            return found
        try:
            found = Path(self._place).expanduser().read_text().strip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"secret {self}: {reason}; {_HOW}") from None
        if not found:
            raise ConfigError(f"secret {self}: the file is empty; write the secret into it")
        return found

    def __str__(self) -> str:
        """Return the text that it was made of."""
        return f"{'file' if self._in_file else 'env'}:{self._place}"

    def __repr__(self) -> str:
        """Return the same as code."""
        return f"Secret({str(self)!r})"
