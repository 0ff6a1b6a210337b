"""``phase-bus consume``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from phase_bus.cli.health import health_server, told_health
from phase_bus.cli.options import (
    FromOption,
    NoNews,
    SourceAddressOption,
    StopOnEof,
    find_source,
    key_values,
    parse_origin,
    transport_of,
)
from phase_bus.cli.output import EXIT_NOT_WHOLE, configure_logging, end_with_reader, print_line, say
from phase_bus.core.collector import leave_alone_what_is_there
from phase_bus.core.health import nth_place
from phase_bus.errors import ConfigError
from phase_bus.harness.ending import CONSUMER_S, MARGIN_S, Ending

if TYPE_CHECKING:
    from phase_bus.consumer.consumer import Consumer
    from phase_bus.consumer.member import Member
    from phase_bus.harness.workers import WorkerPool


def consume(
    consumer: str,
    *,
    address: SourceAddressOption = None,
    set_: Annotated[
        list[str] | None, Parameter(name="--set", show=False)  # as it was once written
    ] = None,
    name: str | None = None,
    group: str | None = None,
    workers: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 1,
    from_: FromOption = "checkpoint",
    health: str | None = None,
    stop_timeout_s: Annotated[float, Parameter(validator=validators.Number(gt=0))] = CONSUMER_S,
    until_eof: StopOnEof = False,
    no_news: NoNews = False,
) -> int:
    """Run one consumer, in this process, until Ctrl-C or SIGTERM.

    It waits for the bus if there is none yet. The first signal lets it finish what has arrived and write
    it out; a second one ends it at once. If something it received is then not written out and committed,
    the exit code is 3, and a line says what: it comes again when the consumer is restarted.

    With --group, this process is one of several that share the work: each partition of the records is
    assigned to one of them, and if one dies, the others continue where it stopped.

    For example:

        phase-bus consume logging:verbose=true
        phase-bus consume my_module:MyConsumer --address tcp://127.0.0.1:5670
        phase-bus consume aggregator --from start
        phase-bus consume aggregator --workers 4
        phase-bus consume aggregator --health 9465
        phase-bus consume aggregator --group team --address tcp://10.0.0.5:5670
        phase-bus consume aggregator --group team --address nats://nats.example:4222
        phase-bus consume hook:my_module:MyHook:log_file=phases.log

    Args:
        consumer: A name that 'phase-bus consumers' lists, or module:Class, with options as
            NAME:key=value,key=value; 'hook:NAME' or 'processor:NAME', also with module:Class for NAME and
            several by commas, runs classes that are written for a phase hook's or post-processor's
            protocol; 'hooks' or 'processors' runs all that are loaded without being named.
        name: What to call it on the bus, which remembers by this name how far it has come; by default
            the consumer's own name.
        group: The group of processes that share the work, on this host or others; used instead of a name.
        workers: How many processes to start for the group, and to keep running; without --group it has
            the consumer's name.
        from_: Where to begin: 'checkpoint', where it left off (or the start, if it never ran); 'start',
            the first event in the bus's journal; 'now', what comes from now on; or after an OFFSET.
        health: Offer /healthz, /readyz and /metrics over HTTP at [HOST:]PORT; port 0 takes a free one. With
            --workers the second has the next port, and so on. Without a HOST only this machine can connect;
            beyond it anybody can, to read.
        stop_timeout_s: How many seconds it may take to end, half of them for what has arrived; then it is
            cut off. With --workers this holds for each, and those who wait for them take a little longer.
    """
    # Here, since they take longer to load than --help to show.
    from phase_bus.consumer.group_member import GroupMember
    from phase_bus.consumer.runner import ConsumerRunner
    from phase_bus.consumer.view import check_shareable
    from phase_bus.harness.workers import WorkerPool
    from phase_bus.plugins.build import build, group_of, is_adapted, parse_use
    from phase_bus.plugins.registry import Registry

    configure_logging(news=not no_news)
    end_with_reader()
    where = find_source(address)
    transport = transport_of(where)
    origin = parse_origin(from_)
    registry = Registry.load()
    consumer, options = parse_use(consumer)
    options |= key_values(set_)
    own_group = group_of(registry, consumer)
    title = group or name or own_group or consumer
    if "/" in title:
        raise ConfigError(
            f"a consumer cannot be called {title!r}; leave '/' out, which is for groups' shares"
        )
    if name and group and name != group:
        raise ConfigError("--name and --group: a group is called by its own name; leave --name out")

    def make() -> Consumer:
        return build(registry, consumer, title, options)

    eof = sys.stdin.fileno() if until_eof else None

    def run(host: Callable[[], Member]) -> int:
        async def main() -> int:
            member = host()
            async with told_health(member, server):
                return await _run(title, member, ending)

        with Ending(say, stop_timeout_s, eof=eof) as ending, health_server(health) as server:
            return asyncio.run(main())

    if not (group or own_group or workers > 1):
        drain_s = stop_timeout_s / 2
        return run(
            lambda: ConsumerRunner(make(), where, origin=origin, drain_s=drain_s, transport=transport)
        )
    if is_adapted(consumer):
        raise ConfigError(
            f"consumer {consumer!r}: hooks and processors are given whole phases, which cannot be shared "
            "out; leave --group and --workers out"
        )
    if origin != "checkpoint":
        raise ConfigError(
            f"--from {from_}: a group goes on from where it left off; give another --group, which begins "
            "at the start"
        )
    if workers == 1:
        told = ", ".join(f"{key}={value}" for key, value in sorted(options.items())) or "no options"
        settings = f"{consumer!r} with {told}"
        return run(partial(GroupMember, make, title, where, settings=settings, transport=transport))
    check_shareable(make())
    arguments = ["consume", consumer, "--group", title, "--address", str(where)]
    arguments += [f"--set={key}={value}" for key, value in options.items()]
    arguments += ["--stop-timeout-s", str(stop_timeout_s), *(("--no-news",) if no_news else ())]

    def arguments_of(number: int) -> list[str]:
        return arguments if health is None else [*arguments, "--health", nth_place(health, number)]

    arguments_of(workers)  # whose port may be beyond the last one there is
    pool = WorkerPool(
        arguments_of, workers, _say, stop_s=stop_timeout_s + MARGIN_S, own_groups=not until_eof
    )
    with Ending(say, stop_timeout_s + 2 * MARGIN_S, eof=eof) as ending:
        return asyncio.run(_run(title, pool, ending, pool.kill))


async def _run(
    title: str, running: Member | WorkerPool, ending: Ending, force: Callable[[], object] = lambda: None
) -> int:
    loop, name = asyncio.get_running_loop(), f"consumer {title!r}"
    stop = running.stop
    ending.begin(name, lambda: loop.call_soon_threadsafe(stop), left=running.left, force=force)
    leave_alone_what_is_there()
    try:
        await running.run()
    except OSError as error:
        raise ConfigError(
            f"consumer {title!r}: {error}; check the files and addresses among its options"
        ) from error
    if left := running.left():
        say(f"{name} has ended; {left}")
    return EXIT_NOT_WHOLE if left else 0


def _say(worker: str, line: str) -> None:
    print_line(f"{worker} | {line}" if worker else line)
