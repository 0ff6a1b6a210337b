"""``--health`` of the commands that have it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phase_bus.consumer.member import Member
    from phase_bus.core.health_server import HealthServer

_LOOK_S = 0.5


@contextmanager
def health_server(place: str | None) -> Iterator[HealthServer | None]:
    """Have a server at a place while inside, which answers from its start on; none without a place."""
    if place is None:
        yield None
        return
    from phase_bus.core.health_server import HealthServer  # what nobody pays for who does not want it

    server = HealthServer(place)
    try:
        yield server
    finally:
        server.close()


@asynccontextmanager
async def told_health(member: Member, server: HealthServer | None) -> AsyncIterator[None]:
    """Tell a server, if there is one, how a consumer is, again and again while inside; start it."""
    if server is None:
        yield
        return
    server.start(member.snapshot())
    telling = asyncio.create_task(_tell(member, server))
    try:
        yield
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling


async def _tell(member: Member, server: HealthServer) -> None:
    while True:
        await asyncio.sleep(_LOOK_S)
        server.snapshot = member.snapshot()
