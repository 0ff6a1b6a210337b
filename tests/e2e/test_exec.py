"""``phase-bus exec`` and ``up`` around synthetic runs: sinks, deaths, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.workplace import Workplace, assert_one_line, child_of, json_lines, wait_for

SIMULATE = (sys.executable, "-m", "phase_bus", "simulate")
LOGGING = ("--with", "logging:log_file=events.jsonl,json=true")
AGGREGATOR = ("--with", "aggregator:output=summary.json")
METRICS = ("--with", "metrics:output=metrics.json")


def runs_of(workplace: Workplace) -> list[dict[str, Any]]:
    """Return the aggregator's runs."""
    return list(workplace.json("summary.json")["runs"].values())


def events_of(workplace: Workplace) -> list[dict[str, Any]]:
    """Return what the logging consumer wrote."""
    return list(json_lines((workplace.directory / "events.jsonl").read_text()))


def test_several_sinks_see_one_whole_run(workplace: Workplace) -> None:
    """Three consumers each handle everything, and the result is shown."""
    done = workplace.run("exec", *LOGGING, *METRICS, *AGGREGATOR, "--", *SIMULATE, "-n", "3000", "-r", "0")
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(workplace)
    assert run["complete"]
    assert [phase["requests"] for phase in run["phases"]] == [50, 3000]
    kinds = [event["event"] for event in events_of(workplace)]
    assert kinds[0] == "run_start"
    assert kinds[-1] == "run_complete"
    assert kinds.count("phase_complete") == 2
    (metrics,) = workplace.json("metrics.json")["runs"].values()
    assert metrics["records"] == 3050
    assert "consumers ready: logging, metrics, aggregator" in done.stderr
    assert "== profiling ==" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("code", "options", "expected"), [(0, (), 3), (0, ("--allow-no-run",), 0), (7, (), 7)]
)
def test_a_command_without_a_run(
    workplace: Workplace, code: int, options: tuple[str, ...], expected: int
) -> None:
    """It says so, and fails unless that is allowed; a command that fails has its own exit code."""
    script = f"echo out; echo err >&2; exit {code}"
    done = workplace.run("exec", *LOGGING, *options, "--", "sh", "-c", script)
    assert done.returncode == expected
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    assert "published no run" in done.stderr
    assert ("--allow-no-run" in done.stderr) == (expected == 3)
    assert not list((workplace.directory / "state").glob("*/exec-*")), "a journal without a run is nothing"


@pytest.mark.slow
def test_a_quiet_exec_without_a_run(workplace: Workplace) -> None:
    """Nothing is shown but what went wrong; runs that the journal had before are none of the command's."""
    config = f"data: {workplace.directory / 'kept'}\n"
    (workplace.directory / "bus.yaml").write_text(config)
    exec_ = ("exec", "--quiet", "-c", "bus.yaml", *LOGGING)
    done = workplace.run(*exec_, "--", *SIMULATE, "-n", "20", "-r", "0")
    assert (done.returncode, done.stderr.count("phase-bus")) == (0, 1), done.stderr  # what simulate says
    done = workplace.run(*exec_, "--", "true")
    assert done.returncode == 3
    assert "published no run" in done.stderr
    done = workplace.run(*exec_, "--allow-no-run", "--", "true")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


NO_RECEIPT = """
import os
from phase_bus import Consumer

class Late(Consumer):
    '''Handles all, and fails where nobody looks.'''
    def __init__(self, how: str) -> None:
        self.how = how
    async def on_run_complete(self, event):
        if self.how == "first" and event.run_id == "many":
            raise ValueError("this one")
    async def on_receipt(self, event):
        if self.how == "receipt":
            raise ValueError("after the end")
    async def flush(self):
        if self.how == "flush":
            raise OSError(28, "No space left on device")
    async def stop(self):
        if self.how == "stop":
            raise OSError(28, "No space left on device")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("flush", "has not handled the end"),
        ("stop", "when it was to finish"),
        ("receipt", "consumer late:Late failed on 2 events"),
    ],
)
def test_what_is_not_handled_at_the_end_counts(workplace: Workplace, how: str, said: str) -> None:
    """A full disk that is only noticed when something is written out, in whatever place."""
    (workplace.directory / "late.py").write_text(NO_RECEIPT)
    (workplace.directory / "bus.yaml").write_text("drain_timeout_s: 1\n")
    use = ("-c", "bus.yaml", "--with", f"late:Late:how={how}", *LOGGING)
    done = workplace.run("exec", *use, "--", *SIMULATE, "-n", "20", "-r", "0")
    assert done.returncode == 3, done.stderr
    assert said in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("alerting:threshold_s=0,webhook=http://127.0.0.1:9/", "not delivered yet: webhook at 127.0.0.1"),
        ("logging:log_file=/dev/full", "No space left on device"),
    ],
)
def test_what_reached_nobody_is_not_written(workplace: Workplace, use: str, said: str) -> None:
    """An alert to a closed port, lines on a full disk: the benchmark succeeds, exec tells and does not."""
    (workplace.directory / "bus.yaml").write_text("drain_timeout_s: 2\n")
    done = workplace.run("exec", "-c", "bus.yaml", "--with", use, "--", *SIMULATE, "-n", "20", "-r", "0")
    assert done.returncode == 3, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    told = json.loads(workplace.run("receipts", "latest", "--json").stdout)
    assert not told["whole"]
    assert any(row["written"] < row["received"] for row in told["ledger"])


@pytest.mark.slow
def test_each_of_many_runs_is_to_be_handled(workplace: Workplace) -> None:
    """Also the first one, of which no beat of the consumer speaks any more at the end."""
    (workplace.directory / "late.py").write_text(NO_RECEIPT)
    simulate = (*SIMULATE, "-n", "1", "-r", "0", "--warmup", "0", "--runs", "53", "--run-id", "many")
    done = workplace.run("exec", "--quiet", "--with", "late:Late:how=first", "--", *simulate)
    assert done.returncode == 3, done.stderr
    assert "consumer late:Late did not handle everything of run many;" in done.stderr


def test_a_command_that_dies_of_a_signal(workplace: Workplace) -> None:
    """The exit code is what a shell reports."""
    done = workplace.run("exec", "--quiet", "--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr == ""


@pytest.mark.slow
def test_several_runs_in_one_command_are_kept_apart(workplace: Workplace) -> None:
    """Runs one after another are each complete in each sink."""
    done = workplace.run("exec", *AGGREGATOR, "--", *SIMULATE, "-n", "200", "-r", "0", "--runs", "3")
    assert done.returncode == 0, done.stderr
    assert [run["complete"] for run in runs_of(workplace)] == [True] * 3


@pytest.mark.slow
def test_consumers_that_are_killed_come_back_and_miss_nothing(workplace: Workplace) -> None:
    """SIGKILL of a sink, and of who keeps a group's workers: all is there, once; the exit code is 0."""
    process = workplace.phase_bus(
        *("exec", *AGGREGATOR, "--with", "sql:url=sqlite:///records.sqlite", "--workers", "aggregator=2"),
        *("--", *SIMULATE, "-n", "1500", "-r", "500"),
    )
    wait_for(lambda: "profiling started" in workplace.stderr(process), "the run")
    for name in ("sql", "aggregator"):
        child_of(process.pid, "consume", name).kill()
    done = workplace.finish(process)
    assert done.returncode == 0, done.stderr
    for name in ("sql", "aggregator"):
        assert f"consumer {name} was ended by SIGKILL; starting it again (1 of 3)" in done.stderr
        assert f"consumer {name} is back" in done.stderr
    (run,) = runs_of(workplace)
    assert (run["complete"], run["records"]) == (True, 1550)
    with closing(sqlite3.connect(workplace.directory / "records.sqlite")) as database:
        (rows,) = database.execute("select count(*) from phase_bus_records").fetchone()
    assert rows == 1550


@pytest.mark.slow
def test_a_consumer_that_dies_too_often_is_given_up(workplace: Workplace) -> None:
    """Killed once more than it may be started again: the command does not notice, the exit code is 3."""
    script = f"{' '.join(SIMULATE)} -n 500 -r 0; until [ -e go ]; do sleep 0.05; done"
    process = workplace.phase_bus("exec", *METRICS, *AGGREGATOR, "--restart", "1", "--", "sh", "-c", script)
    wait_for(lambda: "consumers ready" in workplace.stderr(process), "the consumers")
    child_of(process.pid, "consume", "metrics").kill()
    wait_for(lambda: "consumer metrics is back" in workplace.stderr(process), "the restart")
    child_of(process.pid, "consume", "metrics").kill()
    wait_for(lambda: "having been started again once" in workplace.stderr(process), "its end")
    (workplace.directory / "go").touch()
    assert workplace.finish(process).returncode == 3
    (run,) = runs_of(workplace)
    assert run["complete"]


@pytest.mark.slow
def test_a_killed_bus_does_not_touch_the_command(workplace: Workplace) -> None:
    """SIGKILL of the bus: the command runs to its own end and exit code; the loss is reported."""
    script = "import sys, time; open('go', 'w'); time.sleep(1); sys.exit(5)"
    process = workplace.phase_bus("exec", *LOGGING, "--", sys.executable, "-c", script)
    wait_for(lambda: (workplace.directory / "go").exists(), "the command")
    child_of(process.pid, "phase_bus", "bus").kill()
    done = workplace.finish(process)
    assert done.returncode == 5, done.stderr
    assert "the bus was ended by SIGKILL" in done.stderr
    assert "the bus does not answer" in done.stderr


@pytest.mark.slow
def test_a_run_that_its_publisher_leaves_open_ends_as_lost(workplace: Workplace) -> None:
    """A publisher that is killed in a run: everybody learns that the run is lost, nobody waits."""
    process = workplace.phase_bus(
        "exec", *LOGGING, *AGGREGATOR, "--", *SIMULATE, "-n", "100000", "-r", "200"
    )
    wait_for(lambda: "profiling started" in workplace.stderr(process), "the run")
    child_of(process.pid, "simulate").kill()
    done = workplace.finish(process)
    assert done.returncode == 128 + signal.SIGKILL
    assert events_of(workplace)[-1]["status"] == "lost"
    (run,) = runs_of(workplace)
    assert run["status"] == "lost"


def test_an_exec_that_is_killed_takes_its_processes_along(workplace: Workplace) -> None:
    """SIGKILL of `exec` itself: the bus and the consumers notice and end."""
    process = workplace.phase_bus("exec", *LOGGING, "--", "sleep", "60")
    wait_for(lambda: "consumers ready" in workplace.stderr(process), "the consumers")
    command = wait_for(lambda: [c for c in workplace.left() if c.name() == "sleep"], "the command")
    process.kill()
    command[0].kill()  # the benchmark's command is not ours to end; here it would outlive the test
    wait_for(lambda: not workplace.left(), "all processes to end", 20.0)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command(workplace: Workplace, signum: signal.Signals) -> None:
    """A signal to `exec` goes to the command, whose exit code counts."""
    trap = f"trap 'exit 9' {signum.name.removeprefix('SIG')}; touch go; while :; do sleep 0.05; done"
    process = workplace.phase_bus("exec", "--", "sh", "-c", trap)
    wait_for(lambda: (workplace.directory / "go").exists(), "the command")
    os.kill(process.pid, signum)
    assert workplace.finish(process).returncode == 9


@pytest.mark.slow
def test_a_yaml_file_names_the_consumers(workplace: Workplace) -> None:
    """Two consumers of one class under names of their own, beside an option of the bus and a port."""
    (workplace.directory / "bus.yaml").write_text(
        """
address: tcp://127.0.0.1:0
consumers:
  - use: logging
    name: plain
    set: {log_file: plain.log}
  - use: logging
    name: detailed
    set: {log_file: detailed.log, verbose: true}
bus: {high_water_mark: 2000}
"""
    )
    show = "import os; print(os.environ['PHASE_BUS_ADDRESS'])"
    done = workplace.run("exec", "-c", "bus.yaml", "--allow-no-run", "--", sys.executable, "-c", show)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tcp://127.0.0.1:")
    assert "consumers ready: plain, detailed" in done.stderr


@pytest.mark.slow
def test_a_consumer_of_ones_own(workplace: Workplace) -> None:
    """A class in a file beside: its option is converted, its handlers get the events."""
    (workplace.directory / "mine.py").write_text(
        """
from pathlib import Path
from phase_bus.consumer.consumer import Consumer

class Counter(Consumer):
    def __init__(self, output: Path, factor: int = 1) -> None:
        self.output, self.factor, self.count = output, factor, 0

    async def on_records(self, event):
        self.count += event.count * self.factor

    async def flush(self):
        self.output.write_text(str(self.count))
"""
    )
    done = workplace.run(
        "exec", "--with", "mine:Counter:output=count.txt,factor=2", "--", *SIMULATE, "-n", "500", "-r", "0"
    )
    assert done.returncode == 0, done.stderr
    assert (workplace.directory / "count.txt").read_text() == "1100"


@pytest.mark.slow
def test_a_consumer_that_fails_on_events_is_told_of(workplace: Workplace) -> None:
    """A handler that raises: the process lives on, and `exec` says that not all was handled."""
    (workplace.directory / "bad.py").write_text(
        """
from phase_bus.consumer.consumer import Consumer

class Bad(Consumer):
    async def on_phase_complete(self, event):
        raise RuntimeError("no luck today")
"""
    )
    done = workplace.run("exec", "--with", "bad:Bad", "--", *SIMULATE, "-n", "100", "-r", "0")
    assert done.returncode == 3
    assert "no luck today" in done.stderr
    assert "consumer bad:Bad did not handle everything" in done.stderr


@pytest.mark.slow
def test_the_journal_of_a_running_exec_is_not_touched_by_others(workplace: Workplace) -> None:
    """Others that fail or have no run come and go meanwhile: the run is whole, and is the only result."""
    process = workplace.phase_bus("exec", *AGGREGATOR, "--", *SIMULATE, "-n", "600", "-r", "200")
    wait_for(lambda: "profiling started" in workplace.stderr(process), "the run")
    for _ in range(2):
        assert workplace.run("exec", "--with", "aggregator:outptu=x", "--", "true").returncode == 2
        assert "removed" not in workplace.run("exec", "--", "true").stderr
    done = workplace.finish(process)
    assert done.returncode == 0, done.stderr
    (run,) = runs_of(workplace)
    assert run["complete"]
    (listed,) = json.loads(workplace.run("runs", "--json").stdout)
    assert (listed["records"], listed["status"]) == (650, "completed")


@pytest.mark.slow
def test_up_serves_runs_that_come_and_go(workplace: Workplace) -> None:
    """`up` in the foreground, two runs from outside, status and tail beside it, SIGTERM at the end."""
    address = f"ipc://{workplace.directory}/bus"
    up = workplace.phase_bus("up", "--address", address, *AGGREGATOR)
    wait_for(lambda: "consumers ready: aggregator" in workplace.stderr(up), "the bus")
    tail = workplace.phase_bus("tail", "--address", address, "--json", "--topic", "run_", "--count", "4")
    wait_for(lambda: "listening" in workplace.stderr(tail), "tail")
    for run_id in ("one", "two"):
        arguments = ("simulate", "-n", "300", "-r", "0", "--run-id", run_id, "--address", address)
        assert workplace.run(*arguments).returncode == 0
    seen = json_lines(workplace.finish(tail).stdout)
    assert [(event["kind"], event["run_id"]) for event in seen] == [
        ("run_start", "one"),
        ("run_complete", "one"),
        ("run_start", "two"),
        ("run_complete", "two"),
    ]
    wait_for(
        lambda: (
            (workplace.directory / "summary.json").exists()
            and [run["complete"] for run in runs_of(workplace)] == [True, True]
        ),
        "both results",
    )
    status = workplace.run("status", "--address", address)
    assert status.returncode == 0
    assert "aggregator" in status.stdout
    assert "completed" in status.stdout
    os.kill(up.pid, signal.SIGTERM)
    assert workplace.finish(up).returncode == 0


@pytest.mark.slow
def test_consumers_in_any_order(workplace: Workplace, tmp_path: Path) -> None:
    """A consumer that is started before its bus waits for it, and loses nothing of a later run."""
    address = f"ipc://{workplace.directory}/bus"
    consumer = workplace.phase_bus(
        "consume", "logging", "--set", "log_file=events.jsonl", "--set", "json=true", "--address", address
    )
    wait_for(lambda: "no bus answers" in workplace.stderr(consumer), "the consumer's complaint")
    bus = workplace.phase_bus("bus", "--address", address)
    wait_for(lambda: "bus ready at" in workplace.stdout(bus), "the bus")

    def ready() -> bool:
        status = workplace.run("status", "--json", "--address", address)
        return '"ready"' in status.stdout

    wait_for(ready, "the consumer to be ready")
    assert workplace.run("simulate", "-n", "100", "-r", "0", "--address", address).returncode == 0
    log = tmp_path / "events.jsonl"
    wait_for(lambda: log.exists() and events_of(workplace)[-1]["event"] == "run_complete", "the events")
    for process in (consumer, bus):
        os.kill(process.pid, signal.SIGTERM)
        assert workplace.finish(process).returncode == 0


@pytest.mark.slow
def test_late_consumers_hold_the_same_as_the_first(workplace: Workplace) -> None:
    """One that is there first, one that comes in the middle, one after the end: the same result."""
    address = f"ipc://{workplace.directory}/bus"
    bus = workplace.phase_bus("bus", "--address", address)
    wait_for(lambda: "bus ready at" in workplace.stdout(bus), "the bus")

    def consume(name: str) -> Any:
        return workplace.phase_bus(
            "consume", "aggregator", "--name", name, "--set", f"output={name}.json", "--address", address
        )

    def result(name: str) -> Any:
        path = workplace.directory / f"{name}.json"
        return workplace.json(path.name)["runs"].get("late") if path.exists() else None

    consumers = [consume("first")]
    wait_for(lambda: '"ready"' in workplace.run("status", "--json", "--address", address).stdout, "first")
    run = workplace.phase_bus(
        "simulate", "-n", "4000", "-r", "1000", "--run-id", "late", "--address", address
    )
    wait_for(lambda: (result("first") or {}).get("records", 0) > 500, "the middle of the run")
    consumers.append(consume("second"))
    assert workplace.finish(run).returncode == 0
    wait_for(lambda: (result("first") or {}).get("final"), "the first one's result")
    consumers.append(consume("third"))
    for name in ("second", "third"):
        wait_for(lambda name=name: (result(name) or {}).get("final"), f"the {name} one's result")  # type: ignore[misc]
        assert result(name) == result("first")
    for process in (*consumers, bus):
        os.kill(process.pid, signal.SIGTERM)
        assert workplace.finish(process).returncode == 0
    receipts = workplace.run("receipts", "late")
    assert receipts.returncode == 0, receipts.stderr
    assert "third" in receipts.stdout


@pytest.mark.parametrize("ending", ["2>&-", "2>&- >&- <&-", "2>/dev/full", "2>&1 >/dev/null | true"])
def test_the_command_runs_though_nobody_can_be_told(workplace: Workplace, ending: str) -> None:
    """Standard files are closed, cannot be written, or nobody reads them: it runs, with its exit code."""
    command = f'"{sys.executable}" -m phase_bus exec --with metrics -- sh -c "touch ran; exit 7"'
    workplace.finish(workplace.start("sh", "-c", f"({command}; echo $? >code) {ending}"))
    wait_for((workplace.directory / "code").exists, "the exit code")
    assert (workplace.directory / "code").read_text() == "7\n"
    assert (workplace.directory / "ran").exists()


@pytest.mark.parametrize(
    ("use", "file"),
    [
        ("metrics", "phase-bus-metrics.json"),
        pytest.param("aggregator", "phase-bus-summary.json", marks=pytest.mark.slow),
        pytest.param("logging:log_file=phases.log", "phases.log", marks=pytest.mark.slow),
    ],
)
def test_two_at_once_in_one_directory(workplace: Workplace, use: str, file: str) -> None:
    """The second is refused before its command runs; the first one's run is all there."""
    script = f"{' '.join(SIMULATE)} -n 20 -r 0; while [ ! -e second-done ]; do sleep 0.05; done"
    first = workplace.phase_bus("exec", "--with", use, "--", "sh", "-c", script)
    wait_for(lambda: "bus ready" in workplace.stderr(first), "the first to be ready")
    second = workplace.run("exec", "--with", use, "--", "touch", "it-ran")
    assert_one_line(second.returncode, second.stderr, file, "is written by consumer", "pid", "another file")
    assert not (workplace.directory / "it-ran").exists()
    (workplace.directory / "second-done").touch()
    assert workplace.finish(first).returncode == 0
    assert not list(workplace.directory.glob(".*.lock"))
    content = (workplace.directory / file).read_text()
    assert "RUN_COMPLETE" in content if file == "phases.log" else len(json.loads(content)["runs"]) == 1


def test_two_consumers_of_one_exec_and_one_file(workplace: Workplace) -> None:
    use = ("--with", "metrics:output=one.json", "--with", "aggregator:output=one.json")
    done = workplace.run("exec", *use, "--", "true")
    assert_one_line(done.returncode, done.stderr, "one.json", "is written by consumer", "pid")


@pytest.mark.slow
def test_a_text_report_has_the_runs_of_its_own_bus(workplace: Workplace) -> None:
    """The JSON file keeps those of earlier ones, and says so."""
    use = ("exec", "--with", "aggregator:output=s.json,text=s.txt", "--", *SIMULATE, "-n", "20", "-r", "0")
    for run_id in ("earlier", "later"):
        done = workplace.run(*use, "--run-id", run_id)
        assert done.returncode == 0, done.stderr
        assert ("earlier runs stay" in done.stderr) == (run_id == "later")
    assert list(workplace.json("s.json")["runs"]) == ["earlier", "later"]
    text = (workplace.directory / "s.txt").read_text()
    assert "later" in text
    assert "earlier" not in text


@pytest.mark.slow
@pytest.mark.parametrize("host", ["*", "[::1]"])
def test_the_command_is_given_an_address_that_it_can_connect_to(workplace: Workplace, host: str) -> None:
    """Whatever the bus is bound to."""
    arguments = ("--address", f"tcp://{host}:0", *AGGREGATOR)
    done = workplace.run("exec", *arguments, "--", *SIMULATE, "-n", "20", "-r", "0", "--warmup", "0")
    assert done.returncode == 0, done.stderr
    assert runs_of(workplace)[0]["records"] == 20
    assert f"bus ready at tcp://{'127.0.0.1' if host == '*' else host}:" in done.stderr


_PROCESSES = """
import multiprocessing
from phase_bus import PhaseRef, Publisher, PublisherHook

PHASE = PhaseRef("profiling")

def work():
    publisher = Publisher(name="worker")
    for number in range(500):
        publisher.record("many", PHASE, {"request_latency": number}, {})

if __name__ == "__main__":
    with Publisher(name="main") as publisher:
        hook = PublisherHook(publisher, "many")
        workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for number in range(10):
            publisher.record("many", PHASE, {"request_latency": number}, {})
        for worker in workers:
            worker.join()
        hook.complete()
    with Publisher(name="hasty", buffer_bytes=1 << 20) as publisher:
        hook = PublisherHook(publisher, "hasty")
        for number in range(20_000):
            publisher.record("hasty", PHASE, {"request_latency": number}, {})
        hook.complete()
"""


@pytest.mark.slow
def test_several_processes_and_dropped_records(workplace: Workplace) -> None:
    """A run of four processes is whole; what a publisher dropped is counted in records, and exit code 3."""
    (workplace.directory / "load.py").write_text(_PROCESSES)
    done = workplace.run("exec", *AGGREGATOR, "--", sys.executable, "load.py")
    assert done.returncode == 3, done.stderr
    many, hasty = runs_of(workplace)
    assert (many["records"], many["expected_records"], many["complete"]) == (1510, 1510, True)
    dropped = hasty["dropped_records"]
    assert (hasty["records"] + dropped, hasty["final"], hasty["complete"]) == (20_000, True, False)
    assert dropped > 0
    assert f"had to drop {dropped:,} of 20,000 records" in done.stderr
    assert f"the publisher of run hasty had to drop {dropped:,} records" in done.stderr
    assert workplace.run("report", "hasty").returncode == 3
    assert workplace.run("report", "many").returncode == 0
