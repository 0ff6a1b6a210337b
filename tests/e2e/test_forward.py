"""``--forward`` of ``bus``, ``exec`` and ``up``."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from collections import Counter

import psutil
import pytest

from phase_bus.testing import LiveBus, make_run, wait_until
from tests.support.forwarded import Held, check_sources, journal_frames, read_stream
from tests.support.servers.nats import NatsServer
from tests.support.workplace import Workplace, assert_one_line, wait_for

SIMULATE = (sys.executable, "-m", "phase_bus", "simulate")


def held_in(server: NatsServer) -> list[Held]:
    """Return all that is in the stream."""
    return asyncio.run(read_stream(server.url))


def behind(bus: LiveBus) -> int:
    """Return how far the forwarder is behind, as the bus's status says."""
    status = bus.status()
    known = (c.position for c in status.clients if c.name == "forward" and c.role == "consumer")
    return status.offset - max((position.offset for position in known if position), default=0)


def test_a_bus_forwards_all_it_has_and_outlives_its_forwarder_and_nats(nats: NatsServer) -> None:
    """Both are killed in the middle; the bus takes everything in all the same, and ends in order."""
    with LiveBus("--forward", nats.url) as bus:
        bus.publish(*make_run(100, run_id="first"))
        wait_until(lambda: behind(bus) == 0)
        nats.kill()
        bus.publish(*make_run(2000, run_id="second"))
        (child,) = psutil.Process(bus.status().pid).children()
        child.kill()
        child.wait(10)
        assert behind(bus) > 60
        nats.start()
        wait_until(lambda: behind(bus) == 0, 40)
        log = (bus.directory / "bus.log").read_text()
        journal = journal_frames(bus.directory / "journal")
    assert "the bus goes on, and it is started again in 0.5 s" in log
    held = held_in(nats)
    assert [each.frames for each in held[: len(journal)]] == [frames for _, frames in journal]
    check_sources(held)


def test_what_a_bus_has_is_forwarded_before_it_ends(workplace: Workplace, nats: NatsServer) -> None:
    """It is asked to as soon as a run is over, while NATS is away; it ends when that has taken all."""
    address = f"ipc://{workplace.directory}/bus"
    bus = workplace.phase_bus(
        "bus", "--address", address, "--forward", nats.url, "--forward-timeout-s", "60"
    )
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    nats.kill()
    assert workplace.run("simulate", "-n", "3000", "-r", "0", "--address", address).returncode == 0
    bus.terminate()
    wait_for(lambda: "does not take rows" in workplace.stderr(bus), "the forwarder's trouble")
    nats.start()
    ended = workplace.finish(bus)
    assert ended.returncode == 0, ended.stderr
    kinds = Counter(each.topic.split(b".")[0] for each in held_in(nats))
    assert kinds[b"run_complete"] == 1


def test_a_bus_says_what_is_not_forwarded_when_it_ends(workplace: Workplace, nats: NatsServer) -> None:
    """It exits with 3; the next bus on the journal forwards it."""
    nats.kill()
    line = ("bus", "--address", f"ipc://{workplace.directory}/bus", "--forward", nats.url)
    bus = workplace.phase_bus(*line, "--forward-timeout-s", "0")
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    assert workplace.run("simulate", "-r", "0", "--address", line[2]).returncode == 0
    bus.terminate()
    ended = workplace.finish(bus)
    assert ended.returncode == 3
    assert re.search(
        r"^phase-bus: \d+ events are in its journal and not forwarded", ended.stderr, re.MULTILINE
    )
    nats.start()
    bus = workplace.phase_bus(*line)
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    bus.terminate()
    assert workplace.finish(bus).returncode == 0
    kinds = Counter(each.topic.split(b".")[0] for each in held_in(nats))
    assert kinds[b"run_complete"] == 1


def test_exec_waits_until_everything_is_forwarded(workplace: Workplace, nats: NatsServer) -> None:
    """The forwarder is a consumer like any other: ready first, waited for, with a receipt."""
    done = workplace.run(
        "exec", "--forward", nats.url, "--with", "logging", "--", *SIMULATE, "-n", "3000", "-r", "0"
    )
    assert done.returncode == 0, done.stderr
    assert "consumers ready: forward, logging" in done.stderr
    held = held_in(nats)
    check_sources(held)
    kinds = Counter(each.topic.split(b".")[0] for each in held)
    assert kinds[b"run_complete"] == 1
    assert kinds[b"run_start"] == 1


@pytest.mark.slow
def test_what_exec_could_not_forward_can_be_forwarded_later(workplace: Workplace, nats: NatsServer) -> None:
    """Without NATS the benchmark runs as ever; exit code and a line say what is lacking, and what helps."""
    nats.kill()
    (workplace.directory / "bus.yaml").write_text(
        f"{{forward: '{nats.url}', drain_timeout_s: 1, stop_timeout_s: 1}}"
    )
    done = workplace.run("exec", "-c", "bus.yaml", "--", *SIMULATE, "-n", "500", "-r", "0")
    assert done.returncode == 3
    (words,) = re.findall("goes there with: phase-bus (.*)", done.stderr)
    nats.start()
    bus = workplace.phase_bus(*shlex.split(words), "--address", f"ipc://{workplace.directory}/later")
    wait_for(lambda: "bus ready" in workplace.stdout(bus), "the bus")
    bus.terminate()
    assert workplace.finish(bus).returncode == 0
    kinds = Counter(each.topic.split(b".")[0] for each in held_in(nats))
    assert (kinds[b"run_start"], kinds[b"run_complete"]) == (1, 1)


@pytest.mark.parametrize("words", [("bus", "--no-journal"), ("bus",), ("exec",), ("up",)])
def test_what_cannot_be_forwarded_to_is_said_in_one_line(
    workplace: Workplace, words: tuple[str, ...]
) -> None:
    """Before anything is started."""
    to = "nats://127.0.0.1:1" if len(words) > 1 else "http://127.0.0.1:1"
    done = workplace.run(*words, "--forward", to, *(("--", "true") if words == ("exec",) else ()))
    assert_one_line(done.returncode, done.stderr, "--no-journal" if len(words) > 1 else "write nats://")
