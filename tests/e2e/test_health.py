"""What processes of the bus and of consumers say of their health, asked over HTTP as a probe does."""

from __future__ import annotations

import json
import resource
import socket
import sys
import time
from pathlib import Path

import pytest
import yaml

from phase_bus.core.control import Hello
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing import LiveBus
from phase_bus.testing.process import PythonProcess
from phase_bus.testing.waiting import DEADLINE_S, wait_until
from tests.support.clients import RawClient
from tests.support.health import health_url, health_urls, values, verdict
from tests.support.processes import JournaledBus
from tests.support.recorder import PHASE, publish, start
from tests.support.workplace import Workplace, assert_one_line, wait_for

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.slow]
OK = (200, "ok\n")
TROUBLED = """
import time
from pathlib import Path

from phase_bus import Consumer


class Troubled(Consumer):
    def __init__(self, place: str) -> None:
        self._place = Path(place)

    async def on_phase_start(self, event) -> None:
        if event.ts_ns == 13:
            raise ValueError("13")
        while (self._place / "stuck").exists():
            time.sleep(0.02)

    async def on_records(self, event) -> None:
        pass

    async def flush(self) -> None:
        if (self._place / "full").exists():
            raise OSError("the disk behind postgresql://me:secret@host is full")
"""


def troubled(directory: Path, bus: LiveBus, *options: str) -> PythonProcess:
    """Return a consumer that does what files say, not started yet."""
    (directory / "troubled.py").write_text(TROUBLED)
    words = ("-m", "phase_bus", "consume", "troubled:Troubled", "--set", f"place={directory}")
    more = ("--name", "troubled", "--address", bus.address, "--health", "0", *options)
    return PythonProcess(directory / "troubled.log", *words, *more, cwd=directory)


def url_of(bus: LiveBus) -> str:
    """Return where a bus tells its health."""
    return health_url(bus.directory / "bus.log")


def test_a_run(tmp_path: Path) -> None:
    """The numbers of bus and consumer are those of what was published, received, refused and failed."""
    with LiveBus("--health", "0") as bus, troubled(tmp_path, bus) as process:
        bus_url, url = url_of(bus), health_url(process.log)
        wait_until(lambda: verdict(f"{url}/readyz") == OK)
        assert verdict(f"{bus_url}/healthz") == verdict(f"{bus_url}/readyz") == OK
        with Publisher(bus.address, name="first") as publisher:
            publisher.record("r", PHASE, {"n": 1}, {})
            assert publisher.flush(DEADLINE_S)
            publish(bus.address, 20)  # and as many batches with a record
            wait_until(lambda: values(bus_url).get("phase_bus_bus_clients[publisher, ready]") == 1)
            assert values(bus_url)["phase_bus_bus_clients[consumer, ready]"] == 1
            assert values(bus_url)["phase_bus_bus_open_runs"] == 1
            wait_until(
                lambda: values(bus_url)["phase_bus_bus_connections"] == bus.status().connections - 1 > 0
            )  # that of the question is one more
        with RawClient(bus.address) as raw:
            for _ in range(3):
                raw.socket.send(b"\xc1")
            raw.ask(Hello(client_id="0" * 32, role="client", name="raw"))
        # Nobody has ended the run: the bus itself publishes its end, and the consumer its receipt.
        offset = 20 + 20 + 1 + 2
        wait_until(lambda: bus.status().offset == offset)
        dead = wait_until(lambda: values(bus_url)["phase_bus_bus_dead_letters"])
        wait_until(lambda: values(bus_url)["phase_bus_bus_offset"] == offset)
        told = values(bus_url)
        assert dead == 1
        assert told["phase_bus_bus_events_total"] == offset
        assert told["phase_bus_bus_records_total"] == 21
        assert told["phase_bus_bus_payload_bytes_total"] > 41 * 20
        assert told["phase_bus_bus_open_runs"] == 0
        assert told["phase_bus_bus_rejected_total[malformed]"] == 3
        assert sum(info.count for info in bus.status().rejected) == 3
        files = [bus.directory / "journal" / f"journal.sqlite{end}" for end in ("", "-wal")]
        assert told["phase_bus_bus_journal_size_bytes"] == sum(file.stat().st_size for file in files)
        wait_until(lambda: values(url)["phase_bus_consumer_written_total[troubled]"] == 41)
        mine = wait_until(lambda: (v := values(url))["phase_bus_consumer_offset[troubled]"] == offset and v)
        counts = ("received", "handled", "failed", "missed", "repeated")
        found = [mine[f"phase_bus_consumer_{what}_total[troubled]"] for what in counts]
        assert found == [42, 41, 1, 0, 0]
        assert mine["phase_bus_consumer_offset_behind[troubled]"] == 0
        assert mine["phase_bus_consumer_connected[troubled]"] == mine["phase_bus_ready"] == 1
        assert mine["phase_bus_consumer_dead_letters_pending[troubled]"] == 0
        states = {name: value for name, value in mine.items() if "consumer_state" in name}
        assert [name[-7:] for name, value in states.items() if value] == [" ready]"]
        worst, last = (mine[f"phase_bus_consumer_{w}lag_seconds[troubled]"] for w in ("worst_", ""))
        assert worst >= last > 0
        assert "r$" not in str(told) + str(mine)  # nothing is named after runs
        process.terminate()


def test_replayed(tmp_path: Path) -> None:
    """What comes from the journal is counted as such."""
    with LiveBus() as bus:
        publish(bus.address, 10)
        with troubled(tmp_path, bus) as process:
            url = health_url(process.log)
            name = "phase_bus_consumer_replayed_total[troubled]"
            wait_until(lambda: values(url)[name] >= 20)
            assert values(url)["phase_bus_consumer_received_total[troubled]"] <= 21


def test_the_journal_is_moved_away(tmp_path: Path) -> None:
    """The bus is alive and not ready, and says why without a path."""
    with LiveBus("--health", "0") as bus:
        url = url_of(bus)
        assert verdict(f"{url}/readyz") == OK
        (bus.directory / "journal" / "journal.sqlite").rename(tmp_path / "moved")
        text = wait_until(lambda: (said := verdict(f"{url}/readyz"))[0] == 503 and said[1])
        assert text == "its journal was moved or deleted while the bus had it open\n"
        assert verdict(f"{url}/healthz") == OK
        assert values(url)["phase_bus_ready"] == 0
        assert "phase_bus_bus_dead_letters" not in values(url)


def test_the_disk_is_full(ipc_dir: Path, tmp_path: Path) -> None:
    """The bus is not ready until it can write again, though nobody publishes by then."""
    bus = JournaledBus(tmp_path, f"ipc://{ipc_dir}", options=("--health", "0"))
    try:
        url = health_url(bus.log)
        _, most = resource.prlimit(bus.pid, resource.RLIMIT_FSIZE)
        with Publisher(bus.address) as publisher:
            publisher.publish(start(1))
            assert publisher.flush(DEADLINE_S)
            resource.prlimit(bus.pid, resource.RLIMIT_FSIZE, (0, most))
            publisher.publish(start(2))
            text = wait_until(lambda: (said := verdict(f"{url}/readyz"))[0] == 503 and said[1])
            assert text.startswith("its journal ")
            assert str(tmp_path) not in text
        assert verdict(f"{url}/healthz") == OK
        resource.prlimit(bus.pid, resource.RLIMIT_FSIZE, (most, most))
        wait_until(lambda: verdict(f"{url}/readyz") == OK)
    finally:
        bus.kill()


def test_a_consumer_in_trouble(tmp_path: Path) -> None:
    """Its handler blocks, it cannot write out, its bus is gone: each is told, and over when it is."""
    with LiveBus("--silent-after-s", "2") as bus, troubled(tmp_path, bus) as process:
        url = health_url(process.log)
        wait_until(lambda: verdict(f"{url}/readyz") == OK)

        (tmp_path / "full").touch()
        publish(bus.address, 1)
        text = wait_until(lambda: (said := verdict(f"{url}/readyz"))[0] == 503 and said[1])
        assert text == "it cannot write out what it has handled; its log says why\n"  # no secret
        assert verdict(f"{url}/healthz") == OK
        (tmp_path / "full").unlink()
        wait_until(lambda: verdict(f"{url}/readyz") == OK)

        (tmp_path / "stuck").touch()
        publish(bus.address, 1)
        text = wait_until(lambda: (said := verdict(f"{url}/healthz"))[0] == 503 and said[1])
        assert text.startswith("its loop has not turned for 5.")
        assert verdict(f"{url}/readyz")[0] == 503
        assert values(url)["phase_bus_loop_age_seconds"] > 5
        (tmp_path / "stuck").unlink()
        wait_until(lambda: verdict(f"{url}/healthz") == verdict(f"{url}/readyz") == OK)

        bus.kill()
        text = wait_until(lambda: (said := verdict(f"{url}/readyz"))[0] == 503 and said[1])
        assert text == "the bus does not answer\n"
        assert values(url)["phase_bus_consumer_connected[troubled]"] == 0
        assert verdict(f"{url}/healthz") == OK
        bus.start()
        wait_until(lambda: verdict(f"{url}/readyz") == OK)
        assert process.terminate() == 0


def test_clients_that_say_nothing_during_a_run() -> None:
    """They hold up neither the probes nor the bus."""
    with LiveBus("--health", "0") as bus:
        url = url_of(bus)
        port = int(url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        try:
            begin_s = time.monotonic()
            publish(bus.address, 200)
            assert verdict(f"{url}/healthz") == OK
            assert time.monotonic() - begin_s < 4
            wait_until(lambda: values(url)["phase_bus_bus_records_total"] == 200)
            with RawClient(bus.address) as raw:
                assert raw.status().events >= 400
        finally:
            for each in silent:
                each.close()


def test_workers(workplace: Workplace) -> None:
    """Each has a port of its own, one after the other; together they have received everything."""
    with LiveBus() as bus:
        port = free_ports(2)
        words = ("consume", "aggregator", "--workers", "2", "--address", bus.address)
        pool = workplace.phase_bus(*words, "--health", str(port))
        wait_for(lambda: len(health_urls(workplace.stdout(pool))) == 2, "two places", 30.0)
        urls = sorted(health_urls(workplace.stdout(pool)))
        assert urls == [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"]
        wait_until(lambda: all(verdict(f"{url}/readyz") == OK for url in urls))
        publish(bus.address, 50, end=True)
        offset = bus.status().offset
        name = "phase_bus_consumer_received_total[aggregator]"
        wait_until(lambda: sum(values(url)[name] for url in urls) >= 101, 20)
        assert max(values(url)["phase_bus_consumer_offset[aggregator]"] for url in urls) >= offset
        pool.terminate()
        assert workplace.finish(pool).returncode == 0


def test_a_file_for_up(workplace: Workplace) -> None:
    """``health:`` of the bus and of each consumer; without it nothing listens."""
    consumers = [{"use": "logging", "health": 0}, {"use": "metrics"}]
    config = {"bus": {"health": "127.0.0.1:0"}, "consumers": consumers}
    (workplace.directory / "bus.yaml").write_text(yaml.safe_dump(config))
    up = workplace.phase_bus("up", "-c", "bus.yaml", "--address", "tcp://127.0.0.1:0")

    def urls() -> list[str]:
        return health_urls(workplace.stdout(up) + workplace.stderr(up))

    wait_for(lambda: len(urls()) == 2, "two places", 30.0)
    wait_until(lambda: all(verdict(f"{url}/readyz") == OK for url in urls()))
    assert sum("phase_bus_bus_offset" in values(url) for url in urls()) == 1
    up.terminate()
    workplace.finish(up)


@pytest.mark.parametrize("command", ["bus", "consume logging", "consume aggregator --workers=2"])
def test_a_port_in_use(workplace: Workplace, command: str) -> None:
    """One line, before anything else is done."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = workplace.run(
            *command.split(), "--address", f"ipc://{workplace.directory}/b", "--health", str(port)
        )
    assert_one_line(
        done.returncode, done.stderr, "--health ", ": Address already in use; give another place"
    )


def test_without_the_extra(workplace: Workplace) -> None:
    """One line says what to install; who does not want it needs nothing."""
    hide = "import sys; sys.modules['prometheus_client'] = None; from phase_bus.cli import main; main()"
    done = workplace.finish(workplace.start(sys.executable, "-c", hide, "bus", "--health", "0"))
    assert_one_line(done.returncode, done.stderr, "--health: ", "pip install 'phase-bus[prometheus]'")


def test_status_says_why_and_from_where(workplace: Workplace) -> None:
    """What was refused is in ``status`` for people and for scripts."""
    with LiveBus() as bus, RawClient(bus.address) as raw:
        raw.socket.send(b"\xc1")
        wait_until(lambda: bus.status().rejected)
        shown = workplace.run("status", "--address", bus.address)
        (told,) = json.loads(workplace.run("status", "--json", "--address", bus.address).stdout)["rejected"]
    assert (told["reason"], told["count"]) == ("malformed", 1)
    assert told["last_from"] in shown.stdout
    assert "malformed" in shown.stdout
    assert "pid " in told["last_from"]


def free_ports(count: int) -> int:
    """Return the first of some ports in a row that are free, most likely still when they are used."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = int(first.getsockname()[1])
            try:
                for number in range(1, count):
                    socket.create_server(("127.0.0.1", port + number)).close()
            except OSError:
                continue
            return port
