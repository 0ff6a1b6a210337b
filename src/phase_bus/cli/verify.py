"""``phase-bus verify``."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import msgspec

from phase_bus.cli.options import ConfigOption, OutputOption, WithOption
from phase_bus.cli.output import format_json, make_console
from phase_bus.core.files import check_writable, write_whole
from phase_bus.errors import ConfigError
from phase_bus.harness.foreground import check_command
from phase_bus.verification.command import check_benchmark

_CONSUMERS = ("aggregator", "logging")
_INTERRUPTED = 130


def verify(
    *command: str,
    rounds: int = 8,
    tolerance: str = "5%",
    config: ConfigOption = None,
    with_: WithOption = None,
    seed: int | None = None,
    strict: bool = False,
    output: OutputOption = None,
    json: Path | None = None,
) -> int:
    """Measure whether the bus slows a benchmark down.

    Runs COMMAND, an 'aiperf profile ...' with a single run, once per round in each of four modes: with the
    bus off; with the bus and the consumers on; the same with the first consumer suspended; the same with
    the first consumer killed in the middle of the profiling phase. The order changes from round to round.
    A first round is for warming up and does not count. At the end, it shows the difference between each
    mode and 'off', with its 95 % confidence interval, for throughput, TTFT, ITL, request latency and the
    duration of the command, and the CPU time of each process.

    Exits with 1 if an interval lies entirely beyond the tolerance, or if a run failed: an exit code other
    than 0, no results, nothing published. An interval that crosses the tolerance decides nothing; it is
    shown as such, and counts as a failure only with --strict.

    Let COMMAND send at a fixed rate that the machine can sustain; otherwise its own variation hides any
    difference. If no consumer is named, 'aggregator' and 'logging' run.

    For example:

        phase-bus verify -- aiperf profile -f run.yaml
        phase-bus verify --rounds 12 --tolerance 2% -- aiperf profile -f run.yaml

    Args:
        command: The AIPerf command and its arguments, after '--'. Each run writes its results to a
            directory of its own, even if the command names another.
        rounds: The number of rounds that count. With a multiple of four, the order of the modes is
            balanced.
        tolerance: How large a difference may be, in percent, in either direction.
        seed: The seed for the order of the modes. By default a new one, which is shown.
        strict: Exit with 1 also if something is not decided.
        output: The directory for the directories of the runs. Default: phase-bus-verify-DATE-TIME.
        json: The file to write everything to, as JSON.
    """
    # Here, since they take longer to load than --help to show.
    from phase_bus.harness.config import ConsumerConfig, load_config
    from phase_bus.verification.result import conclude
    from phase_bus.verification.session import Session
    from phase_bus.verification.text import tables

    tolerance_pct = _percent(tolerance)
    if rounds < 2:
        raise ConfigError(f"--rounds {rounds}: an interval needs two rounds or more")
    benchmark = check_benchmark(command) if command else ()
    check_command(benchmark)
    loaded = load_config(config, with_ or [], [])
    if not loaded.consumers:
        loaded = msgspec.structs.replace(loaded, consumers=tuple(map(ConsumerConfig, _CONSUMERS)))
    if json is not None:
        check_writable(json, "--json")
    seed = random.SystemRandom().randrange(2**16) if seed is None else seed
    console = make_console(stderr=True)

    def tell(line: str) -> None:
        console.print(f"phase-bus: {line}", soft_wrap=True)

    session = Session(benchmark, loaded, rounds, seed, _new_directory(output), tell)
    asyncio.run(session.run())
    result = conclude(session, tolerance_pct)
    for part in tables(result):
        make_console().print(part)
    if json is not None:
        write_whole(json, format_json(result) + "\n")
    if result.interrupted:
        return _INTERRUPTED
    return int(result.verdict in ("felt", "failed") or (strict and result.verdict == "not decided"))


def _percent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise ConfigError(f"--tolerance {text!r}: give a percentage between 0 and 100, such as 5%")
    return value


def _new_directory(output: Path | None) -> Path:
    """Make the directory for all runs."""
    directory = output or Path(f"phase-bus-verify-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        directory.mkdir(exist_ok=True)
        used = any(directory.iterdir())
    except OSError as error:
        raise ConfigError(
            f"--output {str(directory)!r}: {error.strerror}; give another directory"
        ) from error
    if used:
        raise ConfigError(f"--output {str(directory)!r}: is not empty; give a new directory")
    return directory
