"""What is kept beside a stream: names, places and states, in a key-value bucket, changed by revision only.

Each key has the revision of its last change. Whoever changes it names the revision that they saw; if it was
changed meanwhile, nothing happens, and they learn that. So two who both believe that a name or a share is
theirs cannot both write under it.
"""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import DeliverPolicy, KeyValueConfig, ObjectStoreConfig, StorageType
from nats.js.object_store import ObjectStore

from phase_bus.errors import PhaseBusError
from phase_bus.jetstream.connection import AGAIN_S, MOVED, TRIES, UNDER_WAY, Connection, asking
from phase_bus.jetstream.message import token
from phase_bus.jetstream.stream import Stream

_HEADERS_BYTES = 1024  # what a message takes beside its value, at most
_ATTEMPTS = 2  # of a change to which no answer comes in time
_READ_S = 4.0  # how long all parts of a large value may take
_MOST_ANSWERS = 1000  # of the server, to one request for the values of several keys
_MOVED = 4  # how often a value may have been replaced while it was read
_TOO_MANY = "413"
_IN_PLACE, _OBJECT = b"v", b"o"  # how a value begins that is here, or in the object store by this name

_encode = msgspec.json.encode


class Kept(NamedTuple):
    """A value, and the revision of its key: another one after each change, and always a larger one."""

    value: bytes
    revision: int


def key_of(*parts: str) -> str:
    """Return a key made of texts of any kind."""
    return ".".join(map(token, parts))


async def open_keys(connection: Connection, stream: Stream) -> Keys:
    """Return the keys of a stream; the bucket is made if it is not there, as durable as the stream.

    Raises:
        NatsUnreachableError: no answer in time.
        PhaseBusError: the server refuses it.
    """
    with asking(connection.address):
        config = KeyValueConfig(
            bucket=stream.name,
            description=f"Names, places and states of the consumers of stream {stream.name}",
            history=1,
            storage=StorageType.MEMORY if stream.memory else StorageType.FILE,
            replicas=stream.replicas,
            direct=True,
        )
        try:
            await connection.js.key_value(stream.name)
        except nats.js.errors.NotFoundError:
            with suppress(nats.js.errors.BadRequestError):  # somebody else has just made it
                await connection.js.create_key_value(config)
    return Keys(connection, stream)


def stream_of_keys(stream: Stream) -> str:
    """Return the name of the stream that the bucket beside a stream is."""
    return f"KV_{stream.name}"


async def kept_below(connection: Connection, stream: Stream, prefix: str) -> dict[str, Kept]:
    """Return what is kept beside a stream below a prefix.

    Raises:
        NatsUnreachableError: no answer in time.
    """
    with asking(connection.address):
        try:
            await connection.js.stream_info(stream_of_keys(stream))
        except nats.js.errors.NotFoundError:  # no consumer has been there
            return {}
    return await Keys(connection, stream).all(prefix)


class Keys:
    """A bucket of keys. Every method raises NatsUnreachableError if no answer comes in time.

    Then a change may have been made or not: look at the key before the next one.
    """

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self._connection = connection
        self._of = stream
        self._stream = stream_of_keys(stream)
        self._prefix = f"$KV.{stream.name}."
        self._opened: ObjectStore | None = None
        self._objects: dict[str, list[str]] = {}  # by key what it named last, as far as that is known here
        self._swept: set[str] = set()  # the keys whose left-over objects were deleted

    async def get(self, key: str) -> Kept | None:
        """Return the value of a key as it is now, None if there is none."""
        for _ in range(_MOVED):
            with asking(self._connection.address):
                data, revision = await self._last(key)
                if data is None:
                    return None
                value = await self._value(key, data)
            if value is not None:
                return Kept(value, revision)
        raise PhaseBusError(f"NATS at {str(self._connection.address)!r} has lost the value of key {key!r}")

    async def create(self, key: str, value: bytes) -> int | None:
        """Give a value to a key that has none; return its revision, None if it has one."""
        with asking(self._connection.address):
            revision = await self._change(key, value, 0)
            if revision is None:  # maybe it was deleted, and the mark of that is still there
                data, last = await self._last(key)
                if data is None and last:
                    revision = await self._change(key, value, last)
        return revision

    async def update(self, key: str, value: bytes, revision: int) -> int | None:
        """Change the value of a key that has a revision; return its new one, None if it has another."""
        with asking(self._connection.address):
            return await self._change(key, value, revision)

    async def put(self, key: str, value: bytes, seen: Kept | None) -> int | None:
        """Give a value to a key that is as it was seen; return its revision, None if it was changed."""
        if seen is None:
            return await self.create(key, value)
        return await self.update(key, value, seen.revision)

    async def delete(self, key: str, revision: int) -> bool:
        """Take a key with its value away, if it has a revision; return whether it had."""
        with asking(self._connection.address):
            mark = await self._publish(key, b"", revision, {"KV-Operation": "DEL"})
            if mark is None:
                return False
            # The mark is of no use to anybody; but who has created the key meanwhile keeps it.
            await self._connection.js.purge_stream(self._stream, seq=mark + 1, subject=self._prefix + key)
            await self._let_go(key, "")
        return True

    async def all(self, prefix: str, *, after: int = 0) -> dict[str, Kept]:
        """Return the keys below a prefix (``a`` has ``a.b`` and ``a.b.c``) with their values.

        They may be those of a moment ago: a server answers that has not heard of the latest change yet.

        Args:
            after: only those that have changed since this revision.
        """
        found: dict[str, Kept] = {}
        with asking(self._connection.address):
            async for key, data, revision in self._below(prefix, after):
                value = await self._value(key, data)
                kept = await self.get(key) if value is None else Kept(value, revision)
                if kept is not None:
                    found[key] = kept
        return dict(sorted(found.items()))

    # ---- one key ----

    async def _last(self, key: str) -> tuple[bytes | None, int]:
        """Return what is kept of a key, None for nothing, and its revision, 0 for none."""
        try:
            found = await self._connection.js.get_last_msg(self._stream, self._prefix + key)
        except nats.js.errors.NotFoundError:
            return None, 0
        deleted = bool(found.headers and "KV-Operation" in found.headers)
        return None if deleted else found.data or b"", found.seq or 0

    async def _change(self, key: str, value: bytes, revision: int) -> int | None:
        name = ""
        if len(value) < self._connection.max_payload_bytes - _HEADERS_BYTES:
            data = _IN_PLACE + value
        else:
            name = f"{key}/{uuid.uuid4().hex}"
            await (await self._store()).put(name, value)
            data = _OBJECT + name.encode()
        changed = await self._publish(key, data, revision, {})
        if changed is None:
            if name:
                await self._delete_object(name)
            return None
        await self._let_go(key, name)
        return changed

    async def _publish(self, key: str, data: bytes, revision: int, headers: dict[str, str]) -> int | None:
        headers |= {
            "Nats-Expected-Last-Subject-Sequence": str(revision),
            "Nats-Msg-Id": uuid.uuid4().hex,  # by which the server knows it when it is sent once more
        }
        silences = refusals = 0
        while True:
            try:
                return (await self._connection.js.publish(self._prefix + key, data, headers=headers)).seq
            except TimeoutError:
                silences += 1
                if silences == _ATTEMPTS:
                    raise
            except nats.js.errors.APIError as error:
                refusals += 1
                if error.err_code == MOVED or (error.err_code == UNDER_WAY and refusals == TRIES):
                    return None
                if error.err_code != UNDER_WAY:
                    raise
                await asyncio.sleep(AGAIN_S)  # a cluster says so of a change, too, that it has just taken

    # ---- several keys ----

    async def _below(self, prefix: str, after: int) -> AsyncIterator[tuple[str, bytes, int]]:
        """Yield the keys below a prefix that changed after a revision, what is kept of them, and theirs."""
        client = self._connection.client
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        try:
            subjects = [f"{self._prefix}{prefix}.>"]
            request = {"multi_last": subjects, "seq": after + 1, "batch": _MOST_ANSWERS}
            await client.publish(f"$JS.API.DIRECT.GET.{self._stream}", _encode(request), reply=inbox)
            while True:
                message = await subscription.next_msg(timeout=self._connection.ask_s)
                headers = message.headers or {}
                status = headers.get("Status", "")
                if status == _TOO_MANY:
                    break
                if status == "503":
                    raise nats.js.errors.ServiceUnavailableError
                if status or not message.headers:
                    return
                if "KV-Operation" not in headers:
                    key = headers["Nats-Subject"].removeprefix(self._prefix)
                    yield key, message.data, int(headers["Nats-Sequence"])
        finally:
            await subscription.unsubscribe()
        async for found in self._read_all(prefix):
            if found[2] > after:
                yield found

    async def _read_all(self, prefix: str) -> AsyncIterator[tuple[str, bytes, int]]:
        """Do the same for any number of keys, by a reader that the server makes for it."""
        js = self._connection.js
        reader = await js.subscribe(
            f"{self._prefix}{prefix}.>",
            stream=self._stream,
            ordered_consumer=True,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
        )
        try:
            if not (await reader.consumer_info()).num_pending and not reader.pending_msgs:
                return
            while True:
                message: Msg = await reader.next_msg(timeout=self._connection.ask_s)
                if "KV-Operation" not in (message.headers or {}):
                    key = message.subject.removeprefix(self._prefix)
                    yield key, message.data, message.metadata.sequence.stream
                if not message.metadata.num_pending:
                    return
        finally:
            await reader.unsubscribe()

    # ---- large values ----

    async def _value(self, key: str, data: bytes) -> bytes | None:
        """Return the value of what is kept of a key; None if its object was replaced meanwhile."""
        if not data.startswith(_OBJECT):
            return data[1:]
        name = data[1:].decode()
        self._objects.setdefault(key, [name])
        try:
            async with asyncio.timeout(_READ_S):  # it may be deleted in the middle
                return (await (await self._store()).get(name)).data or b""
        except (TimeoutError, nats.js.errors.NotFoundError, nats.js.errors.DigestMismatchError):
            return None

    async def _let_go(self, key: str, name: str) -> None:
        """Take in that a key names another object now, or none, and delete those from before the last one.

        Somebody may just be reading the last one.
        """
        if not name and key not in self._objects:
            return
        names = self._objects.setdefault(key, [])
        names.append(name)
        while len(names) > 2:
            await self._delete_object(names.pop(0))
        if name and key not in self._swept:
            # Those of processes that were killed between an object and its key. Nobody can make them the
            # key's any more: it has another revision now.
            self._swept.add(key)
            for other in await self._list_objects():
                if other.startswith(f"{key}/") and other not in names:
                    await self._delete_object(other)

    async def _store(self) -> ObjectStore:
        if self._opened is None:
            js, bucket = self._connection.js, self._of.name
            try:
                self._opened = await js.object_store(bucket)
            except nats.js.errors.NotFoundError:
                config = ObjectStoreConfig(
                    description=f"States of the consumers of stream {bucket}, where they are large",
                    storage=StorageType.MEMORY if self._of.memory else StorageType.FILE,
                    replicas=self._of.replicas,
                )
                with suppress(nats.js.errors.BadRequestError):  # somebody else has just made it
                    await js.create_object_store(bucket, config)
                self._opened = await js.object_store(bucket)
        return self._opened

    async def _list_objects(self) -> list[str]:
        try:
            return [each.name or "" for each in await (await self._store()).list()]
        except nats.js.errors.NotFoundError:
            return []

    async def _delete_object(self, name: str) -> None:
        """Delete an object, and leave no mark of it, of which there would be more and more."""
        if not name:
            return
        with suppress(nats.js.errors.NotFoundError):
            found = await (await self._store()).get_info(name)
            about = base64.urlsafe_b64encode(name.encode()).decode()
            for subject in (f"C.{found.nuid}", f"M.{about}"):
                await self._connection.js.purge_stream(
                    f"OBJ_{self._of.name}", subject=f"$O.{self._of.name}.{subject}"
                )
