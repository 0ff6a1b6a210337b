"""Labels, and commands that `phase-bus exec` repeats: with real AIPerf, and with `simulate`."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable

import pytest

from phase_bus.cli.repeat import Repetition
from phase_bus.errors import ConfigError
from phase_bus.harness.repeat import Turn, interleaved, repeated
from tests.support.workplace import Workplace, interrupt, wait_for

SIMULATE = (sys.executable, "-m", "phase_bus", "simulate", "--rate", "0", "--warmup", "0")


@pytest.mark.aiperf
@pytest.mark.slow
@pytest.mark.timeout(240)  # AIPerf's own start takes a busy machine long
def test_what_aiperf_tells_of_its_requests(
    workplace: Workplace, aiperf: Callable[..., list[str]], mock_llm: Callable[..., str]
) -> None:
    """The label of exec, and the options that shape the requests, by value and without secrets."""
    extra = '{"temperature": 0.5, "session_token": "TOP-SECRET", "min_tokens": 4}'
    options = ["--extra-inputs", extra, "--api-key", "TOP-SECRET", "--header", "X-Who:TOP-SECRET"]
    command = aiperf(mock_llm("--ttft-ms", "1", "--itl-ms", "0"), "--request-count", "8", *options)
    done = workplace.run("exec", "-q", "--label", "größe 1", "--", *command, timeout_s=200.0)
    assert done.returncode == 0, done.stderr
    exported = workplace.run("journal", "export").stdout
    assert "TOP-SECRET" not in exported
    (start,) = (e for e in map(json.loads, exported.splitlines()) if e["kind"] == "run_start")
    assert start["label"] == "größe 1"
    told = start["options"]
    assert told["endpoint.type"] == "chat"
    assert told["endpoint.streaming"] is True
    assert told["endpoint.extra.temperature"] == 0.5
    assert told["endpoint.extra.min_tokens"] == 4
    assert told["tokenizer"] == "./tok"
    assert told["phase.profiling.type"] == "concurrency"
    assert told["dataset.prompts.osl.mean"] == 16
    assert told["dataset.prompts.osl.stddev"] == 6


def test_labels(workplace: Workplace) -> None:
    """Of exec, before what the load generator says; shown by `runs`."""
    done = workplace.run("exec", "-q", "--label", "main", "--", *SIMULATE, "--label", "its own", "-n", "10")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(workplace.run("runs", "--json").stdout)
    assert run["label"] == "main"


def test_the_order_of_turns() -> None:
    """An even drift adds nearly the same to both sides, and a side follows on itself as on the other."""
    base, candidate = Turn(("a",), "base"), Turn(("b",), "candidate")
    assert "".join(turn.command[0] for turn in interleaved(base, candidate, 4)) == "abbaabba"
    for times in (1, 2, 3, 5, 8):
        turns = interleaved(base, candidate, times)
        places = [[n for n, turn in enumerate(turns) if turn == each] for each in (base, candidate)]
        assert len(places[0]) == len(places[1]) == times
        mean, other = (sum(each) / times for each in places)
        assert abs(mean - other) <= (1 / times if times % 2 else 0)
    assert repeated(("a",), 1, "") == [Turn(("a",), "")]
    assert len({turn.label for turn in repeated(("a",), 3, "")} - {""}) == 1


def test_one_after_the_other_under_one_bus(workplace: Workplace) -> None:
    """All in one journal, in their order, each with its label."""
    done = workplace.run("exec", "--repeat", "3", "--label", "x y", "--", *SIMULATE, "-n", "5")
    assert done.returncode == 0, done.stderr
    assert "3 of 3: x y" in done.stderr
    runs = json.loads(workplace.run("runs", "--json").stdout)
    assert [(run["label"], run["status"], run["records"]) for run in runs] == [("x y", "completed", 5)] * 3
    assert len({run["journal"] for run in runs}) == 1


def test_two_commands_by_turns_are_compared(workplace: Workplace) -> None:
    """The slower one is found: by the exit code, and in words."""
    script = f"exec {shlex.join(SIMULATE)} -n 2000 --seed $$ --ttft-ms "  # no two runs alike
    base, slower = (["sh", "-c", script + ttft_ms] for ttft_ms in ("30", "60"))
    arguments = ("--repeat", "2", "--interleave", shlex.join(base), "--label", "slower")
    done = workplace.run("exec", *arguments, "--", *slower)
    assert done.returncode == 1, done.stderr
    assert "REGRESSED" in done.stderr
    runs = json.loads(workplace.run("runs", "--json").stdout)
    assert [run["label"] for run in runs] == ["base", "slower", "slower", "base"]


def test_what_fails_is_the_last_one(workplace: Workplace) -> None:
    """With its exit code, and said."""
    once = "test ! -e once && touch once || exit 7"
    done = workplace.run("exec", "--allow-no-run", "--repeat", "4", "--", "sh", "-c", once)
    assert done.returncode == 7
    assert "the command ended with exit code 7; the other 2 of 4 are left out" in done.stderr
    none = workplace.run("exec", "-q", "--repeat", "4", "--", "true")
    assert none.returncode == 3
    assert "the command published no run; the other 3 of 4 are left out" in none.stderr


def test_a_signal_ends_it_all(workplace: Workplace) -> None:
    """Also if the command takes it for a good end."""
    script = "echo $$ >> began; trap 'exit 0' INT; while :; do sleep 0.05; done"
    process = workplace.phase_bus("exec", "-q", "--allow-no-run", "--repeat", "3", "--", "sh", "-c", script)
    began = workplace.directory / "began"
    wait_for(lambda: began.exists() and began.read_text().endswith("\n"), "the command's beginning")
    interrupt(process, signal.SIGINT)
    done = workplace.finish(process)
    assert done.returncode == 130
    assert "interrupted; the other 2 of 3 are left out" in done.stderr
    assert len(began.read_text().splitlines()) == 1


def test_what_cannot_be_run_is_said_before_anything_is() -> None:
    """In one line."""
    for given, word in (
        (Repetition(interleave="a 'b"), "--interleave"),
        (Repetition(interleave="no-such-command x"), "no-such-command"),
        (Repetition(interleave=""), "no command"),
        (Repetition(interleave="true", label="base"), "--base-label"),
        (Repetition(label="two\nlines"), "not a label"),
        (Repetition(label=" spaces "), "not a label"),
        (Repetition(base_label="x" * 201), "not a label"),
    ):
        with pytest.raises(ConfigError, match=word):
            given.turns(("true",))
