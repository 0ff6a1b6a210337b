"""The stream: made when it is first needed, known by its id, and looked at for how durable it is."""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from msgspec import Struct
from nats.js.api import StorageType, StreamConfig, StreamInfo

from phase_bus.core.address import StreamAddress
from phase_bus.core.position import Segment
from phase_bus.errors import PhaseBusError
from phase_bus.jetstream.connection import Connection, NatsUnreachableError

_ID = "phase-bus-id"  # of the stream's metadata: the id it was made with
_CUTS = "phase-bus-cuts"  # and those it was given since, each with the offset from which it is
_CUT = re.compile(r"([0-9a-f]{32}):([0-9]{1,19})")
_MOST_CUTS = 200  # that are remembered, the latest ones
_REPLICAS = 3  # where a cluster has as many servers
_LOOK_S = 0.2
_PEERS_S = 5.0  # how long a cluster has to have enough servers for all replicas
_ASK_S = 5.0
_PATIENCE_S = 30.0  # a cluster that has just lost its leader needs 5 to 10 s to choose another


class NoStreamError(PhaseBusError):
    """Nothing was forwarded to an address yet."""

    def __init__(self, address: StreamAddress) -> None:
        super().__init__(
            f"there is no stream {address.stream!r} at {_servers(address)!r}; begin one with: "
            f"phase-bus bus --forward {address}"
        )


class Stream(Struct, frozen=True, kw_only=True):
    """A stream as it was when it was looked at.

    Attributes:
        name: its name, also that of its subjects' first token.
        id: 32 hex digits, new whenever it is made anew, or was cut: the id of all positions in it.
        lineage: the ids that it had before, and this one.
        first_offset, last_offset: of the events that it holds; sequence numbers there, offsets here.
        replicas: how many servers keep it.
        memory: whether it is kept in memory only.
    """

    name: str
    id: str
    lineage: tuple[Segment, ...]
    first_offset: int
    last_offset: int
    replicas: int
    memory: bool


async def open_stream(connection: Connection, *, make: bool) -> Stream:
    """Return the stream of an address.

    Args:
        make: make it if it is not there, with three replicas if the cluster has as many servers.

    Raises:
        NoStreamError: it is not there.
        PhaseBusError: it is not ours, or JetStream is not enabled.
        NatsUnreachableError: no answer in time.
    """
    address = connection.address
    until_s = asyncio.get_running_loop().time() + _PATIENCE_S
    while True:
        try:
            info = await _info(connection)
            if info is None and not make:
                raise NoStreamError(address)
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


async def cut_stream(connection: Connection, after: int) -> Stream:
    """Give the stream another id, since it has lost events that it had acknowledged, and return it.

    Servers that acknowledge before their disks have it lose the last events in a power cut. What comes
    after an offset may be something else from then on: who stands beyond it learns that, and reads on from
    there.

    Args:
        after: an offset after which everything that was lost was.

    Raises:
        PhaseBusError: the stream is not there, or the server refuses the change.
        nats.errors.Error, TimeoutError: no answer in time; whether it was done is not known.
    """
    address = connection.address
    await open_stream(connection, make=False)  # it is there, and ours
    answer = await _ask(connection, "INFO", b"")
    config = answer["config"]
    metadata = config.setdefault("metadata", {})
    before = [cut for cut in metadata.get(_CUTS, "").split(",") if cut]
    cuts = [*before, f"{uuid.uuid4().hex}:{after + 1}"]
    metadata[_CUTS] = ",".join(cuts[-_MOST_CUTS:])
    await _ask(connection, "UPDATE", msgspec.json.encode(config))
    info = await _info(connection)
    if info is None:
        raise PhaseBusError(f"stream {address.stream!r} at {_servers(address)!r} has just been deleted")
    return _checked(address, info)


async def _ask(connection: Connection, what: str, request: bytes) -> dict[str, Any]:
    """Ask for a stream as the server has it: nats-py leaves out what it does not know."""
    address = connection.address
    subject = f"$JS.API.STREAM.{what}.{address.stream}"
    reply = await connection.client.request(subject, request, timeout=_ASK_S)
    answer: dict[str, Any] = msgspec.json.decode(reply.data, type=dict[str, Any])
    if (error := answer.get("error")) is not None:
        raise _refused(address, nats.js.errors.APIError(**error))
    return answer


async def _info(connection: Connection) -> StreamInfo | None:
    try:
        return await connection.js.stream_info(connection.address.stream)
    except nats.js.errors.NotFoundError:
        return None
    except nats.js.errors.APIError as error:
        if error.err_code == _NOT_NOW:
            raise
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
    until_s = asyncio.get_running_loop().time() + _PEERS_S
    while True:
        try:
            return await connection.js.add_stream(config)
        except nats.js.errors.APIError as error:
            if error.err_code == _NOT_NOW:
                raise
            if error.err_code == _NAME_IN_USE and (info := await _info(connection)) is not None:
                return info  # somebody else has just made it
            if config.num_replicas == 1 or error.err_code not in (_NO_CLUSTER, _TOO_FEW_SERVERS):
                raise _refused(connection.address, error) from None
            if error.err_code == _TOO_FEW_SERVERS and asyncio.get_running_loop().time() < until_s:
                await asyncio.sleep(_LOOK_S)
            else:
                config.num_replicas = 1


_NAME_IN_USE = 10058
_TOO_FEW_SERVERS = 10005  # which are there; in a cluster that has just started they come one by one
_NO_CLUSTER = 10074
_NOT_NOW = 10008  # what a server says while there is nobody who leads


def identity_of(info: StreamInfo) -> str:
    """Return the id of a stream, empty if it is not ours."""
    metadata = info.config.metadata or {}
    identity = metadata.get(_ID, "")
    return _lineage(identity, metadata.get(_CUTS, ""))[-1].stream if identity else ""


def _checked(address: StreamAddress, info: StreamInfo) -> Stream:
    config = info.config
    identity = (config.metadata or {}).get(_ID, "")
    if not identity or not config.allow_atomic:
        raise PhaseBusError(
            f"stream {address.stream!r} at {_servers(address)!r} was not made by phase-bus; give another "
            f"name: {address}/OTHER-NAME"
        )
    lineage = _lineage(identity, (config.metadata or {}).get(_CUTS, ""))
    return Stream(
        name=config.name or address.stream,
        id=lineage[-1].stream,
        lineage=lineage,
        first_offset=info.state.first_seq,
        last_offset=info.state.last_seq,
        replicas=config.num_replicas or 1,
        memory=config.storage == StorageType.MEMORY,
    )


def _lineage(identity: str, cuts: str) -> tuple[Segment, ...]:
    segments = [Segment(identity, 1), *(Segment(name, int(first)) for name, first in _CUT.findall(cuts))]
    firsts = [segment.first_offset for segment in segments]
    # Of a stream that was cut before its beginning by a later one, nothing is left.
    return tuple(Segment(each.stream, min(firsts[at:])) for at, each in enumerate(segments))


def _servers(address: StreamAddress) -> str:
    return ",".join(address.servers)


def _refused(address: StreamAddress, error: nats.js.errors.APIError) -> PhaseBusError:
    return PhaseBusError(
        f"NATS at {str(address)!r} refuses stream {address.stream!r}: {error.description} "
        f"(code {error.err_code})"
    )
