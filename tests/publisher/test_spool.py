"""What a publisher leaves on disk, and its delivery later: everything once, in order, damage reported."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from phase_bus.aiperf import exporter, options
from phase_bus.bus.options import BusOptions
from phase_bus.core.control import RunInfo
from phase_bus.core.outbox import Outbox
from phase_bus.core.records import RecordBatch
from phase_bus.core.wire import decode_event, unpack_header
from phase_bus.errors import BusUnreachableError, SpoolError
from phase_bus.events import EventBase, PhaseComplete, PhaseRef, PhaseStart, Records, RunComplete
from phase_bus.journal.writer import Journal
from phase_bus.publisher.publisher import Publisher
from phase_bus.publisher.spool import SpoolReader, deliver_spool, is_spool, write_spool
from phase_bus.testing.waiting import wait_until
from tests.support.buses import BusThread
from tests.support.clients import RawClient, Subscriber

pytestmark = pytest.mark.usefixtures("no_leaks")

PHASE = PhaseRef("profiling")
SOURCE = b"s" * 16


def start(number: int) -> PhaseStart:
    """An event with a number in it."""
    return PhaseStart(run_id="r", phase=PHASE, ts_ns=number)


def one_spool(directory: Path) -> Path:
    """Return the one file of a directory."""
    (path,) = directory.iterdir()
    return path


def publish_run(publisher: Publisher, records: int = 1000) -> None:
    """Publish a whole run."""
    publisher.publish(start(1))
    for number in range(records):
        publisher.record("r", PHASE, {"n": number}, {})
    publisher.publish(PhaseComplete(run_id="r", phase=PHASE))
    publisher.complete_run("r", "completed")


def write_events(directory: Path, *events: EventBase) -> Path:
    """Write a spool of some events."""
    outbox = Outbox(SOURCE, 1 << 30)
    for event in events:
        outbox.put(event)
    return write_spool(directory, "test", outbox)[0]


def the_run(bus: BusThread) -> RunInfo:
    """Return what a bus knows of its only run."""
    with RawClient(bus.address) as client:
        (run,) = client.status().runs
    return run


class JournalBus(BusThread):
    """A bus with a journal, that soon gives up a publisher that does not come back."""

    def __init__(self, address: str, directory: Path) -> None:
        options = BusOptions(heartbeat_s=0.1, silent_after_s=0.3)
        super().__init__(address, options=options, journal=Journal(directory))


def test_left_and_delivered_later(ipc_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without any bus: the log names the file and its content; a later bus gets all, once, in order."""
    address = f"ipc://{ipc_dir}"
    publisher = Publisher(address, spool_dir=tmp_path / "new" / "spool", name="a / name", batch_records=64)
    publish_run(publisher)
    publisher.close(0.2)
    path = one_spool(tmp_path / "new" / "spool")
    assert path == publisher.spooled
    assert path.name.startswith("a_name-2")
    assert path.name.endswith(f"Z-{publisher.source.hex()}.spool")
    events = sum(publisher.undelivered.values())
    (message,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"{events} events, with 1000 request records in them, are in {path}" in message
    assert f"phase-bus replay {path} --address {address}" in message
    with BusThread(address) as bus, Subscriber(address) as subscriber:
        report = deliver_spool(path, address)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        assert [h.source_seq for h in subscriber.headers] == list(range(1, events + 1))
        assert {h.source for h in subscriber.headers} == {publisher.source}
        batches = subscriber.of(Records)
        numbers = [n for batch in batches for n in RecordBatch(batch).values("n").tolist()]
        assert numbers == list(range(1000))
        assert (end.status, end.records) == ("completed", 1000)
        assert (the_run(bus).status, the_run(bus).publisher) == ("completed", "a / name")
    assert (report.events, report.records, report.known, report.remaining) == (events, 1000, 0, 0)
    assert report.complete
    assert report.path == one_spool(path.parent) == path.with_name(f"{path.name}.delivered")


def test_what_was_not_yet_encoded_goes_into_it(ipc_dir: Path, tmp_path: Path) -> None:
    """Closed at once: the inbox and the open batches are written too, and run_complete counts them."""
    publisher = Publisher(f"ipc://{ipc_dir}", spool_dir=tmp_path, batch_s=60)
    publish_run(publisher, records=5000)
    publisher.record("r", PHASE, {"n": 0}, {})  # after the end, so that its batch stays open
    publisher.close(0.0)
    messages = list(SpoolReader(one_spool(tmp_path)))
    events = [decode_event(m.frames[0], m.frames[2]) for m in messages]
    counts = [event.count for event in events if isinstance(event, Records)]
    assert sum(counts) == 5001
    assert counts[-1] == 1
    (end,) = [event for event in events if isinstance(event, RunComplete)]
    assert end.records == 5000
    assert sum(end.published.values()) == len(events) - 2


def test_nothing_is_left_when_all_is_delivered(bus: BusThread, tmp_path: Path) -> None:
    """A publisher whose events the bus has writes no file."""
    with Publisher(bus.address, spool_dir=tmp_path) as publisher:
        publish_run(publisher)
    assert publisher.undelivered == {}
    assert (publisher.spooled, list(tmp_path.iterdir())) == (None, [])


def test_direct_mode_leaves_nothing(tmp_path: Path) -> None:
    """Without a bus nothing is ever acknowledged, so that nothing is missing either."""
    with Publisher(bind="direct+tcp://127.0.0.1:0", spool_dir=tmp_path) as publisher:
        publish_run(publisher)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_run_goes_on_and_ends(ipc_dir: Path, tmp_path: Path) -> None:
    """The bus goes in mid-run, the next declares the run lost; the file's delivery ends it as it ended."""
    address = f"ipc://{ipc_dir}"
    spool = tmp_path / "spool"
    with JournalBus(address, tmp_path / "journal"):
        publisher = Publisher(address, spool_dir=spool, batch_records=64)
        publisher.publish(start(1))
        assert publisher.flush(10)
    publish_run(publisher)  # the same run goes on
    publisher.close(0.0)
    with JournalBus(address, tmp_path / "journal") as bus:
        wait_until(lambda: the_run(bus).status == "lost")
    # Once more, so that the bus knows of the lost run by its journal alone.
    with JournalBus(address, tmp_path / "journal") as bus, Subscriber(address) as subscriber:
        assert the_run(bus).status == "lost"
        report = deliver_spool(one_spool(spool), address)
        (end,) = wait_until(lambda: subscriber.of(RunComplete))
        assert (end.status, end.records) == ("completed", 1000)
        assert the_run(bus).status == "completed"
        assert [h.source_seq for h in subscriber.headers] == list(range(2, report.events + 2))
        again = deliver_spool(report.path, address)
    assert (again.known, again.remaining, again.complete) == (report.events, 0, True)


@pytest.mark.slow
def test_only_the_end_of_a_lost_run(ipc_dir: Path, tmp_path: Path) -> None:
    """A file with nothing but run_complete in it ends the lost run as well."""
    outbox = Outbox(SOURCE, 1 << 30)
    outbox.put(start(1))
    outbox.put(RunComplete(run_id="r", status="completed"))
    whole = write_spool(tmp_path, "whole", outbox)[0]
    outbox.acknowledge(1)
    end = write_spool(tmp_path, "end", outbox)[0]
    first = write_events(tmp_path / "first", start(1))
    with BusThread(f"ipc://{ipc_dir}") as bus:
        assert deliver_spool(first, bus.address).complete
        wait_until(lambda: the_run(bus).status == "lost")
        assert deliver_spool(end, bus.address).known == 0
        assert the_run(bus).status == "completed"
        report = deliver_spool(whole, bus.address)
        assert (report.events, report.known) == (2, 2)
        assert the_run(bus).events == 2


def test_what_the_bus_has_is_recognised(bus: BusThread, tmp_path: Path) -> None:
    """Half of the events were taken in before: only the others arrive."""
    first = write_events(tmp_path / "first", *map(start, range(50)))
    path = write_events(tmp_path / "both", *map(start, range(100)))
    with Subscriber(bus.address, "phase_start.") as subscriber:
        deliver_spool(first, bus.address)
        report = deliver_spool(path, bus.address)
        wait_until(lambda: len(subscriber.of(PhaseStart)) >= 100)
        assert [event.ts_ns for event in subscriber.of(PhaseStart)] == list(range(100))
    assert (report.events, report.known) == (100, 50)


def test_no_bus(ipc_dir: Path, tmp_path: Path) -> None:
    """Where none answers the file stays as it is."""
    path = write_events(tmp_path, start(1))
    with pytest.raises(BusUnreachableError, match="no bus answers"):
        deliver_spool(path, f"ipc://{ipc_dir}", timeout_s=0.2)
    assert one_spool(tmp_path) == path


# ---- files ----


def test_headers_stay_as_they_were(tmp_path: Path) -> None:
    """A file holds the frames as they would have travelled."""
    outbox = Outbox(SOURCE, 1 << 30)
    for number in range(5):
        outbox.put(start(number))
    outbox.sent()
    outbox.acknowledge(1)
    expected = [message.frames for message in outbox]
    path, head = write_spool(tmp_path, "x", outbox)
    reader = SpoolReader(path)
    messages = list(reader)
    assert [message.frames for message in messages] == expected
    assert [unpack_header(m.frames[1]).source_seq for m in messages] == [2, 3, 4, 5]
    assert (reader.head, reader.damage, head.events) == (head, "", 4)
    assert is_spool(path)


@pytest.mark.slow
def test_truncated_anywhere(tmp_path: Path) -> None:
    """Wherever a file is cut off: what comes before is read, in order, and the loss is reported."""
    path = write_events(tmp_path, *map(start, range(5)))
    whole = path.read_bytes()
    seen = set()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            reader = SpoolReader(path)
        except SpoolError:
            continue
        seqs = [message.seq for message in reader]
        assert seqs == list(range(1, len(seqs) + 1))
        assert reader.damage
        seen.add(len(seqs))
    assert seen == {0, 1, 2, 3, 4}


def test_a_flipped_bit_anywhere(tmp_path: Path) -> None:
    """Whatever byte is damaged: nothing false is read."""
    path = write_events(tmp_path, *map(start, range(3)))
    whole = path.read_bytes()
    expected = [message.frames for message in SpoolReader(path)]
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            reader = SpoolReader(path)
        except SpoolError:
            continue
        frames = [message.frames for message in reader]
        assert frames == expected[: len(frames)]
        assert reader.damage


def test_a_truncated_file_is_delivered_up_to_the_damage(bus: BusThread, tmp_path: Path) -> None:
    """The bus gets what can be read, the report says what cannot, and the file keeps its name."""
    path = write_events(tmp_path, *map(start, range(10)))
    os.truncate(path, path.stat().st_size - 1)
    with Subscriber(bus.address, "phase_start.") as subscriber:
        report = deliver_spool(path, bus.address)
        wait_until(lambda: len(subscriber.of(PhaseStart)) == 9)
    assert (report.events, report.missing, report.remaining) == (9, 1, 0)
    assert "ends early" in report.damage
    assert not report.complete
    assert one_spool(tmp_path) == report.path == path


def test_no_spool(tmp_path: Path) -> None:
    """A file that is not a spool is refused with its name and the reason."""
    other = tmp_path / "other"
    other.write_bytes(b"SQLite format 3\0")
    newer = tmp_path / "newer"
    newer.write_bytes(b"pbspool\x63")
    for path, reason in (
        (other, "is not a spool"),
        (newer, "version 99"),
        (tmp_path / "none", "No such file"),
        (tmp_path, "directory"),
    ):
        with pytest.raises(SpoolError, match=reason) as caught:
            SpoolReader(path)
        assert caught.value.path == path
    assert not is_spool(other)
    assert not is_spool(tmp_path)


# ---- directories that are no good ----


def test_unwritable_directory(ipc_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said early and at the end; the publisher closes as ever, and names what is not delivered."""
    blocker = tmp_path / "file"
    blocker.write_text("")
    publisher = Publisher(f"ipc://{ipc_dir}", spool_dir=blocker / "spool")
    wait_until(lambda: "cannot be kept on disk" in caplog.text)
    publish_run(publisher)
    begin_s = time.monotonic()
    publisher.close(0.1)
    assert time.monotonic() - begin_s < 2
    assert publisher.spooled is None
    assert publisher.undelivered["run_complete.r$"] == 1
    assert "nothing could be left on disk" in caplog.text
    assert re.search(r"; 7 events not delivered \(.*\), 0 not yet encoded", caplog.text)


def test_a_full_disk_leaves_no_half_file(
    ipc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that could not be written whole is removed, since the benchmark needs the disk as well."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    publisher = Publisher(f"ipc://{ipc_dir}", spool_dir=tmp_path)
    publish_run(publisher)
    monkeypatch.setattr("phase_bus.publisher.spool._write", fail)
    publisher.close(0.0)
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_interpreter_exit(ipc_dir: Path, tmp_path: Path) -> None:
    """A program that ends while a daemon thread closes the publisher waits for the file."""
    code = f"""
import threading, time
from phase_bus.publisher import spool
from phase_bus.events import PhaseRef, PhaseStart
from phase_bus.publisher.publisher import Publisher
write = spool._write
begun = threading.Event()
def slowly(*args):
    begun.set()
    while threading.main_thread().is_alive():  # until the program has come to its end
        time.sleep(0.001)
    write(*args)
spool._write = slowly
publisher = Publisher("ipc://{ipc_dir}", spool_dir="{tmp_path}")
publisher.publish(PhaseStart(run_id="r", phase=PhaseRef("p"), ts_ns=1))
threading.Thread(target=publisher.close, args=(0.0,), daemon=True).start()
assert begun.wait(10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert len(list(SpoolReader(one_spool(tmp_path)))) == 1


# ---- the ways in and out ----


def test_plugin_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory comes from AIPerf's YAML or from the environment, and goes to the publisher."""
    given = {"phase_bus": {"address": "ipc:///x", "spool_dir": "/yaml"}}
    assert options.read_options(given, {}).spool_dir == "/yaml"
    set_ = options.read_options(given, {"PHASE_BUS_SPOOL_DIR": "/env"})
    assert set_.spool_dir == "/env"
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(exporter, "Publisher", lambda _address, **kwargs: seen.append(kwargs))
    exporter._publisher(set_)
    exporter._publisher(options.Options(address="ipc:///x"))
    assert [kwargs["spool_dir"] for kwargs in seen] == ["/env", None]


def test_replay_command(bus: BusThread, tmp_path: Path) -> None:
    """``phase-bus replay`` delivers a spool file, and says by its exit code whether that is all."""

    def replay(path: Path, *more: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "phase_bus", "replay", str(path), "--address", bus.address, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        return done.returncode, done.stderr

    path = write_events(tmp_path, *map(start, range(3)))
    damaged = write_events(tmp_path / "damaged", *map(start, range(5)))
    os.truncate(damaged, damaged.stat().st_size - 1)
    code, text = replay(path, "--run", "latest")
    assert (code, "a spool is delivered as it is" in text) == (2, True)
    code, text = replay(path)
    assert (code, "3 of 3 events delivered" in text) == (0, True), text
    code, text = replay(damaged)
    assert (code, "1 of 5 events delivered" in text) == (1, True), text
    assert "3 were there already, 1 cannot be read" in text
