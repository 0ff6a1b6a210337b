"""One way to name a run, in all commands that take one."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from phase_bus.cli.journals import match_run
from phase_bus.errors import ConfigError
from phase_bus.events import EventBase, Receipt
from phase_bus.journal.writer import Journal
from tests.support.commands import run_here
from tests.support.journals import T0, Made, Phase, write_journal

PHASES = [Phase("profiling", 1, 20)]
THRESHOLD = ("--threshold", "error_rate < 100 %")
COMMANDS = {
    "report": ["report", "RUN", "--json"],
    "receipts": ["receipts", "RUN", "--json"],
    "check": ["check", "RUN", *THRESHOLD, "--json"],
    "export": ["journal", "export", "RUN"],
    "compare": ["compare", "RUN", "RUN", "--json"],
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two journals of one user."""
    state = tmp_path_factory.mktemp("state")
    made = {
        "b": [made_run("77b0ffffffff", 1, "nightly"), made_run("77b0c1d2e3f4", 3, "nightly")],
        "a": [made_run("3f2a9c01d4e5", 2, "before"), made_run("3f2a9c01d4e5#2", 0)],
    }
    for name, runs in made.items():
        write_journal(state / "phase-bus" / name, *runs)
    return state


@pytest.fixture
def run(state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command as that user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    return partial(run_here, capsys)


def naming(command: str, run: str) -> list[str]:
    """Return the words of a command on this run."""
    return [run if word == "RUN" else word for word in COMMANDS[command]]


def made_run(run_id: str, minute: int, label: str | None = None) -> Made:
    """Return a run that began so many minutes after the others' first."""
    more: list[EventBase] = [Receipt(run_id=run_id, ts_ns=T0, consumer="metrics")]
    return Made(run_id, PHASES, start={"label": label}, start_ns=T0 + minute * 60 * 10**9, more=more)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("word", "run_id"),
    [
        ("latest", "77b0c1d2e3f4"),
        ("77b0ffffffff", "77b0ffffffff"),
        ("77b0f", "77b0ffffffff"),
        ("3f2a", "3f2a9c01d4e5"),
        ("before", "3f2a9c01d4e5"),
    ],
)
def test_a_run_is_named_alike_everywhere(run: Run, command: str, word: str, run_id: str) -> None:
    """By its id, the beginning of that, `latest`, and its label, in whichever journal it is."""
    code, out, err = run(*naming(command, word))
    if command == "compare":
        assert f"run {run_id!r} is on both sides" in err
    else:
        assert code != 2, err
        assert run_id in out


@pytest.mark.parametrize("command", ["report", "receipts", "check", "export"])
def test_a_label_of_several_runs(run: Run, command: str) -> None:
    """It stands for the newest of them; for `compare` they are one side together."""
    _, out, err = run(*naming(command, "nightly"))
    assert "77b0c1d2e3f4" in out
    assert "77b0ffffffff" not in out
    assert "label 'nightly' has 2 runs; this is the newest, 77b0c1d2e3f4" in err


def test_a_label_of_one_run_needs_no_remark(run: Run) -> None:
    assert "newest" not in run("report", "before")[2]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("lastest", "did you mean 'latest'?"),
        ("nigthly", "did you mean 'nightly'?"),
        ("77b0c1d2e3f5", "did you mean '77b0c1d2e3f4'?"),
        ("zzzzzz", "; known: latest, 77b0c1d2e3f4, 3f2a9c01d4e5, 77b0ffffffff"),
        ("77b", "; give at least 4 letters of an id; known: latest, 77b0c1d2e3f4"),
    ],
)
def test_a_word_that_is_no_run(run: Run, command: str, word: str, said: str) -> None:
    """The nearest word is suggested; where none is near, the newest runs are named."""
    code, out, err = run(*naming(command, word))
    assert (code, out) == (2, "")
    assert repr(word) in err
    assert said in err


def test_a_word_that_is_no_sweep(tmp_path: Path, run: Run) -> None:
    swept = Made("3f2a9c01d4e5", PHASES, start={"sweep_id": "s"})
    data = ("--data", str(write_journal(tmp_path, swept)))
    assert "did you mean 'latest'?" in run("report", "--sweep", "lastest", *data)[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_beginning_of_several(run: Run, command: str) -> None:
    """It is refused, with what it could be."""
    code, out, err = run(*naming(command, "77b0"))
    assert (code, out) == (2, "")
    assert "could be any of 77b0c1d2e3f4, 77b0ffffffff; give more of its id" in err


@pytest.mark.parametrize("command", ["report", "receipts", "check", "compare"])
def test_no_run_is_given(run: Run, command: str) -> None:
    """It says what there is, the newest first, with the label that leads to each."""
    code, out, err = run(*(word for word in COMMANDS[command] if word != "RUN"))
    assert (code, out) == (2, "")
    assert "77b0c1d2e3f4 (nightly), 3f2a9c01d4e5 (before), 77b0ffffffff, 3f2a9c01d4e5#2" in err


def test_there_is_no_run_at_all(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said where they would be, and what makes one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    code, _, err = run("report")
    assert code == 2
    assert "there is no run in any journal" in err
    assert "phase-bus exec" in err


def test_replay_chooses_among_the_runs_of_its_journal(run: Run, state: Path) -> None:
    """A label of another journal's run names none there."""
    where = str(state / "phase-bus" / "b")
    code, _, err = run("replay", where, "--run", "before", "--address", f"ipc://{state}/nobody")
    assert code == 2
    assert "there is no run 'before' in journal" in err


def test_the_order_of_names() -> None:
    """`latest` comes before all, an id before a label, a label before the beginning of an id."""
    ids = ["abcd-1", "abcdef", "latest", "newest"]
    assert match_run("latest", ids) == "newest"
    assert match_run("abcdef", ids, lambda: {"abcdef": "newest"}) == "abcdef"
    assert match_run("abcde", ids, lambda: {"abcde": "newest"}) == "newest"
    assert match_run("abcde", ids) == "abcdef"
    assert match_run("abc", ids) is None
    assert match_run("latest", []) is None
    with pytest.raises(ConfigError, match=r"abcdef, abcd-1|abcd-1, abcdef"):
        match_run("abcd", ids)


def test_runs_as_json_have_their_labels(run: Run) -> None:
    """So that a script can choose by them."""
    _, out, _ = run("runs", "--json")
    assert [each["label"] for each in json.loads(out)] == [None, "nightly", "before", "nightly"]


def test_a_run_that_a_killed_bus_left_is_unfinished(run: Run, tmp_path: Path) -> None:
    """It goes on only in a journal that a bus has."""

    def status() -> str:
        (row,) = json.loads(run("runs", "--data", str(tmp_path), "--json")[1])
        return str(row["status"])

    with closing(Journal(tmp_path)) as journal:
        journal.note_run("0123456789ab", "running", T0, None, "aiperf")
        assert status() == "running"
    assert status() == "unfinished"
    assert "unfinished" in run("runs", "--data", str(tmp_path))[1]
