"""System calls of real processes, counted by ``strace``."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from phase_bus.testing.process import PythonProcess
from phase_bus.testing.waiting import wait_until

# What the scheduler (who waits for whom) and the allocator decide is not counted.
_NOT_OURS = "futex,sched_yield,mmap,munmap,mprotect,mremap,madvise,brk"
_CALL = re.compile(r"\d+ +(\d+\.\d+) (\w+)\(", re.ASCII)  # not the second half of one that was interrupted


def needs_strace() -> None:
    """Skip a test where no process can be traced."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    tried = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"strace may not trace: {tried.stderr.strip()}")


def tracing(trace: Path) -> tuple[str, ...]:
    """Return the command that runs a process, and writes down the system calls of all its threads.

    The tracer is the grandchild (``-D``), so that signals go to the process itself.
    """
    options = ("-ttt", "-s", "0", "-e", f"trace=!{_NOT_OURS}", "-e", "signal=none")
    return ("strace", "-D", "-f", *options, "-o", str(trace))


def wait_traced(process: PythonProcess, trace: Path) -> None:
    """Wait until the tracer of a process that has ended has written everything."""
    end = re.compile(rf"^{process.pid} +[\d.]+ \+\+\+ exited", re.MULTILINE)
    wait_until(lambda: end.search(trace.read_text()) is not None)


def calls_between(trace: Path, begin_s: float, end_s: float) -> Counter[str]:
    """Return how often each system call was made between two times of :func:`time.time`."""
    found = (match for line in trace.read_text().splitlines() if (match := _CALL.match(line)))
    return Counter(match[2] for match in found if begin_s <= float(match[1]) <= end_s)
