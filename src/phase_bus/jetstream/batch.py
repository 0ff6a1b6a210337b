"""Appending to a stream: several messages as one, and only if nothing has come to a place meanwhile."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Sequence
from typing import NamedTuple

import msgspec
import nats.errors
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg

from phase_bus.errors import PhaseBusError
from phase_bus.jetstream.connection import AGAIN_S, MOVED, TRIES, UNDER_WAY, Connection

MOST_MESSAGES = 1000
"""How many messages a server takes as one."""
HEADER_BYTES = 768
"""What of a server's largest message is for its headers, and is not for what is in it."""
_ACK_S = 10.0
_LOOK_S = 0.1

_Headers = dict[str, str]


class Addressed(NamedTuple):
    """A message with its subject."""

    subject: str
    data: bytes


class MovedError(PhaseBusError):
    """Something was appended meanwhile, so nothing of this was."""


class NotAppendedError(PhaseBusError):
    """The server did not append it, or gave no answer: then it may be there or not."""


async def append(connection: Connection, messages: Sequence[Addressed], subjects: str, last: int) -> int:
    """Append messages as one, all or none; return the sequence number of the last of them.

    Args:
        messages: :data:`MOST_MESSAGES` at most.
        subjects: a filter that they belong to.
        last: the sequence number of the last message that this filter selects, 0 for none. If it is
            another one by now, nothing is appended.

    Raises:
        MovedError: it is another one.
        NotAppendedError: nobody knows whether they were appended, or the reason is another one.
    """
    for _ in range(TRIES):
        ack = await _append_once(connection, messages, subjects, last)
        # A cluster may say so of its own last append that it has just acknowledged. Nothing was stored.
        if ack.error is None or ack.error.err_code != UNDER_WAY:
            break
        await asyncio.sleep(AGAIN_S)
    if ack.error is not None:
        if ack.error.err_code in (MOVED, UNDER_WAY):
            raise MovedError(ack.error.description)
        raise NotAppendedError(f"NATS says: {ack.error.description} (code {ack.error.err_code})")
    return ack.seq


async def _append_once(
    connection: Connection, messages: Sequence[Addressed], subjects: str, last: int
) -> _Ack:
    client = connection.client
    if not client.is_connected:
        raise NotAppendedError(f"there is no connection to NATS at {str(connection.address)!r}")
    batch = uuid.uuid4().hex
    final = len(messages)
    try:
        for number, (subject, data) in enumerate(messages[:-1], 1):
            headers = _condition(subjects, last) if number == 1 else {}
            await client.publish(subject, data, headers=headers | _part(batch, number))
        subject, data = messages[-1]
        if final == 1:  # no batch: what that costs a server is that of dozens of messages
            headers = _condition(subjects, last)
        else:
            headers = _part(batch, final) | {"Nats-Batch-Commit": "1"}
        answer = await _answer(client, client.request(subject, data, timeout=_ACK_S, headers=headers))
        return msgspec.json.decode(answer.data, type=_Ack)
    except nats.errors.NoRespondersError:
        raise NotAppendedError("no server has the stream now") from None
    except TimeoutError:  # that of NATS is one
        raise NotAppendedError(f"no answer from NATS within {_ACK_S:g} s") from None
    except (nats.errors.Error, OSError, msgspec.MsgspecError) as error:
        raise NotAppendedError(str(error) or type(error).__name__) from error


async def _answer(client: Client, request: Awaitable[Msg]) -> Msg:
    """Return the answer to a request; one that was asked for on a connection that broke does not come."""
    connections = client.stats["reconnects"]
    asking = asyncio.ensure_future(request)
    try:
        while not asking.done():
            await asyncio.wait((asking,), timeout=_LOOK_S)
            if not client.is_connected or client.stats["reconnects"] != connections:
                break
        if not asking.done():
            raise NotAppendedError("the connection to NATS broke before the answer came")
        return asking.result()
    finally:
        asking.cancel()


def _condition(subjects: str, last: int) -> _Headers:
    return {
        "Nats-Expected-Last-Subject-Sequence": str(last),
        "Nats-Expected-Last-Subject-Sequence-Subject": subjects,
    }


def _part(batch: str, number: int) -> _Headers:
    return {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}


class _Error(Struct):
    err_code: int = 0
    description: str = ""


class _Ack(Struct):
    seq: int = 0
    error: _Error | None = None
