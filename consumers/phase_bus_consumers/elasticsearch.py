"""The ``elasticsearch`` sink: request records and events in data streams of Elasticsearch or OpenSearch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from phase_bus import (
    Answer,
    ConfigError,
    DeniedError,
    EventBase,
    Records,
    RefusedRowsError,
    Row,
    Secret,
    Sink,
    UnavailableError,
)
from phase_bus_consumers.ecs import documents_of
from phase_bus_consumers.extras import needs

with needs("elasticsearch"):
    from phase_bus_consumers.http import HttpClient, Login

_BULK = "/_bulk?filter_path=errors,items.*.status,items.*.error"
_NDJSON = {"Content-Type": "application/x-ndjson"}
_JSON = {"Content-Type": "application/json"}
_MANAGED_BY = "phase-bus"
_INDEX = re.compile(r"[a-z0-9.][a-z0-9._-]{0,254}")
_HEAD = b'{"event":{'  # of every document: its id comes next
_TAKEN = {200, 201, 409}  # 409: a document with this id is there already
# Not the document is to blame, but who may write, what the index is, or how much the server can take now.
_AGAIN = {401, 403, 404, 429, 502, 503, 504}
_AGAIN_TYPES = {"cluster_block_exception", "index_closed_exception", "validation_exception"}


class _Reason(Struct):
    type: str = "unknown"
    reason: str | None = None
    caused_by: _Reason | None = None

    def __str__(self) -> str:
        text = f"{self.type}: {self.reason}" if self.reason else self.type
        return f"{text} ({self.caused_by})" if self.caused_by is not None else text


class _Item(Struct):
    status: int
    error: _Reason | None = None


class _Bulk(Struct):
    errors: bool
    items: list[dict[str, _Item]]


_decode_bulk = msgspec.json.Decoder(_Bulk).decode


class ElasticsearchSink(Sink):
    """Put request records and events into Elasticsearch or OpenSearch, each with an id of its own.

    Args:
        url: where the server is; a path in it is kept as a prefix.
        user: the user to log in as, together with ``password``.
        password: that user's password.
        api_key: an API key, encoded as the server gives it, instead of a user.
        ca_file: certificates of authorities to trust instead of the system's.
        stream: the data stream or index; ``{kind}`` in it becomes ``records`` or ``events``.
        data_stream: whether it is a data stream. A plain index never stores a document twice; a data stream
            can, once it has rolled over.
        template: install an index template, unless there is one that is not phase-bus's.
        what: what is sent.
        service: the ``service.name`` of all documents.
        timeout_s: how long one request may take.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:9200",
        user: str = "",
        password: Secret | None = None,
        api_key: Secret | None = None,
        ca_file: Path | None = None,
        stream: str = "logs-phase_bus.{kind}-default",
        data_stream: bool = True,
        template: bool = True,
        what: Literal["all", "records", "events"] = "all",
        service: str = "phase-bus",
        timeout_s: float = 60.0,
        batch_rows: int = 5000,
        batch_bytes: int = 5 << 20,
        **limits: Any,
    ) -> None:
        super().__init__(batch_rows=batch_rows, batch_bytes=batch_bytes, **limits)
        headers: dict[str, Login] = {}
        if (password is None) != (not user) or (api_key is not None and user):
            raise ValueError("a login is user and password, or api_key")
        if password is not None:
            headers["Authorization"] = Login("Basic", password, user)
        elif api_key is not None:
            headers["Authorization"] = Login("ApiKey", api_key)
        self._client = HttpClient(url, headers, timeout_s=timeout_s, ca_file=ca_file)
        self._indexes = {kind: stream.replace("{kind}", kind) for kind in ("records", "events")}
        for index in self._indexes.values():
            if not _INDEX.fullmatch(index):
                raise ValueError(
                    f"stream: {index!r} is no name of an index: small letters, digits, '.', '_', '-'"
                )
        self._data_stream, self._template = data_stream, template
        self._what, self._service = what, service

    async def connect(self) -> None:
        """Look whether the server lets us write; install the templates."""
        await self._client.open()
        reply = await self._client.ask("POST", _BULK, headers=_NDJSON)
        if reply.status != 400:  # it does not like an empty body, but does us
            self._client.check(reply)
        if self._template:
            for index in dict.fromkeys(self._indexes.values()):
                await self._install_template(index)

    async def stop(self) -> None:
        await super().stop()
        await self._client.close()

    def rows(self, event: EventBase) -> list[bytes]:
        """Return an event's documents, each without the beginning that has its id."""
        kind = "records" if isinstance(event, Records) else "events"
        if self._what not in ("all", kind):
            return []
        documents = documents_of(event, self._service)
        return [msgspec.json.encode(document.fields).removeprefix(_HEAD) for document in documents]

    async def send(self, rows: Sequence[Row]) -> Answer | None:
        body = b"".join(map(self._lines, rows))
        said = await self._client.request("POST", _BULK, body, _NDJSON, compress=True)
        try:
            items = [next(iter(item.values())) for item in _decode_bulk(said).items]
        except (msgspec.MsgspecError, StopIteration):
            raise UnavailableError(
                f"{self._client.host} answers with something else than a bulk response"
            ) from None
        if len(items) != len(rows):
            raise UnavailableError(f"{self._client.host} answers for {len(items)} of {len(rows)} documents")
        return self._verdict(items)

    def _lines(self, row: Row) -> bytes:
        index = self._indexes["records" if isinstance(row.origin.event, Records) else "events"]
        return b'{"create":{"_index":"%b","_id":"%b"}}\n%b"id":"%b",%b\n' % (
            index.encode(), key := row.key.encode(), _HEAD, key, row.data,
        )  # fmt: skip

    def _verdict(self, items: Sequence[_Item]) -> Answer | None:
        refused: dict[int, str] = {}
        again: dict[int, str] = {}
        for place, item in enumerate(items):
            if item.status in _TAKEN:
                continue
            kind = item.error.type if item.error is not None else ""
            where = again if item.status in _AGAIN or kind in _AGAIN_TYPES else refused
            where[place] = self._client.plain(f"{item.status} {item.error or 'without a reason'}")
        if not refused and not again:
            return None
        return Answer(refused, tuple(again), next(iter(again.values()), ""))

    async def _install_template(self, index: str) -> None:
        """Install the template for an index, unless it is there.

        Raises:
            ConfigError: if the server does not take it.
            DeniedError: if it is another kind of server.
        """
        path = f"/_index_template/{index}"
        reply = await self._client.ask("GET", path)
        if reply.status != 404:
            try:
                found = json.loads(self._client.check(reply))
            except ValueError:
                raise DeniedError(f"{self._client.host} answers with no JSON; check url") from None
            if not _is_outdated(found):
                return
        body = {"index_patterns": [index], **template()}
        if self._data_stream:
            body["data_stream"] = {}
        try:
            await self._client.request("PUT", path, json.dumps(body).encode(), _JSON)
        except RefusedRowsError as error:
            raise ConfigError(
                f"index template {index!r}: {error}; install one of your own and set template=false"
            ) from None


def template() -> dict[str, Any]:
    """Return the index template that comes with the sink, without what it is for."""
    text = files("phase_bus_consumers").joinpath("elasticsearch_template.json").read_text()
    made: dict[str, Any] = json.loads(text)
    return made


def _is_outdated(found: Any) -> bool:
    """Return whether a template is one of ours, of an earlier version."""
    match found:
        case {"index_templates": [{"index_template": {"_meta": {"managed_by": by}, **there}}]}:
            version = there.get("version")
            return by == _MANAGED_BY and (not isinstance(version, int) or version < template()["version"])
    return False
