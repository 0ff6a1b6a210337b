"""A sink as it should be, and others that are wrong in one way each, which the tests must find."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from typing import Any, Unpack

from phase_bus import (
    DeniedError,
    EventBase,
    Limits,
    PhaseBusError,
    RecordBatch,
    Records,
    RefusedRowsError,
    Row,
    Secret,
    Sink,
    UnavailableError,
)
from phase_bus_consumers.http import HttpClient


class Reference(Sink):
    """Send the ids of all records."""

    def __init__(self, url: str, token: Secret, **limits: Unpack[Limits]) -> None:
        super().__init__(**limits)
        self.token = token
        self.http = HttpClient(url, {"Authorization": token}, timeout_s=5.0)

    async def connect(self) -> None:
        await self.http.open()
        await self.http.request("POST", "/check")

    async def stop(self) -> None:
        await super().stop()
        await self.http.close()

    def rows(self, event: EventBase) -> list[str]:
        if not isinstance(event, Records):
            return []
        return [record["x_request_id"] for record in RecordBatch(event)]

    def key(self, row: Row) -> str:
        """Return the key that a row is sent with."""
        return row.key

    async def send(self, rows: Sequence[Row]) -> None:
        body = json.dumps([(self.key(row), row.data) for row in rows]).encode()
        await self.http.request("POST", "/rows", body)


class DropsOnError(Reference):
    """Gives rows up when the server does not take them."""

    async def send(self, rows: Sequence[Row]) -> None:
        try:
            await super().send(rows)
        except UnavailableError:
            self.log.warning("dropped", rows=len(rows))


class AnswersEarly(Reference):
    """Says that rows are there before the server does."""

    def __init__(self, url: str, token: Secret, **limits: Unpack[Limits]) -> None:
        super().__init__(url, token, **limits)
        self.under_way: set[asyncio.Task[None]] = set()

    async def send(self, rows: Sequence[Row]) -> None:
        task = asyncio.create_task(self._later(rows))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def _later(self, rows: Sequence[Row]) -> None:
        await asyncio.sleep(2.0)
        while True:
            try:
                return await super().send(rows)
            except UnavailableError:
                await asyncio.sleep(0.2)


class NewKeys(Reference):
    """Names rows anew in each process."""

    def __init__(self, url: str, token: Secret, **limits: Unpack[Limits]) -> None:
        super().__init__(url, token, **limits)
        self.me = uuid.uuid4().hex

    def key(self, row: Row) -> str:
        return f"{self.me}-{row.key}"


class NewKeysEachTime(Reference):
    """Names rows anew with each attempt."""

    def key(self, row: Row) -> str:
        return f"{uuid.uuid4().hex}-{row.key}"


class OneStream(Reference):
    """Believes that a bus that was started anew has nothing new."""

    first = ""

    def rows(self, event: EventBase) -> list[str]:
        self.first = self.first or self.stream
        return super().rows(event) if self.stream == self.first else []


class Impatient(Reference):
    """Does not hear for how long the server wants to be left alone."""

    async def send(self, rows: Sequence[Row]) -> None:
        try:
            await super().send(rows)
        except UnavailableError as error:
            raise UnavailableError(str(error)) from None


class Greedy(Reference):
    """Takes in all there is while the server is slow."""

    def __init__(self, url: str, token: Secret, **limits: Unpack[Limits]) -> None:
        super().__init__(url, token, **limits)
        self.events: list[tuple[EventBase, list[dict[str, Any]]]] = []

    async def on_event(self, event: EventBase) -> None:
        records = list(RecordBatch(event)) if isinstance(event, Records) else []
        self.events.append((event, records))

    async def flush(self) -> None:
        self.holds_checkpoint = True


class Talkative(Reference):
    """Says what the token is."""

    async def connect(self) -> None:
        try:
            await super().connect()
        except DeniedError as error:
            raise DeniedError(f"{error} (token {self.token.value()})") from None


class Stubborn(Reference):
    """Tries with the wrong token for ever."""

    async def connect(self) -> None:
        try:
            await super().connect()
        except PhaseBusError as error:
            raise UnavailableError(str(error)) from None


class Forgiving(Reference):
    """Gives up a whole batch for one row, and says nothing."""

    async def send(self, rows: Sequence[Row]) -> None:
        try:
            await super().send(rows)
        except RefusedRowsError:
            self.log.warning("refused", rows=len(rows))


class Unbounded(Reference):
    """Does not hear how many rows a second it may send."""

    def __init__(self, url: str, token: Secret, **limits: Unpack[Limits]) -> None:
        limits["max_rows_per_s"] = 0.0
        super().__init__(url, token, **limits)
