"""``--forward`` of ``bus``, ``exec`` and ``up``."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

import psutil
import pytest

from phase_bus.testing import LiveBus, make_run, wait_until
from tests.support.forwarded import Held, check_sources, journal_frames, read_stream
from tests.support.servers.nats import NatsServer
from tests.support.workplace import Workplace, assert_one_line

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


@pytest.mark.parametrize("words", [("bus", "--no-journal"), ("bus",), ("exec",), ("up",)])
def test_what_cannot_be_forwarded_to_is_said_in_one_line(
    workplace: Workplace, words: tuple[str, ...]
) -> None:
    """Before anything is started."""
    to = "nats://127.0.0.1:1" if len(words) > 1 else "http://127.0.0.1:1"
    done = workplace.run(*words, "--forward", to, *(("--", "true") if words == ("exec",) else ()))
    assert_one_line(done.returncode, done.stderr, "--no-journal" if len(words) > 1 else "write nats://")
