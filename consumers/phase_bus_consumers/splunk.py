"""The ``splunk`` sink: request records and events in Splunk, by its HTTP Event Collector (HEC)."""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct, field

from phase_bus import (
    Answer,
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

with needs("splunk"):
    from phase_bus_consumers.http import HttpClient, Login, Reply

_EVENT = "/services/collector/event"
_ACK = "/services/collector/ack"
_SUCCESS, _NO_DATA, _ACK_DISABLED = 0, 5, 14
_NOT_THE_EVENTS = {7, 10, 11, 14}  # a wrong index or channel: all events would be refused for it
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.05, 2.0  # between two questions for acknowledgements


class _Said(Struct):
    """What HEC answers."""

    text: str = ""
    code: int | None = None
    bad: int | None = field(default=None, name="invalid-event-number")
    ack: int | None = field(default=None, name="ackId")
    acks: dict[str, bool] = {}


_decode = msgspec.json.Decoder(_Said).decode


class _BadEventError(RefusedRowsError):
    """One event of a request is refused, and all of the request with it."""

    def __init__(self, reason: str, number: int) -> None:
        self.number = number
        super().__init__(reason)


class _Batch(Struct):
    """What becomes of a batch, by the places of its rows."""

    refused: dict[int, str] = {}
    again: list[int] = []
    unacknowledged: dict[int, list[int]] = {}
    error: UnavailableError | None = None


class SplunkSink(Sink):
    """Put request records and events into Splunk, and wait until it has indexed them.

    Args:
        token: the token of an HTTP event collector.
        url: where the collector is.
        index: the index; the token's own without one.
        source: the ``source`` of all events.
        sourcetype: their source type; ``{kind}`` in it becomes ``records`` or ``events``.
        host: their ``host``; this machine's name by default.
        what: what is sent.
        service: the ``service.name`` of all events.
        ack: wait until everything sent is indexed, if the token supports it.
        ack_timeout_s: how long to wait for that before it is sent again.
        ca_file: certificates of authorities to trust instead of the system's.
        timeout_s: how long one request may take.
        request_bytes: the approximate size of one request. A batch consists of several, which are awaited
            together.
    """

    def __init__(
        self,
        token: Secret,
        url: str = "https://127.0.0.1:8088",
        index: str = "",
        source: str = "phase-bus",
        sourcetype: str = "phase_bus:{kind}",
        host: str = "",
        what: Literal["all", "records", "events"] = "all",
        service: str = "phase-bus",
        ack: bool = True,
        ack_timeout_s: float = 60.0,
        ca_file: Path | None = None,
        timeout_s: float = 30.0,
        request_bytes: int = 1 << 20,
        batch_rows: int = 20_000,
        batch_bytes: int = 16 << 20,
        **limits: Any,
    ) -> None:
        super().__init__(batch_rows=batch_rows, batch_bytes=batch_bytes, **limits)
        if not ack_timeout_s > 0 or request_bytes < 1:
            raise ValueError("ack_timeout_s and request_bytes must be more than 0")
        headers: dict[str, str | Login] = {
            "Authorization": Login("Splunk", token),
            "X-Splunk-Request-Channel": str(uuid.uuid4()),
            "Content-Type": "application/json",
        }
        self._client = HttpClient(url, headers, timeout_s=timeout_s, ca_file=ca_file)
        self._same = {"host": host or socket.gethostname(), "source": source}
        if index:
            self._same["index"] = index
        self._sourcetype, self._what, self._service = sourcetype, what, service
        self._ack, self._ack_timeout_s = ack, ack_timeout_s
        self._request_bytes = request_bytes

    async def connect(self) -> None:
        """Look whether the collector lets us send, and whether it acknowledges."""
        await self._client.open()
        if self._ack:
            reply = await self._client.ask("POST", _ACK, b'{"acks":[0]}')
            expected = _ACK_DISABLED
        else:
            reply = await self._client.ask("POST", _EVENT)
            expected = _NO_DATA
        code = self._check(reply, expected).code
        if code != expected:
            self._client.check(reply)
        if code == _ACK_DISABLED or not self._ack:
            self._go_without_acks()

    async def stop(self) -> None:
        await super().stop()
        await self._client.close()

    def rows(self, event: EventBase) -> list[bytes]:
        """Return an event's HEC events, each without the beginning, in which its key stands."""
        kind = "records" if isinstance(event, Records) else "events"
        if self._what not in ("all", kind):
            return []
        same = {**self._same, "sourcetype": self._sourcetype.replace("{kind}", kind)}
        return [
            msgspec.json.encode({"time": round(at_ns / 1e9, 6), **same, "event": document})[1:]
            for at_ns, document in documents_of(event, self._service)
        ]

    async def send(self, rows: Sequence[Row]) -> Answer | None:
        batch = _Batch()
        await self._send_requests(rows, batch)
        await self._wait_for_acks(batch)
        if batch.error is not None and len(batch.again) == len(rows):
            raise batch.error
        if batch.error is None:
            return Answer(batch.refused) if batch.refused else None
        return Answer(batch.refused, sorted(batch.again), str(batch.error), batch.error.after_s)

    async def _send_requests(self, rows: Sequence[Row], batch: _Batch) -> None:
        """Send a batch, request by request, until one finds the server away.

        What is refused without a word about which event it is, is sent again in halves.
        """
        parts = self._parts(rows)[::-1]
        while parts:
            part = parts.pop()
            try:
                number = await self._post([rows[place] for place in part])
            except _BadEventError as error:
                batch.refused[part.pop(error.number)] = str(error)
                parts += [part] if part else []
            except RefusedRowsError as error:
                if len(part) == 1:
                    batch.refused[part[0]] = str(error)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            except UnavailableError as error:
                batch.error = error
                batch.again += chain.from_iterable([part, *parts])
                return
            else:
                if number is not None:
                    # A number that is given twice is that of a collector that has begun anew meanwhile.
                    self._give_up(batch, [number], "the collector has restarted")
                    batch.unacknowledged[number] = part

    def _parts(self, rows: Sequence[Row]) -> list[list[int]]:
        """Return the places of the rows of each request."""
        parts: list[list[int]] = []
        size = 0
        for place, row in enumerate(rows):
            if not parts or size + row.size > self._request_bytes:
                parts.append([])
                size = 0
            parts[-1].append(place)
            size += row.size
        return parts

    async def _post(self, rows: Sequence[Row]) -> int | None:
        """Send events; return the number to ask for, if they are acknowledged."""
        body = b"".join(b'{"fields":{"key":"%b"},%b' % (row.key.encode(), row.data) for row in rows)
        reply = await self._client.ask("POST", _EVENT, body, compress=True)
        said = self._check(reply)
        if reply.is_success:
            self._client.check(reply)
            if said.code != _SUCCESS:
                raise UnavailableError(
                    f"{self._client.host} does not answer as a collector does; check url"
                )
            if self._ack and said.ack is None:  # the token's acknowledgement was switched off meanwhile
                self._go_without_acks()
            return said.ack if self._ack else None
        if said.bad is not None and 0 <= said.bad < len(rows):
            raise _BadEventError(self._client.plain(f"{said.text} (code {said.code})"), said.bad)
        self._client.check(reply)
        return None

    async def _wait_for_acks(self, batch: _Batch) -> None:
        """Ask until all that was sent is indexed; what is not in time is to be sent again."""
        until_s = time.monotonic() + self._ack_timeout_s
        look_s = _FIRST_LOOK_S
        while batch.unacknowledged and time.monotonic() < until_s:
            await asyncio.sleep(look_s)
            look_s = min(look_s * 1.5, _LONGEST_LOOK_S)
            body = msgspec.json.encode({"acks": list(batch.unacknowledged)})
            try:
                reply = await self._client.ask("POST", _ACK, body)
                said = self._check(reply, _ACK_DISABLED)
                if said.code == _ACK_DISABLED:
                    batch.unacknowledged.clear()
                    self._go_without_acks()
                    return
                self._client.check(reply)
            except (UnavailableError, RefusedRowsError):
                continue  # it may come back in time
            for number, indexed in said.acks.items():
                if indexed:
                    batch.unacknowledged.pop(int(number), None)
        reason = f"{self._client.host} did not acknowledge within {self._ack_timeout_s:g} s"
        self._give_up(batch, list(batch.unacknowledged), reason)

    def _give_up(self, batch: _Batch, numbers: Sequence[int], reason: str) -> None:
        for number in numbers:
            if lost := batch.unacknowledged.pop(number, []):
                batch.again += lost
                batch.error = batch.error or UnavailableError(reason)

    def _go_without_acks(self) -> None:
        self._ack = False
        self.log.warning(
            "no indexer acknowledgement: receipts say what the collector took, not what is indexed"
        )

    def _check(self, reply: Reply, expected: int = 0) -> _Said:
        """Return what the collector said.

        Raises:
            DeniedError: not the events are to blame, but what all of them have in common.
            UnavailableError: it is no answer of a collector.
        """
        try:
            said = _decode(reply.body)
        except msgspec.MsgspecError:
            said = _Said()
            if reply.is_success:
                raise UnavailableError(
                    f"{self._client.host} answers with something else than JSON"
                ) from None
        if said.code in _NOT_THE_EVENTS and said.code != expected:
            raise DeniedError(f"{self._client.host}: {self._client.plain(said.text)} (code {said.code})")
        return said
