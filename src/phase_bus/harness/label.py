"""What a user calls the runs of a command."""

from __future__ import annotations

from phase_bus.core.printable import printable
from phase_bus.errors import ConfigError
from phase_bus.publisher.publisher import LABEL_VARIABLE

_LONGEST = 200


def check_label(label: str, option: str = "--label") -> None:
    """Check that runs may be called so; an empty label is none.

    Raises:
        ConfigError: if they may not.
    """
    if printable(label) != label or label.strip() != label or len(label) > _LONGEST:
        raise ConfigError(
            f"{option} {label[:_LONGEST]!r}: not a label; give at most {_LONGEST} printable characters, "
            "without a space at its ends"
        )


def as_variable(label: str) -> dict[str, str]:
    """Return the environment in which publishers call their runs so; empty without a label."""
    return {LABEL_VARIABLE: label} if label else {}
