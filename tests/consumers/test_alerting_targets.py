"""Whom the ``alerting`` consumer tells: webhooks, PagerDuty, and services by Apprise."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import apprise
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from phase_bus import ConfigError, Secret
from phase_bus.consumer.options import build_consumer
from phase_bus.errors import OptionError
from phase_bus.events import EventBase, RunComplete
from phase_bus.testing import MemoryBus, until
from phase_bus_consumers.alerting import PhaseAlerts
from phase_bus_consumers.alerting_apprise import Service, services
from phase_bus_consumers.alerting_conditions import Alert
from phase_bus_consumers.alerting_delivery import UndeliveredError
from phase_bus_consumers.alerting_targets import Webhook as WebhookTarget
from tests.consumers.test_alerting_states import complete, progress
from tests.consumers.test_http import serving
from tests.support.servers.mail import MailServer
from tests.support.servers.webhook import Webhook

KEY = "0123456789abcdef0123456789abcdef"
PAGE = Path(__file__).parents[2] / "docs" / "guide" / "sinks" / "alerting.md"
ALERT = Alert("run_failed", "run r1 failed", "r1", "", 1, {})
RUN = (progress(61), complete(75), RunComplete(run_id="r1", status="failed", reason="why"))


@pytest.fixture(autouse=True)
def soon_and_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("phase_bus_consumers.alerting_delivery._LONGEST_WAIT_S", 0.2)


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as lines:
        yield lines


async def tell(*events: EventBase, **options: Any) -> Any:
    """Give events to a consumer, with flushes between them; return what became of it."""
    bus = MemoryBus()
    async with bus.consumer(PhaseAlerts, name="alerting", **options) as run:
        for event in events:
            bus.publish(event)
            await run.catch_up()
            await run.flush()
        await until(lambda: not run.consumer._deliveries)
    return run


# ---- webhook ----


async def test_every_change_is_a_cloud_event(webhook: Webhook) -> None:
    await tell(*RUN, webhook=webhook.url, webhook_format="cloudevents", run_end=True)
    events = [each.json for each in webhook.received]
    told = [(each["type"], each["subject"]) for each in events]
    assert told[:2] == [
        ("phase-bus.alert.firing", "r1/profiling"),
        ("phase-bus.alert.resolved", "r1/profiling"),
    ]
    assert sorted(told[2:]) == [("phase-bus.alert.firing", "r1"), ("phase-bus.run.ended", "r1")]
    first = events[0]
    assert (first["specversion"], first["source"]) == ("1.0", "phase-bus/alerting")
    assert first["id"] == "r1/profiling/slow_phase/firing/61000000000"
    assert first["time"] == "1970-01-01T00:01:01.000000Z"
    assert first["data"]["details"] == {"duration_s": 61.0, "threshold_s": 60.0}
    assert len({each["id"] for each in events}) == 4
    content_type = webhook.received[0].headers["content-type"]
    assert content_type == "application/cloudevents+json; charset=utf-8"


async def test_a_webhook_in_its_own_format_gets_what_fires(webhook: Webhook) -> None:
    """As ever: what is over is no alert to those who know nothing of states."""
    await tell(*RUN, webhook=webhook.url, run_end=True)
    assert [each.json["kind"] for each in webhook.received] == ["slow_phase", "run_failed"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_webhook_that_is_elsewhere_has_not_got_the_alert(status: int) -> None:
    """The request after a redirection has no body, and its success says nothing."""
    met: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        met.append(request.path)
        there = {"Location": "/elsewhere"}
        return web.Response(status=status, headers=there) if request.path == "/" else web.Response()

    async with serving(redirect) as url:
        with pytest.raises(UndeliveredError, match=f"HTTP Error {status}"):
            await WebhookTarget(url, 5.0, cloudevents=False, secret=None).send([ALERT])
    assert met == ["/"]


async def test_a_webhook_that_answers_byte_by_byte_is_given_up() -> None:
    """Each byte begins the time-out of a socket anew."""
    ended, closed = asyncio.Event(), asyncio.Event()

    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not ended.is_set():
            writer.write(b"X")
            await asyncio.sleep(0.02)
        writer.close()
        await writer.wait_closed()
        closed.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    with pytest.raises(UndeliveredError, match=r"no answer within 0\.2 s"):
        await asyncio.wait_for(WebhookTarget(url, 0.1, cloudevents=False, secret=None).send([ALERT]), 5)
    ended.set()
    await closed.wait()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("secret", "key"),
    [("a word", b"a word"), ("whsec_" + base64.b64encode(b"\0\1\2").decode(), b"\0\1\2")],
)
async def test_a_signature_is_verified_as_the_page_says(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, secret: str, key: bytes
) -> None:
    """The page's own function takes it; not with another secret, another body, or later."""
    namespace: dict[str, Any] = {}
    (code,) = re.findall(r'```python title="verify.py"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    exec(code, namespace)
    is_genuine: Callable[..., bool] = namespace["is_genuine"]
    monkeypatch.setenv("WEBHOOK_SECRET", secret)
    monkeypatch.setenv("WEBHOOK_URL", f"{webhook.url}/a/secret/place")
    await tell(
        RUN[0],
        webhook="env:WEBHOOK_URL",
        webhook_format="cloudevents",
        webhook_secret="env:WEBHOOK_SECRET",
    )
    (request,) = webhook.received
    assert request.path == "/a/secret/place"
    headers, body = request.headers, request.body
    assert is_genuine(headers, body, key)
    assert not is_genuine(headers, body, b"another")
    assert not is_genuine(headers, body.replace(b"61", b"62"), key)
    earlier = str(int(headers["webhook-timestamp"]) - 1)
    assert not is_genuine({**headers, "webhook-timestamp": earlier}, body, key)
    monkeypatch.setattr(time, "time", lambda: float(headers["webhook-timestamp"]) + 301)
    assert not is_genuine(headers, body, key)


# ---- PagerDuty ----


async def test_an_incident_is_opened_and_resolved(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trigger has a resolve of the same key, where something is over; a run's end is no incident."""
    monkeypatch.setenv("PAGERDUTY_KEY", KEY)
    webhook.status = 202
    url = f"{webhook.url}/v2/enqueue"
    await tell(*RUN, pagerduty="env:PAGERDUTY_KEY", pagerduty_url=url, run_end=True)
    events = [each.json for each in webhook.received]
    assert {each.path for each in webhook.received} == {"/v2/enqueue"}
    assert [(each["event_action"], each["dedup_key"]) for each in events] == [
        ("trigger", "r1/profiling/slow_phase"),
        ("resolve", "r1/profiling/slow_phase"),
        ("trigger", "r1//run_failed"),
    ]
    assert {each["routing_key"] for each in events} == {KEY}
    payload = events[0]["payload"]
    assert payload["summary"] == "phase profiling has been running for 61.0 s, more than 60 s"
    assert (payload["severity"], payload["source"]) == ("warning", "phase-bus/alerting")
    assert payload["custom_details"] == {"duration_s": 61.0, "threshold_s": 60.0}
    assert events[2]["payload"]["severity"] == "critical"


async def test_a_resolve_waits_until_pagerduty_is_back(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away while it fires and is over: both come then, in order."""
    monkeypatch.setenv("PAGERDUTY_KEY", KEY)
    monkeypatch.setattr("phase_bus_consumers.alerting_delivery._PATIENCE_S", 0.1)
    webhook.kill()
    telling = asyncio.create_task(tell(*RUN, pagerduty="env:PAGERDUTY_KEY", pagerduty_url=webhook.url))
    await asyncio.wait([telling], timeout=0.5)
    webhook.start()
    run = await telling
    assert not run.dead_letters
    slow = [e.json["event_action"] for e in webhook.received if "slow_phase" in e.json["dedup_key"]]
    assert slow == ["trigger", "resolve"]


async def test_what_pagerduty_refuses_is_a_dead_letter_at_once(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """What it says is told, without the key."""
    monkeypatch.setenv("PAGERDUTY_KEY", KEY)
    webhook.status = 400
    webhook.body = json.dumps({"status": "invalid event", "errors": [f"'{KEY}' is no routing_key"]})
    run = await tell(RUN[0], pagerduty="env:PAGERDUTY_KEY", pagerduty_url=webhook.url)
    (letter,) = run.dead_letters
    assert "invalid event" in letter.error
    assert len(webhook.received) == 1
    assert KEY not in f"{letter.error} {letter.traceback} {logs}"


# ---- Apprise ----


def place(tmp_path: Path, text: str, name: str = "urls") -> str:
    """Write addresses into a file; return what the option says."""
    file = tmp_path / name
    file.write_text(text)
    return f"file:{file}"


def told(webhook: Webhook) -> list[tuple[str, str, str]]:
    """Return title, body and kind of what Apprise's json:// sent."""
    return [tuple(each.json[key] for key in ("title", "message", "type")) for each in webhook.received]


async def test_changes_of_a_run_within_a_short_time_are_one_message(
    webhook: Webhook, tmp_path: Path
) -> None:
    """It waits for more until the run ends; what has changed twice is told as it is last."""
    url = place(tmp_path, f"# ours\njson://127.0.0.1:{webhook.port}/s3cret\n")
    await tell(*RUN, notify=url, group_s=60, run_end=True)
    assert told(webhook) == [
        (
            "[FIRING, RESOLVED, ENDED] run r1: slow phase, run failed, run end",
            "RESOLVED: phase profiling is complete after 75.0 s (the limit is 60 s)\n"
            "FIRING: run r1 failed: why\n"
            "ENDED: run r1 failed: why: 0 records; profiling: 0 requests, 0 errors (0.0%) in 75.0 s",
            "warning",
        )
    ]


async def test_without_grouping_each_change_is_a_message(webhook: Webhook, tmp_path: Path) -> None:
    url = place(tmp_path, f"json://127.0.0.1:{webhook.port}/s3cret")
    await tell(*RUN[:2], notify=[url], group_s=0)
    assert [(title, kind) for title, _, kind in told(webhook)] == [
        ("[FIRING] run r1: slow phase", "warning"),
        ("[RESOLVED] run r1: slow phase", "success"),
    ]


async def test_a_group_is_not_lost_with_its_process(webhook: Webhook, tmp_path: Path) -> None:
    """The checkpoint stays where it is while a group waits."""
    use: dict[str, Any] = {
        "name": "a",
        "notify": place(tmp_path, f"json://127.0.0.1:{webhook.port}/s3cret"),
        "group_s": 60,
    }
    bus = MemoryBus()
    async with bus.consumer(PhaseAlerts, **use) as run:
        bus.publish(RUN[0])
        await run.catch_up()
        await run.flush()
        await run.crash()
    assert not webhook.received
    async with bus.consumer(PhaseAlerts, **use) as run:
        await run.catch_up()
    assert len(webhook.received) == 1


async def test_slack(webhook: Webhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the address that Slack shows for an incoming webhook."""
    slack = type(apprise.Apprise.instantiate("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7"))
    monkeypatch.setattr(slack, "webhook_url", f"{webhook.url}/services")
    url = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7\n"
    await tell(RUN[0], notify=place(tmp_path, url), group_s=0)
    (request,) = webhook.received
    assert request.path == "/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7"
    assert "has been running for 61.0 s" in request.body.decode()
    assert "[FIRING] run r1: slow phase" in request.body.decode()


async def test_mail(mail_server: MailServer, tmp_path: Path) -> None:
    url = (
        f"mailto://127.0.0.1:{mail_server.port}"
        "?from=bench@example.com&to=me@example.com&mode=insecure&format=text\n"
    )
    await tell(RUN[0], notify=place(tmp_path, url), group_s=0)
    (mail,) = mail_server.messages
    assert mail["Subject"] == "[FIRING] run r1: slow phase"
    assert "has been running for 61.0 s, more than 60 s" in str(mail)
    assert mail_server.recipients == [["me@example.com"]]


async def test_a_service_that_is_away_and_comes_back(
    webhook: Webhook,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logs: list[MutableMapping[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Others get their message meanwhile, once; no part of an address is in a log."""
    monkeypatch.setattr("phase_bus_consumers.alerting_delivery._PATIENCE_S", 0.1)
    caplog.set_level(logging.INFO)
    with Webhook() as other:
        text = f"json://me:pa55word@127.0.0.1:{webhook.port}/s3cret\njson://127.0.0.1:{other.port}/\n"
        webhook.status = 500
        bus = MemoryBus()
        use: dict[str, Any] = {"notify": place(tmp_path, text), "group_s": 0}
        async with bus.consumer(PhaseAlerts, **use) as run:
            bus.publish(RUN[0])
            await run.catch_up()
            await run.flush()
            await until(lambda: bool(other.received) and len(webhook.received) > 1)
            webhook.status = 200
            await until(lambda: not run.consumer._deliveries)
            assert await run.flush()
        assert len(other.received) == 1
    errors = [str(line["error"]) for line in logs if "error" in line]
    assert errors[0].startswith("notify 1 (JSON): ")
    assert "500" in errors[0]
    assert not re.search(r"s3cret|pa55word", f"{logs} {caplog.text}")


async def test_a_service_that_hangs_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """One that never returns is not given a second message, nor waited for at the end."""
    monkeypatch.setattr("phase_bus_consumers.alerting_apprise._HUNG_S", 0.0)
    release = threading.Event()
    url = place(tmp_path, "json://127.0.0.1:9/s3cret")
    (service,) = services([Secret(url)], 0.05)
    monkeypatch.setattr(type(service._service), "notify", lambda *_a, **_k: release.wait(20))
    await tell(RUN[0], notify=url, group_s=0, timeout_s=0.05, retry_s=0.5)
    release.set()
    errors = [str(line["error"]) for line in logs if "error" in line]
    assert "no answer within" in errors[0]
    assert "still has the last message in hand" in errors[-1]


@pytest.mark.parametrize(
    "text",
    [
        "bogus://t0psecret\n",
        "json://127.0.0.1/\nslack://t0p secret\n",
        "urls:\n  - json://localhost\n  - bogus://t0psecret\n",
        "t0psecret\n",
    ],
)
def test_an_address_that_apprise_does_not_know(text: str, tmp_path: Path) -> None:
    """One line says where it stands, not what it is."""
    with pytest.raises(ConfigError, match=r"notify: file:.* Apprise does not know") as caught:
        services([Secret(place(tmp_path, text))], 5.0)
    assert not re.search("t0p ?secret", str(caught.value))


def test_an_apprise_yaml(tmp_path: Path) -> None:
    (text,) = re.findall(r'```yaml title="notify.yaml"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    text = textwrap.dedent(text).replace(
        "TOKEN_A/TOKEN_B/TOKEN_C", "T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7"
    )
    found = services([Secret(place(tmp_path, text, "notify.yaml"))], 3.0)
    assert [each.name for each in found] == ["notify 1 (Slack)", "notify 2 (E-Mail)"]
    assert all(isinstance(each, Service) and each.groups for each in found)
    assert found[1]._service.socket_connect_timeout == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"notify": "slack://t0psecret"}, "not given in clear"),
        ({"notify": "[env:A, slack://t0psecret]"}, "not given in clear"),
        ({"pagerduty": "t0psecret"}, "not given in clear"),
        ({"webhook_secret": "t0psecret"}, "not given in clear"),
        ({"webhook_secret": "env:A"}, "give both"),
        ({"pagerduty": "env:A", "pagerduty_url": "ftp://x"}, "pagerduty_url must be an address"),
        ({"webhook": "http://127.0.0.1/t0p secret"}, "webhook must be an address"),
        ({"webhook_format": "xml"}, "webhook_format"),
        ({"group_s": "-1"}, "must not be negative"),
    ],
)
def test_wrong_options_are_refused_without_what_may_be_a_secret(
    options: dict[str, str], message: str
) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        build_consumer(PhaseAlerts, "alerting", options)
    assert not re.search("t0p ?secret", str(caught.value))


@pytest.mark.parametrize("option", ["notify", "pagerduty", "webhook_secret", "webhook"])
async def test_a_secret_that_is_missing_is_told_at_the_start(option: str) -> None:
    options: dict[str, Any] = {option: "env:NO_SUCH_SECRET"}
    if option == "webhook_secret":
        options["webhook"] = "http://127.0.0.1:9/"
    consumer = build_consumer(PhaseAlerts, "alerting", options)
    with pytest.raises(ConfigError, match="env:NO_SUCH_SECRET"):
        await consumer.start()


async def test_apprise_is_needed_for_notify_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed everything else works; a line says what to install."""
    monkeypatch.setitem(sys.modules, "apprise", None)
    monkeypatch.delitem(sys.modules, "phase_bus_consumers.alerting_apprise")
    monkeypatch.setenv("PAGERDUTY_KEY", KEY)
    consumer = build_consumer(
        PhaseAlerts,
        "alerting",
        {"command": "true", "webhook": "http://127.0.0.1:9/", "pagerduty": "env:PAGERDUTY_KEY"},
    )
    await consumer.start()
    with pytest.raises(ConfigError, match=r"notify: apprise is missing; .*phase-bus\[alerting\]"):
        await build_consumer(PhaseAlerts, "alerting", {"notify": "env:PAGERDUTY_KEY"}).start()
