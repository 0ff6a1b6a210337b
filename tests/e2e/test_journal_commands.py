"""The commands that look at the past: real processes, a real bus, its journal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phase_bus.consumer.dispatcher import decode_saved
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.events import BEGIN_NO_RUN, Receipt
from phase_bus.journal.reader import JournalReader
from phase_bus.journal.writer import Journal
from tests.support.workplace import Finished, Workplace, assert_one_line, json_lines, wait_for

pytestmark = pytest.mark.slow  # each test starts a dozen processes

SIMULATE = (sys.executable, "-m", "phase_bus", "simulate")
AGGREGATOR = ("--with", "aggregator:output=summary.json")
BAD = """
from pathlib import Path
from phase_bus.consumer.consumer import Consumer

class Bad(Consumer):
    def __init__(self, output: Path = Path("handled")) -> None:
        self.output = output

    async def on_phase_complete(self, event):
        if not Path("fixed").exists():
            raise RuntimeError("no luck today")
        with self.output.open("a") as file:
            file.write(event.phase.name + chr(10))
"""


class Past:
    """Runs phase-bus in a workplace whose journals are its own."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self.directory = workplace.directory
        self.state = str(workplace.directory / "state")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        return self.workplace.phase_bus(*arguments, XDG_STATE_HOME=self.state)

    def run(self, *arguments: str) -> Finished:
        """Run a command to its end."""
        return self.workplace.run(*arguments, XDG_STATE_HOME=self.state)

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Return the JSON that a command prints."""
        done = self.run(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def bus(self, name: str) -> tuple[subprocess.Popen[str], str]:
        """Start a bus with a journal in the directory of that name; return its address too."""
        address = f"ipc://{self.directory}/{name}.ipc"
        bus = self.start("bus", "--address", address, "--data", name)
        wait_for(lambda: "bus ready at" in self.workplace.stdout(bus), "the bus")
        return bus, address

    def journal(self, name: str) -> JournalReader:
        """Open the journal in a directory."""
        return JournalReader(self.directory / name)

    def end(self, process: subprocess.Popen[str]) -> None:
        """Let a process finish."""
        os.kill(process.pid, signal.SIGTERM)
        assert self.workplace.finish(process).returncode == 0


@pytest.fixture
def past(workplace: Workplace) -> Past:
    """Commands with journals of their own."""
    return Past(workplace)


@pytest.fixture(scope="module")
def a_past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an `exec` with a run `one` leaves behind, made once."""
    place = Workplace(tmp_path_factory.mktemp("exec"))
    simulate = (*SIMULATE, "-n", "3000", "-r", "0", "--run-id", "one")
    done = Past(place).run("exec", *AGGREGATOR, "--", *simulate)
    assert done.returncode == 0, done.stderr
    assert not place.close()
    return place.directory


@pytest.fixture
def one_run(past: Past, a_past: Path) -> Past:
    """The same, with a run `one` in the journal of an `exec`, for tests that damage it."""
    shutil.copytree(a_past / "state", past.state)
    shutil.copy(a_past / "summary.json", past.directory)
    return past


def test_a_run_seen_from_its_journal_alone(one_run: Past) -> None:
    """Runs, report, receipts, export: all agree with what was published and with the live result."""
    past = one_run
    (run,) = past.json("runs")
    assert (run["run_id"], run["status"], run["records"]) == ("one", "completed", 3050)
    assert "simulate" in past.run("runs").stdout

    # Byte for byte: no field of the result differs by nature.
    live = past.workplace.json("summary.json")["runs"]["one"]
    report = past.json("report", "latest")
    assert report.pop("settings")["host"]
    assert json.dumps(report) == json.dumps(live)
    assert "== profiling ==" in past.run("report", "one").stdout

    ledger = past.json("receipts", "one")
    assert ledger["whole"]
    (records,) = [row for row in ledger["ledger"] if row["kind"] == "records"]
    assert records["published"] == records["handled"] > 0

    lines = json_lines(past.run("journal", "export", "--run", "one").stdout)
    assert len([line for line in lines if line["kind"] not in BEGIN_NO_RUN]) == run["events"]
    assert sum(line.get("count", 0) for line in lines if line["kind"] == "records") == 3050
    info = past.json("journal", "info")
    assert (info["events"], info["records"], info["runs"]) == (len(lines), 3050, 1)
    assert info["checkpoints"]["aggregator"]["offset"] == info["head"]["offset"]


def test_parquet_has_every_record(one_run: Past) -> None:
    """A row a record; errors and missing metrics as nulls; the mean is the report's."""
    pq = pytest.importorskip("pyarrow.parquet")
    done = one_run.run("journal", "export", "--format", "parquet", "--output", "records.parquet")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(one_run.directory / "records.parquet").to_pylist()
    assert len(table) == 3050
    phases = {phase["name"]: phase for phase in one_run.json("report", "one")["phases"]}
    rows = [row for row in table if row["phase"] == "profiling"]
    assert sum(row["error_type"] is not None for row in rows) == phases["profiling"]["failed"]
    latencies = [row["request_latency"] for row in rows if row["request_latency"] is not None]
    metric = phases["profiling"]["metrics"]["request_latency"]
    assert len(latencies) == metric["count"]
    assert sum(latencies) / len(latencies) == pytest.approx(metric["mean"])
    assert not list(one_run.directory.glob(".records.parquet*"))


def test_replay_gives_the_same_result_on_another_bus(one_run: Past) -> None:
    """An aggregator there comes to the same result, twice: as fast as possible, and renamed at a speed."""
    past = one_run
    (journal,) = (past.directory / "state" / "phase-bus").glob("exec-*")
    bus, address = past.bus("second")
    consumer = past.start("consume", "aggregator", "--set", "output=again.json", "--address", address)
    replay = ("replay", str(journal), "--address", address)
    done = past.run(*replay, "--as-fast-as-possible")
    assert done.returncode == 0, done.stderr
    assert "1 run, " in done.stderr
    assert "3050 records" in done.stderr
    done = past.run(*replay, "--run", "one", "--speed", "4", "--run-id", "renamed")
    assert done.returncode == 0, done.stderr
    output = past.directory / "again.json"

    def results() -> dict[str, Any]:
        return dict(json.loads(output.read_text())["runs"]) if output.exists() else {}

    wait_for(lambda: [run["final"] for run in results().values()] == [True, True], "both results")
    live = past.workplace.json("summary.json")["runs"]["one"]
    assert json.dumps(results()["one"]) == json.dumps(live)
    assert json.dumps({**results()["renamed"], "run_id": "one"}) == json.dumps(live)
    # The same run once more would count twice: refused.
    done = past.run(*replay)
    assert_one_line(done.returncode, done.stderr, "'one'", "already", "--run-id")
    with past.journal("second") as second:
        wait_for(lambda: second.events("renamed", Receipt), "the receipt")
    rows = past.json("receipts", "renamed", "--data", "second")["ledger"]
    assert all(row["published"] == row["handled"] for row in rows)
    past.end(consumer)
    past.end(bus)


def test_a_lost_run_is_lost_again(past: Past) -> None:
    """The end that the old bus made is left out; the new bus makes its own."""
    bus, address = past.bus("first")
    publisher = past.start("simulate", "-n", "100000", "-r", "500", "--run-id", "cut", "--address", address)
    with past.journal("first") as first:
        wait_for(first.runs, "the run")
    publisher.kill()
    publisher.wait()
    past.end(bus)
    second, address = past.bus("second")
    done = past.run("replay", "first", "--as-fast-as-possible", "--address", address)
    assert done.returncode == 0, done.stderr
    with BusClient(Address.parse(address)) as client:
        wait_for(lambda: client.status().runs[0].status == "lost", "the end")
    past.end(second)


def test_verify_finds_a_flipped_byte(one_run: Past) -> None:
    """Good before, one bit of one payload after (and of its copies in unused parts of pages)."""
    done = one_run.run("journal", "verify")
    assert done.returncode == 0, done.stdout
    assert "all is well" in done.stdout
    (journal,) = (one_run.directory / "state").rglob("journal.sqlite")
    content = journal.read_bytes()
    journal.write_bytes(content.replace(b"phase-bus simulate", b"phase-bus simulatf"))
    problems = one_run.json("journal", "verify", code=1)["problems"]
    assert any("checksum" in problem for problem in problems)


def test_a_flipped_bit_is_in_no_result(one_run: Past) -> None:
    """Every result leaves the damaged batch out and says so; replayed, the run is still not whole."""
    past = one_run
    (path,) = (past.directory / "state").rglob("journal.sqlite")
    with JournalReader(path) as reader:
        batch = next(e for e in reader.entries("one") if e.kind == "records" and e.records > 1)
    db = sqlite3.connect(path)
    with db:
        flipped = batch.payload[:-1] + bytes([batch.payload[-1] ^ 1])
        db.execute("UPDATE events SET payload = ? WHERE offset = ?", (flipped, batch.offset))
    db.close()
    told = f"1 event is damaged and left out (offset {batch.offset})"
    for form in ("text", "json", "csv", "html"):
        done = past.run("report", "one", "--format", form)
        assert (done.returncode, told in done.stderr) == (3, True), done.stderr
        assert done.stdout
    summary = past.json("report", "one", code=3)
    assert (summary["records"], summary["missing_records"]) == (3050 - batch.records, batch.records)
    for form, output in (("jsonl", "a.jsonl"), ("parquet", "a.parquet")):
        done = past.run("journal", "export", "--run", "one", "--format", form, "--output", output)
        assert (done.returncode, told in done.stderr) == (3, True), done.stderr
    bus, address = past.bus("other")
    done = past.run("replay", str(path), "--address", address, "--as-fast-as-possible")
    assert (done.returncode, told in done.stderr) == (3, True), done.stderr
    past.end(bus)
    summary = past.json("report", "one", "--data", "other", code=3)
    assert (summary["records"], summary["missing_records"]) == (3050 - batch.records, batch.records)


def test_prune_waits_for_the_bus_to_end(past: Past) -> None:
    """A bus that has the journal is named; afterwards the runs beyond the limit go, the oldest first."""
    bus, address = past.bus("data")
    simulate = ("simulate", "-n", "100", "-r", "0", "--runs", "3", "--run-id", "r", "--address", address)
    assert past.run(*simulate).returncode == 0
    prune = ("journal", "prune", "--data", "data", "--max-runs", "1")
    done = past.run(*prune)
    assert_one_line(done.returncode, done.stderr, "in use", "end that bus")
    past.end(bus)
    with Journal(past.directory / "data") as journal:
        journal.see({"away": ()}, time.time_ns())
        journal.commit("away", journal.lineage.position(1))
    told = past.json(*prune)
    assert (told["pruned"], told["held"], told["unread"]) == ([], ["r", "r-2"], [])
    told = past.json(*prune, "--max-absence-s", "0")
    assert (told["pruned"], told["held"]) == (["r", "r-2"], [])
    lost = [(u["consumer"], u["run_id"], u["records"]) for u in told["unread"]]
    assert lost == [("away", "r", 150), ("away", "r-2", 150)]
    assert [run["run_id"] for run in past.json("runs", "--data", "data")] == ["r-3"]


@pytest.mark.parametrize("with_bus", [False, True])
def test_dead_letters_are_retried(past: Past, with_bus: bool) -> None:
    """Dead-lettered, shown, failing again, and handled once the cause is gone, with or without the bus."""
    (past.directory / "bad.py").write_text(BAD)
    bus, address = past.bus("data")
    consumer = past.start("consume", "bad:Bad", "--name", "picky", "--address", address)
    simulate = ("simulate", "-n", "100", "-r", "0", "--run-id", "one", "--address", address)
    assert past.run(*simulate).returncode == 0
    listing = ("dead-letters", "list", "--data", "data")
    with past.journal("data") as journal:
        wait_for(lambda: len(journal.dead_letters()) == 2, "the dead letters")
        wait_for(lambda: journal.events("one", Receipt), "the receipt")
    first, second = past.json(*listing)
    assert (first["consumer"], first["kind"], first["attempts"]) == ("picky", "phase_complete", 3)
    retry = ("dead-letters", "retry", "--data", "data", "--address", address)
    if with_bus:
        shown = past.json("dead-letters", "show", str(first["id"]), "--data", "data")
        assert shown["event"]["phase"]["name"] == "warmup"
        assert "no luck today" in shown["traceback"]
        assert not past.json("receipts", "one", "--data", "data", code=3)["whole"]
        done = past.run(*retry, str(first["id"]), "--with", "bad:Bad")
        assert_one_line(done.returncode, done.stderr, "'picky'", "is running")
        past.end(consumer)
    else:
        past.end(consumer)
        past.end(bus)
        done = past.run(*retry, str(first["id"]), "--with", "bad:Bad")
        assert done.returncode == 1
        assert "1 failed again" in done.stderr
    (past.directory / "fixed").touch()
    if with_bus:
        done = past.run(*retry, str(second["id"]), "--with", "bad:Bad:output=later")
        assert done.returncode == 0, done.stderr
        assert (past.directory / "later").read_text() == "profiling\n"
    assert past.run(*retry, "--all", "--consumer", "picky", "--with", "bad:Bad").returncode == 0
    handled = (past.directory / "handled").read_text()
    assert handled == ("warmup\n" if with_bus else "warmup\nprofiling\n")
    with past.journal("data") as journal:
        assert journal.dead_letters() == []
        # The new receipt is what the last one would have been; so is the account in the checkpoint.
        receipt = journal.events("one", Receipt)[-1]
        assert receipt.complete
        told = receipt.topics["phase_complete.one$"]
        assert (told.published, told.received, told.handled, told.written, told.failed) == (2, 2, 2, 2, 0)
        kept = journal.checkpoint("picky")
        assert kept is not None
        saved = decode_saved(kept.state or b"")
        counts = saved.accounts["one"].counts(b"phase_complete.one$")
        assert (counts.handled, counts.written, counts.failed) == (2, 2, 0)
        assert saved.handled["one"].whole
    assert past.json("receipts", "one", "--data", "data")["whole"]
    assert past.run("journal", "verify", "--data", "data").returncode == 0
    if with_bus:
        past.end(bus)


def test_dead_letters_are_found_wherever_they_are(past: Past) -> None:
    """One more exec, with a journal of its own, hides nothing; by its number a letter is found, too."""
    (past.directory / "bad.py").write_text(BAD)
    simulate = (*SIMULATE, "-n", "20", "-r", "0", "--run-id")
    assert past.run("exec", "--with", "bad:Bad", "--", *simulate, "bad-one").returncode == 3
    assert past.run("exec", "--with", "logging", "--", *simulate, "good-one").returncode == 0
    letters = past.json("dead-letters", "list")
    assert [letter["run_id"] for letter in letters] == ["bad-one"] * 2
    assert len({letter["journal"] for letter in letters}) == 1
    assert past.json("dead-letters", "show", str(letters[0]["id"]))["event"]["run_id"] == "bad-one"
    (past.directory / "fixed").touch()
    assert past.run("dead-letters", "retry", "--all", "--with", "bad:Bad").returncode == 0
    assert "no dead letters" in past.run("dead-letters", "list").stdout
    assert_one_line(*_failed(past.run("report", "lastest")), "'lastest'", "did you mean 'latest'")
    exported = json_lines(past.run("journal", "export", "good-one").stdout)
    assert {line["run_id"] for line in exported} == {"good-one"}


# It finds out that a row cannot be taken when it sends it: the handler has accepted it by then.
PICKY = """
from pathlib import Path
from phase_bus import Answer, RunStart, Sink

class Picky(Sink):
    def __init__(self) -> None:
        super().__init__(batch_age_s=60)

    def rows(self, event):
        return [b"a", b"b"] if isinstance(event, RunStart) else []

    async def send(self, rows):
        bad = {n: "no b" for n, row in enumerate(rows) if row.data == b"b"}
        refused = {} if Path("fixed").exists() else bad
        with open("taken", "a") as file:
            file.writelines(f"{row.key} {row.data}\\n" for n, row in enumerate(rows) if n not in refused)
        return Answer(refused=refused)
"""


def test_a_row_that_a_sink_could_not_send_is_retried(past: Past) -> None:
    """As long as it is refused its letter stays; sent in the end, it has the key that it had before."""
    (past.directory / "picky.py").write_text(PICKY)
    assert past.run("exec", "--with", "picky:Picky", "--", *SIMULATE, "-n", "20", "-r", "0").returncode == 3
    (letter,) = past.json("dead-letters", "list")
    assert "row 1: no b" in letter["error"]
    retry = ("dead-letters", "retry", "--all", "--with", "picky:Picky")
    done = past.run(*retry)
    assert (done.returncode, "1 failed again" in done.stderr) == (1, True), done.stderr
    assert past.json("dead-letters", "list") == [letter]
    (past.directory / "fixed").touch()
    assert past.run(*retry).returncode == 0
    assert past.json("dead-letters", "list") == []
    keys = {line.split()[0] for line in (past.directory / "taken").read_text().splitlines()}
    assert sorted(key.rpartition("-")[2] for key in keys) == ["0", "1"]


def _failed(done: Finished) -> tuple[int, str]:
    return done.returncode, done.stderr


def test_where_to_begin(past: Past) -> None:
    """`tail --from start` shows a run that is over; from an offset, what is after it."""
    bus, address = past.bus("data")
    assert past.run("simulate", "-n", "50", "-r", "0", "--address", address).returncode == 0
    tail = ("tail", "--address", address, "--json")
    events = json_lines(past.run(*tail, "--from", "start", "--count", "3").stdout)
    assert [event["kind"] for event in events] == ["run_start", "phases_configured", "phase_start"]
    events = json_lines(past.run(*tail, "--from", "1", "--count", "1").stdout)
    assert [event["kind"] for event in events] == ["phases_configured"]
    past.end(bus)


CASES = {
    "no journal": (["journal", "info"], ["there is no journal", "--data"]),
    "no such journal": (["journal", "verify", "--data", "nowhere"], ["nowhere", "no such file"]),
    "no run": (["report", "latest"], ["no run 'latest'"]),
    "no receipts": (["receipts", "one"], ["no run 'one'"]),
    "nothing to replay": (["replay", "nowhere"], ["nowhere", "no such file"]),
    "speed": (["replay", "nowhere", "--speed", "0"], ["--speed 0", "above 0"]),
    "both speeds": (["replay", "x", "--speed", "2", "--as-fast-as-possible"], ["--as-fast-as-possible"]),
    "subcommand": (["journal", "inof"], ["'journal inof'", "did you mean 'info'"]),
    "sub-option": (["journal", "info", "--dta", "x"], ["--dta", "phase-bus journal info --help"]),
    "no file for parquet": (["journal", "export", "--format", "parquet"], ["--output FILE"]),
    "prune what": (["journal", "prune"], ["--data"]),
    "retry what": (["dead-letters", "retry"], ["--all"]),
    "where from": (["tail", "--from", "checkpoint"], ["--from 'checkpoint'", "'now'"]),
    "consume from": (["consume", "logging", "--from", "yesterday"], ["'yesterday'", "'checkpoint'"]),
}


def test_errors_are_one_line(past: Past) -> None:
    """All in parallel, since each is a short process."""
    started = {name: past.start(*arguments) for name, (arguments, _) in CASES.items()}
    for name, (_, words) in CASES.items():
        done = past.workplace.finish(started[name])
        assert_one_line(done.returncode, done.stderr, *words)


def test_a_journal_that_cannot_be_read_is_left_out_of_the_list(one_run: Past) -> None:
    """One damaged file does not hide the runs of the others."""
    broken = Path(one_run.state) / "phase-bus" / "broken" / "journal.sqlite"
    broken.parent.mkdir()
    broken.write_bytes(b"no database at all" * 1000)
    done = one_run.run("runs")
    assert done.returncode == 0
    assert "one" in done.stdout
    assert "broken" in done.stderr
    assert one_run.json("journal", "verify", "--data", str(broken), code=1)["problems"]
