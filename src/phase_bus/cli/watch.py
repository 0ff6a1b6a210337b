"""``phase-bus watch``."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING

from phase_bus.cli.options import FoundAddressOption, find_bus
from phase_bus.cli.output import configure_logging, end_with_reader, make_console, say
from phase_bus.errors import ConfigError, suggest
from phase_bus.harness.ending import CLIENT_S, Ending

if TYPE_CHECKING:
    from phase_bus.core.address import Address
    from phase_bus.core.control import RunInfo, Status

_LOOK_S = 0.2


def watch(run: str | None = None, /, *, address: FoundAddressOption = None) -> None:
    """Show how a run goes, or all runs on a bus, in a block that is drawn anew twice a second.

    Also a run that began before, and one of another terminal's 'exec'. In a pipe there are lines instead.
    With RUN it ends when that does; otherwise by Ctrl-C. A bus has to be running, else the exit code is 2.

    For example:

        phase-bus watch
        phase-bus watch latest --address tcp://127.0.0.1:5670

    Args:
        run: The run's id or at least its first 4 letters, its label, or 'latest', which may be one yet to
            come.
    """
    from phase_bus.core.client import BusClient

    configure_logging()
    end_with_reader()
    where = find_bus(address)
    with BusClient(where) as client:
        status = client.status()
    chosen = None if run is None else _chosen(run, status, where)
    if chosen is not None and chosen.status != "running":
        say(
            f"run {chosen.run_id} has ended as {chosen.status}; 'phase-bus report {chosen.run_id}' shows it"
        )
        return
    with Ending(say, CLIENT_S) as ending:
        asyncio.run(
            _watch(where, None if chosen is None else chosen.run_id, ending, to_its_end=run is not None)
        )


def _chosen(run: str, status: Status, where: Address) -> RunInfo | None:
    """Return the run that is meant; None for the latest one if there is none yet."""
    from phase_bus.cli.journals import LATEST, find_runs, labels_of, looking, match_run

    by_id = {info.run_id: info for info in status.runs}

    @cache  # a bus is asked for its past once
    def labels() -> dict[str, str]:
        if status.journal is None:
            return {}
        with looking(None, str(where)) as past:
            return {label: each for label, each in labels_of(find_runs(past)).items() if each in by_id}

    run_id = match_run(run, list(by_id), labels)
    if run_id is None and run != LATEST:
        raise ConfigError(f"there is no run {run!r} on this bus{suggest(run, [*by_id, *labels(), LATEST])}")
    return None if run_id is None else by_id[run_id]


async def _watch(where: Address, run_id: str | None, ending: Ending, *, to_its_end: bool) -> None:
    """Show events from now on, of one run or of all, until a signal, or the end of the one run."""
    from phase_bus.consumer.consumer import named
    from phase_bus.consumer.runner import ConsumerRunner
    from phase_bus.core.client import BusClient
    from phase_bus.errors import PhaseBusError
    from phase_bus.harness.live import Live, is_free
    from phase_bus.harness.progress import Progress

    console = make_console()
    progress = named(Progress(console), "watch")
    client = BusClient(where)

    async def status() -> Status | None:
        try:
            return await asyncio.to_thread(client.status, 1.0)
        except PhaseBusError:
            return None

    live = Live(progress, console, status)
    runner = ConsumerRunner(
        progress,
        where,
        receipts=False,
        topics=None if run_id is None else _topics_of(run_id),
        origin="now",
        on_ready=lambda: progress.note(f"watching {f'run {run_id}' if run_id else 'all runs'} at {where}"),
    )
    loop = asyncio.get_running_loop()
    ending.begin("watch", lambda: loop.call_soon_threadsafe(runner.stop), force=live.clear)

    async def stop_at_its_end() -> None:
        while True:
            ended = [ended for ended, end in progress.ended.items() if not end.running]
            if run_id in ended or (run_id is None and ended):
                runner.stop()
                return
            await asyncio.sleep(_LOOK_S)

    if is_free(console):
        live.start()
    stopping = asyncio.create_task(stop_at_its_end()) if to_its_end else None
    try:
        await runner.run()
    finally:
        if stopping is not None:
            stopping.cancel()
        await live.stop()
        client.close()
    for ended in progress.ended if to_its_end else ():
        progress.note(f"'phase-bus report {ended}' shows its result")


def _topics_of(run_id: str) -> tuple[str, ...]:
    from phase_bus.consumer.view import EVENT_TOPICS
    from phase_bus.core.control import PARTITIONS
    from phase_bus.core.wire import TOPIC_END, partition_prefix

    prefixes = (*EVENT_TOPICS, *map(partition_prefix, range(PARTITIONS)))
    return tuple(f"{prefix.decode()}{run_id}{TOPIC_END}" for prefix in prefixes)
