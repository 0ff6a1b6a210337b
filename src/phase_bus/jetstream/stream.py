"""The stream: made when it is first needed, known by its id, and looked at for how durable it is."""

from __future__ import annotations

import asyncio
import uuid

import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.js.api import StorageType, StreamConfig, StreamInfo

from phase_bus.core.address import StreamAddress
from phase_bus.core.position import Segment
from phase_bus.errors import PhaseBusError
from phase_bus.jetstream.connection import Connection, NatsUnreachableError

_ID = "phase-bus-id"  # of the stream's metadata
_REPLICAS = 3  # where a cluster has as many servers
_LOOK_S = 0.2
_PATIENCE_S = 30.0  # a cluster that has just lost its leader needs 5 to 10 s to choose another


class Stream(Struct, frozen=True, kw_only=True):
    """A stream as it was when it was looked at.

    Attributes:
        name: its name, also that of its subjects' first token.
        id: 32 hex digits, new whenever it is made anew: the id of all positions in it.
        first_offset, last_offset: of the events that it holds; sequence numbers there, offsets here.
        replicas: how many servers keep it.
        memory: whether it is kept in memory only.
    """

    name: str
    id: str
    first_offset: int
    last_offset: int
    replicas: int
    memory: bool

    @property
    def lineage(self) -> tuple[Segment, ...]:
        """The stream as a lineage, in which it is the only one."""
        return (Segment(self.id, 1),)


async def open_stream(connection: Connection, *, make: bool) -> Stream:
    """Return the stream of an address.

    Args:
        make: make it if it is not there, with three replicas if the cluster has as many servers.

    Raises:
        PhaseBusError: it is not there, is not ours, or JetStream is not enabled.
        NatsUnreachableError: no answer in time.
    """
    address = connection.address
    until_s = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            info = await _info(connection)
            if info is None and not make:
                raise PhaseBusError(
                    f"there is no stream {address.stream!r} at {_servers(address)!r}; begin one with: "
                    f"phase-bus bus --forward {address}"
                )
            return _checked(address, info or await _make(connection))
        except (
            nats.js.errors.NoStreamResponseError,
            nats.js.errors.ServiceUnavailableError,
            TimeoutError,
        ) as error:
            if asyncio.get_running_loop().time() > until_s:
                reason = f"JetStream gives no answer ({error or 'in time'})"
                raise NatsUnreachableError(address, reason) from None
            await asyncio.sleep(_LOOK_S)


async def _info(connection: Connection) -> StreamInfo | None:
    try:
        return await connection.js.stream_info(connection.address.stream)
    except nats.js.errors.NotFoundError:
        return None
    except nats.js.errors.APIError as error:
        raise _refused(connection.address, error) from None
    except nats.errors.NoRespondersError:
        raise PhaseBusError(
            f"NATS at {str(connection.address)!r} has no JetStream, or not for this account; start "
            "nats-server with JetStream"
        ) from None


async def _make(connection: Connection) -> StreamInfo:
    name = connection.address.stream
    config = StreamConfig(
        name=name,
        description="What phase-bus buses forward here",
        subjects=[f"{name}.>"],
        storage=StorageType.FILE,
        num_replicas=_REPLICAS,
        allow_direct=True,
        allow_atomic=True,
        metadata={_ID: uuid.uuid4().hex},
    )
    for replicas in (_REPLICAS, 1):
        config.num_replicas = replicas
        try:
            return await connection.js.add_stream(config)
        except nats.js.errors.APIError as error:
            if error.err_code == _NAME_IN_USE and (info := await _info(connection)) is not None:
                return info  # somebody else has just made it
            if replicas == 1 or error.err_code not in _TOO_FEW_SERVERS:
                raise _refused(connection.address, error) from None
    raise AssertionError("one of the two returned or raised")


_NAME_IN_USE = 10058
_TOO_FEW_SERVERS = (10005, 10074)  # no suitable peers; replicas without a cluster


def _checked(address: StreamAddress, info: StreamInfo) -> Stream:
    config = info.config
    identity = (config.metadata or {}).get(_ID, "")
    if not identity or not config.allow_atomic:
        raise PhaseBusError(
            f"stream {address.stream!r} at {_servers(address)!r} was not made by phase-bus; give another "
            f"name: {address}/OTHER-NAME"
        )
    return Stream(
        name=config.name or address.stream,
        id=identity,
        first_offset=info.state.first_seq,
        last_offset=info.state.last_seq,
        replicas=config.num_replicas or 1,
        memory=config.storage == StorageType.MEMORY,
    )


def _servers(address: StreamAddress) -> str:
    return ",".join(address.servers)


def _refused(address: StreamAddress, error: nats.js.errors.APIError) -> PhaseBusError:
    return PhaseBusError(
        f"NATS at {str(address)!r} refuses stream {address.stream!r}: {error.description} "
        f"(code {error.err_code})"
    )
