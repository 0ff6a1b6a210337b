"""A consumer that reads all from the journal, against one that gets the same events live."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from benchmarks import peers, shapes
from benchmarks.harness import (
    Child,
    Plan,
    Report,
    Table,
    alternate,
    cpu_s,
    directory,
    ratios,
    run,
    shared_counts,
    spread,
    wait_for,
)
from benchmarks.routes import bus_route
from phase_bus.core.wire import encode_event
from phase_bus.events import EventBase
from phase_bus.publisher.publisher import Publisher

QUESTION = "How many events a second does a consumer get from the journal, against live?"
_LIMIT_S = 30.0
_CHUNK = 200
_RECORDS = 256  # in a batch, of those


def main() -> Report:
    """Measure, print, return."""
    return run("replay", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    rows = []
    for label, event, full in _loads():
        count = plan.count(full)
        size = len(encode_event(event))
        with ExitStack() as stack:
            live = bus_route(stack, 1)
            live.choose(event)
            past = Journal(stack, event, count)
            sides: dict[str, Callable[[], float]] = {
                "replay": past.read,
                "live": partial(live.measure, count, size),
            }
            values = alternate(sides, plan)
        key = label.replace(" ", "")
        gain = ratios(values["replay"], values["live"])
        report.figures[f"replay_{key}_per_s"] = spread(values["replay"])
        report.figures[f"replay_{key}_over_live"] = gain
        rows.append(
            [
                f"{label} ({size:,} B)",
                f"{count:,}",
                *(spread(values[side]).show() for side in ("replay", "live")),
                gain.show(),
                past.cpu(),
                live.cpu(),
            ]
        )
    report.tables.append(
        Table(
            "One consumer of all events, events/s",
            ["size", "events", "replay", "live", "of live", "CPU of replay", "CPU of live"],
            rows,
            "CPU: of the consumer, of the bus and, live, of the publisher; µs an event.",
        )
    )
    report.notes.append(
        "Replay: from when a consumer that has never been here is let go to its last event; hello and "
        "subscriptions are in it. Live: as in delivery, with the publisher on the same two cores."
    )


def _loads() -> list[tuple[str, EventBase, int]]:
    """Return what is replayed: its name, an event of it, and how many in the full form."""
    small = [(label, shapes.event_of_size(size), 40_000) for label, size in shapes.SIZES.items()]
    return [*small[:2], (*small[2][:2], 5000), (f"{_RECORDS} records", shapes.batch(_RECORDS), 3000)]


class Journal:
    """A bus whose journal holds so many events, until the stack is closed.

    Attributes:
        address: where it is.
        bus: its process.
    """

    def __init__(self, stack: ExitStack, event: EventBase, count: int) -> None:
        self.address = f"ipc://{stack.enter_context(directory())}"
        self.bus = stack.enter_context(Child(peers.bus, self.address))
        self.bus.ready()
        self._count = count
        self._cpu_us: list[tuple[float, float]] = []
        with Publisher(self.address, buffer_bytes=1 << 30) as publisher:
            for number in range(1, count + 1):
                publisher.publish(event)
                # Batches of records are refused where too many wait.
                if (number % _CHUNK == 0 or number == count) and not publisher.flush(_LIMIT_S):
                    raise RuntimeError("the bus did not take all events")

    def read(self) -> float:
        """Let a new consumer read all of it; return events/s."""
        counts = shared_counts(1)
        with Child(peers.late_consumer, peers.Counting, self.address, counts, 0) as reader:
            reader.ready()
            before = cpu_s(reader.pid), self.bus.cpu_s()
            started_s = time.monotonic()
            reader.connection.send("go")
            if not wait_for(lambda: bool(counts[0] >= self._count), _LIMIT_S):
                raise RuntimeError(f"{self._count - counts[0]} events were not replayed")
            took_s = time.monotonic() - started_s
            spent = cpu_s(reader.pid) - before[0], self.bus.cpu_s() - before[1]
        self._cpu_us.append((spent[0] / self._count * 1e6, spent[1] / self._count * 1e6))
        return self._count / took_s

    def cpu(self) -> str:
        """Return the CPU an event costs the consumer and the bus."""
        return " / ".join(f"{spread(column).median:.1f}" for column in zip(*self._cpu_us, strict=True))


if __name__ == "__main__":
    main()
