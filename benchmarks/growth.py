"""What each of the other benchmarks measures, at 1, 4 and 16 times the load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks import aggregation, batches, cost, latency, peers, shapes
from benchmarks.harness import Child, Plan, Report, Spread, Table, alternate, directory, run, spread
from benchmarks.replay import Journal
from benchmarks.routes import bus_route
from phase_bus.aiperf.mapping import RECORD_FIELDS
from phase_bus.core.wire import encode_event
from phase_bus.publisher.publisher import Publisher

QUESTION = "Does anything cost more than its share when there is more of it?"
LOADS = (1, 4, 16)
_LATENCY_S = 0.5
_BATCH = 256

Sides = dict[int, Callable[[], float]]


def main() -> Report:
    """Measure, print, return."""
    return run("growth", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    rows, worst = [], []
    for title, unit, amount, rate, open_sides in (
        ("cost of a record to the benchmark", "µs", "1,024 records", False, _cost),
        ("through the bus, 200 B, one consumer", "events/s", "1,000 events", True, _delivery),
        ("records to percentiles, three consumers", "records/s", "1,024 records", True, _batches),
        ("RunState.update", "million values/s", "320 batches", True, _update),
        ("a summary of 16 partitions", "ms", "512 records a partition", None, _summary),
        ("replay from the journal, 200 B", "events/s", "2,000 events", True, _replay),
        ("latency through the bus, p50", "µs", "250 events/s", None, _latency),
    ):
        with open_sides() as sides:
            values = alternate({str(load): side for load, side in sides.items()}, _shorter(plan))
        found = [spread(values[str(load)]) for load in LOADS]
        growth = _growth(found, falling=rate is True)
        if rate is not None:
            worst.append(growth)
        rows.append([f"{title}, {unit}", amount, *(each.show() for each in found), growth.show()])
    report.figures["growth_worst"] = max(worst, key=lambda growth: growth.median)
    report.tables.append(
        Table(
            "The same at 1, 4 and 16 times the load",
            ["what", "1x is", *(f"{load}x" for load in LOADS), "a unit's cost at 16x, of 1x"],
            rows,
            "For a rate the last column is how many times slower it became. At 1x a summary sorts the "
            "values that partitions still keep; beyond, it merges sketches, and no longer depends on what "
            "they have counted. Latency is that of a rate.",
        )
    )
    report.notes.append("Memory against load is in `aggregation`, `groups` and `resources`.")


def _shorter(plan: Plan) -> Plan:
    """Three loads are more than one, and differences of a few per cent say nothing here."""
    return Plan(rounds=min(plan.rounds, 3), scale=plan.scale, limit_s=plan.limit_s / 4, least_rounds=1)


def _growth(found: list[Spread], *, falling: bool) -> Spread:
    first, last = found[0], found[-1]
    above, below = (first, last) if falling else (last, first)
    return Spread(above.median / below.median, above.low / below.high, above.high / below.low)


@contextmanager
def _cost() -> Iterator[Sides]:
    objects, _ = cost.objects_of(errors=0.0)
    with directory() as where, Child(peers.bus, f"ipc://{where}") as bus:
        bus.ready()
        with Publisher(f"ipc://{where}", field_names=RECORD_FIELDS) as publisher:
            yield {load: partial(cost.whole_us, publisher, objects, 1024 * load) for load in LOADS}


@contextmanager
def _delivery() -> Iterator[Sides]:
    event = shapes.event_of_size(200)
    with ExitStack() as stack:
        route = bus_route(stack, 1)
        route.choose(event)
        yield {load: partial(route.measure, 1000 * load, len(encode_event(event))) for load in LOADS}


@contextmanager
def _batches() -> Iterator[Sides]:
    pool = shapes.records(1024)
    with ExitStack() as stack:
        ways = {load: batches.Way(stack, batches.Aggregating, 1024 * load, _BATCH) for load in LOADS}
        yield {
            load: partial(way.measure, batches.recorder(way.publisher, pool)) for load, way in ways.items()
        }


@contextmanager
def _update() -> Iterator[Sides]:
    made = aggregation.batches_of(_BATCH)
    yield {
        load: lambda load=load: aggregation.values_per_s(made, 320 * load) / 1e6  # type: ignore[misc]
        for load in LOADS
    }


@contextmanager
def _summary() -> Iterator[Sides]:
    states = {load: aggregation.state_of(2 * load) for load in LOADS}
    yield {load: partial(aggregation.summary_ms, state) for load, state in states.items()}


@contextmanager
def _replay() -> Iterator[Sides]:
    event = shapes.event_of_size(200)
    with ExitStack() as stack:
        yield {load: Journal(stack, event, 2000 * load).read for load in LOADS}


@contextmanager
def _latency() -> Iterator[Sides]:
    with ExitStack() as stack:
        way = latency.bus_way(stack)
        yield {
            load: lambda load=load: way.measure(250 * load, _LATENCY_S)[50.0]  # type: ignore[misc]
            for load in LOADS
        }


if __name__ == "__main__":
    main()
