"""`--address`: what the commands on past runs say of a bus's journal is what they say of it on the spot."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from phase_bus.bus import replay
from phase_bus.core.control import DeadLetterNote, Endpoint
from phase_bus.events import EventBase, Receipt, RunStart, Verdict
from phase_bus.journal import remote
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from tests.support.buses import BusThread
from tests.support.commands import run_here
from tests.support.journals import T0, Made, Phase, write_journal
from tests.support.keys import Keyring

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASES = [Phase("warmup", 1, 20, kind="warmup"), Phase("profiling", 3, 900)]
THRESHOLD = ["--threshold", "error_rate < 100 %"]
Run = Callable[..., tuple[int, str, str]]


def made_run(run_id: str, minute: int, label: str, **more: str) -> Made:
    """Return a run with a receipt and a verdict that ended it."""
    said: list[EventBase] = [
        Receipt(run_id=run_id, ts_ns=T0, consumer="metrics"),
        Verdict(
            run_id=run_id, ts_ns=T0, producer="judge", threshold="p99 < 1 ms", state="failed", abort=True
        ),
    ]
    start = {"label": label, "sweep_id": "sweep", "trial": minute, **more}
    return Made(run_id, PHASES, start=start, start_ns=T0 + minute * 60 * 10**9, seed=minute, more=said)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A journal with three runs, one of them cut off, and dead letters of two consumers."""
    cut = made_run("cafe00000003", 3, "nightly")
    cut.status = "cancelled"
    runs = [made_run("3f2a9c01d4e5", 1, "before"), made_run("77b0c1d2e3f4", 2, "nightly"), cut]
    data = write_journal(tmp_path / "data", *runs)
    with Journal(data) as journal:
        (first, *_) = journal.lineage.segments
        for number, consumer in enumerate(("alerting", "sql/03", "alerting")):
            note = DeadLetterNote(
                offset=2 + number,
                stream=first.stream,
                run_id="3f2a9c01d4e5",
                kind="phase_start",
                error=f"RuntimeError({number})",
                traceback="Traceback\n  in handler\n" * 100,
            )
            journal.add_dead_letter(consumer, note, T0)
    return data


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command; nothing that it copies must stay."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()

    def run(*words: str) -> tuple[int, str, str]:
        ran = run_here(capsys, *words)
        assert not list((tmp_path / "tmp").iterdir())
        return ran

    return run


@pytest.fixture
def bus(data: Path, ipc_dir: Path) -> Iterator[BusThread]:
    """A bus on that journal."""
    with BusThread(f"ipc://{ipc_dir}", journal=Journal(data)) as bus:
        yield bus


COMMANDS = [
    ["runs", "--json"],
    ["report", "latest", "--json"],
    ["report", "3f2a", "--format", "csv"],
    ["report", "--sweep", "latest", "--json"],
    ["receipts", "before", "--json"],
    ["check", "77b0c1d2e3f4", *THRESHOLD],
    ["compare", "before", "77b0", "--json", "--allow", "receipts"],
    ["dead-letters", "list", "--consumer", "sql", "--json"],
    ["dead-letters", "list", "--json"],
    ["dead-letters", "show", "2"],
    ["dead-letters", "show", "9"],
    ["journal", "export", "nightly"],
    ["journal", "export"],
    ["report", "befor"],
    ["receipts"],
]


def test_it_says_what_the_journal_says(
    bus: BusThread, data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the letter, also where it comes in many parts; only the place is another."""
    monkeypatch.setattr(replay, "_LARGEST", 3000)
    monkeypatch.setattr(replay, "_MOST_RUNS", 2)
    for command in COMMANDS:
        code, out, err = run(*command, "--address", bus.address)
        there, out_there, err_there = run(*command, "--data", str(data))
        assert code == there, (command, err)
        for place in (str(data / FILE_NAME), str(data)):
            out_there = out_there.replace(place, bus.address)
            err_there = err_there.replace(f"in journal '{place}'", f"on the bus at '{bus.address}'")
            err_there = err_there.replace(place, bus.address)
        assert out == out_there, command
        assert err == err_there, command


def test_a_table_of_runs_tells_why_one_ended(bus: BusThread, run: Run) -> None:
    """That comes from the verdicts, which are asked for with the list."""
    _, out, _ = run("runs", "--address", bus.address)
    assert "run cafe00000003 ended because 'p99 < 1 ms' failed" in out
    assert "nightly" in out


def test_a_run_that_goes_on(bus: BusThread, run: Run) -> None:
    """It is reported on as far as it is, and found as the latest."""
    with Publisher(bus.address) as publisher:
        publisher.publish(RunStart(run_id="going-on"))
        assert publisher.flush(10)
        code, out, _ = run("report", "latest", "--json", "--address", bus.address)
    document = json.loads(out)
    assert (code, document["run_id"], document["status"]) == (0, "going-on", "running")


def test_a_baseline_of_a_run_far_away(
    bus: BusThread, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept here."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    code, _, err = run("baseline", "set", "main", "before", "--address", bus.address, "--allow-incomplete")
    assert code == 0, err
    _, out, _ = run("baseline", "show", "main", "--json")
    assert [each["run_id"] for each in json.loads(out)["runs"]] == ["3f2a9c01d4e5"]


def test_damage_is_told(data: Path, ipc_dir: Path, run: Run) -> None:
    """What is damaged there is missing here, and nobody takes the result for whole."""
    with JournalReader(data) as reader:
        damaged = [entry.offset for entry in reader.entries("3f2a9c01d4e5") if entry.kind == "records"][:2]
    with closing(sqlite3.connect(data / FILE_NAME)) as db, db:
        db.execute("UPDATE events SET ts_ns = 1 WHERE offset IN (?, ?)", damaged)
    with BusThread(f"ipc://{ipc_dir}", journal=Journal(data)) as bus:
        for command in (["report", "before"], ["journal", "export", "before"], ["journal", "export"]):
            code, _, err = run(*command, "--address", bus.address)
            assert code == 3, command
            assert f"2 events are damaged and left out (offset {damaged[0]}, {damaged[1]})" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "x"], "give one of them"),
        (["--address", "ipc:///nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_what_cannot_be(bus: BusThread, run: Run, words: list[str], said: str) -> None:
    """One clear line each."""
    address = [] if "--address" in words else ["--address", bus.address]
    code, _, err = run("runs", *words, *address)
    assert (code, len(err.splitlines())) == (2, 1)
    assert said in err


def test_a_bus_without_a_journal(ipc_dir: Path, run: Run) -> None:
    """There is nothing to ask it for."""
    with BusThread(f"ipc://{ipc_dir}") as bus:
        code, _, err = run("runs", "--address", bus.address)
    assert code == 2
    assert "keeps no journal" in err


def test_a_port_that_does_not_answer_is_named(
    data: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall or a tunnel may let the bus's own port through alone."""
    monkeypatch.setattr(remote, "_TIMEOUT_S", 0.3)
    with BusThread("tcp://127.0.0.1:0", journal=Journal(data)) as bus:
        bus.bus._sockets.replay_endpoint = Endpoint(tcp_port=9)
        code, _, err = run("runs", "--address", bus.address)
    assert code == 2
    assert "tcp://127.0.0.1:9" in err


def test_who_may_ask_for_what(
    data: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may consume sees all runs, and dead letters of its own consumers; who may publish, nothing."""
    monkeypatch.setattr(remote, "_TIMEOUT_S", 0.5)
    keys = Keyring(tmp_path / "keys")
    keys.client("alice", "publish")
    keys.client("bob", "consume")
    keys.client("root", "admin")
    with BusThread("tcp://127.0.0.1:0", journal=Journal(data), key=keys.bus) as place:
        place.bus._owners._of["consumer", "sql"] = "bob"

        def ask(name: str, *words: str) -> tuple[int, str, str]:
            monkeypatch.setenv("PHASE_BUS_KEY_FILE", keys.file(name))
            return run(*words, "--address", place.address)

        code, _, err = ask("alice", "runs")
        assert code == 2
        assert "does not answer" in err
        code, out, _ = ask("bob", "runs", "--json")
        assert (code, len(json.loads(out))) == (0, 3)
        _, out, err = ask("bob", "dead-letters", "list", "--json")
        assert [each["consumer"] for each in json.loads(out)] == ["sql/03"]
        assert "2 more are of other clients' consumers" in err
        code, _, err = ask("bob", "dead-letters", "show", "1")
        assert (code, "there is no dead letter 1" in err) == (2, True)
        _, out, err = ask("root", "dead-letters", "list", "--json")
        assert (len(json.loads(out)), err) == (3, "")
