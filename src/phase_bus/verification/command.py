"""The AIPerf command that is verified: checked, given a place for its results, and run."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from phase_bus.errors import ConfigError
from phase_bus.harness.signals import signal_group

_ARTIFACT_DIR = ("--artifact-dir", "--output-artifact-dir")
_PREFIX = ("--profile-export-prefix", "--profile-export-file")
_CONFIG = ("--config", "-f")
_ADDRESS_IN_YAML = re.compile(r"\bphase_bus\b")
_END_S = 15.0  # what AIPerf gets to end by itself, once it was interrupted


class Ended(Struct, frozen=True, kw_only=True):
    """How a command ended; ``cpu_s`` is of all processes below it too that were waited for."""

    exit_code: int
    duration_s: float
    cpu_s: float


class Interrupt:
    """Whether the user wants to stop (Ctrl-C, SIGTERM, SIGHUP); a running command is interrupted too.

    The first signal asks the command to end; a second one, or ``_END_S`` without an end, kills it.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._group: int | None = None

    def watch(self, group: int | None) -> None:
        """Interrupt a command too from now on, by its process group; None for no command."""
        self._group = group
        if self.asked.is_set():  # while the bus was starting, for instance
            self._ask()

    def on_signal(self, _signum: int) -> None:
        """Take in a signal of the user's."""
        if self.asked.is_set():
            self._kill(self._group)
        else:
            self.asked.set()
            self._ask()

    def _ask(self) -> None:
        if self._group is not None:
            signal_group(self._group, signal.SIGINT)
            asyncio.get_running_loop().call_later(_END_S, self._kill, self._group)

    def _kill(self, group: int | None) -> None:
        if group is not None and group == self._group:
            signal_group(group, signal.SIGKILL)


def check_benchmark(command: Sequence[str]) -> tuple[str, ...]:
    """Return an AIPerf command as it can be verified: without a directory of its own for its results.

    Raises:
        ConfigError: if it is not ``aiperf profile ...``, or sets what verify has to set.
    """
    if not any(
        Path(word).name == "aiperf" and next_word == "profile"
        for word, next_word in itertools.pairwise(command)
    ):
        raise ConfigError(
            f"command {' '.join(command)!r}: is not 'aiperf profile ...'; verify reads AIPerf's "
            "own results, so write that after '--', without a script around it"
        )
    for name in (word.partition("=")[0] for word in command):
        if name in _PREFIX:
            raise ConfigError(f"command: {name} names files that verify has to find; leave it out")
    for path in _split(command, _CONFIG)[0]:
        _check_config(Path(path))
    return tuple(_split(command, _ARTIFACT_DIR)[1])


async def run_benchmark(
    command: Sequence[str], artifacts: Path, environment: Mapping[str, str], log: Path, interrupt: Interrupt
) -> Ended:
    """Run an AIPerf command in a process group of its own, its output in a file, and wait for its end.

    Raises:
        ConfigError: if it cannot be started.
    """
    started_s = time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - waited for by wait4, for what it used
                [*command, "--artifact-dir", str(artifacts)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        except OSError as error:
            reason = f"{error.strerror}; check its name and $PATH"
            raise ConfigError(f"command {command[0]!r}: {reason}") from error
    interrupt.watch(process.pid)
    waiting = asyncio.create_task(asyncio.to_thread(os.wait4, process.pid, 0))
    try:
        _, status, used = await asyncio.shield(waiting)
    except asyncio.CancelledError:
        signal_group(process.pid, signal.SIGKILL)
        await waiting
        raise
    finally:
        interrupt.watch(None)
        process.returncode = 0  # so that subprocess does not wait for it as well
    return Ended(
        exit_code=os.waitstatus_to_exitcode(status),
        duration_s=time.monotonic() - started_s,
        cpu_s=used.ru_utime + used.ru_stime,
    )


def _check_config(path: Path) -> None:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return  # AIPerf will say what is wrong with it
    if _ADDRESS_IN_YAML.search(text):
        raise ConfigError(
            f"command: {path} sets variables of phase_bus, so the bus could not be switched off; "
            "take them out for verify"
        )


def _split(command: Sequence[str], names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the values that an option has in a command line, and the command line without the option."""
    values, rest = [], []
    words = iter(command)
    for word in words:
        name, equals, value = word.partition("=")
        if name in names:
            values.append(value if equals else next(words, ""))
        else:
            rest.append(word)
    return values, rest
