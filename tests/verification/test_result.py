"""From runs to a verdict, with made-up runs; the tables say the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from phase_bus.harness.config import Config, ConsumerConfig
from phase_bus.verification.measures import CPU, MEASURES
from phase_bus.verification.result import Verification, conclude
from phase_bus.verification.session import Session
from phase_bus.verification.text import tables
from phase_bus.verification.trial import MODES, Mode, Run

JITTER = (0.998, 1.0, 1.003, 1.001)


def run(number: int, mode: Mode, factor: float = 1.0, problem: str = "") -> Run:
    value = 100.0 * factor * JITTER[(number + len(mode)) % len(JITTER)] * (1 + number / 10)
    return Run(
        round=number,
        mode=mode,
        place=1,
        directory="somewhere",
        exit_code=0,
        values={} if problem else {measure.key: value for measure in (*MEASURES, CPU)},
        cpu_s={"aiperf": 3.0, "display": 0.1} if mode == "off" else {"aiperf": 3.1, "bus": 0.5},
        problem=problem,
    )


def made(rounds: int = 4, **factors: float) -> list[Run]:
    """Return runs in which modes differ from `off` by a factor, and each round from the one before."""
    return [run(n, mode, factors.get(mode, 1.0)) for n in range(rounds + 1) for mode in MODES]


def verified(runs: Sequence[Run], *, tolerance_pct: float = 5.0, interrupted: bool = False) -> Verification:
    config = Config(consumers=(ConsumerConfig("logging"),))
    session = Session(("aiperf", "profile"), config, rounds=4, seed=1, directory=Path("-"), say=print)
    session.runs += runs
    if interrupted:
        session.interrupt.asked.set()
    return conclude(session, tolerance_pct)


def shown(result: Verification) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    with console.file:
        for part in tables(result):
            console.print(part)
        return console.export_text()


def test_nothing_is_felt_where_there_is_nothing() -> None:
    """Equal modes: all within the tolerance."""
    result = verified(made())
    assert result.verdict == "not felt"
    assert {c.decision for c in result.comparisons if c.metric != CPU.metric} == {"same"}
    assert "\nnot felt\n" in shown(result)
    assert "4 ROUNDS" in shown(result)


def test_a_mode_that_is_slower_is_felt() -> None:
    """20 % in one mode: that mode's differences alone lie beyond the tolerance, and are named."""
    result = verified(made(stalled=1.2))
    assert result.verdict == "felt"
    assert {c.mode for c in result.comparisons if c.decision == "felt"} == {"stalled"}
    (p99,) = (
        c
        for c in result.comparisons
        if (c.metric, c.statistic) == ("request_latency", "p99") and c.mode == "stalled"
    )
    assert p99.difference is not None
    assert p99.difference.low_pct < 20 < p99.difference.high_pct
    text = shown(result)
    assert "TTFT p99 (stalled)" in text
    assert "(on)" not in text


def test_cpu_time_is_told_and_decides_nothing() -> None:
    """What the plugin costs AIPerf is no difference that its results show."""
    runs = [
        msgspec.structs.replace(r, values={**r.values, CPU.key: 9.0 + r.round / 9 + (r.mode == "on")})
        for r in made()
    ]
    result = verified(runs)
    assert result.verdict == "not felt"
    (cpu,) = (c for c in result.comparisons if c.metric == CPU.metric and c.mode == "on")
    assert cpu.decision is None
    assert cpu.difference is not None
    assert cpu.difference.low_pct > 5
    assert result.cpu_s["on"] == {"aiperf": 3.1, "bus": 0.5}


def test_a_tolerance_that_the_noise_exceeds_is_not_decided() -> None:
    """The same runs against a tolerance of 0.01 %."""
    result = verified(made(), tolerance_pct=0.01)
    assert result.verdict == "not decided"
    assert "are not decided" in shown(result)


def test_the_warm_up_does_not_count() -> None:
    """A round 0 in which everything is different changes nothing."""
    runs = made()
    strange = [
        msgspec.structs.replace(r, values={k: 7 * v for k, v in r.values.items()}) for r in runs[1:4]
    ]
    assert verified([runs[0], *strange, *runs[4:]]).comparisons == verified(runs).comparisons


def test_a_run_that_failed_fails_all() -> None:
    """It is named, its round is left out for its mode, and no good figure makes up for it."""
    runs = made()
    runs[6] = run(1, "stalled", problem="AIPerf ended with exit code 7")
    result = verified(runs)
    assert result.verdict == "failed"
    assert result.problems == ("round 1, stalled: AIPerf ended with exit code 7",)
    rounds = {c.mode: c.difference.rounds for c in result.comparisons if c.difference}
    assert rounds == {"on": 4, "stalled": 3, "killed": 4}
    assert "AIPerf ended with exit code 7" in shown(result)


@pytest.mark.parametrize("count", [0, 4, 6, 8])
def test_what_there_is_after_an_interruption(count: int) -> None:
    """No round, one, one and a half: whatever can be said, and never that nothing was felt."""
    result = verified(made()[: 4 + count], interrupted=True)
    assert result.interrupted
    assert result.verdict == ("not felt" if count == 8 else "not decided")
    assert "this is what there is" in shown(result)


def test_a_metric_that_aiperf_did_not_measure_is_left_out() -> None:
    """Without streaming there is no TTFT; the others are decided all the same."""
    runs = [
        msgspec.structs.replace(r, values={k: v for k, v in r.values.items() if "token" not in k})
        for r in made()
    ]
    result = verified(runs)
    assert result.verdict == "not felt"
    assert "TTFT" not in shown(result)


def test_the_json_is_the_whole() -> None:
    """It can be read back as it was."""
    result = verified(made())
    assert msgspec.json.decode(msgspec.json.encode(result), type=Verification) == result
