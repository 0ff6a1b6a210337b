"""Output whose reader goes away: the command ends quietly, and nobody else notices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from phase_bus import Receipt
from phase_bus.testing import LiveBus, make_run, wait_until
from phase_bus.testing.waiting import DEADLINE_S

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def bus() -> Iterator[LiveBus]:
    """A bus with a journal."""
    with LiveBus() as bus:
        yield bus


class Piped:
    """A command of phase-bus whose standard output is read until the test has had enough."""

    def __init__(self, tmp_path: Path, *arguments: str) -> None:
        self._errors = tmp_path / "stderr"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "phase_bus", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    def __enter__(self) -> Piped:
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Read no more."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def lines(self) -> Iterator[bytes]:
        """Its output."""
        assert self.process.stdout is not None
        return iter(self.process.stdout)

    @property
    def remarks(self) -> str:
        """What it has said on standard error."""
        return self._errors.read_text()


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["text", "json"])
def test_tail_ends_with_its_reader(bus: LiveBus, tmp_path: Path, options: tuple[str, ...]) -> None:
    """As in ``phase-bus tail | head -2``: without a word, and without a dead letter in the journal."""
    with Piped(tmp_path, "tail", *options, "--address", bus.address) as tail:
        wait_until(lambda: "listening" in tail.remarks)
        bus.publish(*make_run(20))
        assert len([line for line, _ in zip(tail.lines, range(2), strict=False)]) == 2
        tail.close()
        bus.publish(*make_run(20, run_id="more"))
        assert tail.process.wait(DEADLINE_S) == 0
        assert tail.remarks.count("\n") == 1
    with bus.reader() as reader:
        assert reader.dead_letters() == []


def test_tail_ends_with_its_reader_though_nothing_happens(bus: LiveBus, tmp_path: Path) -> None:
    """It does not wait for one more event to find that out, and leaves nothing behind in the journal."""
    with Piped(tmp_path, "tail", "--address", bus.address) as tail:
        wait_until(lambda: "listening" in tail.remarks)
        tail.close()
        assert tail.process.wait(DEADLINE_S) == 0
        assert tail.remarks.count("\n") == 1
    with bus.reader() as reader:
        assert reader.dead_letters() == []
        assert reader.checkpoint("tail") is None


def test_a_consumer_that_prints_goes_on_where_its_reader_left(bus: LiveBus, tmp_path: Path) -> None:
    """What it could not print was not handled: the next process of its name begins with it."""
    bus.publish(*make_run(20, run_id="one"))
    consume = ("consume", "logging", "--address", bus.address)
    with Piped(tmp_path, *consume) as first:
        wait_until(lambda: bus.events(Receipt))
        first.close()
        bus.publish(*make_run(20, run_id="two"))
        assert first.process.wait(DEADLINE_S) == 0
        assert "Traceback" not in first.remarks
    with Piped(tmp_path, *consume) as second:
        line = next(second.lines)
        assert b"RUN_START: two" in line
        wait_until(lambda: len(bus.events(Receipt)) == 2)
    assert all(receipt.complete for receipt in bus.events(Receipt))
    with bus.reader() as reader:
        assert reader.dead_letters() == []


@pytest.mark.parametrize("command", ["runs", "status", "consumers"])
def test_a_table_that_nobody_reads(bus: LiveBus, tmp_path: Path, command: str) -> None:
    """As in ``phase-bus runs | true``."""
    bus.publish(*make_run(20))
    where = {"runs": ("--data", str(bus.directory / "journal")), "status": ("--address", bus.address)}
    with Piped(tmp_path, command, *where.get(command, ())) as piped:
        piped.close()
        assert piped.process.wait(DEADLINE_S) == 0
        assert piped.remarks == ""
