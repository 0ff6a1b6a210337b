"""``phase-bus dashboard``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter, validators

from phase_bus.cli.consume import consume
from phase_bus.cli.options import FromOption, SourceAddressOption

_NAME = "dashboard"


def dashboard(
    *,
    address: SourceAddressOption = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 9470,
    token: str | None = None,
    name: str = _NAME,
    from_: FromOption = "checkpoint",
) -> int:
    """Show the runs of a bus on a page in a browser, until Ctrl-C or SIGTERM.

    It prints the address of the page, which shows current and past runs, several side by side if you like.
    It is the consumer 'dashboard', the same as with 'phase-bus consume dashboard', and waits for the bus
    if there is none yet.

    For example:

        phase-bus dashboard
        phase-bus dashboard --address tcp://127.0.0.1:5670 --port 8080
        phase-bus dashboard --host 0.0.0.0 --token env:DASHBOARD_TOKEN

    Args:
        host: The address to listen on. To be reached from other machines, it needs a token.
        port: The port; 0 for any that is free.
        token: The token that a viewer must enter: env:NAME or file:PATH, never the token itself.
        name: Its name on the bus, under which the bus remembers how far it has come.
        from_: Where to begin: 'checkpoint', where it left off (or at the start, if it never ran); 'start',
            at the first event in the bus's journal; 'now', with new events only; or after an OFFSET.
    """
    options = [f"host={host}", f"port={port}", *([] if token is None else [f"token={token}"])]
    return consume(_NAME, address=address, set_=options, name=name, from_=from_)
