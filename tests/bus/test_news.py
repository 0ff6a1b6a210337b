"""What bus and consumer say of themselves: who comes and goes, when a run begins and ends, a line each."""

from __future__ import annotations

import asyncio
import logging

import pytest

from phase_bus import Consumer, PhaseStart
from phase_bus.cli.output import configure_logging
from phase_bus.consumer.consumer import named
from phase_bus.consumer.runner import ConsumerRunner
from phase_bus.core.address import Address
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing import make_run
from phase_bus.testing.waiting import until
from tests.support.buses import DurableBus

NEWS = ("phase_bus.bus.news", "phase_bus.consumer.news")


class Phases(Consumer):
    """Takes events of phases, and no beginning of a run."""

    async def on_phase_start(self, event: PhaseStart) -> None:
        """Do nothing."""


async def test_a_line_for_each_thing_that_happens(
    kept: DurableBus, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "phase_bus")
    runner = ConsumerRunner(named(Phases(), "phases"), Address.parse(kept.address))
    onlooker = ConsumerRunner(named(Phases(), "looks"), Address.parse(kept.address), receipts=False)
    running = [asyncio.create_task(each.run()) for each in (runner, onlooker)]
    with Publisher(kept.address, name="bench") as publisher:
        for event in make_run(20, run_id="one"):
            publisher.publish(event)
        await asyncio.to_thread(publisher.flush, 10.0)
    for come in ("run one completed; handled all", "onlooker 'looks' is here"):
        await until(lambda come=come: any(come in line for line in caplog.messages))  # type: ignore[misc]
    runner.stop()
    onlooker.stop()
    await asyncio.gather(*running)
    for gone in ("'phases' has left", "'looks' has left", "'bench' has left"):
        await until(lambda gone=gone: any(gone in line for line in caplog.messages))  # type: ignore[misc]
    said = [r.getMessage().partition(" (pid")[0] for r in caplog.records if r.name in NEWS]
    of_bus = [line for line in said if not line.startswith("consumer 'phases':")]
    assert sorted(of_bus) == sorted(
        [
            *("consumer 'phases' is here", "consumer 'phases' has left"),
            *("onlooker 'looks' is here", "onlooker 'looks' has left"),
            *("publisher 'bench' is here", "publisher 'bench' has left"),
            "run one started, published by bench",
            next(line for line in said if line.startswith("run one completed: ")),
        ]
    )
    connected, begins, ended = [line for line in said if line.startswith("consumer 'phases':")]
    assert connected == f"consumer 'phases': connected to the bus at {kept.address}"
    assert begins == "consumer 'phases': run one begins"
    assert ended.startswith("consumer 'phases': run one completed; handled all of it: ")


def test_processes_of_a_rig_say_nothing_of_that() -> None:
    """Which shows it itself."""
    loggers = [logging.getLogger(name) for name in NEWS]
    try:
        configure_logging(news=False)
        assert not any(logger.isEnabledFor(logging.INFO) for logger in loggers)
        configure_logging()
        assert logging.getLogger("phase_bus.bus").isEnabledFor(logging.INFO)
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
