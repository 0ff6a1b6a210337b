"""What is loaded at start-up, and so how long it takes: by the names of modules, not by a clock."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from phase_bus.cli import _COMMANDS, _SUBCOMMANDS

SHOW = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"

# cyclopts, and what it loads itself to parse a command line and to show help.
CYCLOPTS = {"attr", "attrs", "cyclopts", "docstring_parser", "rich", "typing_extensions"}
COMMANDS = [
    *(name for name in _COMMANDS if name not in _SUBCOMMANDS),
    *(f"{name} {sub}" for name, subs in _SUBCOMMANDS.items() for sub in subs),
]
# What no command needs to explain itself: others' packages, and our modules.
HEAVY = {"jinja2", "numpy", "psutil", "pyarrow", "scipy", "sqlalchemy", "structlog", "tenacity"}
WORKING = {"consumer.consumer", "consumer.dispatcher", "core.records", "harness.rig", "plugins.registry"}
# What the plugin is made of; AIPerf has loaded it long before. (pyzmq is built with Cython.)
WIRE = {"msgspec", "zmq", "typing_extensions", "cython_runtime", "_cython"}
HELP = """
from phase_bus.cli import main
try:
    main({arguments})
except SystemExit as end:
    assert end.code == 0
"""
PLUGIN_OFF = """
from types import SimpleNamespace
from phase_bus.aiperf.plugin import PhaseBusExporter

try:
    PhaseBusExporter(run=SimpleNamespace(variables={}))
except Exception as error:
    assert "no address is set" in str(error)
"""
PLUGIN_ON = "import phase_bus.aiperf.plugin, phase_bus.aiperf.exporter"
PLUGIN_AT_WORK = (
    PLUGIN_ON
    + """
from phase_bus.events import PhaseRef
from phase_bus.publisher.publisher import Publisher

publisher = Publisher("ipc:///nowhere/at/all")
metrics = {"request_latency": 1, "inter_chunk_latency": [1, 2]}
publisher.record("r", PhaseRef("profiling"), metrics, {"worker_id": "w"})
publisher.complete_run("r", "completed", "")
publisher.close(0.5)  # nobody is there; by then all of it is encoded
"""
)


def loaded(code: str) -> set[str]:
    """Return the modules that a Python has loaded when it has run the code, without those of its start."""
    return modules(code) - modules("")


def modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code + SHOW], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def of_others(names: set[str]) -> set[str]:
    """Return the packages that belong neither to Python nor to phase-bus."""
    packages = {"_cython" if name.startswith("_cython") else name.partition(".")[0] for name in names}
    return packages - sys.stdlib_module_names - {"phase_bus"}


def of_ours(names: set[str]) -> set[str]:
    return {name.removeprefix("phase_bus.") for name in names if name.startswith("phase_bus.")}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_the_list_of_commands_loads_none_of_them(arguments: list[str]) -> None:
    """Only what parses the command line: no command, no numpy, no ZeroMQ, no Markdown."""
    names = loaded(HELP.format(arguments=arguments))
    assert of_others(names) <= CYCLOPTS
    assert of_ours(names) == {"cli", "errors"}
    assert "rich.markdown" not in names


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself_without_what_it_works_with(command: str) -> None:
    """``--help`` of each: no numpy, no structlog, no consumer, no process to run one."""
    names = loaded(HELP.format(arguments=[*command.split(), "--help"]))
    assert of_others(names) & HEAVY == set()
    assert of_ours(names) & WORKING == set()


def test_what_starts_processes_loads_nothing_that_computes() -> None:
    """Each process of a rig reads options and configurations: neither numpy nor what judges by it."""
    names = loaded("import phase_bus.harness.config, phase_bus.harness.children, phase_bus.cli.consume")
    assert of_others(names) & {"numpy", "scipy", "sqlalchemy", "jinja2"} == set()
    assert of_ours(names) & {"aggregation.metric", "thresholds.judge", "journal.reader"} == set()


def test_a_plugin_that_is_off_loads_next_to_nothing() -> None:
    """Neither ZeroMQ nor the publisher, the events, or what maps AIPerf's: its options alone."""
    names = loaded(PLUGIN_OFF)
    assert of_others(names) <= {"aiperf", "msgspec", "typing_extensions"}
    assert of_ours(names) == {"aiperf", "aiperf.options", "aiperf.plugin", "core", "core.values"}


def test_the_plugin_loads_what_it_publishes_with() -> None:
    """With an address: msgspec and pyzmq, and nothing of the other side of the bus."""
    names = loaded(PLUGIN_ON)
    assert of_others(names) <= WIRE
    boxes = {name.split(".")[0] for name in of_ours(names)}
    assert boxes == {"aiperf", "core", "errors", "events", "publisher"}
    assert "core.records" not in of_ours(names)


def test_the_plugin_loads_no_more_at_work() -> None:
    """Nothing is put off until the first record, where the benchmark would wait for it."""
    # A list of values is summed up by numpy, in the publisher's thread; AIPerf has loaded it, too.
    assert of_others(loaded(PLUGIN_AT_WORK)) <= WIRE | {"numpy"}
    late = modules(PLUGIN_AT_WORK) - modules(PLUGIN_ON)
    assert of_ours(late) == set()


@pytest.mark.slow
@pytest.mark.aiperf
def test_the_plugin_brings_nothing_new_to_aiperf() -> None:
    """In the process of AIPerf that the plugin lives in, only phase-bus's own modules are added."""
    pytest.importorskip("aiperf")
    host = "import aiperf.records.records_manager"
    added = modules(f"{host}; {PLUGIN_ON}") - modules(host)
    assert of_others(added) == set()
    assert {name for name in added if not name.startswith("phase_bus")} == set()
