"""Appending to a stream, against a client that answers as a server was seen to."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from phase_bus.jetstream.batch import Addressed, MovedError, append
from phase_bus.jetstream.connection import Connection

_MESSAGE = Addressed("s.bus.run_start.r", b"event")
_CONDITION = {
    "Nats-Expected-Last-Subject-Sequence": "7",
    "Nats-Expected-Last-Subject-Sequence-Subject": "s.bus.>",
}
_MOVED = {"error": {"err_code": 10071, "description": "wrong last sequence: 8"}}
_UNDER_WAY = {"error": {"err_code": 10164, "description": "wrong last sequence"}}


class _Client:
    """Takes messages, and gives answers that are there before; the last one for ever."""

    is_connected = True
    stats: ClassVar = {"reconnects": 0}

    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers = list(answers)
        self.headers: list[dict[str, str]] = []

    async def publish(self, _subject: str, _data: bytes, *, headers: dict[str, str]) -> None:
        self.headers.append(headers)

    async def request(self, _subject: str, _data: bytes, **options: Any) -> Any:
        self.headers.append(options["headers"])
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return SimpleNamespace(data=json.dumps(answer).encode())


def _connection(client: _Client) -> Connection:
    return cast(Connection, SimpleNamespace(client=client, address="nats://127.0.0.1:4222"))


async def test_one_message_is_no_batch() -> None:
    client = _Client({"seq": 8})
    assert await append(_connection(client), [_MESSAGE], "s.bus.>", 7) == 8
    assert client.headers == [_CONDITION]


async def test_several_messages_are_a_batch_on_one_condition() -> None:
    client = _Client({"seq": 10})
    assert await append(_connection(client), [_MESSAGE] * 3, "s.bus.>", 7) == 10
    batch = client.headers[0]["Nats-Batch-Id"]
    assert client.headers == [
        {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": "1", **_CONDITION},
        {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": "2"},
        {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": "3", "Nats-Batch-Commit": "1"},
    ]


async def test_what_is_under_way_is_waited_for() -> None:
    client = _Client(_UNDER_WAY, _UNDER_WAY, {"seq": 10})
    assert await append(_connection(client), [_MESSAGE] * 2, "s.bus.>", 7) == 10
    assert len({headers["Nats-Batch-Id"] for headers in client.headers}) == 3


@pytest.mark.parametrize("answer", [_MOVED, _UNDER_WAY])
async def test_what_somebody_else_has_appended_is_told(answer: dict[str, Any]) -> None:
    with pytest.raises(MovedError):
        await append(_connection(_Client(answer)), [_MESSAGE], "s.bus.>", 7)
