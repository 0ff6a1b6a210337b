"""What a stream survives, judged by how it is kept; a weaker setting is told in one line.

JetStream acknowledges an event when most of its servers have handed it to their operating systems. That
survives every kill of the servers, but not a power cut: it is on the disks up to ``sync_interval`` later,
two minutes by default, unless that is ``always``. What a server's setting is, only its monitoring tells.
"""

from __future__ import annotations

import asyncio
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from typing import Annotated

import msgspec
import nats.errors
from msgspec import Meta, Struct

from phase_bus.core.printable import printable
from phase_bus.jetstream.connection import Connection

logger = logging.getLogger("phase_bus.jetstream")

MONITOR_VARIABLE = "NATS_MONITOR"
"""The environment variable that says where the servers' monitoring is: URLs, with commas between them."""
_WANTED_REPLICAS = 3
_ASK_S = 3.0
_MOST_BYTES = 1 << 20


class Durability(Struct, frozen=True, kw_only=True):
    """How a stream is kept.

    Attributes:
        replicas: how many servers keep it.
        offline: how many of them are away.
        servers: how many servers there are, as far as is known.
        memory: whether it is kept in memory only.
        sync_s: after how many seconds at most what was acknowledged is on the disk, 0 if before; None if
            that cannot be seen.
        unseen: why it cannot.
    """

    replicas: int
    offline: int
    servers: int
    memory: bool
    sync_s: float | None
    unseen: str = ""

    @property
    def weaknesses(self) -> list[str]:
        """What is known to be weaker than it could be, and what helps."""
        found = []
        if self.memory:
            found.append("it is in memory only: gone when its servers stop (keep it in files)")
        if self.replicas == 1:
            remedy = (
                "give it 3" if self.servers >= _WANTED_REPLICAS else f"run a cluster of {_WANTED_REPLICAS}"
            )
            found.append(f"1 replica: gone with that server's disk, away with the server ({remedy})")
        elif self.replicas < _WANTED_REPLICAS:
            found.append(f"{self.replicas} replicas: it stands still when one server is away (give it 3)")
        if self.offline:
            found.append(f"{self.offline} of its {self.replicas} replicas away")
        if self.sync_s:
            found.append(
                f"sync_interval is {self.sync_s:g} s: a power cut takes what was acknowledged in that time "
                "(set it to always)"
            )
        return found


async def durability_of(connection: Connection) -> Durability:
    """Look at how the stream of a connection is kept.

    The monitoring of the servers is looked at if ``NATS_MONITOR`` says where it is.

    Raises:
        nats.errors.Error, TimeoutError, OSError, msgspec.MsgspecError: it cannot be seen now.
    """
    client, name = connection.client, connection.address.stream
    answer = await client.request(f"$JS.API.STREAM.INFO.{name}", b"", timeout=_ASK_S)
    info = msgspec.json.decode(answer.data, type=_Info)
    sync_s, unseen = await asyncio.to_thread(_look_at_sync, info.config.num_replicas)
    return Durability(
        replicas=info.config.num_replicas,
        offline=sum(replica.offline for replica in info.cluster.replicas or ()),
        servers=len(client.servers),
        memory=info.config.storage == "memory",
        sync_s=sync_s,
        unseen=unseen,
    )


async def tell_weaknesses(connection: Connection) -> None:
    """Log in one line what the stream of a connection may not survive; nothing if it is kept well."""
    stream = connection.address.stream
    try:
        found = await durability_of(connection)
    except (nats.errors.Error, TimeoutError, OSError, msgspec.MsgspecError) as error:
        logger.info("how durable stream %r is cannot be seen: %s", stream, error or type(error).__name__)
        return
    weaknesses = found.weaknesses
    level = logging.WARNING if weaknesses else logging.INFO
    if found.unseen and not found.memory:
        weaknesses.append(found.unseen)
    if weaknesses:
        logger.log(level, "stream %r is less durable than it can be: %s", stream, "; ".join(weaknesses))


# ---- what the servers say ----


class _Config(Struct):
    num_replicas: int = 1
    storage: str = "file"


class _Replica(Struct):
    offline: bool = False


class _Cluster(Struct):
    replicas: list[_Replica] | None = None


class _Info(Struct):
    config: _Config
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)


class _ServerConfig(Struct):
    sync_interval: Annotated[int, Meta(ge=0)] = 0  # ns
    sync_always: bool = False


class _Jsz(Struct):
    config: _ServerConfig


def _look_at_sync(servers: int) -> tuple[float | None, str]:
    """Return the longest time of all servers until something is on the disk, and why it is not seen."""
    urls = [url.strip() for url in os.environ.get(MONITOR_VARIABLE, "").split(",") if url.strip()]
    times_s: list[float] = []
    for url in urls:
        try:
            times_s.append(_sync_of(url))
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            return None, f"sync_interval is not seen: {_shown(url)}: {printable(str(reason))}"
    if not urls:
        return None, (
            "sync_interval is not seen, and unless it is always, a power cut takes what was acknowledged "
            f"last (give {MONITOR_VARIABLE}=http://HOST:8222,... to have it looked at)"
        )
    if len(urls) < servers and not max(times_s):
        return None, (
            f"sync_interval is seen of {len(urls)} server only, of {servers}"
            f" (give all to {MONITOR_VARIABLE})"
        )
    return max(times_s), ""


def _sync_of(url: str) -> float:
    if not url.startswith(("http://", "https://")):
        raise ValueError("not an http:// or https:// address")
    with urllib.request.urlopen(f"{url.rstrip('/')}/jsz?config=true", timeout=_ASK_S) as answer:  # noqa: S310
        config = msgspec.json.decode(answer.read(_MOST_BYTES), type=_Jsz).config
    return 0.0 if config.sync_always else config.sync_interval / 1e9


def _shown(url: str) -> str:
    """Return where a URL leads, without what may be a password."""
    try:
        parts = urllib.parse.urlsplit(url)
        return printable(f"{parts.hostname}:{parts.port or 80}")
    except ValueError:
        return MONITOR_VARIABLE
