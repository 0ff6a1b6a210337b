"""Buses forward into a cluster of three, which is killed in parts and as a whole; so is all around it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from phase_bus.testing.waiting import wait_until
from tests.support.commands import run_here
from tests.support.fleet import await_results, forwarder_of, forwarding_bus, results, worker
from tests.support.load import Load, check_forwarded, forwarded
from tests.support.processes import consumer
from tests.support.servers.nats import NatsCluster

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(300)]


def goes_on(cluster: NatsCluster, seconds: float = 60.0) -> None:
    """Wait until events come into the stream again."""
    before = max(server.last_offset() for server in cluster.servers if server.runs)
    wait_until(lambda: max(s.last_offset() for s in cluster.servers if s.runs) > before, seconds)


def test_a_cluster_loses_its_leader_twice_and_then_all(
    tmp_path: Path, ipc_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers and the forwarder are killed as well; every result is that of the bus, byte for byte."""
    with ExitStack() as stack:
        cluster = stack.enter_context(NatsCluster(tmp_path / "nats", sync_always=True))
        bus = stack.enter_context(forwarding_bus(tmp_path, f"ipc://{ipc_dir}", cluster.url))
        workers = [stack.enter_context(worker(tmp_path, number, cluster.url)) for number in range(2)]
        recording = consumer(
            tmp_path, "tests.support.writers:Recording", cluster.url, f"output={tmp_path / 'recording.txt'}"
        )
        stack.enter_context(recording)
        alone = consumer(tmp_path, "aggregator", bus.address, f"output={tmp_path / 'alone.json'}")
        stack.enter_context(alone)
        loads = [stack.enter_context(Load(bus.address, f"run-{number}", 300.0)) for number in range(2)]
        wait_until(lambda: max(server.last_offset() for server in cluster.servers) > 50, 60)

        for victim in workers:
            leader = cluster.leader_of()
            leader.kill()
            victim.kill()
            goes_on(cluster)
            victim.start()
            leader.start()
        forwarder_of(bus).kill()
        goes_on(cluster)
        cluster.kill()
        time.sleep(1.0)  # nobody answers at all
        cluster.start()
        goes_on(cluster)

        runs = {load.run_id: load.end() for load in loads}
        await_results(tmp_path / "alone.json", runs, alone)
        await_results(tmp_path / "team.json", runs, *workers, timeout_s=120.0)
        check_forwarded(forwarded(cluster.url), runs)
        wait_until(lambda: set(runs) <= ended(tmp_path / "recording.txt"), 60)
        assert results(tmp_path / "team.json") == results(tmp_path / "alone.json")
        for run_id in runs:
            of_bus = run_here(capsys, "report", run_id, "--address", bus.address, "--json")
            of_stream = run_here(capsys, "report", run_id, "--address", cluster.url, "--json")
            assert of_bus[0] == of_stream[0] == 0
            assert of_stream[1] == of_bus[1]
        for process in (*workers, recording, alone, bus):
            assert process.terminate() == 0, process.tail()


def ended(path: Path) -> set[str]:
    """Return the runs of which the end was handled."""
    lines = path.read_text().splitlines()
    return {line.split()[0] for line in lines if " run_complete completed" in line}
