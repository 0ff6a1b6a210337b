"""Commands of phase-bus that are run in this process."""

from __future__ import annotations

import pytest

from phase_bus.cli import main


def exit_code(*words: str) -> int:
    """Run a command; return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert isinstance(end.value.code, int)
    return end.value.code


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command; return its exit code, standard output and standard error."""
    return exit_code(*words), *capsys.readouterr()
