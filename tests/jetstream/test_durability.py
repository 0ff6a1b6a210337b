"""How durable a stream is: what is told at the start, and what the servers do of what they are told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import NotFoundError

from phase_bus.core.address import StreamAddress
from phase_bus.jetstream.connection import Connection, connected
from phase_bus.jetstream.durability import MONITOR_VARIABLE, Durability, durability_of, tell_weaknesses
from phase_bus.jetstream.stream import open_stream
from tests.guards.syscalls import needs_strace
from tests.support.servers.nats import NatsCluster, NatsServer

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def no_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MONITOR_VARIABLE, raising=False)


async def told(connection: Connection, caplog: pytest.LogCaptureFixture) -> tuple[int, str]:
    """Return the level and the text of the only line, or 0 and nothing."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "phase_bus.jetstream"):
        await tell_weaknesses(connection)
    lines = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert len(lines) <= 1
    assert not any("\n" in text for _, text in lines)
    return lines[0] if lines else (0, "")


async def test_one_server_is_told_in_one_line(
    nats: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(StreamAddress.parse(nats.url), "test") as connection:
        await open_stream(connection, make=True)
        level, text = await told(connection, caplog)
        assert level == logging.WARNING
        assert "1 replica: gone with that server's disk" in text
        assert "run a cluster of 3" in text
        assert "sync_interval is not seen" in text
        assert f"{MONITOR_VARIABLE}=http" in text

        monkeypatch.setenv(MONITOR_VARIABLE, nats.monitor_url)
        level, text = await told(connection, caplog)
        assert "sync_interval is 120 s: a power cut takes what was acknowledged in that time" in text

        monkeypatch.setenv(MONITOR_VARIABLE, f"{nats.monitor_url}, http://me:s3cret@127.0.0.1:1")
        level, text = await told(connection, caplog)
        assert "sync_interval is not seen: 127.0.0.1:1: " in text
        assert "s3cret" not in text
        for bad in ("me:s3cret@host", "http://me:s3cret@[", "file:///etc/passwd", f"{nats.monitor_url}/x?"):
            monkeypatch.setenv(MONITOR_VARIABLE, bad)
            level, text = await told(connection, caplog)
            assert "sync_interval is not seen: " in text
            assert "s3cret" not in text


async def test_a_stream_in_memory_is_told(nats: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(StreamAddress.parse(f"{nats.url}/other"), "test") as connection:
        config = StreamConfig("other", subjects=["other.>"], storage=StorageType.MEMORY)
        await connection.js.add_stream(config)
        level, text = await told(connection, caplog)
        assert level == logging.WARNING
        assert "memory only: gone when its servers stop" in text
        assert "sync_interval" not in text


async def test_what_cannot_be_seen_harms_nobody(nats: NatsServer, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(StreamAddress.parse(f"{nats.url}/none"), "test") as connection:
        level, text = await told(connection, caplog)
        assert (level, "cannot be seen" in text) == (logging.INFO, True)


@pytest.mark.slow
async def test_a_cluster_that_synchronises_has_nothing_to_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with NatsCluster(tmp_path / "nats", sync_always=True) as cluster:
        async with connected(StreamAddress.parse(cluster.url), "test") as connection:
            assert (await open_stream(connection, make=True)).replicas == 3
            assert (await told(connection, caplog))[0] == logging.INFO  # one cannot see it
            monkeypatch.setenv(MONITOR_VARIABLE, cluster.servers[0].monitor_url)
            assert "seen of 1 server only, of 3" in (await told(connection, caplog))[1]
            monkeypatch.setenv(MONITOR_VARIABLE, ",".join(s.monitor_url for s in cluster.servers))
            assert await told(connection, caplog) == (0, "")
            assert await durability_of(connection) == Durability(
                replicas=3, offline=0, servers=3, memory=False, sync_s=0.0
            )


@pytest.mark.parametrize("always", [True, False], ids=["always", "two minutes"])
async def test_servers_synchronise_before_they_acknowledge_only_if_told_to(
    tmp_path: Path, always: bool
) -> None:
    """By the system calls of the server: this is what survives a power cut, and what does not."""
    needs_strace()
    calls = tmp_path / "calls"
    strace = ("strace", "-D", "-f", "-qq", "-e", "trace=fsync,fdatasync,pwrite64,write", "-o", str(calls))
    with NatsServer(tmp_path / "nats", sync_always=always, under=strace) as server:
        async with connected(StreamAddress.parse(server.url), "test") as connection:
            await open_stream(connection, make=True)
            await connection.js.publish("phase-bus.test", b"first")
            before = syncs(calls)
            for _ in range(5):
                await connection.js.publish("phase-bus.test", b"more")
            assert syncs(calls) - before >= 5 if always else syncs(calls) == before


def syncs(calls: Path) -> int:
    return sum("sync(" in line for line in calls.read_text().splitlines())


async def test_files_outlive_a_kill_and_memory_does_not(nats: NatsServer) -> None:
    async with connected(StreamAddress.parse(nats.url), "test") as connection:
        await open_stream(connection, make=True)
        config = StreamConfig("other", subjects=["other.>"], storage=StorageType.MEMORY)
        await connection.js.add_stream(config)
        for subject in ("phase-bus.test", "other.test"):
            for _ in range(100):
                await connection.js.publish(subject, b"acknowledged")
    nats.kill()
    nats.start()
    async with connected(StreamAddress.parse(nats.url), "test") as connection:
        assert (await connection.js.stream_info("phase-bus")).state.last_seq == 100
        with pytest.raises(NotFoundError):  # not even the stream itself is there
            await connection.js.stream_info("other")
