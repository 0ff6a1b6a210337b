"""A consumer group of one worker and of two, from a prepared journal; and the memory of a worker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil

from benchmarks import peers
from benchmarks.harness import Child, Plan, Report, Table, alternate, directory, ratios, run, spread
from phase_bus.core.address import Address
from phase_bus.core.client import BusClient
from phase_bus.core.control import GroupInfo

QUESTION = "How many records a second does a group aggregate with one worker, with two, in what memory?"
_RUN = "prepared"
_LIMIT_S = 120.0
_LOOK_S = 0.02  # a look takes the bus and this process 0.4 ms, and the workers have both processors
_RECORDS = 1_500_000  # in every form: with less it is measured how a group comes together, for 0.3 s
_MEMORY_RECORDS = 10_000_000  # in the full form; a tenth of them is the other point
_SHORTER = 5  # times fewer in the other forms, beyond their scale


def main() -> Report:
    """Measure, print, return."""
    return run("groups", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    with directory() as where:
        address = f"ipc://{where}"
        with Child(peers.bus, address) as bus, BusClient(Address.parse(address)) as client:
            bus.ready()
            _prepare(address, _RECORDS)
            _throughput(plan, report, client, address, bus)
            _memory(plan, report, client, address)


def _prepare(address: str, records: int, run_id: str = _RUN) -> None:
    command = [sys.executable, "-m", "phase_bus", "simulate", "--rate", "0", "--warmup", "0"]
    command += ["--requests", str(records), "--run-id", run_id, "--address", address]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def _throughput(plan: Plan, report: Report, client: BusClient, address: str, bus: Child) -> None:
    turn = iter(range(1_000_000))
    cpu: dict[int, list[float]] = {1: [], 2: []}
    bus_cpu: dict[int, list[float]] = {1: [], 2: []}

    def side(workers: int) -> Callable[[], float]:
        def measure_once() -> float:
            before_s = bus.cpu_s()
            took_s, used_s = _aggregate(client, address, f"g{next(turn)}", workers)
            cpu[workers].append(used_s / _RECORDS * 1e6)
            bus_cpu[workers].append((bus.cpu_s() - before_s) / _RECORDS * 1e6)
            return _RECORDS / took_s

        return measure_once

    values = alternate({"1": side(1), "2": side(2)}, plan)
    report.tables.append(
        Table(
            f"Aggregation of {_RECORDS:,} records by a group, from the journal",
            ["workers", "records/s", "CPU of the workers, µs a record", "CPU of the bus, µs a record"],
            [
                [name, spread(rates).show(), *(spread(c[int(name)][1:]).show() for c in (cpu, bus_cpu))]
                for name, rates in values.items()
            ],
            "From when the members say hello to when the group's final summary and receipt are on the bus.",
        )
    )
    speedup = ratios(values["2"], values["1"])
    report.figures["group_1_records_per_s"] = spread(values["1"])
    report.figures["group_2_records_per_s"] = spread(values["2"])
    report.figures["group_speedup_2"] = speedup
    report.notes.append(
        f"Two workers are {speedup.show()} times as fast as one: an efficiency of "
        f"{speedup.median / 2:.0%}. They read the journal's file themselves; the bus keeps their commits."
    )


def _aggregate(client: BusClient, address: str, name: str, workers: int) -> tuple[float, float]:
    """Let a group aggregate the prepared run; return how long it took, and the workers' CPU time, in s."""
    with ExitStack() as stack:
        members = [stack.enter_context(Child(peers.member, address, name)) for _ in range(workers)]
        for member in members:
            member.ready()
        before_s = sum(member.cpu_s() for member in members)
        started_s = time.monotonic()
        for member in members:
            member.connection.send("go")
        _wait_handled(client, name, _RUN)
        took_s = time.monotonic() - started_s
        return took_s, sum(member.cpu_s() for member in members) - before_s


def _wait_handled(client: BusClient, name: str, run_id: str) -> None:
    deadline_s = time.monotonic() + _LIMIT_S
    while run_id not in (((group := _group(client, name)) and group.handled_runs) or ()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"group {name} did not handle {run_id} within {_LIMIT_S:g} s")
        time.sleep(_LOOK_S)


def _group(client: BusClient, name: str) -> GroupInfo | None:
    return next((group for group in client.status().groups if group.name == name), None)


def _memory(plan: Plan, report: Report, client: BusClient, address: str) -> None:
    """One worker and a long run, looked at when a tenth is done and at the end."""
    records = plan.count(_MEMORY_RECORDS) // (_SHORTER if plan.scale < 1 else 1)
    with Child(peers.member, address, "memory") as member:
        member.ready()
        member.connection.send("go")
        _wait_handled(client, "memory", _RUN)
        process = psutil.Process(member.pid)
        sizes = []
        done = 0
        for number, part in enumerate((records // 10, records - records // 10)):
            _prepare(address, part, f"memory-{number}")
            _wait_handled(client, "memory", f"memory-{number}")
            done += part
            sizes.append((done, process.memory_info().rss / 1e6))
    report.tables.append(
        Table(
            "Memory of the one worker that aggregates all of a live run",
            ["records", "resident MB"],
            [[f"{count:,}", f"{size:.0f}"] for count, size in sizes],
        )
    )
    report.figures["group_memory_growth_10x"] = spread([sizes[1][1] / sizes[0][1]])


if __name__ == "__main__":
    main()
