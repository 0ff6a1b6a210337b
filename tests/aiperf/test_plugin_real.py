"""The plugin inside the real AIPerf, where the bus is absent: nothing about the benchmark changes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [pytest.mark.aiperf, pytest.mark.slow]

EXAMPLES = Path(__file__).parents[2] / "examples"
AIPERF = Path(os.environ.get("PHASE_BUS_TEST_AIPERF") or Path(sys.executable).with_name("aiperf"))
REQUESTS = 20


class Ran(NamedTuple):
    returncode: int
    files: frozenset[str]
    requests: float
    output: str


@pytest.fixture(scope="module", autouse=True)
def _aiperf_is_there() -> None:
    if not AIPERF.exists():
        pytest.skip("aiperf is not installed: pip install '.[aiperf]'")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    command = [sys.executable, str(EXAMPLES / "mock_llm_server.py"), "--exit-with-parent"]
    with subprocess.Popen([*command, "--ttft-ms", "2"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("aiperf")
    subprocess.run(
        [sys.executable, str(EXAMPLES / "make_tokenizer.py"), str(directory / "tok")], check=True
    )
    return directory


@pytest.fixture(scope="module")
def run(url: str, directory: Path) -> Callable[[str, str | None], Ran]:
    def run(name: str, address: str | None) -> Ran:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PHASE_BUS_")}
        if address is not None:
            environ["PHASE_BUS_ADDRESS"] = address
        command = [str(AIPERF), "profile", "-m", "mock", "--url", url, "--endpoint-type", "chat"]
        command += ["--streaming", "--tokenizer", "./tok", "--request-count", str(REQUESTS)]
        command += ["--concurrency", "4", "--ui", "none", "--artifact-dir", name]
        done = subprocess.run(
            command, cwd=directory, env=environ, capture_output=True, text=True, timeout=100, check=False
        )
        artifacts = directory / name
        results = json.loads((artifacts / "profile_export_aiperf.json").read_text())
        files = frozenset(str(path.relative_to(artifacts)) for path in artifacts.rglob("*"))
        return Ran(done.returncode, files, results["request_count"]["avg"], done.stdout + done.stderr)

    return run


@pytest.fixture(scope="module")
def without(run: Callable[[str, str | None], Ran]) -> Ran:
    return run("without", None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_aiperf_accepts_the_plugin() -> None:
    done = subprocess.run(
        [str(AIPERF), "plugins", "--validate"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "All checks passed" in done.stdout


def test_without_an_address_nothing_is_said(without: Ran) -> None:
    assert (without.returncode, without.requests) == (0, REQUESTS)
    assert "phase-bus" not in without.output
    assert "phase_bus" not in without.output


def test_an_unreachable_bus_changes_nothing(run: Callable[[str, str | None], Ran], without: Ran) -> None:
    ran = run("unreachable", f"tcp://127.0.0.1:{free_port()}")
    assert ran[:3] == without[:3]
    assert "still alive after" not in ran.output, "the plugin held up the end"


def test_a_malformed_address_changes_nothing_and_is_told(
    run: Callable[[str, str | None], Ran], without: Ran
) -> None:
    ran = run("malformed", "nonsense")
    assert ran[:3] == without[:3]
    assert ran.output.count("phase-bus is off for this run") == 1
    assert "nonsense" in ran.output
