"""``phase-bus bus``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from phase_bus.bus.options import BusOptions
from phase_bus.bus.server import Bus
from phase_bus.cli.options import DEFAULT_LIMITS, AddressesOption, LimitOptions, StopOnEof
from phase_bus.cli.output import configure_logging
from phase_bus.core.address import Address, default_address
from phase_bus.journal.paths import journal_directory
from phase_bus.journal.writer import Journal

_DEFAULTS = BusOptions()


def bus(
    *,
    address: AddressesOption = None,
    heartbeat_s: float = _DEFAULTS.heartbeat_s,
    silent_after_s: float = _DEFAULTS.silent_after_s,
    high_water_mark: int = _DEFAULTS.high_water_mark,
    data: Annotated[Path | None, Parameter(help="Directory of the journal. Default: by address.")] = None,
    no_journal: Annotated[
        bool,
        Parameter(
            help="Keep events in memory only. Given up: replay for late, slow and restarted consumers, "
            "and every command that looks at past runs."
        ),
    ] = False,
    limits: LimitOptions = DEFAULT_LIMITS,
    max_message_bytes: Annotated[int, Parameter(show=False)] = _DEFAULTS.max_message_bytes,
    stop_on_eof: StopOnEof = False,
) -> None:
    """Run the bus: take events in, acknowledge them, fan them out to consumers.

    Publishers and consumers may come before or after it. Every event is in its journal before it is
    acknowledged, so a consumer that is late, slow or restarted gets all of it from there.

    For example:

        phase-bus bus --address ipc:///tmp/my-bus
        phase-bus bus --address tcp://0.0.0.0:5670 --address ipc:///tmp/my-bus

    Args:
        heartbeat_s: How often clients are to say that they are alive, in seconds.
        silent_after_s: Seconds of silence after which a client counts as gone; the runs of a
            publisher that is gone end as 'lost'.
        high_water_mark: Events queued for each consumer at most; more wait in the journal.
    """
    configure_logging()
    addresses = [Address.parse(text) for text in address or [default_address()]]
    journal = None if no_journal else Journal(data or journal_directory(addresses[0]), limits.limits())
    server = Bus(
        addresses,
        BusOptions(
            heartbeat_s=heartbeat_s,
            silent_after_s=silent_after_s,
            high_water_mark=high_water_mark,
            max_message_bytes=max_message_bytes,
        ),
        journal,
    )
    server.install_signals()
    try:
        server.bind()
        if not stop_on_eof:
            where = f"journal in {journal.path}" if journal else "no journal: missed events are lost"
            print(f"bus ready at {' and '.join(map(str, server.addresses))}; {where}", flush=True)
        server.run(stop_on_eof=sys.stdin.fileno() if stop_on_eof else None)
    finally:
        server.close()
