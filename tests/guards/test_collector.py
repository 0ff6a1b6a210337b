"""Python's garbage collector does not hold up what is delivered, in the processes that are ours."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from phase_bus.testing.process import BusProcess, PythonProcess
from phase_bus.testing.waiting import wait_until

# A program like any other of ours, that says how much the collector passes over once it is at work.
_TELLING = """
import gc
freeze = gc.freeze
def tell():
    freeze()
    print("passed over:", gc.get_freeze_count(), "others:", len(gc.get_objects()), flush=True)
gc.freeze = tell
from phase_bus.cli import main
main()
"""


@pytest.mark.parametrize("command", ["bus", "consume"])
def test_it_passes_over_what_is_loaded(tmp_path: Path, ipc_dir: Path, no_leaks: None, command: str) -> None:
    """That is nearly all there is once a bus, or a consumer, begins its work."""
    address = f"ipc://{ipc_dir}"
    arguments = ["bus", "--no-journal"] if command == "bus" else ["consume", "logging"]
    bus = BusProcess(tmp_path / "bus.log", address, options=("--no-journal",))
    telling = PythonProcess(tmp_path / "log", "-c", _TELLING, *arguments, "--address", address)
    with nullcontext() if command == "bus" else bus, telling:
        told = wait_until(
            lambda: [line for line in telling.log.read_text().splitlines() if "passed" in line]
        )
        _, _, passed, _, all_of = told[0].split()
        assert int(passed) > 0.9 * int(all_of)
        assert telling.terminate() == 0, telling.tail()
