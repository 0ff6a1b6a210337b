"""Tables in terminals of several widths: names and ids are whole, and what is left out matters least."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from rich.text import Text

from phase_bus.aggregation.text import render_text
from phase_bus.cli import output
from phase_bus.cli.baseline import list_ as baselines
from phase_bus.cli.baseline import show as baseline
from phase_bus.cli.check import check
from phase_bus.cli.compare import Allowed, compare
from phase_bus.cli.consumers import consumers
from phase_bus.cli.dead_letters import list_ as dead_letters
from phase_bus.cli.journal import info
from phase_bus.cli.keys import authorize
from phase_bus.cli.keys import list_ as keys
from phase_bus.cli.report import report
from phase_bus.cli.runs import receipts, runs
from phase_bus.cli.status import _show as show_status
from phase_bus.cli.status import _show_all as show_buses
from phase_bus.core.console import PlainConsole
from phase_bus.core.control import ClientInfo, RunInfo, Status, UnreadRun
from phase_bus.core.keys import write_new_key
from phase_bus.core.position import Position
from phase_bus.core.table import FittingTable
from phase_bus.events import Receipt, TopicReceipt, Verdict
from phase_bus.journal.baselines import RunSource, set_baseline
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.running import RunningBus
from phase_bus.journal.writer import Journal
from phase_bus.reporting.receipts import ledger, ledger_table
from phase_bus.reporting.source import compute
from phase_bus.reporting.verdicts import verdict_table
from phase_bus.verification import text as verification
from tests.support.entries import dead_letter_at
from tests.support.journals import T0, Made, Phase, write_journal

RUN = "0f7d1c52-9a3e-4b6e-8f7a-2d9b1c5e7a10"
OTHER = "1f7d1c52-9a3e-4b6e-8f7a-2d9b1c5e7a10"
NAME = "nightly-aggregator"
LABEL = "vllm-0.9-tp4"
WIDTHS = pytest.mark.parametrize("width", [60, 80, 120, 160])


def rendered(renderable: object, width: int) -> list[str]:
    """Return the lines that a terminal of this width shows."""
    console = PlainConsole(width=width)
    with console.capture() as capture:
        console.print(renderable)
    return [line.rstrip() for line in capture.get().splitlines()]


def receipt(**more: int) -> Receipt:
    """Return the receipt of a consumer with a long name."""
    counts = TopicReceipt(published=123456, received=123456, handled=123456, written=123456)
    odd = TopicReceipt(published=123456, received=123456, handled=123456, written=123456, **more)
    topics = {f"phase_sending_complete.{RUN}$": counts, f"run_complete.{RUN}$": odd}
    return Receipt(run_id=RUN, consumer=NAME, topics=topics)


def verdict(producer: str) -> Verdict:
    return Verdict(
        run_id=RUN,
        producer=producer,
        threshold="profiling time_to_first_token p99 < 50 ms",
        state="failed",
        value=6e7,
        limit=5e7,
        unit="ns",
        samples=123456,
        final=True,
    )


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A journal with two runs, a receipt, verdicts and dead letters; a baseline; a key that is let in."""
    directory = tmp_path_factory.mktemp("a-directory-with-a-long-name-that-nobody-has-room-for")
    phases = [Phase("warmup", 1.0, 20, kind="warmup"), Phase("profiling", 10.0, 500, error_rate=0.01)]
    more = [receipt(failed=1), verdict("thresholds"), verdict("another")]
    write_journal(
        directory,
        Made(RUN, phases, more=more, start={"label": LABEL, "models": ("a-model",)}),
        Made(OTHER, phases, start_ns=T0 + 60_000_000_000, seed=1),
    )
    with Journal(directory) as journal, journal.transaction():
        dead_letter_at(journal, NAME, 4, RUN)
        journal.commit(NAME, journal.lineage.position(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(directory / "state"))
        patch.delenv("PHASE_BUS_ADDRESS", raising=False)
        set_baseline(BASELINE, [RunSource(directory / FILE_NAME, RUN)])
        key = directory / "bus-key.yaml"
        write_new_key(key, "")
        authorize(PUBLIC, name=CLIENT, role=["publish", "consume"], key_file=key)
        yield directory


ALLOW: list[Allowed] = ["model", "receipts"]
STATUS = Status(
    bus_id="b" * 32,
    pid=1234567,
    addresses=("ipc:///tmp/phase-bus-1000",),
    uptime_s=1.0,
    offset=5555,
    clients=(
        ClientInfo(
            client_id="c",
            role="consumer",
            name=NAME,
            pid=1234567,
            host="gpu-node-17.cluster.example",
            state="ready",
            handled_runs=(RUN,),
            group="the-group-of-" + NAME,
            shares=tuple(range(-1, 16)),
        ),
        ClientInfo(
            client_id="f",
            role="consumer",
            name="forward",
            pid=1,
            host="h",
            state="ready",
            subscriptions=("",),
            position=Position("b" * 32, 4321),
        ),
        ClientInfo(
            client_id="d", role="publisher", name="a-publisher-with-a-name", pid=1, host="h", state="silent"
        ),
    ),
    runs=(RunInfo(run_id=RUN, status="completed", started_ns=T0, ended_ns=T0 + 10**10, publisher="p (1)"),),
    unread=(UnreadRun(consumer=NAME, run_id=RUN, events=1, records=2),),
)
BUSES = [
    RunningBus(f"ipc:///tmp/phase-bus-rig-{name}", 1234567, T0, "a-host")
    for name in ("nowhere1", "nowhere2")
]
BASELINE = "the-last-release-that-was-good"
CLIENT = "load-generators"
PUBLIC = zmq.curve_keypair()[0].decode()
Show = Callable[[Path], object]
COMMANDS: dict[str, tuple[Show, tuple[str, ...]]] = {
    "runs": (lambda data: runs(data=data), (RUN, OTHER)),
    "receipts": (lambda data: receipts(RUN, data=data), (NAME, "phase_sending_complete", "run_complete")),
    "dead letters": (lambda data: dead_letters(data=data), (NAME, RUN)),
    "check": (
        lambda data: check(RUN, threshold=["time_to_first_token p99 < 1 ms"], data=data),
        (RUN, "failed"),
    ),
    "compare": (
        lambda data: compare(f"run:{RUN}", f"run:{OTHER}", data=data, allow=ALLOW),
        (RUN, OTHER, "DIFFERENCE"),
    ),
    "report": (lambda data: report(RUN, data=data), (RUN, "mean", "p50", "p95", "p99")),
    "status": (lambda _: show_status(STATUS), (NAME, RUN, "a-publisher-with-a-name", "1,234")),
    "several buses": (lambda _: show_buses(BUSES, json=False), tuple(bus.address for bus in BUSES)),
    "journal info": (lambda data: info(data=data), (NAME,)),
    "baselines": (lambda data: baselines(), (BASELINE,)),
    "baseline": (lambda data: baseline(BASELINE), (RUN,)),
    "consumers": (lambda _: consumers(), ("elasticsearch", "processor:example_metrics")),
    "a consumer": (lambda _: consumers("aggregator"), ("aggregator", "window_metrics", "retry_wait_s")),
    "keys": (lambda data: keys(key_file=data / "bus-key.yaml"), (CLIENT, PUBLIC)),
}


@WIDTHS
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(
    command: str,
    width: int,
    journal: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each name and id is there in one piece, and every line that can be has a place in the terminal."""
    monkeypatch.setattr(output, "_WIDE", width)
    show, names = COMMANDS[command]
    show(journal)
    said = capsys.readouterr().out
    for name in names:
        assert name in said, said
    rows = [line for line in said.splitlines() if str(journal) not in line]
    longest = max(
        len(line.rstrip()) for line in rows if not line.startswith(("bus ", "and ", "aggregator: "))
    )
    assert longest <= max(width, len(f"LOST BY {NAME} {RUN} EVENTS  RECORDS") + 2), said


@WIDTHS
def test_a_ledger_says_whose_row_is_whose(width: int) -> None:
    """Consumer, kind and what was handled are always there."""
    lines = rendered(ledger_table(ledger([receipt(failed=7)])), width)
    assert lines[1].split()[:3] == [NAME, "phase_sending_complete", "123456"]
    assert {"CONSUMER", "KIND", "PUBLISHED", "HANDLED", "FAILED"} <= set(lines[0].split())
    assert lines[2].split()[0] == "run_complete"
    assert "7" in lines[2].split()
    assert len(lines) == 3
    assert ("RECEIVED" in lines[0]) is (width >= 120)


@WIDTHS
def test_verdicts_name_their_thresholds(width: int) -> None:
    """The state is a word, the threshold is whole if there is room, who judged at the least a column."""
    lines = rendered(verdict_table([verdict("thresholds"), verdict("another")]), width)
    assert lines[1].startswith("failed   profiling")
    assert "60.00 ms" in lines[1]
    assert ("time_to_first_token p99 < 50 ms" in lines[1]) is (width >= 120)
    assert max(map(len, lines)) <= width


@WIDTHS
def test_statistics_of_a_run(width: int, journal: Path) -> None:
    """The mean and the percentiles that people look at are there; the others if there is room."""
    text = render_text(compute(journal, RUN).summary, width=width)
    assert max(map(len, text.splitlines())) <= width
    header = next(line.split() for line in text.splitlines() if line.startswith("metric"))
    assert {"mean", "p50", "p95", "p99"} <= set(header)
    assert ("std" in header) is (width >= 120)


@WIDTHS
def test_a_verification(width: int) -> None:
    """All modes are there, folded where they must be."""
    cells = [Text("+1.2 [-0.3, +12.5] =", "green")] * 3
    lines = rendered(
        verification._table("5 rounds", [("requests per second", "61.01 req/s", *cells)]), width
    )
    assert lines[0].split() == ["5", "ROUNDS", "OFF", "ON", "STALLED", "KILLED"]
    assert max(map(len, lines)) <= width


def test_what_goes_first() -> None:
    """Counts that are all 0, then the spare ones in their order; whole ones never."""
    columns = ("RUN", "STATUS", "FAILED", "PUBLISHER", "JOURNAL")
    rows = [
        (RUN, "completed", 0, "a publisher with a name", "/some/where/that/has/a/long/name/journal")
    ] * 2
    table = FittingTable(columns, rows, whole=("RUN",), spare=("JOURNAL", "PUBLISHER"))
    assert table.shown(160) == list(columns)
    assert table.shown(120) == ["RUN", "STATUS", "PUBLISHER", "JOURNAL"]
    assert table.shown(80) == ["RUN", "STATUS", "PUBLISHER"]
    assert table.shown(60) == ["RUN", "STATUS"]
    assert table.shown(20) == ["RUN", "STATUS"]


def test_what_is_wider_than_the_terminal_is_left_to_it() -> None:
    """It wraps the line; nothing of an id is cut off."""
    table = FittingTable(("RUN", "STATUS"), [(RUN, "completed")], whole=("RUN",))
    assert rendered(table, 30)[1].split() == [RUN, "completed"]


def test_a_name_of_wide_characters_is_whole() -> None:
    """What counts is how wide it is, not how many characters it has."""
    name = "夜間集計" * 3
    table = FittingTable(("NAME", "WHY"), [(name, "some longer text that can be folded")], whole=("NAME",))
    assert rendered(table, 50)[1].startswith(name)


def test_the_last_column_is_as_wide_as_it_must_be() -> None:
    """Nothing comes after it: no gap is counted, and none is shown where it is aligned to the right."""
    rows = [("a", "1,234"), ("b", "12")]
    for ruled in (False, True):
        table = FittingTable(("NAME", "COUNT"), rows, spare=("COUNT",), right=("COUNT",), ruled=ruled)
        assert rendered(table, 60)[0] == "NAME  COUNT"
        assert table.shown(len("NAME  COUNT")) == ["NAME", "COUNT"]
        assert table.shown(len("NAME  COUNT") - 1) == ["NAME"]
