"""Publishing from Locust, whose gevent replaces threads: the example, and that nothing stands still."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.examples.commands import ROOT, command_of
from tests.support.buses import BusThread
from tests.support.workplace import Workplace

LOCUSTFILE = ROOT / "examples" / "locustfile.py"
GEVENT = """
from gevent import monkey
monkey.patch_all()
import sys, threading, time
import gevent
from phase_bus.events import PhaseRef, RunStart
from phase_bus.publisher.publisher import Publisher

address, seconds = sys.argv[1], float(sys.argv[2])
publisher = Publisher(address)
worst_s, begin_s = 0.0, time.monotonic()
phase = PhaseRef("p")
publisher.publish(RunStart(run_id="r"))
while (now_s := time.monotonic()) < begin_s + seconds:
    publisher.record("r", phase, {"n": 1}, {})
    gevent.sleep(0.001)
    worst_s = max(worst_s, time.monotonic() - now_s)
publisher.complete_run("r", "completed")
print(worst_s, publisher.flush(5.0), flush=True)
publisher.close(2.0)
assert not publisher.undelivered
"""


@pytest.mark.slow
def test_the_example(workplace: Workplace, mock_llm: Callable[..., str]) -> None:
    """Its docstring's command, for a shorter time: phases and requests arrive, and agree."""
    pytest.importorskip("pytest_locust", reason="locust is not installed")
    line = command_of(ast.get_docstring(ast.parse(LOCUSTFILE.read_text()), clean=False))
    line[line.index("aggregator")] = "aggregator:output=summary.json"
    line[line.index("examples/locustfile.py")] = str(LOCUSTFILE)
    line[line.index("http://localhost:8000")] = mock_llm("--fail-every", "10")
    line[line.index("10s")] = "4s"
    done = workplace.finish(workplace.start(*line, "--json", "--exit-code-on-error", "0"))
    assert done.returncode == 0, done.stderr
    (run,) = workplace.json("summary.json")["runs"].values()
    assert run["complete"]
    assert [phase["name"] for phase in run["phases"]] == ["warmup", "profiling"]
    (said,) = json.loads(done.stdout)
    requests, failures = said["num_requests"], said["num_failures"]
    assert requests > 20
    assert failures > 0
    assert sum(phase["requests"] for phase in run["phases"]) == run["records"] == requests
    assert sum(phase["failed"] for phase in run["phases"]) == failures


@pytest.mark.slow
def test_gevent_is_not_held_up(bus: BusThread) -> None:
    """In a program that gevent has patched, other greenlets go on while the publisher waits."""
    pytest.importorskip("pytest_locust", reason="gevent, which locust brings, is not installed")
    done = subprocess.run(
        [sys.executable, "-c", GEVENT, bus.address, "1.5"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    worst_s, flushed = done.stdout.split()
    assert float(worst_s) < 0.3, "it stands still for up to a second if the thread is a greenlet"
    assert flushed == "True"
