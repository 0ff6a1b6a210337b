"""Which commands can be verified, and how one is run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from phase_bus.errors import ConfigError
from phase_bus.harness.signals import signals_to
from phase_bus.testing.waiting import until
from phase_bus.verification.command import Ended, Interrupt, check_benchmark, run_benchmark


@pytest.mark.parametrize(
    "before",
    [["aiperf"], ["/opt/bin/aiperf"], ["python", "-m", "aiperf"], ["env", "A=1", "nice", "aiperf"]],
)
def test_an_aiperf_command_keeps_all_but_its_directory(before: list[str]) -> None:
    """However it is called and however its directory is written."""
    for given in (["--artifact-dir", "x"], ["--artifact-dir=x"], ["--output-artifact-dir", "x"], []):
        found = check_benchmark([*before, "profile", "-m", "m", *given, "--streaming"])
        assert found == (*before, "profile", "-m", "m", "--streaming")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["./nightly.sh"], "is not 'aiperf profile"),
        (["aiperf", "plot"], "is not 'aiperf profile"),
        (["sh", "-c", "aiperf profile -m m"], "without a script around it"),
        (["aiperf", "profile", "--profile-export-prefix", "x"], "--profile-export-prefix names files"),
        (["aiperf", "profile", "--profile-export-file=x"], "--profile-export-file names files"),
    ],
)
def test_what_cannot_be_verified_is_refused(command: list[str], reason: str) -> None:
    """In one line, with what to do."""
    with pytest.raises(ConfigError, match=reason) as caught:
        check_benchmark(command)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_switches_the_bus_on_is_refused(tmp_path: Path) -> None:
    """With an address in AIPerf's own YAML, the mode `off` would not be off."""
    config = tmp_path / "run.yaml"
    config.write_text("variables:\n  phase_bus: {address: 'ipc:///x'}\n")
    for given in (["-f", str(config)], [f"--config={config}"]):
        with pytest.raises(ConfigError, match=r"run\.yaml sets variables of phase_bus"):
            check_benchmark(["aiperf", "profile", *given])
    config.write_text("models: [m]\n")
    check_benchmark(["aiperf", "profile", "-f", str(config)])


async def ran(tmp_path: Path, code: str, interrupt: Interrupt | None = None) -> Ended:
    command = (sys.executable, "-c", code)
    return await run_benchmark(
        command, tmp_path / "results", os.environ, tmp_path / "log", interrupt or Interrupt()
    )


async def test_what_a_run_took(tmp_path: Path, no_leaks: None) -> None:
    """Its exit code, output, directory, and the CPU time of the processes below it too."""
    burn = "import time\\nwhile time.process_time() < 0.3: pass"
    code = (
        "import subprocess, sys; print(sys.argv[1:]);"
        f"subprocess.run([sys.executable, '-c', '{burn}']); sys.exit(5)"
    )
    ended = await ran(tmp_path, code)
    assert ended.exit_code == 5
    assert ended.cpu_s >= 0.3
    assert ended.duration_s >= 0.3
    assert "--artifact-dir" in (tmp_path / "log").read_text()


async def test_the_first_interrupt_asks_and_the_second_kills(tmp_path: Path, no_leaks: None) -> None:
    """A command that ignores SIGINT; verify's own process gets the signals, as from Ctrl-C."""
    code = (
        "import signal, time; signal.signal(signal.SIGINT, lambda *_: print('asked', flush=True))\n"
        "print('up', flush=True)\nwhile True: time.sleep(0.01)"
    )
    log = tmp_path / "log"
    interrupt = Interrupt()
    with signals_to(interrupt.on_signal):
        running = asyncio.create_task(ran(tmp_path, code, interrupt))
        for said in ("up", "asked"):
            await until(lambda said=said: log.exists() and said in log.read_text())  # type: ignore[misc]
            os.kill(os.getpid(), signal.SIGINT)
        assert (await running).exit_code == -signal.SIGKILL
    assert interrupt.asked.is_set()


async def test_a_command_that_is_started_too_late_is_ended(tmp_path: Path, no_leaks: None) -> None:
    """The user stops while the bus is starting."""
    interrupt = Interrupt()
    interrupt.asked.set()
    ended = await ran(tmp_path, "import time; time.sleep(60)", interrupt)
    assert ended.exit_code != 0
    assert ended.duration_s < 30


async def test_a_run_that_is_cancelled_leaves_nothing(tmp_path: Path, no_leaks: None) -> None:
    """Whatever goes wrong around it."""
    running = asyncio.create_task(ran(tmp_path, "import time; print(1, flush=True); time.sleep(60)"))
    await until(lambda: (tmp_path / "log").exists() and (tmp_path / "log").read_text() != "")
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
