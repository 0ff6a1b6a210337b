"""Splunk's HTTP Event Collector as its published rules have it; there is no Splunk to be had for tests."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from aiohttp import web

from tests.support.servers.app import App

TOKEN = "0a1b2c3d-0000-4000-8000-5ec2e7000001"
# By code: the HTTP status and the text.
_ANSWERS = {
    0: (200, "Success"),
    1: (403, "Token disabled"),
    2: (401, "Token is required"),
    3: (401, "Invalid authorization"),
    4: (403, "Invalid token"),
    5: (400, "No data"),
    6: (400, "Invalid data format"),
    7: (400, "Incorrect index"),
    8: (500, "Internal server error"),
    9: (503, "Server is busy"),
    10: (400, "Data channel is missing"),
    11: (400, "Invalid data channel"),
    12: (400, "Event field is required"),
    13: (400, "Event field cannot be blank"),
    14: (400, "ACK is disabled"),
    15: (400, "Error in handling indexed fields"),
    17: (200, "HEC is healthy"),
}
_KEYS = {"time", "host", "source", "sourcetype", "index", "event", "fields"}


class _RefusedError(Exception):
    def __init__(self, code: int, **more: Any) -> None:
        super().__init__(code)
        self.code = code
        self.more = more


class Hec(App):
    """A collector with indexer acknowledgement, by token and channel.

    What it accepts is indexed ``index_after_s`` later, and acknowledged then. ``kill()`` loses what is not
    indexed yet, and every acknowledgement that was not fetched: asked for one of those, it says false for
    ever. A true acknowledgement is told once.

    What becomes of the good events before a bad one in a batch is published nowhere: ``keeps_before_bad``
    says.

    Args:
        ack: whether the token wants acknowledgement, and with it a channel.
        indexes: those that events may name.

    Attributes:
        indexed: all events that were indexed, in order, with their metadata; raw ones under "event".
        accepted: how many events were taken, also those that were lost.
        answers: the codes of all answers.
        busy: how many of the next requests are answered with 503, code 9.
    """

    def __init__(
        self, ack: bool = True, indexes: tuple[str, ...] = ("main",), index_after_s: float = 0.02
    ) -> None:
        event, raw = self._handler(self._on_event), self._handler(self._on_raw)
        super().__init__(
            {
                "POST /services/collector": event,
                "POST /services/collector/event": event,
                "POST /services/collector/event/1.0": event,
                "POST /services/collector/raw": raw,
                "POST /services/collector/raw/1.0": raw,
                "POST /services/collector/ack": self._handler(self._on_ack),
                "GET /services/collector/health": self._on_health,
            }
        )
        self.ack, self.indexes, self.index_after_s = ack, indexes, index_after_s
        self.keeps_before_bad = False
        self.token_disabled = False
        self.busy = 0
        self.indexed: list[dict[str, Any]] = []
        self.accepted = 0
        self.answers: list[int] = []
        self._acks: dict[str, dict[int, bool]] = {}
        self._next: dict[str, int] = {}
        self._pipeline: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._acks, self._next, self._pipeline = {}, {}, set()
        await super().open()

    def _handler(self, work: Any) -> Any:
        async def handle(request: web.Request) -> web.Response:
            try:
                self._authorize(request)
                if self.busy:
                    self.busy -= 1
                    raise _RefusedError(9)
                answer = await work(request)
            except _RefusedError as refused:
                self.answers.append(refused.code)
                return _answer(refused.code, **refused.more)
            self.answers.append(0)
            return web.json_response(answer)

        return handle

    def _authorize(self, request: web.Request) -> None:
        given = request.headers.get("Authorization")
        if given is None:
            raise _RefusedError(2)
        scheme, _, token = given.partition(" ")
        if scheme != "Splunk" or not token:
            raise _RefusedError(3)
        if token != TOKEN:
            raise _RefusedError(4)
        if self.token_disabled:
            raise _RefusedError(1)

    async def _on_event(self, request: web.Request) -> dict[str, Any]:
        channel = _channel(request, required=self.ack)
        text = (await request.read()).decode()
        if not text.strip():
            raise _RefusedError(5)
        events: list[dict[str, Any]] = []
        try:
            for number, event in enumerate(_objects(text)):
                self._check(event, number)
                events.append(event)
        except _RefusedError:
            if self.keeps_before_bad:
                self._take(events, None)
            raise
        return self._accept(events, channel)

    async def _on_raw(self, request: web.Request) -> dict[str, Any]:
        channel = _channel(request, required=True)
        lines = (await request.read()).decode().splitlines()
        if not any(lines):
            raise _RefusedError(5)
        given = {key: value for key, value in request.query.items() if key in _KEYS}
        return self._accept([{**given, "event": line} for line in lines if line], channel)

    async def _on_ack(self, request: web.Request) -> dict[str, Any]:
        if not self.ack:
            raise _RefusedError(14)
        known = self._acks.get(_channel(request, required=True), {})
        try:
            asked = json.loads(await request.read())["acks"]
            assert all(isinstance(each, int) for each in asked)
        except (ValueError, KeyError, TypeError, AssertionError):
            raise _RefusedError(6) from None
        found = {str(each): known.get(each, False) for each in asked}
        for each in asked:
            if known.get(each):
                del known[each]
        return {"acks": found}

    async def _on_health(self, _request: web.Request) -> web.Response:
        return _answer(17)

    def _check(self, event: Any, number: int) -> None:
        bad = {"invalid-event-number": number}
        if not isinstance(event, dict) or not event.keys() <= _KEYS:
            raise _RefusedError(6, **bad)
        if event.get("event") is None:
            raise _RefusedError(12, **bad)
        if event["event"] == "":
            raise _RefusedError(13, **bad)
        if event.get("index", self.indexes[0]) not in self.indexes:
            raise _RefusedError(7, **bad)
        try:
            float(event.get("time", 0))
        except (TypeError, ValueError):
            raise _RefusedError(6, **bad) from None
        fields = event.get("fields", {})
        if not isinstance(fields, dict) or any(isinstance(value, dict) for value in fields.values()):
            raise _RefusedError(15, **bad)

    def _accept(self, events: list[dict[str, Any]], channel: str) -> dict[str, Any]:
        answer: dict[str, Any] = {"text": "Success", "code": 0}
        if not self.ack:
            self._take(events, None)
            return answer
        number = self._next.get(channel, 0)
        self._next[channel] = number + 1
        acks = self._acks.setdefault(channel, {})
        acks[number] = False
        self._take(events, (acks, number))
        return {**answer, "ackId": number}

    def _take(self, events: list[dict[str, Any]], ack: tuple[dict[int, bool], int] | None) -> None:
        self.accepted += len(events)
        task = asyncio.get_running_loop().create_task(self._index(events, ack))
        self._pipeline.add(task)
        task.add_done_callback(self._pipeline.discard)

    async def _index(self, events: list[dict[str, Any]], ack: tuple[dict[int, bool], int] | None) -> None:
        await asyncio.sleep(self.index_after_s)
        self.indexed.extend(events)
        if ack is not None:
            acks, number = ack
            acks[number] = True


def _objects(text: str) -> Iterator[Any]:
    """The values of JSON texts one after another, with or without white space between them."""
    decoder = json.JSONDecoder()
    at = number = 0
    text = text.strip()
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            raise _RefusedError(6, **{"invalid-event-number": number}) from None
        yield value
        number += 1
        while at < len(text) and text[at].isspace():
            at += 1


def _channel(request: web.Request, required: bool) -> str:
    given = request.headers.get("X-Splunk-Request-Channel") or request.query.get("channel") or ""
    if not given:
        if required:
            raise _RefusedError(10)
        return ""
    with suppress(ValueError):
        return str(uuid.UUID(given))
    raise _RefusedError(11)


def _answer(code: int, **more: Any) -> web.Response:
    status, text = _ANSWERS[code]
    return web.json_response({"text": text, "code": code, **more}, status=status)
