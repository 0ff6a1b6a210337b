"""``phase-bus bus``."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from phase_bus.address import Address, default_address
from phase_bus.bus.server import Bus, BusOptions
from phase_bus.cli.options import AddressesOption, StopOnEof, configure_logging

_DEFAULTS = BusOptions()


def bus(
    *,
    address: AddressesOption = None,
    heartbeat_s: float = _DEFAULTS.heartbeat_s,
    silent_after_s: float = _DEFAULTS.silent_after_s,
    high_water_mark: int = _DEFAULTS.high_water_mark,
    max_message_bytes: Annotated[int, Parameter(show=False)] = _DEFAULTS.max_message_bytes,
    stop_on_eof: StopOnEof = False,
) -> None:
    """Run the bus: take events in, acknowledge them, fan them out to consumers.

    Publishers and consumers may come before or after it. It keeps events in memory only: a consumer
    that comes late, or falls behind by more than the high-water mark, misses events and reports it.

    For example:

        phase-bus bus --address ipc:///tmp/my-bus

        phase-bus bus --address tcp://0.0.0.0:5670 --address ipc:///tmp/my-bus

    Args:
        heartbeat_s: How often clients are to say that they are alive, in seconds.
        silent_after_s: Seconds of silence after which a client counts as gone; the runs of a
            publisher that is gone end as 'lost'.
        high_water_mark: Events queued for each consumer at most.
    """
    configure_logging()
    server = Bus(
        [Address.parse(text) for text in address or [default_address()]],
        BusOptions(
            heartbeat_s=heartbeat_s,
            silent_after_s=silent_after_s,
            high_water_mark=high_water_mark,
            max_message_bytes=max_message_bytes,
        ),
    )
    server.install_signals()
    try:
        server.bind()
        if not stop_on_eof:
            print(f"bus ready at {' and '.join(map(str, server.addresses))}", flush=True)
        server.run(stop_on_eof=sys.stdin.fileno() if stop_on_eof else None)
    finally:
        server.close()
