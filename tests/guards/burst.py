"""Two processes to be looked at from outside: one publishes a burst, one takes it; both say when.

python -m tests.guards.burst KIND NAME COUNT --address ADDRESS    KIND: "records", "events", "singles"
phase-bus consume tests.guards.burst:Taker
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks import shapes
from phase_bus.consumer.consumer import Consumer
from phase_bus.events import EventBase, PhaseRef, PhaseStart, Records
from phase_bus.publisher.publisher import Publisher
from phase_bus.testing.waiting import wait_until

BATCH = 256
DONE_S = 60.0
_APART_S = 0.01  # until all of it has gone to sleep again


class Taker(Consumer):
    """Do nothing with records and events; tell when a burst is over."""

    name = "taker"

    async def on_records(self, event: Records) -> None:
        """Take it."""

    async def on_event(self, event: EventBase) -> None:
        """Take it."""
        if isinstance(event, PhaseStart):
            tell(event.phase.name)


def tell(what: str) -> None:
    """Say that something is so now."""
    print(f"moment {what} {time.time()}", flush=True)


def moments(log: Path) -> dict[str, float]:
    """Return when a process said what, as of :func:`time.time`."""
    told = (line.split() for line in log.read_text().splitlines() if line.startswith("moment "))
    return {words[1]: float(words[2]) for words in told if len(words) == 3}


def main(kind: str, name: str, count: int, address: str) -> None:
    """Publish a small burst first, by which everything is in place, and then one that counts.

    Singles are no burst: each comes when all that the one before has caused is asleep again.
    """
    records, event = shapes.records(BATCH), shapes.event_of_size(200)
    # Nothing may be dropped, however slow it is under a tracer; only a full batch is closed.
    with Publisher(address, buffer_bytes=1 << 30, batch_records=BATCH, batch_s=DONE_S) as publisher:
        wait_until(lambda: publisher.connected)

        def publish(count: int) -> None:
            for number in range(count):
                if kind == "records":
                    publisher.record(shapes.RUN_ID, shapes.PHASE, *records[number % BATCH])
                else:
                    publisher.publish(event)
                    if kind == "singles":
                        time.sleep(_APART_S)

        publish(2 * BATCH if kind != "singles" else 1)
        assert publisher.flush(DONE_S)
        tell("begin")
        publish(count)
        publisher.publish(PhaseStart(run_id=shapes.RUN_ID, phase=PhaseRef(name)))
        assert publisher.flush(DONE_S)
        tell("end")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[5])
