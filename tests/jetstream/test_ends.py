"""Whether a run goes on after an end that was handled shows in the stream."""

from __future__ import annotations

from phase_bus.core.control import Beat
from phase_bus.events import EventBase, PhaseRef, Receipt, Records, RunComplete, RunStart, Summary
from phase_bus.jetstream.ends import Ends
from tests.support.servers.nats import NatsServer
from tests.support.streams import append, entry_of, opened

END = RunComplete(run_id="run", status="completed")
RECORDS = Records(run_id="run", phase=PhaseRef("profiling"), partition=7, count=0)
SUMMARY = Summary(run_id="run", producer="p", final=True, result={})
RECEIPT = Receipt(run_id="run", consumer="c", consumer_id="cd" * 16, topics={})


async def test_a_run_that_goes_on_is_not_handled(nats: NatsServer) -> None:
    async with opened(nats.url) as (connection, stream, _):
        numbers = iter(range(1, 20))

        async def add(*events: EventBase) -> None:
            for event in events:
                await append(connection, stream, "ab" * 16, entry_of(event, next(numbers)))

        async def told(ends: Ends, *runs: str, end: int = 3) -> tuple[str, ...]:
            """Return which of the runs, all handled with an end at an offset, a beat still names."""
            beat = Beat(client_id="a", state="ready", handled_runs=runs, handled_ends=(end,) * len(runs))
            return (await ends.without_going_on(beat)).handled_runs

        await add(RunStart(run_id="run"), RECORDS, END, RECEIPT, SUMMARY)
        ends = Ends(connection, stream.name)
        assert await told(ends, "run", "other") == ("run", "other")
        assert await told(Ends(connection, stream.name), "run", end=1) == ()
        await add(RECORDS)
        assert await told(ends, "run") == ("run",), "it was judged already"
        ends = Ends(connection, stream.name)
        assert await told(ends, "run", "other") == ("other",)
        await add(END)
        assert await told(ends, "run", "other", end=7) == ("run", "other")
