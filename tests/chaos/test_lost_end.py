"""A server comes back without its last events, as after a power cut: who stood there learns that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from phase_bus.testing.waiting import wait_until
from tests.support.fleet import await_results, forwarding_bus, worker
from tests.support.load import Load, check_forwarded, forwarded
from tests.support.processes import consumer
from tests.support.servers.nats import NatsServer

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def test_a_stream_loses_its_end(tmp_path: Path, ipc_dir: Path, nats: NatsServer) -> None:
    """Two buses send again what was lost, in another order; no consumer passes over anything.

    What a server without sync_interval always has on its disk after a power cut is an older state of its
    directory: here one that was copied while it did not run.
    """
    copy = tmp_path / "copy"
    with (
        forwarding_bus(tmp_path / "a", f"ipc://{ipc_dir}/a", nats.url) as first,
        forwarding_bus(tmp_path / "b", f"ipc://{ipc_dir}/b", nats.url) as second,
        worker(tmp_path, 0, nats.url) as team,
        consumer(
            tmp_path, "tests.support.writers:Recording", nats.url, f"output={tmp_path / 'recording.txt'}"
        ) as recording,
        Load(first.address, "run-a", 300.0) as a,
        Load(second.address, "run-b", 300.0) as b,
    ):
        wait_until(lambda: nats.last_offset() > 30, 30)
        nats.kill()
        shutil.copytree(nats.directory / "data", copy)
        nats.start()
        kept = nats.last_offset()
        wait_until(lambda: nats.last_offset() > kept + 60, 30)
        wait_until(lambda: len(lines(tmp_path / "recording.txt")) > kept + 30, 30)
        nats.kill()
        shutil.rmtree(nats.directory / "data")
        copy.rename(nats.directory / "data")
        nats.start()
        wait_until(lambda: nats.last_offset() > kept + 60, 30)
        runs = {"run-a": a.end(), "run-b": b.end()}
        await_results(tmp_path / "team.json", runs, team, recording)
        check_forwarded(forwarded(nats.url), runs)
        wait_until(
            lambda: (
                {f"{run} run_complete completed" for run in runs} <= set(lines(recording_file(tmp_path)))
            ),
            30,
        )
        for run_id, records in runs.items():
            seen = {
                int(number)
                for line in lines(recording_file(tmp_path))
                if line.startswith(f"{run_id} records ")
                for number in line.split()[2].split(",")
            }
            assert seen == set(range(records))
        for process in (team, recording, first, second):
            assert process.terminate() == 0, process.tail()


def recording_file(directory: Path) -> Path:
    """Return where the consumer writes."""
    return directory / "recording.txt"


def lines(path: Path) -> list[str]:
    """Return the lines of a file, none if it is not there."""
    return path.read_text().splitlines() if path.exists() else []
