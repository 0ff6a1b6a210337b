"""Events a second to typed handlers, in direct mode and through the bus, against bare pyzmq and NATS."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks import nats_routes, nats_server, shapes
from benchmarks.harness import Plan, Report, Spread, Table, alternate, ratios, run, spread
from benchmarks.routes import Route, bare_route, bus_route, direct_route, handlers_route
from phase_bus.core.wire import encode_event

QUESTION = "How many events a second reach typed handlers, against bare pyzmq and NATS?"
_NOTE = "Events/s, median (least..largest). CPU: of one consumer, of what is between, of the sender; µs."


def main() -> Report:
    """Measure, print, return."""
    return run("delivery", QUESTION, measure)


def measure(plan: Plan, report: Report) -> None:
    """Fill in the report."""
    direct = _compare(plan, report, "direct", 1, _direct_routes)
    report.tables.append(Table("Direct mode, one consumer", _header("bare PUB/SUB"), direct, _NOTE))
    for consumers in (1, 3):
        rows = _compare(plan, report, f"bus{consumers}", consumers, _bus_routes)
        title = f"Through the bus, {consumers} consumer{'s' if consumers > 1 else ''}"
        report.tables.append(Table(title, _header("zmq.proxy"), rows, _NOTE))
    report.notes.append(
        "At most 5,000 events (8 MiB) are in flight on either side, so nothing is dropped; the bare side "
        "sends the very same frames, with their headers. The bus journals every event first; its publisher "
        "is acknowledged, the proxy's is not."
    )
    report.notes.append(
        "Bare: send_multipart and recv_multipart, as everybody writes it. By frame: a send and a recv for "
        "each of the three frames, which pyzmq does several times faster than its own multipart calls."
    )
    report.notes.append(nats_routes.NOTE if nats_server.program() else nats_server.MISSING)


def _header(bare: str) -> list[str]:
    return ["size", "what", "events/s", f"of bare {bare.removeprefix('bare ')}", "CPU µs an event", "lost"]


def _compare(
    plan: Plan,
    report: Report,
    key: str,
    consumers: int,
    open_routes: Callable[[ExitStack, int], dict[str, Route]],
) -> list[list[str]]:
    rows = []
    with ExitStack() as stack:
        routes = open_routes(stack, consumers)
        for label, size in shapes.SIZES.items():
            event = shapes.event_of_size(size)
            true_size = len(encode_event(event))
            for route in routes.values():
                route.choose(event)
                route.lost = 0
            count = plan.count(2000 if size > 16384 else 20_000)
            values = alternate(_sides(routes, count, true_size), plan)
            bare = next(iter(values))
            by_frame = ratios(values["phase-bus"], values["bare, by frame"])
            report.figures[f"{key}_{label.replace(' ', '')}_by_frame_ratio"] = by_frame
            for name, some in values.items():
                ratio = ratios(some, values[bare])
                _keep(report, f"{key}_{label.replace(' ', '')}_{name}", spread(some), ratio)
                route = routes[name]
                rows.append(
                    [f"{label} ({true_size:,} B)", name, spread(some).show(), ratio.show(), route.cpu(),
                     str(route.lost)]
                )  # fmt: skip
    return rows


def _sides(routes: dict[str, Route], count: int, size: int) -> dict[str, Callable[[], float]]:
    def side(route: Route) -> Callable[[], float]:
        return lambda: route.measure(count, size)

    return {name: side(route) for name, route in routes.items()}


def _keep(report: Report, key: str, rate: Spread, ratio: Spread) -> None:
    report.figures[f"{key}_per_s"] = rate
    report.figures[f"{key}_ratio"] = ratio


def _direct_routes(stack: ExitStack, consumers: int) -> dict[str, Route]:
    routes: dict[str, Route] = {
        "bare": bare_route(stack, consumers, proxied=False),
        "bare, by frame": bare_route(stack, consumers, proxied=False, by_frame=True),
        "handlers, bare sender": handlers_route(stack, consumers),
        "phase-bus": direct_route(stack, consumers),
    }
    time.sleep(1.0)  # in direct mode nobody is told when a subscription is in force
    return routes


def _bus_routes(stack: ExitStack, consumers: int) -> dict[str, Route]:
    return {
        "bare": bare_route(stack, consumers, proxied=True),
        "bare, by frame": bare_route(stack, consumers, proxied=True, by_frame=True),
        "phase-bus": bus_route(stack, consumers),
        **nats_routes.routes(stack, consumers),
    }


if __name__ == "__main__":
    main()
