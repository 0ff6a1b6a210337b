"""``phase-bus consume`` and ``tail`` as processes, on a stream that a bus forwards to."""

from __future__ import annotations

import json
import signal
import textwrap
from pathlib import Path

import pytest

from phase_bus.core.address import ADDRESS_VARIABLE
from phase_bus.events import Receipt
from phase_bus.testing import LiveBus, make_run, wait_until
from phase_bus.testing.process import PythonProcess
from tests.support.servers.nats import NatsServer
from tests.support.stream_bus import StreamBus

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_leaks")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with modules of a user."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
            from pathlib import Path
            from phase_bus import BasePhaseLifecycleHook, Consumer

            class Counter(Consumer):
                def __init__(self, output: Path) -> None:
                    self.output, self.records = output, 0
                async def on_records(self, event):
                    self.records += event.count
                async def flush(self):
                    self.output.write_text(str(self.records))
                def state(self):
                    return str(self.records).encode()
                def restore(self, state):
                    self.records = int(state)

            class Hook(BasePhaseLifecycleHook):
                def __init__(self, output: str) -> None:
                    self.output = Path(output)
                async def on_phase_complete(self, phase, tracker):
                    with self.output.open("a") as file:
                        print(phase.name, tracker.create_stats().completed, file=file)
        """)
    )
    return tmp_path


class Consuming(PythonProcess):
    """A process of ``phase-bus consume mine:Counter --name one``."""

    def __init__(self, place: Path, number: int, url: str) -> None:
        self.output = place / str(number)
        super().__init__(
            place / f"{number}.log",
            "-m", "phase_bus", "consume", "mine:Counter", "--name", "one", "--address", url,
            "--set", f"output={self.output}",
            cwd=place,
        )  # fmt: skip

    def records(self) -> int:
        return int(self.output.read_text() or 0) if self.output.exists() else 0


def test_one_name_on_a_stream(nats: NatsServer, place: Path) -> None:
    """A second process is refused; one that sleeps for long loses the name, and nothing counts twice."""
    with LiveBus("--forward", nats.url) as bus, Consuming(place, 1, nats.url) as first:
        bus.publish(*make_run(100, run_id="before"))
        wait_until(lambda: first.records() == 200, 30)
        with Consuming(place, 2, nats.url) as refused:
            assert refused.process.wait(30) == 2
        line = refused.log.read_text().splitlines()[-1]
        for word in (f"pid {first.pid}", "--name", "--group"):
            assert word in line
        first.process.send_signal(signal.SIGSTOP)
        with Consuming(place, 3, nats.url) as second:
            bus.publish(*make_run(50, run_id="meanwhile"))
            wait_until(lambda: second.records() == 300, 40)
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(30) == 2
            told = first.log.read_text()
            assert f"pid {second.pid}" in told
            assert "Traceback" not in told
            second.kill()
            bus.publish(*make_run(25, run_id="after"))
            with Consuming(place, 4, nats.url) as third, StreamBus(nats.url) as stream:
                wait_until(lambda: third.records() == 350, 30)
                wait_until(lambda: len(_receipts(stream)) == 3, 30)
                third.terminate()
                receipts = _receipts(stream)
        assert first.records() == 200
        assert len({receipt.consumer_id for receipt in receipts}) == 3
        assert all(receipt.complete for receipt in receipts)


def _receipts(stream: StreamBus) -> list[Receipt]:
    return [receipt for receipt in stream.events(Receipt) if receipt.consumer == "one"]


def test_a_hook_and_tail_on_a_stream(nats: NatsServer, place: Path) -> None:
    output = place / "phases"
    hook = _command(place, "hook", "consume", f"hook:mine:Hook:output={output}", "--address", nats.url)
    options = ("--from", "start", "--topic", "phase_complete", "--json", "--count", "1")
    tail = _command(place, "tail", "tail", *options)
    tail.environment[ADDRESS_VARIABLE] = nats.url
    with LiveBus("--forward", nats.url) as bus, hook, tail:
        bus.publish(*make_run(100, phases=["profiling"]))
        wait_until(output.exists, 30)
        assert output.read_text() == "PROFILING 100\n"
        assert tail.process.wait(30) == 0
        printed = [json.loads(line) for line in tail.log.read_text().splitlines() if line.startswith("{")]
        assert [event["kind"] for event in printed] == ["phase_complete"]
        hook.terminate()


def _command(place: Path, name: str, *arguments: str) -> PythonProcess:
    return PythonProcess(place / f"{name}.log", "-m", "phase_bus", *arguments, cwd=place)
