"""``phase-bus bus``."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import Parameter, validators

from phase_bus.bus.connections import raise_limit
from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.cli.health import health_server
from phase_bus.cli.options import (
    DEFAULT_LIMITS,
    AddressesOption,
    ForwardOption,
    LimitOptions,
    StopOnEof,
    as_options,
)
from phase_bus.cli.output import EXIT_NOT_WHOLE, configure_logging, print_line, say
from phase_bus.core.address import Address, default_address
from phase_bus.core.collector import leave_alone_what_is_there
from phase_bus.core.keys import check_all_guarded, find_key
from phase_bus.errors import ConfigError
from phase_bus.harness.ending import BUS_S, Ending
from phase_bus.journal.paths import journal_directory, make_state_directory
from phase_bus.journal.rows import Limits
from phase_bus.journal.running import listed
from phase_bus.journal.writer import Journal

if TYPE_CHECKING:
    from phase_bus.harness.config import ConsumerConfig

    _Options = BusOptions
else:
    _Options = as_options(BusOptions)
_DEFAULTS = _Options()
_FORWARD_S = 10.0


def bus(
    *,
    address: AddressesOption = None,
    options: _Options = _DEFAULTS,
    data: Annotated[Path | None, Parameter(help="Directory of the journal. Default: by address.")] = None,
    no_journal: Annotated[
        bool,
        Parameter(
            help="Keep events in memory only. Given up: replay for late, slow and restarted consumers, "
            "and every command that looks at past runs."
        ),
    ] = False,
    limits: LimitOptions = DEFAULT_LIMITS,
    forward: ForwardOption = None,
    forward_timeout_s: Annotated[
        float,
        Parameter(
            validator=validators.Number(gte=0),
            help="How many seconds the bus may take, when it is to end, to forward what is left.",
        ),
    ] = _FORWARD_S,
    insecure: Annotated[
        bool,
        Parameter(help="Ask nobody for a key: anybody who can connect to a tcp address may do everything."),
    ] = False,
    health: Annotated[
        str | None,
        Parameter(
            help="Offer /healthz, /readyz and /metrics over HTTP at [HOST:]PORT; port 0 takes a free one. "
            "Without a HOST only this machine can connect; beyond it anybody can, to read."
        ),
    ] = None,
    stop_on_eof: StopOnEof = False,
) -> int:
    """Run the bus: take events in, acknowledge them, fan them out to consumers.

    Publishers and consumers may be started before or after it. Every event is in its journal before it is
    acknowledged, so a consumer that is late, slow or restarted gets everything from there. Ctrl-C or
    SIGTERM lets it finish what it has received, for 10 seconds at most; a second signal ends it at once.

    If there is a key file ('phase-bus keys'), clients need a key to connect to a tcp address. If there is
    none, only clients on this machine may connect.

    With --forward, it goes on until what it has is forwarded, for --forward-timeout-s at most. If something
    is left then, the exit code is 3, and a line says how much: it is forwarded after the next start.

    For example:

        phase-bus bus --address ipc:///tmp/my-bus
        phase-bus bus --address tcp://0.0.0.0:5670 --address ipc:///tmp/my-bus
        phase-bus bus --health 9464
        phase-bus bus --forward nats://nats.example:4222
    """
    configure_logging(news=not stop_on_eof)
    raise_limit()
    addresses = [Address.parse(text) for text in address or [default_address()]]
    by_tcp = any(each.scheme == "tcp" for each in addresses)
    key = find_key() if by_tcp and not insecure else None
    check_all_guarded(addresses, key, insecure=insecure)  # before there is a journal
    try:
        behaviour = msgspec.convert(options, BusOptions, from_attributes=True)
        kept = msgspec.convert(limits, Limits, from_attributes=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{error}; give another value") from None
    forwarding = None if forward is None else _forwarding(forward, journal=not no_journal)
    directory = data or journal_directory(addresses[0])
    if data is None and not no_journal:
        with suppress(OSError):  # the journal says it better
            make_state_directory()
    eof = sys.stdin.fileno() if stop_on_eof else None
    with Ending(say, BUS_S, eof=eof) as ending, health_server(health) as told, ExitStack() as stack:
        journal = None if no_journal else Journal(directory, kept, options.durability)
        server = Bus(addresses, behaviour, journal, key, insecure=insecure)
        left = "what it has acknowledged is in its journal" if journal else ""
        ending.begin("the bus", server.stop, left=lambda: left, force=server.remove_sockets)
        try:
            server.bind()
            if forwarding is not None:
                _start_beside(forwarding, server, ending, stack, left, forward_timeout_s, insecure=insecure)
            if not stop_on_eof:
                where = f"journal in {journal.path}" if journal else "no journal: missed events are lost"
                everywhere = [f"bound to {each}; " for each in server.addresses if each.is_wildcard]
                at = " and ".join(str(each.connectable()) for each in server.addresses)
                keys = f"key of {key.path}; " if key else ""
                if by_tcp and insecure:
                    keys = "insecure: whoever can connect may do everything; "
                to = "" if forwarding is None else f"; forwarding to {forwarding.set['to']}"
                print_line(f"bus ready at {at}; {''.join(everywhere)}{keys}{where}{to}")
            if told is not None:
                server.tell_health(told)
            leave_alone_what_is_there()
            with listed(server.addresses):
                server.run()
        finally:
            server.close()
        if forwarding is not None and (behind := server.behind(forwarding.title)):
            say(f"{behind} events are in its journal and not forwarded; a bus that runs on it does that")
            return EXIT_NOT_WHOLE
    return 0


def _forwarding(forward: str, *, journal: bool) -> ConsumerConfig:
    from phase_bus.harness.config import forwarder  # what nobody pays for who does not want it

    if not journal:
        raise ConfigError("--forward needs the journal, to go on after a break; leave --no-journal out")
    return forwarder(forward)


def _start_beside(
    consumer: ConsumerConfig,
    server: Bus,
    ending: Ending,
    stack: ExitStack,
    left: str,
    patience_s: float,
    *,
    insecure: bool,
) -> None:
    """Run a consumer beside the bus; it ends first, so that it still gets what has arrived."""
    from phase_bus.harness.beside import Beside
    from phase_bus.harness.children import environment

    address = str(min(server.addresses, key=lambda each: each.scheme != "ipc").connectable())
    beside = Beside(
        consumer,
        address,
        lambda who, line: say(f"{who} | {line.removeprefix('phase-bus: ')}"),
        environment(address, "" if insecure else None),
        is_done=lambda: not server.behind(consumer.title),
        patience_s=patience_s,
    )

    def force() -> None:
        beside.kill()
        server.remove_sockets()

    stack.enter_context(beside)
    within_s = BUS_S + beside.stop_s
    ending.begin("the bus", lambda: beside.stop(server.stop), within_s, left=lambda: left, force=force)
