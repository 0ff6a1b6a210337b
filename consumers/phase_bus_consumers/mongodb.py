"""The ``mongodb`` sink: records and events as documents, each with its row's key as ``_id``.

The documents are made in ``mongodb_documents``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, Unpack

from phase_bus import (
    Answer,
    ConfigError,
    DeniedError,
    EventBase,
    Limits,
    Records,
    RefusedRowsError,
    Row,
    Secret,
    Sink,
    UnavailableError,
    Verdict,
    printable,
)
from phase_bus_consumers.extras import needs

with needs("mongodb"):
    from pymongo import AsyncMongoClient, WriteConcern
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.errors import (
        BulkWriteError,
        ConfigurationError,
        DocumentTooLarge,
        InvalidURI,
        NotPrimaryError,
        OperationFailure,
        PyMongoError,
    )

from phase_bus_consumers.mongodb_documents import (
    event_document,
    record_documents,
    verdict_document,
    with_id,
)

_QUOTED = 300  # characters of what a server says
_LARGEST = (16 << 20) - 1024  # bytes of a document without its _id
_DUPLICATE = 11000
_DENIED = {11, 13, 18, 8000}  # no such user, not authorized, wrong password, and the same at Atlas
_TOO_LARGE = {22, 10334}  # what is wrong with one document, though the whole command fails
# What may pass: the server is away, no primary, or about to end; a conflict, a time-out, a full disk.
_PASSING = {
    6, 7, 24, 46, 50, 64, 89, 91, 112, 133, 134, 189, 202, 262, 9001, 10058, 10107, 11600, 11601, 11602,
    13388, 13435, 13436, 14031,
}  # fmt: skip
_COLLECTIONS = ("records", "events", "verdicts")
_Mapping: TypeAlias = dict[str, Any]


class _Document(NamedTuple):
    """A document without its ``_id``, and the collection that it is for."""

    collection: str
    content: bytes


class MongoSink(Sink):
    """Write records and events to MongoDB, a document each.

    A document's ``_id`` is its row's key, so that sending it again changes nothing. Metrics are
    below ``metrics``, everything else about a request is below ``fields``, and ``ts`` is a date.

    Args:
        url: where it is: ``mongodb://HOST:PORT``, ``mongodb+srv://HOST`` or several hosts, with options
            after a ``?``, but without user and password. Or ``env:NAME`` or ``file:PATH``, where such an
            address is, which may have them.
        database: the database's name.
        prefix: the prefix of the collections' names: ``records``, ``events`` and ``verdicts``.
        user: the user to log in as; the address's ``authSource`` says where it is known.
        password: the user's.
        write_concern: how many members must have written a batch before it counts: ``majority``, a number,
            or a tag.
        journal: whether they must have it in their journals on disk.
        timeout_s: how long the server may take to answer.
    """

    def __init__(
        self,
        url: str = "mongodb://127.0.0.1:27017",
        database: str = "phase_bus",
        prefix: str = "",
        user: str = "",
        password: Secret | None = None,
        write_concern: str = "majority",
        journal: bool = True,
        timeout_s: float = 10.0,
        **limits: Unpack[Limits],
    ) -> None:
        super().__init__(**limits)
        if not re.fullmatch(r"\w[\w-]{0,62}", database, re.ASCII):
            raise ValueError(f"database must be at most 63 letters, digits, - and _, not {database!r}")
        if not re.fullmatch(r"[\w-]{0,40}", prefix, re.ASCII):
            raise ValueError(f"prefix must be at most 40 letters, digits, - and _, not {prefix!r}")
        if bool(user) != (password is not None):
            raise ValueError("user and password belong together: give both, or none")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be more than 0, not {timeout_s:g}")
        if write_concern in ("", "0"):
            raise ValueError("write_concern must not be 0: rows would be lost without a word")
        self._url = _address(url)
        self._database, self._prefix = database, prefix
        self._user, self._password = user, password
        members = int(write_concern) if write_concern.isdecimal() else write_concern
        self._timeout_ms = math.ceil(timeout_s * 1000)
        self._concern = WriteConcern(members, self._timeout_ms, journal)
        self._secrets: list[str] = []  # what is never shown
        self._client: AsyncMongoClient[_Mapping] | None = None
        self._collections: dict[str, AsyncCollection[_Mapping]] = {}  # once they are looked at

    def rows(self, event: EventBase) -> list[_Document]:
        """Return a document for each record, or one for another event; of a verdict a second one."""
        if isinstance(event, Records):
            return [_Document("records", content) for content in record_documents(event)]
        documents = [_Document("events", event_document(event))]
        if isinstance(event, Verdict):
            documents.append(_Document("verdicts", verdict_document(event)))
        return documents

    def size_of(self, data: _Document) -> int:
        return len(data.content)

    async def connect(self) -> None:
        """Look whether the server is there, and make the indexes."""
        self._client = self._client or self._new_client()
        try:
            database = self._client[self._database]
            collections = {
                name: database.get_collection(self._prefix + name, write_concern=self._concern)
                for name in _COLLECTIONS
            }
            for collection in collections.values():
                await collection.create_index([("run_id", 1), ("phase", 1)])
        except PyMongoError as error:
            raise await self._meaning(error) from None
        self._collections = collections

    async def send(self, rows: Sequence[Row]) -> Answer | None:
        """Insert the documents of a batch; one that is there already stays as it is."""
        if not self._collections:
            await self.connect()
        refused: dict[int, str] = {}
        again: dict[int, str] = {}
        for name, collection in self._collections.items():
            places = [place for place, row in enumerate(rows) if row.data.collection == name]
            for place in places:
                if rows[place].size > _LARGEST:
                    refused[place] = f"a document of {rows[place].size} bytes, more than MongoDB's 16 MiB"
            places = [place for place in places if place not in refused]
            if not places:
                continue
            documents = [with_id(rows[place].data.content, rows[place].key) for place in places]
            try:
                await collection.insert_many(documents, ordered=False)
            except BulkWriteError as error:
                self._sort_out(error.details, places, refused, again)
            except PyMongoError as error:
                raise await self._meaning(error) from None
        return Answer(refused, list(again), next(iter(again.values()), ""))

    async def stop(self) -> None:
        await super().stop()
        await self._close()

    def _sort_out(
        self, details: Any, places: Sequence[int], refused: dict[int, str], again: dict[int, str]
    ) -> None:
        """Say what became of those documents of a batch that were not simply inserted.

        Raises:
            UnavailableError: they may be lost again: too few members of the replica set have them.
        """
        for problem in details.get("writeConcernErrors", ()):
            raise UnavailableError(f"it is not known how many members have the batch: {_said(problem)}")
        for problem in details.get("writeErrors", ()):
            if not _is_there(problem):
                kind = again if problem.get("code") in _PASSING else refused
                kind[places[problem["index"]]] = self._plain(_said(problem))

    async def _meaning(self, error: PyMongoError) -> Exception:
        """Return what an error of the whole batch means for its rows."""
        details = getattr(error, "details", None)
        details = details if isinstance(details, dict) else {}
        if isinstance(error, OperationFailure | NotPrimaryError):
            reason = f"MongoDB says: {self._plain(_said(details))}"
            if details.get("code") in _DENIED:
                await self._close()  # whoever changes the password may have changed the secret, too
                return DeniedError(reason)
            return (RefusedRowsError if details.get("code") in _TOO_LARGE else UnavailableError)(reason)
        if isinstance(error, DocumentTooLarge):
            return RefusedRowsError(str(error))
        if isinstance(error, ConfigurationError):
            return ConfigError(f"consumer {self.name!r}: url: {self._plain(str(error))}")
        told = str(error).partition(", Timeout:")[0].partition(" (configured timeouts:")[0]
        return UnavailableError(f"MongoDB cannot be reached: {self._plain(told) or type(error).__name__}")

    def _new_client(self) -> AsyncMongoClient[_Mapping]:
        """Return a client; it connects when it is used.

        Raises:
            ConfigError: if the address, or a secret, cannot be used.
        """
        secret = self._url if isinstance(self._url, Secret) else None
        url = str(self._url) if secret is None else secret.value()
        self._secrets = re.findall(r"//[^/@]*?:([^@]+)@", url)
        options: dict[str, Any] = {}
        if self._password is not None:
            options = {"username": self._user, "password": self._password.value()}
            self._secrets.append(options["password"])
        try:
            return AsyncMongoClient(
                url,
                appname="phase-bus",
                serverSelectionTimeoutMS=self._timeout_ms,
                connectTimeoutMS=self._timeout_ms,
                socketTimeoutMS=self._timeout_ms,
                **options,
            )
        except (ConfigurationError, InvalidURI, ValueError, TypeError) as error:
            why = str(secret) if secret is not None else printable(str(error))[:_QUOTED]
            raise ConfigError(
                f"consumer {self.name!r}: url is no address of MongoDB's: {why}; write mongodb://HOST:PORT"
            ) from None

    async def _close(self) -> None:
        client, self._client, self._collections = self._client, None, {}
        if client is not None:
            await client.close()

    def _plain(self, text: str) -> str:
        """Return a text in one line, without the password."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return printable(" ".join(text.split()))[:_QUOTED]


def _address(url: str) -> str | Secret:
    """Return the address, or where it is.

    Raises:
        ValueError: if there is a secret in it. It is not repeated.
    """
    if url.startswith(("env:", "file:")):
        return Secret(url)
    if not url.startswith(("mongodb://", "mongodb+srv://")):
        raise ValueError("url must begin with mongodb:// or mongodb+srv://, or be env:NAME or file:PATH")
    if "@" in url or re.search("password|token", url.partition("?")[2], re.IGNORECASE):
        raise ValueError(
            "url must not have a user or password in it: give user=... and password=env:NAME, "
            "or the whole address as url=env:NAME"
        )
    return url


def _is_there(problem: Any) -> bool:
    """Whether a document was not inserted because it is there already; not for another unique index."""
    if problem.get("code") != _DUPLICATE:
        return False
    key = problem.get("keyPattern")
    return set(key) == {"_id"} if key else "index: _id_ " in str(problem.get("errmsg", ""))


def _said(problem: Any) -> str:
    return f"{problem.get('errmsg', 'no reason given')} (code {problem.get('code')})"
