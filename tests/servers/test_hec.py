"""The HTTP Event Collector that tests use."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from phase_bus.testing.waiting import wait_until
from tests.support.servers.hec import TOKEN, Hec
from tests.support.servers.process import request

CHANNEL = "fe0ecfad-13d5-401b-847d-77833bd77131"


def send(
    server: Hec, *events: Any, path: str = "event", channel: str = CHANNEL, **headers: str
) -> tuple[int, Any]:
    body = "".join(json.dumps(event) for event in events).encode()
    return post(server, path, body, channel, **headers)


def post(server: Hec, path: str, body: bytes, channel: str = CHANNEL, **headers: str) -> tuple[int, Any]:
    given = {
        "Authorization": f"Splunk {TOKEN}",
        **({"X-Splunk-Request-Channel": channel} if channel else {}),
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("POST", f"{server.url}/services/collector/{path}", body, given | named)


def acknowledged(server: Hec, *ids: int) -> dict[str, bool]:
    _, answer = send(server, {"acks": list(ids)}, path="ack")
    acks: dict[str, bool] = answer["acks"]
    return acks


def test_a_batch_is_acknowledged_when_it_is_indexed(hec: Hec) -> None:
    status, answer = send(hec, {"time": 1.5, "event": {"n": 1}, "fields": {"run": "r"}}, {"event": "two"})
    assert (status, answer) == (200, {"text": "Success", "code": 0, "ackId": 0})
    assert send(hec, {"event": "three"})[1]["ackId"] == 1
    wait_until(lambda: len(hec.indexed) == 3)
    assert acknowledged(hec, 0, 1, 7) == {"0": True, "1": True, "7": False}
    assert acknowledged(hec, 0) == {"0": False}  # told once
    assert hec.indexed[0] == {"time": 1.5, "event": {"n": 1}, "fields": {"run": "r"}}


def test_a_kill_loses_what_was_accepted_and_not_indexed(hec: Hec) -> None:
    assert send(hec, {"event": "kept"})[0] == 200
    wait_until(lambda: len(hec.indexed) == 1)
    hec.index_after_s = 600.0
    assert send(hec, {"event": "lost"})[1]["ackId"] == 1
    hec.kill()
    hec.start()
    assert acknowledged(hec, 0, 1) == {"0": False, "1": False}
    assert (hec.accepted, [event["event"] for event in hec.indexed]) == (2, ["kept"])


def test_a_compressed_and_a_raw_body(hec: Hec) -> None:
    assert (
        post(hec, "event", gzip.compress(b'{"event": 1} \n {"event": 2}'), Content_Encoding="gzip")[0]
        == 200
    )
    assert post(hec, "raw", b"line one\nline two\n")[0] == 200
    wait_until(lambda: len(hec.indexed) == 4)
    assert [event["event"] for event in hec.indexed] == [1, 2, "line one", "line two"]


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [("Bearer x", 401, 3), ("Splunk wrong", 403, 4)],
)
def test_a_wrong_token(hec: Hec, authorization: str, status: int, code: int) -> None:
    found, answer = send(hec, {"event": 1}, Authorization=authorization)
    assert (found, answer["code"]) == (status, code)


def test_no_token(hec: Hec) -> None:
    status, answer = request("POST", f"{hec.url}/services/collector/event", b"{}")
    assert (status, answer["code"]) == (401, 2)


@pytest.mark.parametrize(
    ("body", "channel", "code"),
    [
        (b"", CHANNEL, 5),
        (b"no json", CHANNEL, 6),
        (b'{"event": 1, "index": "other"}', CHANNEL, 7),
        (b'{"event": 1}', "", 10),
        (b'{"event": 1}', "no-guid", 11),
        (b'{"time": 1}', CHANNEL, 12),
        (b'{"event": ""}', CHANNEL, 13),
        (b'{"event": 1, "fields": {"a": {"b": 1}}}', CHANNEL, 15),
    ],
)
def test_what_is_wrong_is_refused(hec: Hec, body: bytes, channel: str, code: int) -> None:
    status, answer = post(hec, "event", body, channel)
    assert (status, answer["code"]) == (400, code)
    assert hec.accepted == 0


@pytest.mark.parametrize(("keeps", "indexed"), [(False, []), (True, ["good"])])
def test_the_bad_event_of_a_batch_is_told(hec: Hec, keeps: bool, indexed: list[str]) -> None:
    hec.keeps_before_bad = keeps
    _, answer = send(hec, {"event": "good"}, {"event": None}, {"event": "after"})
    assert (answer["code"], answer["invalid-event-number"]) == (12, 1)
    wait_until(lambda: [event["event"] for event in hec.indexed] == indexed)


def test_a_busy_server(hec: Hec) -> None:
    hec.busy = 1
    status, answer = send(hec, {"event": 1})
    assert (status, answer) == (503, {"text": "Server is busy", "code": 9})
    assert send(hec, {"event": 1})[0] == 200
    assert hec.answers == [9, 0]


def test_without_acknowledgement_no_channel_is_needed(hec: Hec) -> None:
    hec.ack = False
    assert send(hec, {"event": 1}, channel="") == (200, {"text": "Success", "code": 0})
    assert send(hec, {"acks": [0]}, path="ack")[1]["code"] == 14
