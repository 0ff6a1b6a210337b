"""A plugin as the example plugin's guide would have it, run unchanged, as processes on a bus.

It follows the guide's protocol to the letter (methods, constructors, results, registry, entry point) and
knows nothing of phase-bus but the base class that one hook imports.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.pages import PROGRAM, Page, words
from tests.support.workplace import Workplace, json_lines, wait_for

SIMULATE = (*PROGRAM, "simulate", "-r", "0")

HOOKS = '''
import json
import logging
from pathlib import Path

from phase_bus.publisher.hooks import BasePhaseLifecycleHook

logger = logging.getLogger(__name__)


class SlowPhaseAlert(BasePhaseLifecycleHook):
    """Has an object sent in, and looks at times in ns."""

    def __init__(self, alert_handler, limit_s=60):
        self.alert_handler = alert_handler
        self.limit_s = limit_s
        self._starts = {}

    async def on_phase_start(self, phase, tracker):
        self._starts[phase] = tracker.create_stats().start_ns

    async def on_phase_complete(self, phase, tracker):
        stats = tracker.create_stats()
        assert self._starts[phase] == stats.start_ns
        took_s = (stats.end_ns - stats.start_ns) / 1e9
        if took_s > self.limit_s:
            await self.alert_handler.send_alert(f"{phase} was slow")


class FileAlerts:
    def __init__(self, path: str) -> None:
        self.path = Path(path)

    async def send_alert(self, text):
        with self.path.open("a") as file:
            file.write(text + "\\n")


class PhaseDiary:
    """By shape only: no base class, and all four events."""

    def __init__(self, log_file: str = "diary.log", verbose: bool = False) -> None:
        self.log_file = Path(log_file)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.verbose = verbose

    async def _note(self, what, phase, tracker):
        stats = tracker.create_stats()
        line = f"{phase.value.upper()} {what} {stats.sent}"
        if self.verbose:
            line += f"/{stats.completed}/{stats.in_flight}"
        with self.log_file.open("a") as file:
            file.write(line + "\\n")

    async def on_phase_start(self, phase, tracker) -> None:
        await self._note("start", phase, tracker)

    async def on_phase_sending_complete(self, phase, tracker) -> None:
        await self._note("sent", phase, tracker)

    async def on_phase_complete(self, phase, tracker) -> None:
        await self._note("complete", phase, tracker)

    async def on_phase_timeout(self, phase, tracker) -> None:
        await self._note("timeout", phase, tracker)


class First:
    """One of two that write to one file, so that their order shows."""

    name = "first"

    async def on_phase_complete(self, phase, tracker):
        with open("order.txt", "a") as file:
            file.write(f"{self.name} {phase}\\n")


class Second(First):
    name = "second"


class Fragile(BasePhaseLifecycleHook):
    """Fails until somebody has mended it."""

    async def on_phase_complete(self, phase, tracker):
        if not Path("mended").exists():
            raise ConnectionError("the pager is down")
        with open("fragile.txt", "a") as file:
            file.write(f"{phase}\\n")


class DebugHook(BasePhaseLifecycleHook):
    async def on_phase_start(self, phase, tracker):
        logger.info(f"{phase} has {tracker.create_stats()}")
'''

PROCESSORS = '''
from dataclasses import dataclass


@dataclass
class ProcessingResult:
    success: bool
    record_count: int = 0
    metrics: dict | None = None
    error: str | None = None


class LatencyProcessor:
    def __init__(self, percentiles: list[int] = (50, 99)):
        self.percentiles = percentiles

    async def process(self, results):
        good = [r for r in results if not r.get("error")]
        latencies = sorted(r.get("latency_ms", 0) for r in good)
        share = len(good) / len(results) if results else 0
        values = {f"p{p}": self._percentile(latencies, p) for p in self.percentiles}
        return ProcessingResult(True, len(results), {"success_rate": share, **values})

    @staticmethod
    def _percentile(ordered, percentile):
        return ordered[min(int(percentile / 100 * len(ordered)), len(ordered) - 1)]


class BatchCounter:
    """Goes through the results by slices."""

    async def process(self, results):
        sizes = [len(results[i : i + 300]) for i in range(0, len(results), 300)]
        return ProcessingResult(success=True, record_count=sum(sizes), metrics={"batches": len(sizes)})


class Fussy:
    async def process(self, results):
        raise ValueError("not these results")
'''

REGISTRY = """
plugin:
  name: acme-load
  version: 1.0.0
  description: A plugin after the guide
  author: A reader
  enabled: true

phase_hooks:
  alert:
    class: acme_load.hooks:SlowPhaseAlert
    description: Tells of slow phases
    priority: 50
    tags: [alerting]
    auto_load: false
    config_params: [alert_handler, limit_s]
  diary:
    class: acme_load.hooks:PhaseDiary
    description: Writes down what happens
    priority: 10
    tags: [logging]
    auto_load: false
    config_params: [log_file, verbose]
  second:
    class: acme_load.hooks:Second
    priority: 60
  first:
    class: acme_load.hooks:First
    priority: 20
    tags: [logging]

post_processors:
  latency:
    class: acme_load.processors:LatencyProcessor
    description: Percentiles
    priority: 50
    config_params: [percentiles]
  batches:
    class: acme_load.processors:BatchCounter
    description: Counts
    priority: 60
"""


@pytest.fixture
def plugin(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin as pip would have installed it; every process started here sees it."""
    site = workplace.directory / "site"
    package = site / "acme_load"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.0.0"\n')
    (package / "hooks.py").write_text(HOOKS)
    (package / "processors.py").write_text(PROCESSORS)
    (package / "registry.yaml").write_text(REGISTRY)
    info = site / "acme_load-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-load\nVersion: 1.0.0\n")
    # The group that the guide names, so that not even the packaging changes.
    (info / "entry_points.txt").write_text("[aiperf.plugins]\nacme_load = acme_load:registry.yaml\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    return package


def lines(workplace: Workplace, name: str) -> list[str]:
    """Return the lines of a file."""
    return (workplace.directory / name).read_text().splitlines()


def summaries(workplace: Workplace) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the events that processors' results became, by processor and phase."""
    (journal,) = (workplace.directory / "state").rglob("journal.sqlite")
    done = workplace.run("journal", "export", "--data", str(journal.parent))
    assert done.returncode == 0, done.stderr
    events = [event for event in json_lines(done.stdout) if event["kind"] == "summary"]
    return {(e["result"]["processor"], e["result"]["phase"]): e for e in events}


@pytest.mark.slow
def test_it_is_listed(workplace: Workplace, plugin: Path) -> None:
    """Hooks and processors are found by the guide's entry point, with priority and tags."""
    done = workplace.run("consumers", "--json")
    listed = {row["use"]: row for row in json.loads(done.stdout) if row["plugin"] == "acme-load"}
    assert list(listed) == [
        "hook:diary", "hook:first", "hook:alert", "hook:second", "processor:latency", "processor:batches",
    ]  # fmt: skip
    told = [(o["name"], o["type"], o["default"], o["required"]) for o in listed["hook:alert"]["options"]]
    assert told[:2] == [("alert_handler", "value", "", True), ("limit_s", "integer", "60", False)]
    assert all(not row["problem"] for row in listed.values())
    assert "hook:alert" in workplace.run("consumers").stdout
    tagged = workplace.run("consumers", "--tag", "logging", "--json")
    uses = [row["use"] for row in json.loads(tagged.stdout)]
    assert uses == [
        "logging", "elasticsearch", "splunk", "hook:diary", "hook:first", "hook:example_logging",
    ]  # fmt: skip
    assert workplace.run("consumers", "--validate").returncode == 0


@pytest.mark.slow
def test_hooks_in_processes_of_their_own(workplace: Workplace, plugin: Path) -> None:
    """By name, by class, and several in one process in the order of their priority."""
    done = workplace.run(
        "exec", "--with", "hook:diary:log_file=logs/diary.log,verbose=true",
        "--with", "hook:second,first",
        "--with", "hook:acme_load.hooks:SlowPhaseAlert:"
        "alert_handler={class: acme_load.hooks:FileAlerts, path: alerts.txt},limit_s=0",
        "--with", "hook:acme_load.hooks:DebugHook", "--", *SIMULATE, "-n", "300",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert lines(workplace, "logs/diary.log") == [
        "WARMUP start 0/0/0", "WARMUP sent 50/50/0", "WARMUP complete 50/50/0",
        "PROFILING start 0/0/0", "PROFILING sent 300/300/0", "PROFILING complete 300/300/0",
    ]  # fmt: skip
    order = ["first warmup", "second warmup", "first profiling", "second profiling"]
    assert lines(workplace, "order.txt") == order
    assert lines(workplace, "alerts.txt") == ["warmup was slow", "profiling was slow"]
    assert "profiling has PhaseStats(sent=0" in done.stderr


@pytest.mark.slow
def test_from_a_yaml_file(workplace: Workplace, plugin: Path) -> None:
    """The same in a configuration file, with values that are not text; what loads by itself runs."""
    (workplace.directory / "bus.yaml").write_text("""
consumers:
  - hooks
  - use: hook:diary
    name: my-diary
    set: {log_file: diary.log}
  - use: hook:alert
    set: {alert_handler: {class: "acme_load.hooks:FileAlerts", path: alerts.txt}, limit_s: 0}
""")
    done = workplace.run("exec", "-c", "bus.yaml", "--", *SIMULATE, "-n", "20", "--warmup", "0")
    assert done.returncode == 0, done.stderr
    assert lines(workplace, "order.txt") == ["first profiling", "second profiling"]
    assert lines(workplace, "diary.log")[-1] == "PROFILING complete 20"
    assert lines(workplace, "alerts.txt") == ["profiling was slow"]
    assert "my-diary" in done.stderr


@pytest.mark.slow
def test_a_hook_that_raises(workplace: Workplace, plugin: Path) -> None:
    """The others get their events, the run exits with 3, and once fixed it alone gets them again."""
    use = "hook:first,acme_load.hooks:Fragile,second"
    done = workplace.run("exec", "--with", use, "--", *SIMULATE, "-n", "20")
    assert done.returncode == 3
    assert "hook Fragile failed" in done.stderr
    assert "the pager is down" in done.stderr
    order = ["first warmup", "second warmup", "first profiling", "second profiling"]
    assert lines(workplace, "order.txt") == order
    (journal,) = (workplace.directory / "state").rglob("journal.sqlite")
    data = ("--data", str(journal.parent))
    listed = workplace.run("dead-letters", "list", *data)
    assert listed.stdout.count("phase_complete") == 2
    (workplace.directory / "mended").touch()
    retried = workplace.run("dead-letters", "retry", "--all", "--with", use, *data)
    assert retried.returncode == 0, retried.stderr
    assert lines(workplace, "fragile.txt") == ["warmup", "profiling"]
    assert lines(workplace, "order.txt") == order


@pytest.mark.slow
def test_processors(workplace: Workplace, plugin: Path) -> None:
    """Each phase's results are processed, and what comes of it is an event on the bus."""
    done = workplace.run(
        "exec", "--with", "processors:latency.percentiles=[50,90]", "--", *SIMULATE, "-n", "2000"
    )
    assert done.returncode == 0, done.stderr
    found = summaries(workplace)
    assert list(found) == [
        ("latency", "warmup"), ("batches", "warmup"), ("latency", "profiling"), ("batches", "profiling"),
    ]  # fmt: skip
    latency, batches = found["latency", "profiling"], found["batches", "profiling"]
    assert latency["producer"] == "processors"
    assert latency["final"]
    assert latency["result"]["record_count"] == 2000
    assert 0.95 < latency["result"]["metrics"]["success_rate"] < 1
    assert list(latency["result"]["metrics"]) == ["success_rate", "p50", "p90"]
    assert 100 < latency["result"]["metrics"]["p50"] < 300
    assert batches["result"]["metrics"] == {"batches": 7}
    assert "phase processed" in done.stderr
    assert not list((workplace.directory / "state").rglob("*.records"))


@pytest.mark.slow
def test_a_processor_that_raises(workplace: Workplace, plugin: Path) -> None:
    """The other one's results are there, the failure is an event too, and the run exits with 3."""
    use = "processor:acme_load.processors:Fussy,batches"
    done = workplace.run("exec", "--with", use, "--", *SIMULATE, "-n", "20", "--warmup", "0")
    assert done.returncode == 3
    found = summaries(workplace)
    assert found["batches", "profiling"]["result"]["success"]
    failed = found["Fussy", "profiling"]["result"]
    assert not failed["success"]
    assert failed["error"] == "ValueError('not these results')"
    assert "phase not processed" in done.stderr
    assert "processor=Fussy" in done.stderr  # the traceback, with the same, is in the dead letter


@pytest.mark.parametrize("option", [("--workers", "2"), ("--group", "team")])
def test_whole_phases_cannot_be_shared_out(
    workplace: Workplace, plugin: Path, option: tuple[str, str]
) -> None:
    """A hook or processor is not made to work on a part of a phase."""
    done = workplace.run("consume", "processor:latency", *option)
    assert done.returncode == 2
    assert "leave --group and --workers out" in done.stderr


@pytest.mark.slow
def test_a_killed_processor_goes_on_where_it_was(workplace: Workplace, plugin: Path) -> None:
    """Killed in the middle of a run and started again: no record lost, none doubled."""
    address = f"ipc://{workplace.directory}/b"
    bus = workplace.phase_bus("bus", "--address", address, "--data", "journal")
    consume = ("consume", "processor:latency", "--address", address)
    consumer = workplace.phase_bus(*consume)
    run = workplace.phase_bus("simulate", "-n", "9000", "-r", "2000", "--address", address)
    wait_for(lambda: "phase=warmup" in workplace.stderr(consumer), "the first phase")
    os.kill(consumer.pid, signal.SIGKILL)
    assert workplace.finish(consumer).returncode == -signal.SIGKILL
    consumer = workplace.phase_bus(*consume)
    assert workplace.finish(run).returncode == 0
    wait_for(lambda: "phase=profiling" in workplace.stderr(consumer), "the result")
    said = workplace.stderr(consumer)
    assert "record_count=9000" in said
    assert "record_count=50" in said
    assert "failed" not in said
    for process in (consumer, bus):
        os.kill(process.pid, signal.SIGTERM)
        assert workplace.finish(process).returncode == 0


@pytest.mark.slow
def test_the_page_about_hooks(workplace: Workplace) -> None:
    """What docs/guide/hooks.md shows: its files, and every command."""
    page = Page("docs/guide/hooks.md")
    page.write_files(workplace.directory)
    said = ""
    commands = page.commands()
    for command in commands:
        line = words(command.replace("-- phase-bus simulate", "-- phase-bus simulate -n 100 -r 300"))
        done = workplace.finish(workplace.start(*line))
        assert done.returncode == 0, (command, done.stderr, done.stdout)
        said += done.stdout + done.stderr
    assert len(commands) == 6
    assert "to ops: profiling is over" in said
    assert "metrics=\"{'share': " in said
    assert sum(line.startswith("profiling took 0.") for line in lines(workplace, "slow.txt")) == 2
    assert len(lines(workplace, "all.log")) == 6
