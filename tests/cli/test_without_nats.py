"""Where the extra ``nats`` is not installed, an address of NATS is answered with how to install it."""

from __future__ import annotations

import subprocess
import sys

import pytest

RUN = """
import sys
sys.modules["nats"] = None
from phase_bus.cli import main
main()
"""


@pytest.mark.parametrize("command", ["consume logging", "consume aggregator", "tail", "runs", "status"])
def test_an_address_of_nats(command: str) -> None:
    words = [sys.executable, "-c", RUN, *command.split(), "--address", "nats://127.0.0.1:1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "need the package 'nats'; install it with: pip install 'phase-bus[nats]'" in done.stderr
