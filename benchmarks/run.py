"""Run all benchmarks, and hold what they find against the budgets of the design.

``python benchmarks/run.py`` takes five to six minutes and writes ``benchmarks/RESULTS.md``. ``--quick``
only shows that everything works; ``--only NAME`` runs one of them; neither writes a file. A benchmark
alone, in its full form, is ``python -m benchmarks.cost``.

For figures before and after a change: ``--save FILE`` in a tree without it and ``--before FILE`` in one
that has it, on the same machine, one after the other.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from benchmarks.harness import Report, Spread, markdown  # noqa: E402 - it is found only now
from benchmarks.nats_server import program  # noqa: E402

NAMES = (
    "cost",
    "delivery",
    "latency",
    "columns",
    "catching_up",
    "groups",
    "replay",
    "batches",
    "aggregation",
    "durability",
    "keys",
    "resources",
    "growth",
    "fairness",
    "calls",
    "sinks",
    "verdicts",
    "forwarding",
    "stream",
    "fleet",
)
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
MEASURED_ONCE = ROOT / "benchmarks" / "measured_once.md"  # what decisions were taken by; written by hand
_LIMIT_S = 120.0
_SHORT_S = 300.0  # what begins later is measured in the quick form, so that a slow machine is done in time
_PACKAGES = (
    *("pyzmq", "msgspec", "numpy", "aiperf", "orjson", "pydantic"),
    *("nats-py", "ddsketch", "datasketches", "crick"),
    *("psycopg", "duckdb", "pyarrow", "pymongo", "aiohttp", "prometheus_client", "protobuf"),
    *("secantusdb", "osmem-server"),
)


class Budget(Struct, frozen=True):
    """A budget of the design.

    Attributes:
        what: in the design's words.
        figure: which figure of the reports it is about.
        limit: the bound.
        at_most: whether the figure may not be above the limit; otherwise not below.
        scale: what figure and limit are divided with to show them.
        why: what the limit is, shown if it is missed; from a profile.
    """

    what: str
    figure: str
    limit: float
    at_most: bool = False
    scale: float = 1.0
    why: str = ""


class Saved(Struct, frozen=True):
    """The figures of a run, to be shown beside those of a later one.

    Attributes:
        machine: when, on what, and of which commit.
        figures: those of all its reports.
    """

    machine: list[str]
    figures: dict[str, Spread]


# Profiled on 2026-11-22, and what bundles changed on 2026-11-30, with other work on the same two cores, so
# shares count for more than times: one thread, the least of many short runs, and CPU by thread from /proc.
_TABLES = (
    "A record, one thread, the least of many rounds, from the call to the outbox: 5.0 to 5.6 µs where "
    "AIPerf's encoding takes 15.1 to 16: the call 0.3, queue and open batch 0.3 to 0.4, packing 2.3 with "
    "everything in the second-level cache and 4 without, encoding 0.05. What is in no cache sets it: to "
    "touch a record's 34 metrics once takes 1.1, its list of 15 values 0.5, its fields 0.5; the rest are "
    "calls into C (picking 33 names 0.5, packing them 0.5, a list's summary 0.9, the fields 0.6), and what "
    "a batch takes whatever is in it (0.25 to 0.5). What was tried without gain is below, under measured "
    "once; together it would come to 0.31: at full speed 0.3 is beyond the interpreter by 5 to 10 %."
)
_EVENT = (
    "A phase event, warm, the least of many rounds: 7.0 to 7.7 µs, AIPerf's encoding 4.6 to 5.2 (1.45 to "
    "1.52; before 2.6 to 3.0). In AIPerf's thread 3.5 (the phase's stats read 1.5, most of it 24 look-ups; "
    "compared with the last, and the event made, 1.4; the queue 0.3), in the publisher's 3.5 (encoding 0.9 "
    "with fresh memory; topic, numbers and counts 0.9; the queue 0.4; joining, keeping and acknowledging "
    "it 0.6; the rest taking turns). AIPerf's side only encodes, and sends nothing."
)
_LONE = (
    "One phase event every 4 ms, on a busy machine: 265 to 310 µs, a bare PUB's send 82 to 150. What it "
    "runs is in no cache, in two thirds of the thread's samples the interpreter itself: AIPerf's thread 70 "
    "(stats and event 45, warm 3; waking the other one 20), the publisher's 150 (being woken 20, reading "
    "the pipe 6 to 10, encoding 26 to 32, warm 1, three sends 30 to 40 as the bare PUB's, its "
    "acknowledgement 13, 20 other calls 2 to 3 each), ZeroMQ's 45 (the bare side's 40). Waking, encoding "
    "and sending alone make 1.9 times the bare PUB."
)
_FRAMES = (
    "Small events, which go in bundles of up to 256, CPU of an event on a busy machine: the sender takes 4 "
    "to 7 µs (encoding 0.5), the bus 3 to 5 where it took 16 (decoding each by its size, and judging them, "
    "1.0; the journal 0.75, alone 7.4; the rest, 100 calls or so, is once a bundle), a "
    "consumer 4 to 5: its thread 2.5 to 2.7 where it took 10 to 14 (decoding 0.7, a list at once; two "
    "coroutines, of the handler and of the retries around it, 0.3; the clock, and whether it may go on, "
    "0.4; counting for the receipt and placing the consumer at the event 1). The bare side takes 12 to 17 "
    "at each end by message, 3 to 7 by frame, journals nothing and decodes nothing. JetStream, which keeps "
    "messages, too, is in the tables of delivery."
)
_BATCHES = (
    "64 KiB, CPU on a busy machine: of 690 µs an event over all processes (of the bare side, by frame: "
    "168) the bus takes 440: its own thread 280 (the journal 200: three copies in SQLite, nine pages, "
    "each summed and written in two writes, our checksum 20; the rest is what a turn costs, shared by the "
    "3 to 20 events that ZeroMQ's thread brings in time), the thread that copies the log into the file 85 "
    "to 105, ZeroMQ's 70. Without any journal the bus would take 138, and all of it be 0.51 of the bare "
    "side; with payloads in a file of their own 0.35 to 0.37 (decision 29)."
)
_SINKS = (
    "Records to three sinks: the lean side sends 1.4 kB of plain msgpack, decoded and appended. What "
    "limits ours, by adding up CPU rather than by a profile, is the publisher, at 4 to 6 µs a record with "
    "the bus beside it on two cores."
)
_UPDATE = (
    "Aggregation, batches of 256: a column of 256 values takes 5.4 µs, and 2.2 if all are equal: their "
    "bins 2.3 (of it the logarithm 1.1), sums that do not depend on the order of batches 2.0, joining what "
    "came in pieces and looking for NaN and infinity 0.4, the rest Python. Percentiles over time of four "
    "metrics take 54 µs a batch, its first and last times 13. In place the sums and bins of 16 partitions "
    "take a third more than those of one metric alone, since their memory is in no near cache."
)
_REPLAY = "Replay: the consumer asks for a piece, handles it, and asks for the next; it does not ask ahead."
_COPY = (
    "`sql` to PostgreSQL, CPU on a busy machine: for a record the sink takes 6 µs (text for COPY 2, "
    "joining and converting columns 3, checking 0.3), PostgreSQL 6.3 to 8 (reading the text and writing "
    "the row 4 to 5, the primary key 1.5 to 2.5). They work side by side, each on one of the two cores, "
    "so that PostgreSQL sets the pace, and whatever else runs there takes from it."
)
_TAILS = (
    "Tails: what made them was the journal's log starting over, once in 128 MB (the writer waited until "
    "SQLite had synced all that was copied since the last time, 38 ms, and until the log's file was cut "
    "off, 12 ms), collections by Python's garbage collector, 18 to 75 ms each, copies of 4 MB and more of "
    "the log at once, and what piled up event by event behind any of these. What is left is four processes "
    "on two cores. The trace is below, under measured once."
)
_CATCHING_UP = (
    "Catching up, at real-time priority, since others used the two cores: two workers are 1.9 times one "
    "(1.67 before, with as many records); of one worker's 4.2 s 0.2 are nobody's to share (handing out the "
    "shares, the last commits, the summary). The bus takes 0.06 to 0.19 s of CPU. Beside a reader of "
    "100,000 events/s live events come as soon as without (0.81 to 1.14 times the median); on fewer "
    "processors than processes, as beside anything that takes one: that is in the table of catching_up."
)
_COLUMNS = (
    "Columns: 10 to 30 ns of CPU a record of two metrics into the outbox (copying at the call 3 to 6, "
    "interleaving and encoding the rest), 340 where each has a text of its own. End to end 290 ns of all "
    "processes (publisher 65; bus 105, copying into SQLite and sending; aggregator 125, 60 a value), "
    "record by record 3,900 (publisher 2,200, bus 800, aggregator 950)."
)
_GROWTH = "Growth: it is the row of the table in growth whose last column is largest, latency apart."

BUDGETS = (
    Budget(
        "A record, whole, of AIPerf's JSON encoding of it", "record_whole_ratio", 0.3, True, why=_TABLES
    ),
    Budget("A phase event, whole, of AIPerf's encoding", "event_whole_ratio", 1.5, True, why=_EVENT),
    Budget("One every 4 ms, whole, of a bare PUB's send", "event_single_over_bare", 2.5, True, why=_LONE),
    Budget("Direct mode, 200 B, of a bare PUB/SUB loop", "direct_200B_phase-bus_ratio", 0.6, why=_FRAMES),
    Budget("the same, of the faster bare loop, by frame", "direct_200B_by_frame_ratio", 0.6, why=_FRAMES),
    Budget("Bus, 200 B, 1 consumer, of zmq.proxy", "bus1_200B_phase-bus_ratio", 0.8, why=_FRAMES),
    Budget("the same, of the faster bare side, by frame", "bus1_200B_by_frame_ratio", 0.35, why=_FRAMES),
    Budget("Bus, 200 B, 3 consumers, of zmq.proxy", "bus3_200B_phase-bus_ratio", 0.8, why=_FRAMES),
    Budget("Bus, 64 KiB, 1 consumer, of zmq.proxy", "bus1_64KiB_phase-bus_ratio", 0.65, why=_BATCHES),
    Budget("Bus, 64 KiB, 3 consumers, of zmq.proxy", "bus3_64KiB_phase-bus_ratio", 0.8, why=_BATCHES),
    *(
        Budget(
            f"Publish to handler, p99, ms: {rate:,} events/s{what}",
            f"bus_{rate}{key}_p99_us",
            limit_us,
            True,
            1e3,
            _TAILS,
        )
        for key, what in (
            ("", ""),
            ("_beside", ", beside a run of 4,000 records/s"),
            ("_checkpointed", ", while the journal's log is copied back"),
        )
        for rate, limit_us in ((1000, 2000.0), (10_000, 5000.0))
    ),
    Budget(
        "Live latency while consumers catch up, of without",
        "live_catching_up_ratio",
        1.2,
        True,
        why=_CATCHING_UP,
    ),
    Budget("A group of two workers that catches up, of one", "group_speedup_2", 1.6, why=_CATCHING_UP),
    Budget(
        "Columns into the outbox, million records/s of two metrics",
        "columns_outbox_records_per_s",
        5e6,
        scale=1e6,
        why=_COLUMNS,
    ),
    Budget(
        "Columns, publisher to final summary, of record by record",
        "columns_end_to_end_ratio",
        1.6,
        why=_COLUMNS,
    ),
    Budget("Records to 3 sinks, over one records event a record", "batched_over_single", 10.0),
    Budget(
        "Records to 3 sinks, over one msgpack message a record",
        "batched_over_single_sorted",
        10.0,
        why=_SINKS,
    ),
    Budget(
        "Aggregation, million values/s a core", "run_state_256_values_per_s", 25e6, scale=1e6, why=_UPDATE
    ),
    Budget("Aggregation, memory at 16 times the records", "memory_growth_16x", 1.05, True),
    Budget("Replay from the journal, 200 B, over live", "replay_200B_over_live", 1.0, why=_REPLAY),
    Budget("Replay from the journal, 2 KiB, over live", "replay_2KiB_over_live", 1.0, why=_REPLAY),
    Budget("Replay from the journal, 64 KiB, over live", "replay_64KiB_over_live", 1.0, why=_REPLAY),
    Budget("Replay of batches of 256 records, over live", "replay_256records_over_live", 1.0, why=_REPLAY),
    Budget("`sql` to PostgreSQL, records/s", "sink_postgresql_records_per_s", 100_000, why=_COPY),
    Budget("Growth: the dearest unit at 16 times the load, of 1x", "growth_worst", 1.5, True, why=_GROWTH),
    Budget("False alarms of compare, over all equal sides", "verdicts_false_alarms", 0.05, True),
)


def main() -> int:
    """Run them; return the exit code: 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description="Run the benchmarks.")
    parser.add_argument("--quick", action="store_true", help="only show that everything works")
    parser.add_argument("--only", choices=NAMES, help="run one of them")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write all figures to a file as well")
    parser.add_argument("--before", type=Path, metavar="FILE", help="show what --save wrote beside them")
    options = parser.parse_args()
    before = None
    if options.before is not None:
        before = msgspec.json.decode(options.before.read_bytes(), type=Saved)
    load_before, started_s = os.getloadavg()[0], time.monotonic()
    names = (options.only,) if options.only else NAMES
    reports: dict[str, Report | None] = {}
    for name in names:
        late = time.monotonic() - started_s > _SHORT_S
        reports[name] = _run(name, "quick" if options.quick or late else "short")
    found = [report for report in reports.values() if report is not None]
    machine = _machine(load_before, time.monotonic() - started_s)
    text = _document(machine, found, [name for name, report in reports.items() if report is None], before)
    print("\n" + _budgets(found, before))
    if options.save is not None:
        options.save.write_bytes(msgspec.json.encode(Saved(machine, _figures(found))))
    print("took: " + ", ".join(f"{report.name} {report.took_s:.0f} s" for report in found))
    if not options.quick and not options.only:
        RESULTS.write_text(f"{text}\n{MEASURED_ONCE.read_text('utf-8')}", encoding="utf-8")
        print(f"written: {RESULTS}")
    return 0 if len(found) == len(names) else 1


def _run(name: str, form: str) -> Report | None:
    """Run one benchmark in a process of its own; return its report, None if it failed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as where:
        output = Path(where) / "report.json"
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{name}", "--form", form, "--json", str(output)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            failed = process.wait(_LIMIT_S) != 0
        except subprocess.TimeoutExpired:
            failed = True
        finally:
            _end(process)
        if failed or not output.exists():
            print(f"{name}: failed, or took longer than {_LIMIT_S:g} s", file=sys.stderr)
            return None
        return msgspec.json.decode(output.read_bytes(), type=Report)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a benchmark that is still running, and then whatever it left."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10.0)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its session is its own
    process.wait()


def _document(machine: list[str], reports: list[Report], failed: list[str], before: Saved | None) -> str:
    parts = [
        "# Results",
        "",
        "Written by `make bench` (`python benchmarks/run.py`); not by hand.",
        "",
        *machine,
        "",
        "Each cell is the median of its rounds (least..largest). The sides of a comparison took turns, and "
        "ratios are those of neighbours in time.",
        "",
        "## Budgets",
        "",
        *_about(before),
        _budgets(reports, before),
    ]
    for name in failed:
        parts.extend([f"## {name}", "", "Failed: no figures.", ""])
    for report in reports:
        parts.extend([f"## {report.name}", "", f"{report.question} ({report.form} form)", ""])
        parts.extend(markdown(table) for table in report.tables)
        parts.extend(f"- {note}" for note in report.notes)
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _about(before: Saved | None) -> list[str]:
    """Say where the figures of before are from."""
    if before is None:
        return []
    return ["Before: another commit, measured in the same way.", "", *before.machine[:3], ""]


def _figures(reports: list[Report]) -> dict[str, Spread]:
    return {key: value for report in reports for key, value in report.figures.items()}


def _budgets(reports: list[Report], before: Saved | None) -> str:
    figures = _figures(reports)
    earlier = {} if before is None else before.figures
    cells = ["budget", "limit", *(["before"] if before else []), "figure", ""]
    lines = [f"| {' | '.join(cells)} |", "|---|" + "---:|" * (len(cells) - 2) + "---|"]
    reasons = []
    for budget in BUDGETS:
        figure = figures.get(budget.figure)
        sign = "at most" if budget.at_most else "at least"
        shown = [_shown(earlier.get(budget.figure), budget.scale)] if before else []
        shown.append(_shown(figure, budget.scale))
        verdict = "" if figure is None else _verdict(budget, figure.median, figure.low, figure.high)
        limit = f"{sign} {budget.limit / budget.scale:g}"
        lines.append(f"| {' | '.join([budget.what, limit, *shown, verdict])} |")
        if verdict.startswith("**missed") and budget.why:
            reasons.append(f"- {budget.why}")
    if reasons:
        lines.extend(["", "What the limit is, by profile:", "", *dict.fromkeys(reasons)])
    return "\n".join(lines) + "\n"


def _shown(figure: Spread | None, scale: float) -> str:
    return "not measured" if figure is None else figure.show(scale)


def _verdict(budget: Budget, median: float, low: float, high: float) -> str:
    over = median / budget.limit if budget.at_most else budget.limit / median
    text = f"**missed**, by a factor of {over:.2f}" if over > 1 else f"met, by a factor of {1 / over:.2f}"
    crosses = low <= budget.limit <= high and low != high
    return text + ("; some rounds say otherwise" if crosses else "")


def _machine(load_before: float, took_s: float) -> list[str]:
    versions = [f"Python {platform.python_version()}", f"libzmq {zmq.zmq_version()}", _nats()]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    load = f"{load_before:.1f} before and {os.getloadavg()[0]:.1f} after"
    return [
        f"- Date: {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; took {took_s:.0f} s; {_commit()}",
        f"- Machine: {os.cpu_count()} cores, {_processor()}, {platform.system()} {platform.release()}",
        f"- Load average: {load} (the benchmarks' own processes are in the second)",
        f"- Versions: {', '.join(versions)}",
    ]


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _nats() -> str:
    found = program()
    if found is None:
        return "nats-server not installed"
    done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10)
    return done.stdout.strip().replace(":", "")


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "commit unknown"
    return f"commit {done.stdout.strip()}"


if __name__ == "__main__":
    sys.exit(main())
