"""Whose an output file is when the consumer that writes it is killed, or sleeps and is replaced."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from phase_bus import ConfigError, OutputFile
from phase_bus.testing import LiveBus, make_run, wait_until
from phase_bus.testing.process import PythonProcess
from phase_bus_consumers import ExampleLoggingHook, ExampleMetricsCollectorHook, ExampleResultsAggregator
from tests.support.workplace import complaints

pytestmark = pytest.mark.usefixtures("no_leaks")


def consume(place: Path, number: int, bus: LiveBus, *arguments: str) -> PythonProcess:
    """A consumer in a process of its own."""
    command = ("-m", "phase_bus", "consume", *arguments, "--address", bus.address)
    return PythonProcess(place / f"{number}.log", *command, cwd=place)


def runs(path: Path) -> dict[str, Any]:
    """The runs in a file of metrics or summaries; one that is tried for writing is empty for a moment."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        text = ""
    found = json.loads(text)["runs"] if text else {}
    assert isinstance(found, dict)
    return found


@pytest.mark.slow
def test_a_new_leader_takes_over_the_files_of_one_that_sleeps(tmp_path: Path) -> None:
    """And what that one still does when it wakes changes nothing in them."""
    output = tmp_path / "summary.json"
    text = tmp_path / "s.txt"
    team = ("aggregator", "--group", "team", "--set", f"output={output}", "--set", f"text={text}")

    def final() -> dict[str, tuple[int, bool]]:
        return {run_id: (run["records"], run["final"]) for run_id, run in runs(output).items()}

    def leader(bus: LiveBus) -> int:
        return next((c.pid for c in bus.status().clients if -1 in c.shares), 0)

    with (
        LiveBus("--silent-after-s", "1.5") as bus,
        consume(tmp_path, 1, bus, *team) as first,
        consume(tmp_path, 2, bus, *team) as second,
    ):
        wait_until(lambda: bus.status().groups and bus.status().groups[0].members == 2, 30)
        bus.publish(*make_run(100, run_id="one"))
        wait_until(lambda: final() == {"one": (200, True)}, 30)
        old, new = (first, second) if leader(bus) == first.pid else (second, first)
        old.process.send_signal(signal.SIGSTOP)
        bus.publish(*make_run(50, run_id="two"))
        wait_until(lambda: final() == {"one": (200, True), "two": (100, True)}, 30)
        assert leader(bus) == new.pid
        old.process.send_signal(signal.SIGCONT)
        wait_until(lambda: bus.status().groups[0].members == 2, 30)
        bus.publish(*make_run(25, run_id="three"))
        wait_until(lambda: final().get("three") == (50, True), 30)
        new.kill()  # and back: the one that slept leads again, with what is in the file by now
        bus.publish(*make_run(5, run_id="four"))
        wait_until(lambda: "four" in final() and final()["four"] == (10, True), 30)
        assert final() == {"one": (200, True), "two": (100, True), "three": (50, True), "four": (10, True)}
        wait_until(lambda: all(f"Run {run_id}" in text.read_text() for run_id in final()))
        assert old.terminate() == 0
    assert not list(tmp_path.glob(".*.lock"))


def test_a_consumer_that_is_killed_leaves_its_files_to_the_next(tmp_path: Path) -> None:
    output = tmp_path / "m.json"
    metrics = ("metrics", "--set", f"output={output}")
    with LiveBus() as bus, consume(tmp_path, 1, bus, *metrics) as first:
        bus.publish(*make_run(10, run_id="one"))
        wait_until(lambda: "one" in runs(output))
        first.kill()
        with consume(tmp_path, 2, bus, *metrics) as second:
            bus.publish(*make_run(10, run_id="two"))
            wait_until(lambda: list(runs(output)) == ["one", "two"])
            with consume(tmp_path, 3, bus, *metrics, "--name", "other") as third:
                assert third.process.wait(30) == 2
            said = third.log.read_text()
            *_, line = said.splitlines()
            assert complaints(said) == [line]
            assert f"'{output}' is written by consumer 'metrics' (pid {second.pid}" in line
            assert second.terminate() == 0


async def test_hooks_and_processors_have_their_files_for_their_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mock_tracker: Any
) -> None:
    """Another process's they leave alone: in a load generator with a line in its log, else it is raised."""
    path = tmp_path / "out"
    held = OutputFile(path, "output", "metrics")
    held.replace("another's")
    for hook in (ExampleLoggingHook(path), ExampleMetricsCollectorHook(path)):
        caplog.clear()
        await hook.on_phase_start("warmup", mock_tracker)
        assert "is written by this process already" in caplog.text
        hook.alone = True
        with pytest.raises(ConfigError, match="consumer 'metrics'"):
            await hook.on_phase_start("warmup", mock_tracker)
    result = await ExampleResultsAggregator(path).process([{"latency_ms": 1.0}])
    assert not result.success
    assert "consumer 'metrics'" in (result.error or "")
    assert path.read_text() == "another's"
    held.close()
