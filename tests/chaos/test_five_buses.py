"""Five buses with a benchmark each forward into one stream, on which a group and a database work."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from phase_bus.events import Receipt
from phase_bus.testing.waiting import wait_until
from tests.support.fleet import await_results, forwarding_bus, worker
from tests.support.load import Load, check_forwarded, forwarded
from tests.support.processes import consumer
from tests.support.servers.nats import NatsServer

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(240)]

BUSES = 5
WORKERS = 4
RECORDS = 1500  # at least, of each run


def test_five_buses_into_one_stream(tmp_path: Path, ipc_dir: Path, nats: NatsServer) -> None:
    """Runs are kept apart, each request is in the database once, all receipts are whole."""
    database = tmp_path / "rows.sqlite"
    with ExitStack() as stack:
        buses = [
            stack.enter_context(forwarding_bus(tmp_path / f"bus-{n}", f"ipc://{ipc_dir}/{n}", nats.url))
            for n in range(BUSES)
        ]
        workers = [stack.enter_context(worker(tmp_path, number, nats.url)) for number in range(WORKERS)]
        sql = stack.enter_context(consumer(tmp_path, "sql", nats.url, f"url=sqlite:///{database}"))
        loads = [stack.enter_context(Load(b.address, f"run-{n}", 300.0)) for n, b in enumerate(buses)]
        wait_until(lambda: all(load.records >= RECORDS for load in loads), 60)
        workers[1].kill()
        workers[1].start()
        runs = {load.run_id: load.end() for load in loads}
        await_results(tmp_path / "team.json", runs, *workers, timeout_s=120.0)
        wait_until(lambda: rows(database) == runs, 60)
        check_forwarded(forwarded(nats.url), runs)

        # The forwarders' come by way of their buses.
        expected = {(name, run_id) for name in ("team", "sql", "forward") for run_id in runs}
        wait_until(lambda: set(receipts(nats)) >= expected, 60)
        for receipt in receipts(nats).values():
            assert receipt.complete, receipt
        assert set(receipts(nats)) == expected
        for process in (*workers, sql, *buses):
            assert process.terminate() == 0, process.tail()


def rows(database: Path) -> dict[str, int]:
    """Return how many different requests the database has of each run."""
    if not database.exists():
        return {}
    query = "SELECT run_id, session_num FROM phase_bus_records"
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            found = connection.execute(query).fetchall()
    except sqlite3.OperationalError:  # there is no table yet
        return {}
    assert len(found) == len(set(found)), "requests are there more than once"
    return dict(Counter(run_id for run_id, _ in found))


def receipts(nats: NatsServer) -> dict[tuple[str, str], Receipt]:
    """Return the last receipt in the stream of each consumer for each run."""
    events = (each.event for each in forwarded(nats.url))
    return {(event.consumer, event.run_id): event for event in events if isinstance(event, Receipt)}
