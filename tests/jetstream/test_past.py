"""The commands that look at the past, in a stream that several buses forward to."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from phase_bus.bus.groups import GroupState
from phase_bus.consumer.consumer import Consumer
from phase_bus.core.address import StreamAddress
from phase_bus.core.control import Beat, DeadLetterNote, Hello
from phase_bus.core.position import Position
from phase_bus.events import (
    EventBase,
    PhaseComplete,
    PhaseProgress,
    PhaseRef,
    PhaseStats,
    Receipt,
    RunComplete,
    RunStart,
    Summary,
    Verdict,
)
from phase_bus.jetstream.connection import NatsUnreachableError
from phase_bus.jetstream.coordinator import GroupNote, MemberNote
from phase_bus.jetstream.keys import key_of
from phase_bus.jetstream.notes import CheckpointNote, NameNote, keep_letters
from phase_bus.jetstream.past import StreamPast
from phase_bus.journal.files import FILE_NAME
from phase_bus.journal.reader import JournalReader
from phase_bus.testing import LiveBus
from tests.support.commands import run_here
from tests.support.journals import T0, Made, Phase, sweep_of, write_journal
from tests.support.servers.nats import NatsServer
from tests.support.streams import append, entry_of, fill, opened

pytestmark = pytest.mark.usefixtures("no_leaks")

Run = Callable[..., tuple[int, str, str]]
PHASES = [Phase("profiling", 10, 2500, error_rate=0.02)]
UNLIKE = {"publisher": "", "size_bytes": 0, "journal": ""}
A_CLIENT, A_BUS = "c" * 32, "b" * 32


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command here."""
    return partial(run_here, capsys)


def rows(run: Run, address: str) -> list[dict[str, Any]]:
    code, out, err = run("runs", "--address", address, "--json")
    assert (code, err) == (0, "")
    found: list[dict[str, Any]] = json.loads(out)
    return found


def showing(_: int) -> nullcontext[Callable[[int], object]]:
    return nullcontext(lambda _: None)


def say(nats: NatsServer, who: str, *events: EventBase) -> None:
    """Append events under the name of a bus, or of a consumer on the stream."""

    async def all_of_them() -> None:
        async with opened(nats.url) as (connection, stream, _):
            for number, event in enumerate(events, 1):
                await append(connection, stream, who, entry_of(event, number, who[:16].encode()))

    asyncio.run(all_of_them())


class Phases(Consumer):
    """Takes phases."""

    async def on_phase_complete(self, event: PhaseComplete) -> None:
        """Do nothing."""


def test_what_is_told_of_a_run_is_what_its_bus_tells(
    run: Run, nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, but for the address and offsets, though another bus's events are between its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Made("3f2a9c01d4e5", PHASES, start={"label": "nightly"})
    verdict = Verdict(
        run_id=made.run_id,
        ts_ns=T0,
        producer="thresholds",
        threshold="error_rate < 1 %",
        state="failed",
        final=True,
    )
    other = write_journal(tmp_path / "other", *sweep_of("s", (1, 2), requests=20), Made("77b0", PHASES))

    async def publish(bus: LiveBus) -> None:
        async with bus.consumer(Phases) as consumer:
            *events, _ = made.events()
            bus.publish(*events, verdict)
            bus.complete_run(made.run_id)
            await consumer.catch_up()
        bus.publish(*Made("90ab", PHASES, seed=1).events())

    with LiveBus() as bus:
        asyncio.run(publish(bus))
        asyncio.run(fill(nats.url, bus.directory / "journal", other))
        output, records = tmp_path / "output", tmp_path / "records.csv"
        for words in (
            ["report", "3f2a"],
            ["report", "nightly", "--json", "--records", str(records)],
            ["report", "3f2a", "--format", "markdown"],
            ["report", "3f2a", "--format", "html", "--output", str(output)],
            ["receipts", "nightly", "--json"],
            ["check", "3f2a"],
            ["check", "3f2a", "--threshold", "time_to_first_token p99 < 1 ms"],
            ["compare", "3f2a", "90ab"],
            ["journal", "export", "--run", "3f2a"],
        ):
            told = []
            for address in (bus.address, nats.url):
                code, out, err = run(*words, "--address", address)
                written = [path.read_bytes() for path in (output, records) if path.exists()]
                out = re.sub(r"(?m)^(\d+ s +)\d+ +", r"\1", out)  # the offset of a change in `check`
                told.append((code, out, err.replace(address, "ADDRESS"), written))
            assert told[0] == told[1], words
            assert told[0][0] != 2, told[0]
        of_bus = [each | UNLIKE for each in rows(run, bus.address)]
        in_stream = [each | UNLIKE for each in rows(run, nats.url)]
        assert [each for each in in_stream if each["run_id"] in ("3f2a9c01d4e5", "90ab")] == of_bus
    assert output.exists()
    assert records.exists()
    sweep = ("report", "--sweep", "s", "--json")
    code, out, err = run(*sweep, "--address", nats.url)
    there = (code, out.replace(nats.url, str(other / FILE_NAME)), err)
    assert there == run(*sweep, "--data", str(other))
    assert run("baseline", "set", "b", "nightly", "90ab", "--address", nats.url)[0] == 0


def test_runs_of_one_id_from_two_buses_are_kept_apart(run: Run, nats: NatsServer, tmp_path: Path) -> None:
    """Also where their events come by turns; a consumer's word on a run of that id is with both."""
    one = Made("same", [Phase("profiling", 10, 400, 50)], start={"label": "one"})
    two = Made("same", [Phase("profiling", 10, 900, 90)], start={"label": "two"}, start_ns=T0 + 1)
    data = [write_journal(tmp_path / made.start["label"], made) for made in (one, two)]
    asyncio.run(fill(nats.url, *data))
    say(nats, A_CLIENT, Receipt(run_id="same", ts_ns=T0, consumer="far"))
    assert [(row["label"], row["records"]) for row in rows(run, nats.url)] == [("one", 400), ("two", 900)]
    ours = run("report", "same", "--json", "--data", str(data[1]))
    theirs = run("report", "same", "--json", "--address", nats.url)
    assert theirs == (*ours[:2], "phase-bus: run same is of 2 buses; this is the newest of them\n")
    with StreamPast(StreamAddress.parse(nats.url), tmp_path / "copies", showing) as past:
        for (outline, row), path in zip(past.listed(), data, strict=True):
            with JournalReader(past.run("same", outline)) as copy, JournalReader(path) as original:
                *events, receipt = copy.entries()
                assert [(e.topic, e.header, e.payload) for e in events] == [
                    (e.topic, e.header, e.payload) for e in original.entries()
                ]
                assert receipt.kind == Receipt.kind
                assert copy.runs()[0].status == row.status == "completed"
        with JournalReader(past.everything) as copy:
            assert len(list(copy.entries())) == len([*one.events(), *two.events()]) + 1


def test_how_runs_stand(run: Run, nats: NatsServer) -> None:
    """One goes on, one came back after it was lost, one has no start, of one only a consumer spoke."""
    warmup, profiling = PhaseRef("warmup", "warmup", 0), PhaseRef("profiling", "profiling", 1)
    say(
        nats,
        A_BUS,
        RunStart(run_id="goes on", ts_ns=T0, producer="made up 1.0"),
        PhaseComplete(run_id="goes on", ts_ns=T0, phase=warmup, stats=PhaseStats(completed=5)),
        PhaseProgress(run_id="goes on", ts_ns=T0, phase=profiling, stats=PhaseStats(completed=6)),
        PhaseProgress(run_id="goes on", ts_ns=T0, phase=profiling, stats=PhaseStats(completed=7)),
        RunStart(run_id="came back", ts_ns=T0 + 1),
        RunComplete(run_id="came back", ts_ns=T0 + 2, status="lost"),
        PhaseProgress(run_id="came back", ts_ns=T0 + 3, phase=profiling),
        PhaseProgress(run_id="no start", ts_ns=T0 + 4, phase=profiling),
        RunComplete(run_id="no start", ts_ns=T0 + 5, status="failed", published={"a": 3}, records=9),
        Receipt(run_id="no start", ts_ns=T0, consumer="here"),
    )
    say(nats, A_CLIENT, Summary(run_id="only a word", ts_ns=T0 + 6, producer="p"))
    columns = ("run_id", "status", "started_ns", "ended_ns", "events", "records", "publisher", "size_bytes")
    assert [tuple(row[name] for name in columns) for row in rows(run, nats.url)] == [
        ("goes on", "running", T0, None, 4, 12, "made up 1.0", None),
        ("came back", "running", T0 + 1, None, 2, 0, "", None),
        ("no start", "failed", T0 + 4, T0 + 5, 4, 9, "", None),
        ("only a word", "unknown", T0 + 6, T0 + 6, 0, 0, "", None),
    ]
    assert run("check", "goes on", "--threshold", "error_rate < 1 %", "--address", nats.url)[0] == 3


def test_dead_letters_of_consumers_on_the_stream(run: Run, nats: NatsServer, tmp_path: Path) -> None:
    """With their numbers and counts; the event of one is shown though it came in several parts."""
    assert run("runs", "--address", nats.url)[0] == 2  # before there is a stream
    asyncio.run(fill(nats.url, write_journal(tmp_path / "data", Made("one", PHASES))))
    assert "no dead letters" in run("dead-letters", "list", "--address", nats.url)[1]
    say(nats, A_CLIENT, Summary(run_id="one", ts_ns=T0, producer="p", result={"large": "x" * 3_000_000}))

    async def fail() -> int:
        async with opened(nats.url) as (_, stream, keys):
            note = partial(
                DeadLetterNote, run_id="one", error="KeyError: 'x'", traceback="T", stream=stream.id
            )
            await keep_letters(keys, "bad/07", [note(offset=2, kind="records")])
            letter = note(offset=stream.last_offset, kind="summary", skipped=7)
            await keep_letters(keys, "worse", [letter])
            return stream.last_offset

    last = asyncio.run(fail())
    first, second, more = json.loads(run("dead-letters", "list", "--address", nats.url, "--json")[1])
    assert (first["consumer"], first["offset"], first["error"]) == ("bad/07", 2, "KeyError: 'x'")
    assert (second["consumer"], second["offset"], more["left_out"]) == ("worse", last, 7)
    for letter, name in ((first, "start"), (second, "summary")):
        code, out, _ = run("dead-letters", "show", str(letter["id"]), "--address", nats.url, "--json")
        assert (code, name in json.loads(out)["event"]["kind"]) == (0, True)
    assert len(json.loads(out)["event"]["result"]["large"]) == 3_000_000
    code, _, err = run("dead-letters", "retry", str(first["id"]), "--address", nats.url)
    assert (code, "but not retried" in err) == (2, True)


def test_what_is_none_of_ours_is_left_out(
    run: Run, nats: NatsServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_journal(tmp_path / "data", Made("one", PHASES))

    async def spoil() -> None:
        async with opened(nats.url) as (connection, stream, _):
            good = entry_of(RunStart(run_id="one", ts_ns=T0), 1)
            for subject, body in (
                ("phase-bus.x", b"x"),
                ("phase-bus.x.run_start.one", b""),
                ("phase-bus.x.run_start.one", b"\xff" * 200),
                ("phase-bus.x.y.z.one.two", b"x"),
            ):
                await connection.js.publish(subject, body)
            for topic in (b"\xff.one$", b"run_start.one", b"records.x.one$"):
                bad = good._replace(topic=topic, run_id="one")
                await append(connection, stream, A_BUS, bad, "phase-bus.x.run_start.one")
            large = good._replace(header=good.header[:24] + b"\xff" * 40)
            await append(connection, stream, A_BUS, large, "phase-bus.x.run_start.one")

    asyncio.run(fill(nats.url, data))
    asyncio.run(spoil())
    ours = run("report", "one", "--json", "--data", str(data))
    theirs = run("report", "one", "--json", "--address", nats.url)
    assert theirs[:2] == ours[:2]
    assert "skipped" in caplog.text


def test_status_of_a_stream(run: Run, nats: NatsServer, tmp_path: Path) -> None:
    """Its buses, and consumers: one that is there, one that left a checkpoint, members of a group."""
    made = Made("one", PHASES, start={"host": "load-1"})
    data = [write_journal(tmp_path / name, made) for name in ("a", "b")]
    buses = asyncio.run(fill(nats.url, *data))
    empty = run("status", "--address", nats.url)
    assert (empty[0], "no consumers" in empty[1], "1 replica in files" in empty[1]) == (0, True, True)

    async def be_there() -> None:
        async with opened(nats.url) as (_, stream, keys):
            position = Position(stream.id, stream.last_offset - 3)
            member = partial(Hello, role="consumer", name="team", pid=7, host="worker", group="team")
            beat = Beat(client_id="2", state="ready", received=5, shares=(0, 1))
            for key, note in (
                (
                    ("name", "a.b"),
                    NameNote(client_id="1", name="a.b", host="here", state="ready", received=4),
                ),
                (("checkpoint", "a.b"), CheckpointNote(position=position, saved=b"x" * 3_000_000)),
                (("checkpoint", "left"), CheckpointNote()),
                (("member", "team", "2"), MemberNote(hello=member(client_id="2"), beat=beat)),
                (
                    ("group", "team"),
                    GroupNote(
                        coordinator="2",
                        pid=7,
                        pid_space="",
                        seen={},
                        state=GroupState(generation=3, members=["2"], refused=1, handled={"one": False}),
                    ),
                ),
                (("checkpoint", "team", "07"), CheckpointNote(position=position)),
            ):
                assert await keys.create(key_of(*key), msgspec.msgpack.encode(note))

    asyncio.run(be_there())
    standing = json.loads(run("status", "--address", nats.url, "--json")[1])
    last = standing["last_offset"]
    assert {bus["bus"] for bus in standing["buses"]} == set(buses)
    newest, other = standing["buses"]
    assert (newest["stream_offset"], newest["runs"], newest["run_id"]) == (last, 1, "one")
    assert (other["host"], other["offset"], other["stream_offset"]) == ("load-1", last // 2, last - 1)
    assert standing["behind"] == {"a.b": 3, "left": last, "team": 3}
    consumers = {each["name"]: (each["state"], each["received"]) for each in standing["consumers"]}
    assert consumers == {"a.b": ("ready", 4), "left": ("stopped", 0), "team": ("ready", 5)}
    (group,) = standing["groups"]
    assert (group["members"], group["generation"], group["incomplete_runs"]) == (1, 3, ["one"])
    text = run("status", "--address", nats.url)[1]
    assert "load-1" in text
    assert "a.b" in text
    assert "0-1" in text


def test_what_the_stream_has_dropped_is_told(
    run: Run, nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever made limits for it: the run lacks its beginning, and says so."""
    phase = PhaseRef("profiling")
    progress = [PhaseProgress(run_id="one", ts_ns=T0 + n, phase=phase) for n in range(5)]
    published = {"run_start.one$": 1, "phase_progress.one$": 5}
    say(
        nats,
        A_BUS,
        RunStart(run_id="one", ts_ns=T0),
        *progress,
        RunComplete(run_id="one", ts_ns=T0, status="completed", published=published),
    )

    async def drop() -> None:
        async with opened(nats.url) as (connection, stream, _):
            await connection.js.purge_stream(stream.name, seq=4)

    asyncio.run(drop())
    (row,) = rows(run, nats.url)
    assert (row["status"], row["started_ns"], row["events"]) == ("completed", T0 + 2, 7)
    assert not caplog.text
    assert run("journal", "export", "--run", "one", "--address", nats.url)[1].count("\n") == 4
    assert "run one: stream 'phase-bus' has dropped 3 of its events" in caplog.text
    assert run("journal", "export", "--address", nats.url)[1].count("\n") == 4
    assert "has dropped what was before offset 4" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["restarted", "stopped"])
def test_a_server_that_is_away_in_the_middle(fault: str, nats: NatsServer, tmp_path: Path) -> None:
    """What was being copied is whole when it is back."""
    data = write_journal(tmp_path / "data", Made("one", [Phase("profiling", 10, 200_000)]))
    asyncio.run(fill(nats.url, data))
    copied: list[int] = []

    def show(size_bytes: int) -> None:
        copied.append(size_bytes)
        if len(copied) == 1 and fault == "restarted":
            nats.kill()
            nats.start()
        elif len(copied) == 1:
            nats.pause()
            threading.Timer(1.0, nats.resume).start()

    def showing(_: int) -> nullcontext[Callable[[int], object]]:
        return nullcontext(show)

    with StreamPast(StreamAddress.parse(nats.url), tmp_path / "copies", showing) as past:
        ((outline, _row),) = past.listed()
        with JournalReader(past.run("one", outline)) as copy, JournalReader(data) as original:
            assert [e.payload for e in copy.entries()] == [e.payload for e in original.entries()]
    assert len(copied) > 2


def test_a_server_that_stays_away(
    nats: NatsServer, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so."""
    asyncio.run(fill(nats.url, write_journal(tmp_path / "data", Made("one", PHASES))))
    monkeypatch.setattr("phase_bus.jetstream.past._PATIENCE_S", 0.5)
    monkeypatch.setattr("phase_bus.jetstream.connection._ASK_S", 0.5)
    with StreamPast(StreamAddress.parse(nats.url), tmp_path / "copies", showing) as past:
        ((outline, _row),) = past.listed()
        nats.kill()
        with pytest.raises(NatsUnreachableError, match="does not answer"):
            past.run("one", outline)
