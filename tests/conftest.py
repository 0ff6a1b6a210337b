"""Fixtures for all tests."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import structlog

from phase_bus.consumer.dispatcher import Dispatcher
from phase_bus.core.keys import KEY_FILE_VARIABLE
from phase_bus.testing.process import BusProcess
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread, DurableBus, plain_bus
from tests.support.postgres import Postgres, running_postgres
from tests.support.workplace import EXAMPLES, Workplace, wait_for

# Prometheus, OpenSearch and the other servers that sinks write to.
pytest_plugins = ["tests.support.servers.fixtures"]


def pytest_collection_finish() -> None:
    """Freeze what the imports have made: every look for leaks would go through all of it again."""
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


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a consumer of this process try again soon where its handler fails."""
    monkeypatch.setattr(Dispatcher, "first_wait_s", 0.02)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Let no command that is called in this process leave a log that goes to a file closed by then."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def no_key_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever runs the tests have a key of their own, or none."""
    monkeypatch.setenv(KEY_FILE_VARIABLE, "")


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
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let buses of this process take every consumer for one on another machine, which asks for the past."""
    monkeypatch.setattr("phase_bus.bus.clients.is_here", lambda _space: False)


@pytest.fixture
def bus_process(ipc_dir: Path, tmp_path: Path) -> Iterator[BusProcess]:
    """A bus without a journal on an ipc directory, in a process of its own."""
    with plain_bus(tmp_path, f"ipc://{ipc_dir}") as running:
        yield running


@pytest.fixture
def kept(ipc_dir: Path, tmp_path: Path) -> Iterator[DurableBus]:
    """A bus with a journal."""
    bus = DurableBus(ipc_dir, tmp_path / "journal")
    yield bus
    bus.close()


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A place for processes; the test fails if one of them outlives it."""
    place = Workplace(tmp_path)
    yield place
    left = place.close()
    assert not left, f"processes left behind: {left}"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tokenizer, made once."""
    pytest.importorskip("aiperf")
    directory = tmp_path_factory.mktemp("tokenizer") / "tok"
    subprocess.run(
        [sys.executable, str(EXAMPLES / "make_tokenizer.py"), str(directory)], check=True, timeout=60
    )
    return directory


@pytest.fixture
def mock_llm(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start mock LLM servers: call it with options, get the URL."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> str:
        port_file = tmp_path / f"llm-port-{len(servers)}"
        server = subprocess.Popen(
            [
                sys.executable,
                str(EXAMPLES / "mock_llm_server.py"),
                "--port-file",
                str(port_file),
                *options,
            ],
            stdout=subprocess.DEVNULL,
        )
        servers.append(server)
        wait_for(lambda: port_file.exists(), "the mock LLM server's port", 30.0)
        return f"http://127.0.0.1:{port_file.read_text().strip()}"

    yield start
    for server in servers:
        server.terminate()
    for server in servers:
        server.wait(10.0)


@pytest.fixture
def aiperf(workplace: Workplace, tokenizer: Path) -> Callable[..., list[str]]:
    """Return the command line of a small AIPerf run, to which options can be added."""
    (workplace.directory / "tok").symlink_to(tokenizer)
    program = Path(os.environ.get("PHASE_BUS_TEST_AIPERF") or Path(sys.executable).with_name("aiperf"))
    if not program.exists():
        pytest.skip("aiperf is not installed beside this Python")

    def command(url: str, *options: str, output: str = "aiperf-out") -> list[str]:
        defaults = {
            "--output-tokens-mean": "16",
            "--output-tokens-stddev": "6",
            "--synthetic-input-tokens-mean": "32",
            "--concurrency": "8",
        }
        for name in options:
            defaults.pop(name, None)
        arguments = [str(program), "profile", "-m", "mock", "--url", url, "--endpoint-type", "chat"]
        arguments += ["--streaming", "--tokenizer", "./tok", "--ui", "none", "--no-gpu-telemetry"]
        arguments += ["--artifact-dir", output]
        return [*arguments, *(word for pair in defaults.items() for word in pair), *options]

    return command


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests of a session."""
    with running_postgres() as server:
        yield server
