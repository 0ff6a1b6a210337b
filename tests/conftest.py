"""Fixtures for all tests."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from phase_bus.testing.process import BusProcess
from tests.helpers import BusThread, plain_bus, wait_until


def pytest_collection_finish() -> None:
    """Put aside what the imports have made: every look for leaks would go through all of it again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why a run with skipped tests fails in CI."""
    if os.environ.get("CI") and (skipped := len(terminalreporter.stats.get("skipped", ()))):
        terminalreporter.write_line(f"{skipped} tests were skipped: in CI everything they need is there")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: a missing dependency must not hide what it would show."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves behind a child process, a thread, a ZeroMQ socket or an open file.

    A ZeroMQ socket has a file descriptor of its own, so that counting those finds it.
    """
    me = psutil.Process()
    gc.collect()
    fds, threads = _open_files(), set(threading.enumerate())
    children = set(me.children(recursive=True))
    yield
    gc.collect()
    left = wait_until_or_last(lambda: set(me.children(recursive=True)) - children)
    assert not left, f"processes left behind: {left}"
    alive = wait_until_or_last(lambda: set(threading.enumerate()) - threads)
    assert not alive, f"threads left behind: {alive}"
    open_files = wait_until_or_last(lambda: {f: t for f, t in _open_files().items() if fds.get(f) != t})
    assert not open_files, f"files left open: {open_files}"


def wait_until_or_last(leak: object) -> object:
    """Return what a function still finds after a second, or the first time that it finds nothing."""
    assert callable(leak)
    try:
        wait_until(lambda: not leak(), 1.0)
    except AssertionError:
        return leak()
    return None


def _open_files() -> dict[str, str]:
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[link.name] = str(link.readlink())
        except OSError:  # the directory's own descriptor, closed by now
            continue
    return found


@pytest.fixture
def ipc_dir() -> Iterator[Path]:
    """A directory with a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="pb-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def bus(ipc_dir: Path) -> Iterator[BusThread]:
    """A bus on an ipc directory, in a thread."""
    with BusThread(f"ipc://{ipc_dir}") as running:
        yield running


@pytest.fixture
def bus_process(ipc_dir: Path, tmp_path: Path) -> Iterator[BusProcess]:
    """A bus without a journal on an ipc directory, in a process of its own."""
    with plain_bus(tmp_path, f"ipc://{ipc_dir}") as running:
        yield running
